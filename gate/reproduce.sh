# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: logs/reproduce.sh, which runs the same test again.
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310

# reproduce.sh runs the same thing again: our settings and hooks, and what was tested.
write_reproduce() {
    local file=$LOGS/reproduce.sh
    {
        printf '#!/usr/bin/env bash\n'
        printf '# Runs this test again: [WORKSPACE=FOLDER] [DEVSTACK_GATE=FOLDER] reproduce.sh [[USER@]HOST]\n'
        printf '# DEVSTACK_GATE is a checkout of devstack-gate. Secrets are left out.\n\n'
        # shellcheck disable=SC2016  # expanded when it runs
        printf 'folder=${WORKSPACE:-%q}\n' "$WORKSPACE"
        WORKSPACE='' DEVSTACK_GATE_THIS_HOST='' print_settings leave_out_secrets
        print_functions | leave_out_secrets
        # shellcheck disable=SC2016
        printf 'export WORKSPACE=$folder\nmkdir -p -- "$WORKSPACE"\n'
        # shellcheck disable=SC2016
        printf 'gate=${DEVSTACK_GATE:-%q}\nexec "$gate/devstack-vm-gate-wrap.sh" "$@"\n\n# What was tested:\n' "$HERE"
    } > "$file"
    chmod 755 -- "$file"
}

# Of a value: logins in URLs, and what is assigned to names that sound secret.
leave_out_secrets() {
    sed -E -e 's,(://)[^/@[:space:]]*@,\1,g' -e 's/^(.*(PASSWORD|PASSWD|SECRET|TOKEN|APIKEY|API_KEY|PRIVATE_KEY|CREDENTIAL)[A-Z_0-9]*[[:blank:]]*[=:]).*/\1left-out/I'
}
