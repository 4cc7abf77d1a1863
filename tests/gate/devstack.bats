#!/usr/bin/env bats
# devstack-vm-gate.sh: the settings that it writes for a devstack, and what it runs.
# Each test has its own environment, and text in single quotes is for other shells:
# shellcheck disable=SC1078,SC1079,SC2016,SC2030,SC2031,SC2034,SC2119,SC2120,SC2154,SC2317

bats_require_minimum_version 1.5.0
load helper.bash

setup() {
    setup_gate
    export BASE=$BATS_TEST_TMPDIR/stack
    DEVSTACK=$BASE/new/devstack
    mkdir -p "$DEVSTACK" "$BATS_TEST_TMPDIR/bin"
    # sudo fails: there are no rights to take away here.
    printf '#!/bin/sh\nexit 1\n' > "$BATS_TEST_TMPDIR/bin/sudo"
    # A stand-in for tox, which would run tempest.
    printf '#!/bin/sh\nprintf "tox in %%s:" "${PWD##*/}"; printf " <%%s>" "$@"; echo\nexit "${TOX_STATUS:-0}"\n' > "$BATS_TEST_TMPDIR/bin/tox"
    chmod +x "$BATS_TEST_TMPDIR/bin/"*
    PATH=$BATS_TEST_TMPDIR/bin:$PATH
    script stack.sh 'grep -v "^$" local.conf'
}

# script NAME TEXT: make a script of devstack's.
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
# devstack-gate: begin
[[local|localrc]]
DEST=$BASE/new"$'\n'*$'\nADMIN_PASSWORD=RANDOM\n'*$'\nENABLED_SERVICES+=,s-proxy,-c-api\nA=1\n[[post-config|$NOVA_CONF]]\n[DEFAULT]\nb = 2\n# devstack-gate: end' ]]
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
    export ENABLED_SERVICES='odd$one'
    run -0 gate
    [[ $output == *'services ,odd$one'* && ! -e $DEVSTACK/local.conf ]]
    run -1 grep -F '[[' "$DEVSTACK/localrc"
}

@test "what hooks left in local.conf stays, and what it sets is not set again; our own part is written anew" {
    printf '[[local|localrc]]\nADMIN_PASSWORD=mine\nKEPT=1\n[[post-config|$X]]\nLOGDIR=other\n' > "$DEVSTACK/local.conf"
    run -0 gate
    [[ $(head -n 3 "$DEVSTACK/local.conf") == $'[[local|localrc]]\nADMIN_PASSWORD=mine\nKEPT=1' ]]
    [[ $(grep -c ADMIN_PASSWORD= "$DEVSTACK/local.conf") -eq 1 && $(grep -c "^DEST=$BASE/new$" "$DEVSTACK/local.conf") -eq 1 ]]
    grep -qx "LOGDIR=$BASE/logs" "$DEVSTACK/local.conf"
    DEVSTACK_LOCAL_CONFIG=SECOND=1 run -0 gate
    [[ $(grep -cE 'KEPT=1|SECOND=1' "$DEVSTACK/local.conf") -eq 2 && $(grep -c "^DEST=" "$DEVSTACK/local.conf") -eq 1 ]]
}

@test "localrc beside local.conf: devstack, which would read the one only, is given both in local.conf" {
    printf '[[local|localrc]]\nFROM_CONF=1\n[[post-config|$X]]\n[a]\nb = c\n' > "$DEVSTACK/local.conf"
    printf 'FROM_RC=1\nSERVICE_PASSWORD=theirs' > "$DEVSTACK/localrc"
    run -0 gate
    [[ ! -e $DEVSTACK/localrc && $output == *"localrc: read as a section of local.conf"* ]]
    run -0 localrc_section
    [[ $output == *$'FROM_CONF=1\n'* && $output == *$'FROM_RC=1\nSERVICE_PASSWORD=theirs\n'* && $output == *"DEST=$BASE/new"* ]]
    [[ $output != *'b = c'* && $(grep -c SERVICE_PASSWORD= "$DEVSTACK/local.conf") -eq 1 ]]
}

