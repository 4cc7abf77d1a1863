# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: what the run was given and what it tested, kept in memory from the start. At the
# end gate/reproduce.py makes logs/reproduce.sh of it. Secrets to hide are looked for in it, too.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

TESTED=''      # lines: each project with branch, sha1 and subject
CHANGE_SHA1='' # of the change under test, as it was checked out or merged

# Fill GIVEN: triples of kind, name and text for settings, functions of the job, and other variables.
note_given() {
    local name data
    local -a names
    local -A taken=()
    read -r -d '' -a names <<< "${DEVSTACK_GATE_PASS:-}" || true
    GIVEN=()
    for name in "${SETTINGS[@]}" "${names[@]}" "${!OVERRIDE_@}"; do
        if [[ ! $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ || ${taken[$name]:-} ]]; then continue; fi
        job_value "$name"
        if [[ ! $REPLY ]]; then continue; fi
        if [[ $name == OVERRIDE_* ]] && ! is_known "$name"; then continue; fi
        taken[$name]=1
        GIVEN+=(setting "$name" "$REPLY")
    done
    for name in "${!JOB_FUNCTIONS[@]}"; do GIVEN+=(function "$name" "$name ${JOB_FUNCTIONS[$name]}"); done
    read -r name _ <<< "${DEVSTACK_GATE_SETTINGS:-}" || true
    if [[ -f $name && -r $name ]]; then
        data=$({ head -c 1048576 -- "$name" || true; } | tr -d '\0')
        GIVEN+=(text '' "$data")
    fi
    # It holds the passwords of boxes.
    name=${TEST_ENVIRONMENT_FILE:-$ENVIRONMENT.json}
    if [[ -r $name ]]; then
        data=$(head -c 1048576 -- "$name")
        GIVEN+=(json TEST_ENVIRONMENT_FILE "$data")
    fi
    # Names that are none to bash, such as vendor.password, which the job's processes get all the same.
    while IFS= read -r -d '' data; do
        name=${data%%=*}
        if [[ $name == *[!A-Za-z0-9_]* && $name != BASH_FUNC_* ]]; then GIVEN+=(environment "$name" "${data#*=}"); fi
    done < "/proc/$$/environ"
    for name in $(compgen -e || true) "${!JOB_VARIABLES[@]}"; do
        if [[ ${taken[$name]:-} ]]; then continue; fi
        taken[$name]=1
        job_value "$name"
        GIVEN+=(environment "$name" "$REPLY")
    done
}

# note_tested PROJECT...: note what was checked out of each.
note_tested() {
    # shellcheck disable=SC2034  # gate/logs.sh tells it
    TESTED=$(print_projects "$@" && isolated print_heads "$@")
    # shellcheck disable=SC2034  # gate/logs.sh tells it
    if [[ -r $RUN/change ]]; then read -r CHANGE_SHA1 < "$RUN/change" || true; fi
}

# print_heads PROJECT...: print a line for each of their trees: its folder and the commit that was checked out.
print_heads() {
    local project tree sha
    for project in "$@"; do
        for tree in old new; do
            if sha=$(git -C "$BASE/$tree/${project##*/}" rev-parse --verify -q HEAD 2> /dev/null); then
                printf '%s %s\n' "$tree/${project##*/}" "$sha"
            fi
        done
    done
}
