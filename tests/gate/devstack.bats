#!/usr/bin/env bats
# devstack-vm-gate.sh: the settings that it writes for a devstack, and what it runs.
# Each test has an environment of its own, and what is in single quotes is for other shells:
# shellcheck disable=SC1078,SC1079,SC2016,SC2030,SC2031,SC2034,SC2119,SC2120,SC2154,SC2317

bats_require_minimum_version 1.5.0
load helper.bash

setup() {
    setup_gate
    export BASE=$BATS_TEST_TMPDIR/stack
    DEVSTACK=$BASE/new/devstack
    mkdir -p "$DEVSTACK" "$BATS_TEST_TMPDIR/bin"
    # No sudo: there are no rights to take away here.
    printf '#!/bin/sh\nexit 1\n' > "$BATS_TEST_TMPDIR/bin/sudo"
    # What would run tempest.
    printf '#!/bin/sh\nprintf "tox in %%s:" "${PWD##*/}"; printf " <%%s>" "$@"; echo\nexit "${TOX_STATUS:-0}"\n' > "$BATS_TEST_TMPDIR/bin/tox"
    chmod +x "$BATS_TEST_TMPDIR/bin/"*
    PATH=$BATS_TEST_TMPDIR/bin:$PATH
    script stack.sh 'grep -v "^$" local.conf'
}

# script NAME TEXT: a script of devstack's.
script() {
    printf '#!/bin/bash\n%s\n' "$2" > "$DEVSTACK/$1"
    chmod +x "$DEVSTACK/$1"
}

gate() {
    "$PROJECT_FOLDER/devstack-vm-gate.sh"
}

settings() {
    sed -E 's/=[0-9a-f]{24}$/=RANDOM/' "$DEVSTACK/local.conf"
}