@test "lines that a hook left in local.conf outside of any section are settings" {
    printf '# a comment\nHOOK=1\n[[post-config|$X]]\n[a]\nb = c\n' > "$DEVSTACK/local.conf"
    run -0 gate
    run -0 localrc_section
    [[ $output == *$'\nHOOK=1\n'* && $output != *'b = c'* ]]
    run -0 gate
    [[ $(grep -c HOOK=1 "$DEVSTACK/local.conf") -eq 1 ]]
}

@test "settings that devstack could not read end the run with 2" {
    printf 'A="open\n' > "$DEVSTACK/localrc"
    run -2 gate
    [[ $output == *"local.conf: expected lines of bash: "* ]]
    rm "$DEVSTACK/local.conf"
    mkdir "$DEVSTACK/local.conf"
    run -2 gate
    [[ $output == *"local.conf: expected a file that can be read"* ]]
    rm -r "$DEVSTACK/local.conf"
    printf 'source $TOP_DIR/localrc\n' > "$DEVSTACK/stackrc"
    script stack.sh 'cat localrc'
    DEVSTACK_LOCAL_CONFIG=$'[[post-config|$X]]\n[a]' run -2 gate
    [[ $output == *"DEVSTACK_LOCAL_CONFIG: expected no sections, this devstack reads localrc"* ]]
    printf 'A=1\n' > "$DEVSTACK/local.conf"
    run -2 gate
    [[ $output == *"local.conf: this devstack does not read it, expected localrc"* ]]
}

# Print the libraries that devstack takes from their trees, as bash reads our local.conf.
libraries() {
    localrc_section > "$BATS_TEST_TMPDIR/localrc"
    # shellcheck source=/dev/null
    (set -eu; . "$BATS_TEST_TMPDIR/localrc"; printf '%s\n' "${LIBS_FROM_GIT-none}")
}

localrc_section() {
    awk '/^\[\[/ { ours = /local\|localrc/; next } ours && !/^# devstack-gate/' "$DEVSTACK/local.conf"
}

# changed PROJECT...: make trees that have the change under test, in their folders devstack/.
changed() {
    local project
    for project in "$@"; do
        git init -q -- "$BASE/new/$project"
        git -C "$BASE/new/$project" commit -q --allow-empty -m start
        git -C "$BASE/new/$project" update-ref refs/remotes/origin/master HEAD
        printf 'refs/heads/master\n' > "$BASE/new/$project/.git/gate-ref"
        change "$project" devstack/plugin.sh
    done
}

# change PROJECT FILE: let the change be in this file, too.
change() {
    mkdir -p "$BASE/new/$1/$(dirname "$2")"
    printf 'true\n' > "$BASE/new/$1/$2"
    git -C "$BASE/new/$1" add "$2"
    git -C "$BASE/new/$1" commit -q -m "$2"
    git -C "$BASE/new/$1" rev-parse HEAD > "$BASE/new/$1/.git/gate-change"
}

@test "libraries with the change in them are taken from their trees, beside those that the job names" {
    run -0 gate
    [[ $(libraries) == none ]]
    changed oslo.utils python-novaclient devstack requirements
    run -0 gate
    [[ $(libraries) == oslo.utils,python-novaclient ]]
    LIBS_FROM_GIT=oslo.utils,cliff DEVSTACK_PROJECT_FROM_GIT='openstack/tooz,' run -0 gate
    [[ $(libraries) == oslo.utils,cliff,tooz,python-novaclient ]]
    DEVSTACK_LOCAL_CONFIG=$'LIBS_FROM_GIT=oslo.db\n[[post-config|$X]]\n[a]' run -0 gate
    [[ $(libraries) == oslo.db,oslo.utils,python-novaclient ]]
    DEVSTACK_LOCAL_CONFIG=LIBS_FROM_GIT=ALL run -0 gate
    [[ $(libraries) == ALL ]]
}

