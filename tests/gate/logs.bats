#!/usr/bin/env bats
# What the wrap script keeps of a run for its logs. tests/test_gate_logs.py tests what is collected, and how.
# Each test has its own environment, and text in single quotes is for other shells:
# shellcheck disable=SC1078,SC1079,SC2016,SC2030,SC2031,SC2034,SC2119,SC2120,SC2154,SC2317

bats_require_minimum_version 1.5.0
load helper.bash

setup() {
    setup_gate
    HERE=$PROJECT_FOLDER BASE=$BATS_TEST_TMPDIR/stack
    # shellcheck source=devstack-vm-gate-wrap.sh
    . "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    # shellcheck source=gate/logs.sh
    . "$PROJECT_FOLDER/gate/logs.sh"
    # shellcheck source=gate/reproduce.sh
    . "$PROJECT_FOLDER/gate/reproduce.sh"
}

# given KIND PATTERN: print the triples of GIVEN of this kind whose names match, one per line.
given() {
    local at
    for (( at = 0; at < ${#GIVEN[@]}; at += 3 )); do
        # shellcheck disable=SC2053  # a pattern
        if [[ ${GIVEN[at]} == "$1" && ${GIVEN[at + 1]} == $2 ]]; then printf '%s=%q\n' "${GIVEN[at + 1]}" "${GIVEN[at + 2]}"; fi
    done
}

@test "a line without an end is a line" {
    run -0 bash -c '. "$1/functions.sh"; printf "one\ntwo" | stamp | wc -l' bash "$PROJECT_FOLDER"
    [[ $output == 2 ]]
}

@test "a reason to end is one printable line of bounded length without logins, whatever it quotes" {
    run -2 --separate-stderr bash -c '. "$1/functions.sh"; die 2 "$2"' bash "$PROJECT_FOLDER" $'X: not a\n\e[31mb https://u:secret@h/'
    [[ $stderr == 'bash: X: not a  [31mb https://h/' ]] || { printf '%s\n' "$stderr"; return 1; }
    run -2 --separate-stderr bash -c '. "$1/functions.sh"; die 2 "$(printf %05000d 1)"' bash "$PROJECT_FOLDER"
    (( ${#stderr} < 1100 ))
}

@test "logins are hidden whatever is in them, and nothing else is" {
    run -0 hide_logins <<< 'https://me:a@b@h/x ssh://u:p/q@h/y ssh://git@h:29418/z git+https://h/repo@branch http://h:8080/x@y'
    [[ $output == 'https://h/x ssh://h/y ssh://git@h:29418/z git+https://h/repo@branch http://h:8080/x@y' ]] || { printf '%s\n' "$output"; return 1; }
}

@test "secrets of devstack's settings are hidden: what is like nothing else everywhere, a common word as a value" {
    printf '%s\n' 'ADMIN_PASSWORD=short' 'DB_PASSWORD=longenough1 # c' 'AWS_ACCESS_KEY_ID=AKIACANARY51' 'AWS_SECRET_ACCESS_KEY=CANARY52long' \
        'RABBIT_PASS=CANARY53' 'export A=1; DB_PASSWORD=CANARY54' 'K_SECRET_KEY=CANARY55' 'DATABASE_URL=mysql://root:CANARY56@h' \
        'SERVICE_TOKEN="CANARY57"' > "$BATS_TEST_TMPDIR/settings"
    run -0 hide_secrets "$BATS_TEST_TMPDIR/settings" < <(printf '%s\n' 'short password=short' longenough1 AKIACANARY51 CANARY52long CANARY53 \
        CANARY54 CANARY55 CANARY56 CANARY57 'PASSED in /opt/stack')
    [[ $output == $'short password=********\n********\n********\n********\n********\n********\n********\n********\n********\nPASSED in /opt/stack' ]] \
        || { printf '%s\n' "$output"; return 1; }
}

@test "what the run was given is kept: settings, variables that the job names, all exported functions" {
    own() { :; }
    JOB_FUNCTIONS=([helper]='() { echo helping; }' [gate_hook]='() { helper; }')
    export DEVSTACK_LOCAL_CONFIG=$'A=1\nB="x y"' OVERRIDE_NOVA_PROJECT_BRANCH=x MINE=$'m\ne' DEVSTACK_GATE_PASS='MINE NOT_SET x[$(touch owned)]' API_TOKEN=t
    read_variables
    note_given
    run -0 given setting 'DEVSTACK_LOCAL_CONFIG'
    [[ $output == "DEVSTACK_LOCAL_CONFIG=\$'A=1\\nB=\"x y\"'" ]] || { printf '%s\n' "$output"; return 1; }
    run -0 given setting 'OVERRIDE_*'
    [[ $output == 'OVERRIDE_NOVA_PROJECT_BRANCH=x' ]]
    run -0 given setting MINE
    [[ $output == "MINE=\$'m\\ne'" ]]
    run -0 given environment API_TOKEN
    [[ $output == 'API_TOKEN=t' ]]
    run -0 given function '@(helper|gate_hook|own)'
    [[ $output == *gate_hook=* && $output == *helping* && $output != *own=* ]]
    [[ ! -e owned ]]
    # shellcheck disable=SC2016  # another bash expands it
    run -0 env 'vendor.password=hunter2' bash -c '. "$1/gate/reproduce.sh"; note_given; printf "%s\n" "${GIVEN[@]}"' bash "$PROJECT_FOLDER"
    [[ $output == *$'environment\nvendor.password\nhunter2'* ]]
}

@test "known failures are read at the start, and what is wrong in them is told" {
    check_known_failures
    [[ $KNOWN_FAILURES == *'disk full'* ]]
    printf '[a]\npattern = (\nfiles = *\ntext = x\n' > "$BATS_TEST_TMPDIR/known.ini"
    export DEVSTACK_GATE_KNOWN_FAILURES=$BATS_TEST_TMPDIR/known.ini
    run -2 check_known_failures
    [[ $output == *": DEVSTACK_GATE_KNOWN_FAILURES: $BATS_TEST_TMPDIR/known.ini: [a] pattern: expected an extended regular expression"* ]]
    DEVSTACK_GATE_KNOWN_FAILURES=/nowhere
    run -2 check_known_failures
    [[ $output == *'DEVSTACK_GATE_KNOWN_FAILURES: /nowhere: cannot be read: No such file or directory' ]]
}

@test "logs that could not be collected leave logs/, which Jenkins keeps, and that is told" {
    # shellcheck source=gate/clock.sh
    . "$PROJECT_FOLDER/gate/clock.sh"
    # shellcheck source=gate/group.sh
    . "$PROJECT_FOLDER/gate/group.sh"
    LOGS=$BATS_TEST_TMPDIR/logs RUN=$BATS_TEST_TMPDIR/run GATE_STOP=0 GATE_TOOLS=$BATS_TEST_TMPDIR/broken
    mkdir -- "$LOGS" "$RUN" "$GATE_TOOLS"
    printf 'def broken(:\n' > "$GATE_TOOLS/collectlogs.py"
    printf 'token\n' > "$LOGS/gate_hook.txt"
    run -0 --separate-stderr finish_logs 0 '' PASS
    local -a aside=("$LOGS"-uncollected-*)
    [[ ${lines[1]} == "The logs could not be collected: they may hold secrets, and are in ${aside[0]}." ]] || { printf '%s\n' "$output"; return 1; }
    [[ $(ls -A -- "$LOGS") == cleanup-host.txt && $(< "$LOGS/cleanup-host.txt") == "${lines[1]}" ]]
    [[ $(< "${aside[0]}/logs/gate_hook.txt") == token && $(stat -c %a -- "${aside[0]}") == 700 ]]
}

@test "words that a test leaves for our last line are one line of ours" {
    printf 'stack.sh\e[2K\nPASS. Minutes: none\n' > "$BATS_TEST_TMPDIR/step"
    run -0 first_words "$BATS_TEST_TMPDIR/step"
    [[ $output == stack.sh ]]
    mkfifo "$BATS_TEST_TMPDIR/pipe"
    run -0 first_words "$BATS_TEST_TMPDIR/pipe"
    [[ $output == '' ]]
}

@test "of many notes those on tests that were not run come first, and the rest is counted" {
    NOTES=$(printf 'python-somewhatlong%sclient was not installed\n' {1..9})$'\nno test was run'
    run -0 print_notes
    [[ $output == 'no test was run; python-somewhatlong1client was not installed; '*'; and 4 more' && ${#output} -le 300 ]]
    NOTES=$'a was not used\nb was not installed'
    run -0 print_notes
    [[ $output == 'a was not used; b was not installed' ]]
    NOTES=''
    run -0 print_notes
    [[ ! $output ]]
}

@test "a tempest that was asked for and that a gate_hook did not run is told" {
    RUN=$BATS_TEST_TMPDIR
    mkdir -p "$BASE/gate" "$BASE/new/tempest/.stestr"
    JOB_FUNCTIONS[gate_hook]='() { install; }'
    settle_notes
    [[ ! $NOTES ]]
    DEVSTACK_GATE_TEMPEST=1
    settle_notes
    [[ $NOTES == 'tempest ran no test' ]]
    for case in 'touch "$BASE/new/tempest/.stestr/0"' 'echo stack.sh > "$BASE/gate/step"' DEVSTACK_GATE_TEMPEST_NOTESTS=1 \
        'JOB_FUNCTIONS[post_test_hook]='\''() { cd "$BASE/new/tempest"; tox; }'\'; do
        run -0 eval "$case; settle_notes; echo \"\$NOTES\""
        [[ ! ${output#devstack-vm-gate.sh did not pass: stack.sh} ]] || { echo "$case"; return 1; }
        rm -f "$BASE/new/tempest/.stestr/0" "$BASE/gate/step"
    done
}

@test "what a run is known of before its settings are noted" {
    GIVEN=() RUN=$BATS_TEST_TMPDIR LOGS=logs
    for name in STOPPED FAILED_PHASE MINUTES KIND_HINT NODE_LINES; do printf -v "$name" ''; done
    [[ $(print_facts 10 143 '' FAIL | head -c 4) == fact ]]
}

@test "a hook may have tested what devstack-vm-gate.sh has not; what else is told of the run stays" {
    mkdir -p "$BASE/gate"
    RUN=$BATS_TEST_TMPDIR
    printf 'neutron was not installed; no test was run' > "$BASE/gate/note"
    settle_notes
    [[ $NOTES == $'neutron was not installed\nno test was run' ]]
    JOB_FUNCTIONS[post_test_hook]='() { :; }'
    settle_notes
    [[ $NOTES == 'neutron was not installed' ]]
    printf 'tempest ran no test' > "$BASE/gate/note"
    settle_notes
    [[ $NOTES == 'tempest ran no test' ]]
    RUN_PROJECTS=(x/my.tests x/puppet)
    JOB_FUNCTIONS[post_test_hook]='() { "$BASE/new/my.tests/run"; }'
    printf 'my.tests was not used; puppet was not used' > "$BASE/gate/note"
    settle_notes
    [[ $NOTES == 'puppet was not used' ]]
    RUN_PROJECTS=(openstack/nova openstack/puppet-nova)
    JOB_FUNCTIONS[post_test_hook]='() { "$BASE/new/puppet-nova-extras/run" "$BASE/new/nova"; }'
    printf 'puppet-nova was not used; nova was not used' > "$BASE/gate/note"
    settle_notes
    [[ $NOTES == 'puppet-nova was not used' ]]
    JOB_FUNCTIONS=()
    printf 'tempest ran no test' > "$BASE/gate/note"
    settle_notes
    [[ $NOTES == 'no test was run' ]]
}

@test "a post_test_hook may install the change that it tests" {
    local packages=$BASE/new/neutron/.tox/functional/lib/python3.11/site-packages
    mkdir -p "$BASE/gate" "$packages"
    printf '[metadata]\nname = neutron\n' > "$BASE/new/neutron/setup.cfg"
    git -C "$BASE/new/neutron" init -q
    git -C "$BASE/new/neutron" add setup.cfg
    git -C "$BASE/new/neutron" commit -q -m change
    RUN=$BATS_TEST_TMPDIR RUN_PROJECTS=(openstack/neutron) JOB_FUNCTIONS[post_test_hook]='() { tox -e functional; }'
    CHANGES=("new/neutron:$(git -C "$BASE/new/neutron" rev-parse HEAD)")
    printf 'neutron was not installed; nova was not installed' > "$BASE/gate/note"
    settle_notes
    [[ $NOTES == $'neutron was not installed\nnova was not installed' ]]
    printf '%s\n' "$BASE/new/neutron" | tee "$packages/neutron.egg-link" > "$packages/easy-install.pth"
    settle_notes
    [[ $NOTES == 'nova was not installed' ]]
}

@test "a hook that calls our own scripts only has not used a devstack-gate whose change is skipped" {
    mkdir -p "$BASE/gate"
    RUN=$BATS_TEST_TMPDIR RUN_PROJECTS=(x/devstack-gate) SKIP_DEVSTACK_GATE_PROJECT=1
    printf 'devstack-gate was not used' > "$BASE/gate/note"
    JOB_FUNCTIONS[gate_hook]='() { cd $BASE/new/devstack-gate && ./devstack-vm-gate.sh; . $BASE/new/devstack-gate/functions.sh; }'
    settle_notes
    [[ $NOTES == 'devstack-gate was not used' ]]
    JOB_FUNCTIONS[gate_hook]='() { ansible-playbook "$BASE/new/devstack-gate/playbooks/x.yaml"; }'
    settle_notes
    [[ ! $NOTES ]]
}

@test "a devstack-vm-gate.sh that did not pass in a hook that went on is told, with what its hook has installed nowhere" {
    mkdir -p "$BASE/gate"
    RUN=$BATS_TEST_TMPDIR
    JOB_FUNCTIONS[gate_hook]='() { "$BASE/new/devstack-gate/devstack-vm-gate.sh"; true; }'
    printf 'adder: is installed nowhere: only what reads it has the change\n' > "$RUN/installed"
    printf 'stack.sh\n' > "$BASE/gate/step"
    : > "$BASE/gate/note"
    settle_notes
    [[ $NOTES == $'devstack-vm-gate.sh did not pass: stack.sh\nadder was not installed' ]]
    printf 'adder was not installed; cliff was not taken from its tree' > "$BASE/gate/note"
    settle_notes
    [[ $NOTES == $'devstack-vm-gate.sh did not pass: stack.sh\nadder was not installed\ncliff was not taken from its tree' ]]
    printf '%s\n' "$LAST_STEP" > "$BASE/gate/step"
    : > "$BASE/gate/note"
    settle_notes
    [[ ! $NOTES ]]
}