@test "local.conf: ours, the services and the settings of the job, for the stack user only" {
    export ENABLED_SERVICES=s-proxy,-c-api DEVSTACK_LOCAL_CONFIG=$'A=1\n[[post-config|$NOVA_CONF]]\n[DEFAULT]\nb = 2'
    run -0 gate
    run -0 settings
    [[ $output == "
[[local|localrc]]
DEST=$BASE/new"$'\n'*$'\nADMIN_PASSWORD=RANDOM\n'*$'\nENABLED_SERVICES+=,s-proxy,-c-api\nA=1\n[[post-config|$NOVA_CONF]]\n[DEFAULT]\nb = 2' ]]
    [[ $(stat -c %a "$DEVSTACK/local.conf") == 600 ]]
}

@test "passwords differ, but for a second name of one, and from run to run, and are not on the console" {
    run -0 gate
    local first
    first=$(sed -n 's/.*=\([0-9a-f]\{24\}\)$/\1/p' "$DEVSTACK/local.conf")
    [[ $(wc -l <<< "$first") -eq 7 && $(sort -u <<< "$first" | wc -l) -eq 6 ]]
    [[ $output == *'ADMIN_PASSWORD=********'* ]]
    run -1 grep -F "$first" <<< "$output"
    run -0 gate
    run -1 grep -F "$first" "$DEVSTACK/local.conf"
}

@test "no part of the run shows a password on the console" {
    script exercise.sh 'sed -n "s/^ADMIN_PASSWORD=/OS_PASSWORD=/p" local.conf'
    run -0 gate
    [[ $output == *'OS_PASSWORD=********'* ]]
}

@test "localrc for a devstack that knows only that" {
    script stack.sh '. ./localrc; echo "services $ENABLED_SERVICES"'
    printf 'source localrc\n' > "$DEVSTACK/stackrc"
    export ENABLED_SERVICES='odd one'
    run -0 gate
    [[ $output == *'services ,odd one'* && ! -e $DEVSTACK/local.conf ]]
    run -1 grep -F '[[' "$DEVSTACK/localrc"
}

@test "an old local.conf goes, unless KEEP_LOCALRC says that it stays: then what it sets is not set again" {
    printf '[[local|localrc]]\nADMIN_PASSWORD=mine\nKEPT=1\n' > "$DEVSTACK/local.conf"
    KEEP_LOCALRC=1 run -0 gate
    [[ $(head -n 3 "$DEVSTACK/local.conf") == $'[[local|localrc]]\nADMIN_PASSWORD=mine\nKEPT=1' ]]
    [[ $(grep -c ADMIN_PASSWORD= "$DEVSTACK/local.conf") -eq 1 && $(grep -c "^DEST=$BASE/new$" "$DEVSTACK/local.conf") -eq 1 ]]
    run -0 gate
    run -1 grep KEPT "$DEVSTACK/local.conf"
}

@test "stack.sh failing with 42 ends it with 42, and nothing else is run" {
    script stack.sh 'echo going; exit 42'
    script exercise.sh 'echo exercising'
    run -42 gate
    [[ $output == *going* && $output != *exercising* && ${lines[-1]} == 'devstack-vm-gate.sh: stack.sh failed with 42' ]]
}

@test "exercises run when there are some and tempest is off; their status counts" {
    run -0 gate
    script exercise.sh 'echo exercising; exit 7'
    run -7 gate
    [[ $output == *exercising* ]]
    DEVSTACK_GATE_EXERCISES=0 run -0 gate
    mkdir "$BASE/new/tempest"
    DEVSTACK_GATE_TEMPEST=1 run -0 gate
    [[ $output != *exercising* && $output == *'tox in tempest: <-e> <smoke>'* ]]
    DEVSTACK_GATE_TEMPEST=1 DEVSTACK_GATE_EXERCISES=1 run -7 gate
}

@test "what tempest runs, and its status" {
    mkdir "$BASE/new/tempest"
    export DEVSTACK_GATE_TEMPEST=1 TEMPEST_CONCURRENCY=3
    DEVSTACK_GATE_TEMPEST_FULL=1 run -0 gate
    [[ $output == *'tox in tempest: <-e> <full> <--> <--concurrency> <3>'* ]]
    DEVSTACK_GATE_TEMPEST_ALL=1 run -0 gate
    [[ $output == *'<-e> <all> <--> <.*> <--concurrency> <3>'* ]]
    DEVSTACK_GATE_TEMPEST_REGEX='api.(x|y) z' run -0 gate
    [[ $output == *'<-e> <all> <--> <api.(x|y) z> <--concurrency> <3>'* ]]
    DEVSTACK_GATE_TEMPEST_TESTS=$'a.b.c d.e\nf' run -0 gate
    [[ $output == *'<-e> <all> <--> <(a\.b\.c|d\.e|f)> <--concurrency> <3>'* ]]
    DEVSTACK_GATE_TEMPEST_TESTS=$'a.b[id-9a,smoke]\nc.d \n' run -0 gate
    [[ $output == *'<-e> <all> <--> <(a\.b|c\.d)> <--concurrency> <3>'* ]]
    TOX_STATUS=9 run -9 gate
    grep -q '^ENABLED_SERVICES+=,tempest$' "$DEVSTACK/local.conf"
}

@test "what is asked for must be there" {
    DEVSTACK_GATE_EXERCISES=1 run -2 gate
    [[ $output == *DEVSTACK_GATE_EXERCISES* ]]
    DEVSTACK_GATE_TEMPEST=1 run -2 gate
    [[ $output == *DEVSTACK_GATE_TEMPEST* ]]
    DEVSTACK_GATE_GRENADE=1 run -2 gate
    [[ $output == *DEVSTACK_GATE_GRENADE* ]]
    rm "$DEVSTACK/stack.sh"
    run -2 gate
    [[ $output == *PROJECTS* ]]
}

@test "an upgrade: settings for the old and the new devstack, then grenade.sh with its status" {
    mkdir -p "$BASE/old/devstack" "$BASE/new/grenade"
    printf '#!/bin/bash\ncat localrc; exit 5\n' > "$BASE/new/grenade/grenade.sh"
    chmod +x "$BASE/new/grenade/grenade.sh"
    DEVSTACK_GATE_GRENADE=1 run -5 gate
    [[ $output == *"BASE_RELEASE_DIR=$BASE/old"*"TARGET_RELEASE_DIR=$BASE/new"* ]]
    grep -qx "DEST=$BASE/old" "$BASE/old/devstack/local.conf"
    grep -qx "DEST=$BASE/new" "$BASE/new/devstack/local.conf"
}

@test "a service that stack.sh leaves running does not hold the gate" {
    script stack.sh 'sleep 300 & echo $! > pid; echo up'
    run -0 timeout 60 "$PROJECT_FOLDER/devstack-vm-gate.sh" 3>&-
    [[ $output == *up* ]]
    kill "$(< "$DEVSTACK/pid")"
}