@test "a devstack that checks the names is told only those it knows" {
    mkdir -p "$DEVSTACK/inc" "$BASE/new/other/devstack"
    printf 'function check_libs_from_git {\n' > "$DEVSTACK/inc/python"
    printf 'GITREPO["oslo.utils"]=x\n' > "$DEVSTACK/stackrc"
    printf 'GITDIR["python-otherclient"]=x\n' > "$BASE/new/other/devstack/settings"
    changed oslo.utils nova python-otherclient
    run -0 gate || { echo "$output"; false; }
    [[ $(libraries) == oslo.utils,python-otherclient ]]
}

@test "a commit that is no longer in what is checked out is not tested" {
    changed oslo.utils
    script stack.sh "git -C '$BASE/new/oslo.utils' checkout -q --orphan other; git -C '$BASE/new/oslo.utils' commit -q --allow-empty -m other"
    script exercise.sh 'echo exercising'
    run -3 gate
    [[ $output == *'NOT TESTED: oslo.utils: the change '*' is not in what is checked out any more'* && $output != *exercising* ]]
}

@test "another tree in the place of one with a change is not tested, and the change's library stays named" {
    changed oslo.utils
    mkdir -p "$BASE/gate"
    printf 'new/oslo.utils:%s\n' "$(< "$BASE/new/oslo.utils/.git/gate-change")" > "$BASE/gate/changes"
    script exercise.sh 'echo exercising'
    script stack.sh "rm -rf '$BASE/new/oslo.utils/.git'; git init -q '$BASE/new/oslo.utils'"
    run -3 gate
    [[ $output == *'NOT TESTED: oslo.utils: the change '*' is not in what is checked out any more'* && $output != *exercising* ]]
    run -3 gate
    [[ $(libraries) == oslo.utils ]]
}

@test "a change to a distribution that devstack has not installed is told, unless it is an enabled plug-in" {
    mkdir -p "$BASE/gate"
    touch "$BASE/gate/note"
    script exercise.sh true
    changed neutron a-plugin requirements
    for project in neutron a-plugin requirements; do printf '[metadata]\nname = %s\n' "$project" > "$BASE/new/$project/setup.cfg"; done
    DEVSTACK_LOCAL_CONFIG='enable_plugin a-plugin https://x' run -0 gate
    [[ $(< "$BASE/gate/note") == 'neutron was not installed' ]]
    DEVSTACK_GATE_EXERCISES=0 run -0 gate
    [[ $(< "$BASE/gate/note") == 'a-plugin was not installed; neutron was not installed; no test was run' ]]
}

@test "an enabled plug-in whose code is installed nowhere is told, if the change is in that code" {
    mkdir -p "$BASE/gate"
    touch "$BASE/gate/note"
    script exercise.sh true
    changed a-plugin no-distribution
    printf '[metadata]\nname = a-plugin\n' > "$BASE/new/a-plugin/setup.cfg"
    export DEVSTACK_LOCAL_CONFIG=$'enable_plugin a-plugin https://x\nenable_plugin b https://x/no-distribution'
    change no-distribution files/x
    run -0 gate
    [[ ! $(< "$BASE/gate/note") ]]
    change a-plugin a_plugin/__init__.py
    printf '[diff]\n\texternal = true\n[broken\n' > "$HOME/.gitconfig"
    run -0 gate
    [[ $(< "$BASE/gate/note") == 'a-plugin was not installed' ]]
}

@test "tempest is run when nothing is chosen and there are no exercises" {
    mkdir -p "$BASE/new/tempest"
    run -0 gate
    [[ $output == *'tox in tempest: <-e> <smoke>'* ]]
    for choice in DEVSTACK_GATE_TEMPEST=0 DEVSTACK_GATE_EXERCISES=0 DEVSTACK_GATE_TEMPEST_NOTESTS=1; do
        run -0 env "$choice" "$PROJECT_FOLDER/devstack-vm-gate.sh"
        [[ $output != *'tox in'* ]] || { echo "$choice"; return 1; }
    done
    script exercise.sh 'echo exercising'
    run -0 gate
    [[ $output == *exercising* && $output != *'tox in'* ]]
}

@test "tempest runs with the constraints of the environment that devstack made" {
    mkdir -p "$BASE/new/tempest"
    printf '#!/bin/sh\necho "constraints: $UPPER_CONSTRAINTS_FILE $TOX_CONSTRAINTS_FILE timeout: $OS_TEST_TIMEOUT"\n' > "$BATS_TEST_TMPDIR/bin/tox"
    export DEVSTACK_GATE_TEMPEST=1
    run -0 gate
    [[ $output == *'constraints:   timeout: '* ]]
    printf '. ./localrc.auto\nTEMPEST_VENV_UPPER_CONSTRAINTS=${TEMPEST_VENV_UPPER_CONSTRAINTS:-master}\n' > "$DEVSTACK/stackrc"
    printf 'echo noise\n' > "$DEVSTACK/localrc.auto"
    TEMPEST_OS_TEST_TIMEOUT=500 run -0 gate
    [[ $output == *'constraints: https://releases.openstack.org/constraints/upper/master https://releases.openstack.org/constraints/upper/master timeout: 500'* ]]
    printf 'TEMPEST_VENV_UPPER_CONSTRAINTS=/a/file\n' > "$DEVSTACK/localrc.auto"
    run -0 gate
    [[ $output == *'constraints: /a/file /a/file timeout: '* ]]
}

@test "tox is devstack's own, wherever the job has put devstack's data" {
    mkdir -p "$BASE/new/tempest" "$BATS_TEST_TMPDIR/large/venv/bin"
    printf 'DEVSTACK_VENV=${DEVSTACK_VENV:-%s/large/venv}\n' "$BATS_TEST_TMPDIR" > "$DEVSTACK/stackrc"
    printf '#!/bin/sh\necho "tox of devstack"\n' > "$BATS_TEST_TMPDIR/large/venv/bin/tox"
    chmod +x "$BATS_TEST_TMPDIR/large/venv/bin/tox"
    DEVSTACK_GATE_TEMPEST=1 run -0 gate
    [[ $output == *'tox of devstack'* ]]
}

@test "master's constraints for tempest come from the tree of requirements, also for a stable branch" {
    local requirements=$BASE/new/requirements
    printf 'TEMPEST_VENV_UPPER_CONSTRAINTS=${TEMPEST_VENV_UPPER_CONSTRAINTS:-master}\n' > "$DEVSTACK/stackrc"
    run -0 gate
    [[ $output != *TEMPEST_VENV* ]]
    git init -q -b stable/x "$requirements"
    printf 'a===1\n' > "$requirements/upper-constraints.txt"
    git -C "$requirements" add .
    git -C "$requirements" commit -q -m stable
    run -0 gate
    [[ $output == *'no constraints of master for tempest; devstack will fetch them'* && $output != *TEMPEST_VENV* ]]
    printf 'a===2\n' > "$requirements/upper-constraints.txt"
    git -C "$requirements" commit -q -a -m master
    git -C "$requirements" update-ref refs/remotes/origin/master HEAD
    git -C "$requirements" reset -q --hard HEAD~
    run -0 gate
    [[ $output == *"TEMPEST_VENV_UPPER_CONSTRAINTS=$BASE/new/tempest-constraints.txt"* && $(< "$BASE/new/tempest-constraints.txt") == a===2 ]]
    git -C "$requirements" checkout -q -b master
    run -0 gate
    [[ $(< "$BASE/new/tempest-constraints.txt") == a===1 ]]
    DEVSTACK_LOCAL_CONFIG=TEMPEST_VENV_UPPER_CONSTRAINTS=/mine run -0 gate
    [[ $output == *$'\nTEMPEST_VENV_UPPER_CONSTRAINTS=/mine\n'* ]]
}

@test "a tempest that ran no test is told" {
    mkdir -p "$BASE/new/tempest" "$BASE/gate"
    touch "$BASE/gate/note"
    for summary in 'Ran 5 tests in 0.1s\n\nOK (skipped=5)' 'Ran 3 (+3) tests in 0.1s (+0.1s)\nPASSED (id=0, skips=3)' \
        '' 'tox: nothing to do\n' 'Ran: 0 tests in 0.0 sec.\n - Passed: 0\n - Skipped: 0\n - Failed: 0' 'Ran: 2 tests in 1 sec.\n - Passed: 0\n - Skipped: 2\n - Failed: 0'; do
        printf '#!/bin/sh\nprintf "%s"\n' "$summary" > "$BATS_TEST_TMPDIR/bin/tox"
        DEVSTACK_GATE_TEMPEST=1 run -0 gate
        [[ $(< "$BASE/gate/note") == 'tempest ran no test' ]]
    done
    for summary in 'Ran: 2 tests in 1 sec.\\n - Passed: 1\\n - Skipped: 1\\n' 'Ran 3 tests in 0.1s\\n\\nOK (skipped=2)\\n' \
        'Ran: 2 tests in 1 sec.\\n - Passed: 2\\nRan: 0 tests in 1 sec.\\n - Passed: 0\\n'; do
        printf '#!/bin/sh\nprintf "%s"\n' "$summary" > "$BATS_TEST_TMPDIR/bin/tox"
        DEVSTACK_GATE_TEMPEST=1 run -0 gate
        [[ ! $(< "$BASE/gate/note") ]]
    done
    run -0 gate
    [[ ! $(< "$BASE/gate/note") ]]
    DEVSTACK_GATE_TEMPEST=0 run -0 gate
    [[ $(< "$BASE/gate/note") == 'no test was run' ]]
}

@test "a tempest whose tests fail has not passed, whatever its status" {
    mkdir -p "$BASE/new/tempest"
    for summary in 'Ran: 3 tests in 1 sec.\n - Passed: 2\n - Failed: 1\nRan: 1 tests in 1 sec.\n - Passed: 1\n - Failed: 0\n' \
        'Ran: 3 tests in 1 sec.\n - Passed: 2\n - Unexpected Success: 1\n - Failed: 0\n' 'Ran 3 tests in 0.1s\nFAILED (id=0, failures=1)\n'; do
        printf '#!/bin/sh\nprintf "%s"\n' "$summary" > "$BATS_TEST_TMPDIR/bin/tox"
        DEVSTACK_GATE_TEMPEST=1 run -1 gate
        [[ ${lines[-1]} == 'devstack-vm-gate.sh: tempest ended with 0, although 1 of its tests failed' ]]
    done
}

@test "tempest is set up when it is to run, whatever services the job's own settings begin with" {
    mkdir -p "$BASE/new/tempest"
    DEVSTACK_GATE_TEMPEST=1 DEVSTACK_LOCAL_CONFIG=$'ENABLED_SERVICES=key\n[[post-config|$X]]\n[a]\nb = 1' run -0 gate
    run -0 awk '/^\[\[/ { ours = ($0 == "[[local|localrc]]"); next } ours && /SERVICES/' "$DEVSTACK/local.conf"
    [[ $output == $'ENABLED_SERVICES=key\nENABLED_SERVICES+=,tempest' ]]
}

@test "a change to what this run does without has passed nothing" {
    mkdir -p "$BASE/gate"
    touch "$BASE/gate/note"
    script exercise.sh true
    changed grenade devstack-gate puppet-nova plugin requirements
    run -0 gate
    [[ $(< "$BASE/gate/note") == 'plugin was not used; puppet-nova was not used; grenade was not used' ]]
    SKIP_DEVSTACK_GATE_PROJECT=1 DEVSTACK_LOCAL_CONFIG='enable_plugin x https://x/plugin' run -0 gate
    [[ $(< "$BASE/gate/note") == 'puppet-nova was not used; grenade was not used; devstack-gate was not used' ]]
}

@test "a test that the job names and tempest does not know or skips is told" {
    mkdir -p "$BASE/new/tempest" "$BASE/gate"
    touch "$BASE/gate/note"
    export DEVSTACK_GATE_TEMPEST=1 DEVSTACK_GATE_TEMPEST_TESTS='a.b.test_one a.b.test_tow, a.c'
    printf '%s\n' '#!/bin/sh' 'printf "%s\n" "run: $*" "{0} a.b.test_one [1s] ... ok" "setUpClass (a.c.Class) ... SKIPPED: x"' \
        'printf "%s\n" "Ran: 2 tests in 1 sec." " - Passed: 1"' > "$BATS_TEST_TMPDIR/bin/tox"
    run -0 gate
    [[ $(< "$BASE/gate/note") == 'no test a.b.test_tow was run; no test a.c was run' ]]
}

@test "a part of tempest that the job names was run if one of its many tests was" {
    mkdir -p "$BASE/new/tempest" "$BASE/gate"
    touch "$BASE/gate/note"
    printf '%s\n' '#!/bin/sh' 'echo "{0} a.b.test_first ... SKIPPED: x"; seq -f "{0} a.b.test_%.0f [1s] ... ok" 20000' \
        'printf "%s\n" "Ran: 20000 tests in 1 sec." " - Passed: 20000"' > "$BATS_TEST_TMPDIR/bin/tox"
    DEVSTACK_GATE_TEMPEST=1 DEVSTACK_GATE_TEMPEST_TESTS=a.b run -0 gate
    [[ ! $(< "$BASE/gate/note") ]]
}

@test "line ends and byte order marks of other systems are no part of settings" {
    printf '\xef\xbb\xbf[[local|localrc]]\r\nHOOK=1\r\n' > "$DEVSTACK/local.conf"
    DEVSTACK_LOCAL_CONFIG=$'A=1\r\n[[post-config|$X]]\r\n[a]\r\nb = c\r' DEVSTACK_LOCALCONF=$'\xef\xbb\xbf[[local|localrc]]\r\nB=2' \
        LIBS_FROM_GIT=$'cliff\r' run -0 gate
    [[ $output == *$'\nHOOK=1\n'*$'\nA=1\n[[post-config|$X]]\n[a]\nb = c\n[[local|localrc]]\nB=2\n'* ]]
    run -1 grep -cP '\r|\xef' "$DEVSTACK/local.conf"
    [[ $(libraries) == cliff ]]
}

@test "blanks and line breaks in a list of services are no part of their names" {
    ENABLED_SERVICES=$'s-proxy, -c-api\n q-dhcp,' run -0 gate
    grep -qx 'ENABLED_SERVICES+=,s-proxy,-c-api,q-dhcp' "$DEVSTACK/local.conf"
    OVERRIDE_ENABLED_SERVICES='key, mysql' run -0 gate
    grep -qx 'ENABLED_SERVICES=key,mysql' "$DEVSTACK/local.conf"
}

@test "libraries that the job names and that are not taken from their trees are told" {
    mkdir -p "$BASE/gate" "$BASE/new/tooz"
    touch "$BASE/gate/note" "$BASE/new/tooz/setup.py"
    script exercise.sh true
    git -C "$BASE/new/tooz" init -q
    git -C "$BASE/new/tooz" commit -q --allow-empty -m tip
    LIBS_FROM_GIT='cliff, tooz' run -0 gate
    [[ $(< "$BASE/gate/note") == 'cliff was not taken from its tree; tooz was not taken from its tree' ]]
    [[ $output == *"NOT FROM ITS TREE: cliff: there is no tree $BASE/new/cliff"* ]]
    LIBS_FROM_GIT=ALL run -0 gate
    [[ ! $(< "$BASE/gate/note") ]]
}

@test "a plug-in of another name than its project is one, too" {
    mkdir -p "$BASE/gate"
    touch "$BASE/gate/note"
    script exercise.sh true
    changed devstack-plugin-ceph
    printf '[metadata]\nname = devstack-plugin-ceph\n' > "$BASE/new/devstack-plugin-ceph/setup.cfg"
    DEVSTACK_LOCAL_CONFIG='enable_plugin ceph https://x/openstack/devstack-plugin-ceph.git' run -0 gate
    [[ ! $(< "$BASE/gate/note") ]]
    DEVSTACK_LOCAL_CONFIG='enable_plugin ceph https://x/openstack/devstack-plugin-ceph-other' run -0 gate
    [[ $(< "$BASE/gate/note") == 'devstack-plugin-ceph was not installed' ]]
}

@test "what older jobs say of devstack's services, driver and rights" {
    export OVERRIDE_ENABLED_SERVICES=key,mysql ENABLED_SERVICES=ignored DEVSTACK_GATE_VIRT_DRIVER=fake DEVSTACK_GATE_LIBVIRT_TYPE=qemu
    export DEVSTACK_LOCALCONF=$'[[post-config|$X]]\n[a]\nb = c' DEVSTACK_LOCAL_CONFIG=$'\nA=1'
    run -0 gate
    run -0 localrc_section
    [[ $output == *$'\nENABLED_SERVICES=key,mysql\nVIRT_DRIVER=fake\nLIBVIRT_TYPE=qemu\n\nA=1' && $output != *ignored* ]]
    DEVSTACK_LOCALCONF=B=2 run -0 gate
    run -0 localrc_section
    [[ $output == *$'A=1\nB=2' ]]
    script unstack.sh 'echo unstacking'
    DEVSTACK_GATE_UNSTACK=1 run -0 gate
    [[ $output == *unstacking* ]]
    DEVSTACK_GATE_REMOVE_STACK_SUDO=0 run -0 gate
    [[ $output == *'the tests run with sudo: DEVSTACK_GATE_REMOVE_STACK_SUDO is 0'* ]]
}

@test "devstack has the job's locale and umask" {
    script stack.sh 'echo "ways: $LC_ALL $(umask)"'
    umask 027
    LC_ALL=C.UTF-8 run -0 gate
    [[ $output == *'ways: C.UTF-8 0027'* ]]
    run -0 env -u LC_ALL "$PROJECT_FOLDER/devstack-vm-gate.sh"
    [[ $output == *'ways:  0027'* ]]
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

@test "exercises that are all skipped are told" {
    mkdir "$BASE/gate"
    touch "$BASE/gate/note"
    script exercise.sh 'echo SKIP swift; echo SKIP volumes'
    run -0 gate
    [[ $(< "$BASE/gate/note") == 'no exercise was run' ]]
    script exercise.sh 'echo SKIP swift; echo PASS volumes'
    run -0 gate
    [[ ! -s $BASE/gate/note ]]
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

@test "after an upgrade: tempest and exercises if the job asks for them, nothing else and no word if not" {
    mkdir -p "$BASE/old/devstack" "$BASE/new/grenade" "$BASE/new/tempest" "$BASE/gate"
    touch "$BASE/gate/note"
    printf '#!/bin/bash\ncat localrc; exit "${UPGRADE:-0}"\n' > "$BASE/new/grenade/grenade.sh"
    chmod +x "$BASE/new/grenade/grenade.sh"
    script exercise.sh 'echo exercising'
    export DEVSTACK_GATE_GRENADE=1
    run -0 gate
    [[ $output != *exercising* && $output != *'tox in'* && $output != *RUN_SMOKE* && ! $(< "$BASE/gate/note") ]]
    DEVSTACK_GATE_EXERCISES=1 run -0 gate
    [[ $output == *exercising* && $output != *'tox in'* ]]
    export DEVSTACK_GATE_TEMPEST=1
    DEVSTACK_GATE_TEMPEST_REGEX=volume run -0 gate
    [[ $output == *TARGET_RUN_SMOKE=False*'tox in tempest: <-e> <all> <--> <volume>'* && $(< "$BASE/gate/note") == 'tempest ran no test' ]]
    TOX_STATUS=9 run -9 gate
    UPGRADE=5 run -5 gate
    [[ $output != *'tox in'* ]]
    DEVSTACK_GATE_TEMPEST_NOTESTS=1 run -0 gate
    [[ $output != *'tox in'* && $output != *RUN_SMOKE* ]]
}

@test "a service that stack.sh leaves running does not hold the gate" {
    script stack.sh 'sleep 300 & echo $! > pid; echo up'
    run -0 timeout 60 "$PROJECT_FOLDER/devstack-vm-gate.sh" 3>&-
    [[ $output == *up* ]]
    kill "$(< "$DEVSTACK/pid")"
}
