#!/usr/bin/env bats
# Settings of devstack-vm-gate-wrap.sh, run as a process. If it accepts one by mistake, it still refuses this host,
# which has no single-use mark: nothing here changes it.
# Each test has its own environment, and text in single quotes is for other shells:
# shellcheck disable=SC1078,SC1079,SC2016,SC2030,SC2031,SC2034,SC2119,SC2120,SC2154,SC2317

bats_require_minimum_version 1.5.0
load helper.bash

setup() {
    setup_gate
    export WORKSPACE=$BATS_TEST_TMPDIR/workspace
    mkdir "$WORKSPACE"
    if [[ -e /etc/devstack-gate/node ]]; then printf 'this host is marked as a test node\n'; return 1; fi
}

teardown() {
    # Whatever the settings, nothing was written.
    [[ ! -e $WORKSPACE/logs ]]
}

# refused TEXT: check that the run ends with one line, which begins with the script's name and TEXT.
refused() {
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    [[ ${#lines[@]} -eq 1 && $output == "devstack-vm-gate-wrap.sh: $1"* ]] || { printf '%s\n' "$output"; return 1; }
}

# Check that the settings are accepted: the run then refuses the machine.
accepted() {
    refused 'DEVSTACK_GATE_THIS_HOST: expected 1'
}


@test "--help, unknown options, too many arguments, a strange host" {
    run -0 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" --help
    [[ $output == "Usage: devstack-vm-gate-wrap.sh"* ]]
    run -0 "$PROJECT_FOLDER/devstack-vm-gate.sh" --help
    [[ $output == "Usage: devstack-vm-gate.sh"* ]]
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" --hlep
    [[ $output == *'unknown option --hlep'* ]]
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" one two
    [[ $output == *'at most one HOST'* ]]
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" 'host -oProxyCommand=x'
    [[ $output == *'HOST: expected [USER@]HOST'* ]]
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" me@box:2222
    [[ $output == *"HOST: expected [USER@]HOST, not 'me@box:2222': a port is for your ssh settings to tell" ]]
    WORKSPACE=$BATS_TEST_TMPDIR run -1 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" 'me@fe80::1%none'
    [[ $output == *'fe80::1%none: the workspace could not be copied there: '* ]]
    run -2 "$PROJECT_FOLDER/devstack-vm-gate.sh" --hlep
    [[ $output == *'unknown argument --hlep'* ]]
}

@test "through a symlink, from another directory" {
    ln -s "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" "$BATS_TEST_TMPDIR/link"
    cd /
    run -2 "$BATS_TEST_TMPDIR/link"
    [[ $output == 'link: DEVSTACK_GATE_THIS_HOST: '* ]]
}

@test "a copy of the script finds the others in the checkout beside it, or in the workspace's" {
    mkdir "$BATS_TEST_TMPDIR/elsewhere"
    cp "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" "$WORKSPACE/safe-devstack-vm-gate-wrap.sh"
    cp "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh" "$BATS_TEST_TMPDIR/elsewhere/safe.sh"
    run -2 "$WORKSPACE/safe-devstack-vm-gate-wrap.sh"
    [[ $output == "safe-devstack-vm-gate-wrap.sh: functions.sh is neither in $WORKSPACE nor in a checkout devstack-gate there" ]]
    ln -s "$PROJECT_FOLDER" "$WORKSPACE/devstack-gate"
    run -2 "$WORKSPACE/safe-devstack-vm-gate-wrap.sh"
    [[ $output == 'safe-devstack-vm-gate-wrap.sh: DEVSTACK_GATE_THIS_HOST: '* ]]
    run -2 "$BATS_TEST_TMPDIR/elsewhere/safe.sh"
    [[ $output == 'safe.sh: DEVSTACK_GATE_THIS_HOST: '* ]]
}

@test "a shell that knows where Jenkins is, is not a build" {
    JENKINS_URL=http://jenkins.example.org/ accepted
}

@test "BASE is no root folder" {
    BASE=// refused "BASE: expected an absolute path"
}

@test "a change that is given twice, or for two branches, is refused" {
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/02/2/1
    ZUUL_BRANCH=stable/x refused 'ZUUL_BRANCH and GERRIT_BRANCH: expected one of them'
    ZUUL_BRANCH=master accepted
    zuul openstack/nova master refs/zuul/master/Z1
    unset GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC
    GERRIT_CHANGES=openstack/nova:master:refs/changes/02/2/1 refused 'ZUUL_REF and GERRIT_REFSPEC: '
}

@test "a machine that is neither marked nor told nor run by Jenkins is left alone" {
    accepted
}

@test "WORKSPACE" {
    local here=$WORKSPACE
    for WORKSPACE in '' relative "$here/missing" /dev/null; do refused WORKSPACE; done
    export WORKSPACE=$here
    unset WORKSPACE
    refused WORKSPACE
    export WORKSPACE=$here
}

@test "BASE" {
    export BASE
    for BASE in / relative '/opt/with blank' /opt/../etc; do refused BASE; done
    BASE=/srv/gate
    accepted
}

@test "DEVSTACK_GATE_TIMEOUT" {
    export DEVSTACK_GATE_TIMEOUT
    for DEVSTACK_GATE_TIMEOUT in 0 -5 1.5 two 010 1000000 '1 2'; do refused DEVSTACK_GATE_TIMEOUT; done
    for DEVSTACK_GATE_TIMEOUT in '' 1 120; do accepted; done
}

@test "ZUUL_REF needs the other three" {
    local name
    for name in ZUUL_URL ZUUL_PROJECT ZUUL_BRANCH; do
        zuul openstack/nova master refs/zuul/master/ZA
        accepted
        unset "$name"
        refused "$name: expected a value, since ZUUL_REF is given"
    done
}

@test "without ZUUL_REF the others may be there: a periodic job" {
    export ZUUL_BRANCH=stable/essex ZUUL_PROJECT=openstack/nova ZUUL_URL=https://zuul.example.org/p ZUUL_REF=
    accepted
}

@test "ZUUL_REF and ZUUL_BRANCH must agree" {
    local ref
    for ref in refs/zuul/stable/essex/ZA refs/zuul/masterful/ZA refs/zuul/master/ refs/zuul/master refs/heads/master master/ZA; do
        zuul openstack/nova master "$ref"
        refused 'ZUUL_REF'
    done
    zuul openstack/nova stable refs/zuul/stable/essex/ZA
    refused ZUUL_REF
    zuul openstack/nova stable/essex refs/zuul/stable/essex/ZA
    accepted
}

@test "the Gerrit form is whole or not at all" {
    local name
    for name in GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC; do
        export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
        accepted
        unset "$name"
        refused "$name: expected a value"
    done
    unset GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC
    export GERRIT_CHANGES=openstack/nova:master:refs/changes/01/1/1
    refused GERRIT_PROJECT
}

@test "GERRIT_CHANGES and GERRIT_REFSPEC that cannot be" {
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
    export GERRIT_CHANGES
    for GERRIT_CHANGES in x openstack/nova:master 'a:b:refs/x^' 'a:b:refs/x^a:b' 'a:b:refs/../x'; do
        case $GERRIT_CHANGES in *'^') continue ;; esac
        refused GERRIT_CHANGES
    done
    for GERRIT_CHANGES in $'a:b:refs/x\n^a:c:refs/y' $'a:b:refs/x\na:c:refs/y' 'a:b:refs/x a:c:refs/y' 'a:b:refs/x, a:c:refs/y'; do
        refused 'GERRIT_CHANGES: expected project:branch:ref^'
    done
    GERRIT_CHANGES=$' a:b:refs/changes/02/2/1^openstack/nova:master:refs/changes/01/1/1\n'
    accepted
    GERRIT_REFSPEC=changes/1
    refused GERRIT_REFSPEC
}

@test "ZUUL_CHANGES that would be read only in part" {
    zuul openstack/nova master refs/zuul/master/ZA
    export ZUUL_CHANGES
    for ZUUL_CHANGES in 'a:b:refs/x a:c:refs/y' $'a:b:refs/x\n^a:c:refs/y' a:b ../a:b:refs/x; do refused ZUUL_CHANGES; done
    ZUUL_CHANGES=openstack/glance:master:refs/changes/02/2/1^openstack/nova:master:refs/changes/01/1/1
    accepted
    ZUUL_CHANGES=x
    unset ZUUL_REF
    accepted
}

@test "the change under test twice" {
    zuul openstack/nova master refs/zuul/master/ZA
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
    refused 'ZUUL_REF and GERRIT_REFSPEC'
}

@test "branches" {
    local name
    for name in ZUUL_BRANCH OVERRIDE_ZUUL_BRANCH BRANCH_OVERRIDE OVERRIDE_NOVA_PROJECT_BRANCH GRENADE_OLD_BRANCH; do
        export "$name=with blank"
        refused "$name: expected the name of a branch"
        export "$name=-x"
        refused "$name: expected the name of a branch"
        unset "$name"
    done
    export OVERRIDE_ZUUL_BRANCH=stable/a BRANCH_OVERRIDE=stable/b
    refused 'OVERRIDE_ZUUL_BRANCH and BRANCH_OVERRIDE'
    BRANCH_OVERRIDE=stable/a
    accepted
}

@test "projects" {
    export DEVSTACK_GATE_PROJECTS
    for DEVSTACK_GATE_PROJECTS in ../etc a//b -x 'a/.git' '*' 'a;b' 'openstack/nova fork/nova'; do refused DEVSTACK_GATE_PROJECTS; done
    DEVSTACK_GATE_PROJECTS=$'openstack/nova\n  openstack/oslo.config openstack/nova'
    accepted
    export ZUUL_PROJECT=../nova ZUUL_BRANCH=master ZUUL_URL=file:///x ZUUL_REF=refs/zuul/master/ZA
    refused ZUUL_PROJECT
    ZUUL_PROJECT=openstack/nova.git  # devstack would not take it for nova
    refused "ZUUL_PROJECT: expected names as openstack/nova, not 'openstack/nova.git'"
    ZUUL_PROJECT=OpenStack/Nova
    refused 'OpenStack/Nova: expected nova, as openstack/nova has it'
}

@test "addresses hold from every folder, commits are sha1s" {
    export GIT_BASE
    for GIT_BASE in git ../git \~/git $'https://x\ny'; do refused 'GIT_BASE: expected the URL of a git server or an absolute path'; done
    for GIT_BASE in https://x/ /srv/git git@host:dir file:///srv $' https://x\n'; do accepted; done
    for name in ZUUL_COMMIT GERRIT_PATCHSET_REVISION; do
        export "$name=HEAD"
        refused "$name: expected a commit's sha1"
        export "$name=$(printf %040d 1)"
        accepted
    done
}

@test "blanks and line breaks around a value are no part of it" {
    export LIBS_FROM_GIT=$'oslo.utils,\n  cliff\n' DEVSTACK_GATE_TIMEOUT=' 30' DEVSTACK_GATE_TEMPEST=$'1\n' DEVSTACK_GATE_TEMPEST_REGEX=$'^a b\n'
    run -0 bash -c '. "$1/devstack-vm-gate-wrap.sh"; HERE=$1; . "$1/functions.sh"; . "$1/gate/settings.sh"; read_variables
        check_settings; printf "<%s>" "$DEVSTACK_GATE_TIMEOUT" "$DEVSTACK_GATE_TEMPEST" "$DEVSTACK_GATE_TEMPEST_REGEX"' gate "$PROJECT_FOLDER"
    [[ $output == '<30><1><^a b>' ]]
}

@test "BASE is a plain name, apart from the workspace" {
    for BASE in '/opt/st$ack' "/opt/it's" '/opt/a;b' '/opt/*'; do BASE=$BASE refused 'BASE: expected an absolute path of letters'; done
    for BASE in "$WORKSPACE" "$WORKSPACE/." "$WORKSPACE/logs/x"; do BASE=$BASE refused 'BASE: expected another folder than WORKSPACE'; done
    mkdir -p "$WORKSPACE/new/job"
    BASE=$WORKSPACE
    export BASE
    WORKSPACE=$BASE/new/job refused 'WORKSPACE: expected a folder that is not in '
}

@test "the branch default is none" {
    branch() {
        check_branches
        printf '%s %s' "$RUN_BRANCH" "${OVERRIDE_NOVA_PROJECT_BRANCH:-}"
    }
    export ZUUL_BRANCH=stable/x BRANCH_OVERRIDE=default OVERRIDE_NOVA_PROJECT_BRANCH=default
    [[ $(branch) == 'stable/x ' ]]
    OVERRIDE_ZUUL_BRANCH=stable/y
    [[ $(branch) == 'stable/y ' ]]
    BRANCH_OVERRIDE=stable/z OVERRIDE_ZUUL_BRANCH=default
    [[ $(branch) == 'stable/z ' ]]
    unset ZUUL_BRANCH BRANCH_OVERRIDE
    [[ $(branch) == 'master ' ]]
}

@test "HOME of somebody else, or none, is not where the job's caches are" {
    run -0 bash -c '. "$1/devstack-vm-gate-wrap.sh"; HOME=/proc/1/fd; find_home; printf "%s " "$HOME"; unset HOME; find_home; printf "%s" "$HOME"' \
        gate "$PROJECT_FOLDER"
    local entry
    entry=$(getent passwd "$EUID")
    entry=${entry%:*}
    [[ $output == "/proc/1/fd ${entry##*:}" || $output == "${entry##*:} ${entry##*:}" ]]
}

@test "the list of projects: PROJECTS in front, DEVSTACK_GATE_PROJECTS instead, the one under test always" {
    projects() {
        HERE=$PROJECT_FOLDER
        # shellcheck source=devstack-vm-gate-wrap.sh
        . "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
        check_projects
        printf '%s\n' "${RUN_PROJECTS[*]}"
    }
    run -0 projects
    [[ " $output " == *' openstack/devstack '* && " $output " == *' openstack/nova '* && $output != *'#'* ]]
    local builtin=$output
    PROJECTS='mine/heat openstack/nova' run -0 projects
    [[ $output == "mine/heat openstack/nova ${builtin/ openstack\/nova/}" ]]
    DEVSTACK_GATE_PROJECTS='a/one b/two' run -0 projects
    [[ $output == 'a/one b/two' ]]
    zuul c/three master refs/zuul/master/ZA
    DEVSTACK_GATE_PROJECTS='a/one b/two' run -0 projects
    [[ $output == 'a/one b/two c/three' ]]
}

@test "of projects with the same folder the one under test is meant, then the one of PROJECTS" {
    projects() {
        HERE=$PROJECT_FOLDER
        # shellcheck source=devstack-vm-gate-wrap.sh
        . "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
        check_projects
        printf '%s\n' "${RUN_PROJECTS[*]}"
    }
    export DEVSTACK_GATE_PROJECTS='openstack/devstack openstack/nova'
    PROJECTS='openstack-dev/devstack stackforge/heat' run -0 projects
    [[ $output == 'openstack/devstack stackforge/heat openstack/nova' ]]
    PROJECTS=mine/devstack run -0 projects
    [[ $output == 'mine/devstack openstack/nova' ]]
    zuul fork/nova master refs/zuul/master/ZA
    run -0 projects
    [[ $output == 'openstack/devstack fork/nova' ]]
    PROJECTS=openstack/nova run -2 projects
    [[ $output == *'PROJECTS: fork/nova and openstack/nova would have the same folder' ]]
}

@test "switches are 0 or 1" {
    local name
    for name in SKIP_DEVSTACK_GATE_PROJECT DEVSTACK_GATE_EXERCISES DEVSTACK_GATE_TEMPEST KEEP_LOCALRC \
        DEVSTACK_GATE_THIS_HOST; do
        export "$name=yes"
        refused "$name: expected 0 or 1, not 'yes'"
        unset "$name"
    done
    export KEEP_LOCALRC=true DEVSTACK_GATE_EXERCISES=False
    accepted
}

@test "what tempest runs" {
    export DEVSTACK_GATE_TEMPEST_FULL=1
    refused 'DEVSTACK_GATE_TEMPEST: expected 1, since DEVSTACK_GATE_TEMPEST_FULL is given'
    export DEVSTACK_GATE_TEMPEST=1
    accepted
    export DEVSTACK_GATE_TEMPEST_REGEX=api
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    [[ ${lines[0]} == *'DEVSTACK_GATE_TEMPEST_FULL has no effect: DEVSTACK_GATE_TEMPEST_REGEX says which tests' && ${lines[1]} == *THIS_HOST* ]] # the expression, as it was in devstack-gate's earlier years
    export DEVSTACK_GATE_TEMPEST_TESTS=tempest.api
    DEVSTACK_GATE_TEMPEST_FULL='' refused 'DEVSTACK_GATE_TEMPEST_REGEX and DEVSTACK_GATE_TEMPEST_TESTS'
    unset DEVSTACK_GATE_TEMPEST_TESTS
    export DEVSTACK_GATE_TEMPEST_FULL=0 TEMPEST_CONCURRENCY=many
    refused TEMPEST_CONCURRENCY
}

@test "what jobs of earlier years say in other words" {
    says() {
        HERE=$PROJECT_FOLDER
        # shellcheck source=devstack-vm-gate-wrap.sh
        . "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
        check_settings
        printf '%s %s %s %s\n' "$RUN_BRANCH" "${GRENADE_OLD_BRANCH:--}" "$DEVSTACK_GATE_TIMEOUT" "${RUN_PROJECTS[*]:0:2}"
    }
    export DEVSTACK_GATE_PROJECTS='a/one b/two'
    BRANCH_OVERRIDE=default ZUUL_BRANCH=stable/x run -0 says
    [[ $output == 'stable/x - 120 a/one b/two' ]]
    BRANCH_OVERRIDE=default OVERRIDE_ZUUL_BRANCH=stable/y run -0 says
    [[ $output == 'stable/y - 120 a/one b/two' ]]
    BUILD_TIMEOUT=9000000 run -0 says
    [[ $output == 'master - 148 a/one b/two' ]]
    BUILD_TIMEOUT=600 run -0 says # somebody else's
    [[ $output == 'master - 120 a/one b/two' ]]
    BUILD_TIMEOUT=9000000 DEVSTACK_GATE_TIMEOUT=30 run -0 says
    [[ $output == 'master - 30 a/one b/two' ]]
    DEVSTACK_GATE_PROJECTS='' DEVSTACK_GATE_PROJECTS_OVERRIDE='c/three d/four' PROJECTS=e/five run -0 says
    [[ $output == 'master - 120 c/three d/four' ]]
    DEVSTACK_GATE_PROJECTS_OVERRIDE=c/three run -2 says
    [[ $output == *'DEVSTACK_GATE_PROJECTS and DEVSTACK_GATE_PROJECTS_OVERRIDE: expected one of them'* ]]
    DEVSTACK_GATE_GRENADE=pullup GRENADE_OLD_BRANCH=stable/a run -0 says
    [[ $output == 'master stable/a 120 a/one b/two' ]]
    ZUUL_BRANCH=stable/a DEVSTACK_GATE_GRENADE=forward GRENADE_NEW_BRANCH=stable/b run -0 says
    [[ $output == 'stable/b stable/a 120 a/one b/two' ]]
    ZUUL_BRANCH=stable/a DEVSTACK_GATE_GRENADE=sideways-neutron run -0 says
    [[ $output == 'stable/a stable/a 120 a/one b/two' ]]
    DEVSTACK_GATE_GRENADE=forward run -2 says
    [[ $output == *'GRENADE_NEW_BRANCH: expected a value, since DEVSTACK_GATE_GRENADE is given' ]]
    DEVSTACK_GATE_GRENADE=partial-ncpu run -2 says
    [[ $output == *"DEVSTACK_GATE_GRENADE: expected 0, 1, pullup, forward or sideways-NAME, not 'partial-ncpu'" ]]
}

@test "settings of devstack that the job has left in a file" {
    tells() {
        HERE=$PROJECT_FOLDER
        # shellcheck source=devstack-vm-gate-wrap.sh
        . "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
        LOCAL_CONF=$BATS_TEST_TMPDIR/local.conf
        check_settings 2> /dev/null
        check_settings # goes on as the changed script
        printf '%s\n' "$DEVSTACK_LOCAL_CONFIG"
    }
    printf '[[local|localrc]]\nenable_plugin heat x\n\n' > "$BATS_TEST_TMPDIR/local.conf"
    DEVSTACK_LOCAL_CONFIG=A=1 run -0 tells
    [[ $output == $'[[local|localrc]]\nenable_plugin heat x\n[[local|localrc]]\nA=1' ]]
    ln -sf /etc/hostname "$BATS_TEST_TMPDIR/local.conf"
    run -2 tells
}

@test "an upgrade needs its old branch" {
    export DEVSTACK_GATE_GRENADE=1
    refused 'GRENADE_OLD_BRANCH: expected a value, since DEVSTACK_GATE_GRENADE is given'
    export GRENADE_OLD_BRANCH=stable/essex
    accepted
}

@test "a variable that is not known ends the run with the nearest name" {
    DEVSTACK_GATE_TEMPEST_REGEXP=x refused 'DEVSTACK_GATE_TEMPEST_REGEXP: there is no such variable; the nearest name is DEVSTACK_GATE_TEMPEST_REGEX'
    OVERRIDE_NOVA_BRANCH=x refused 'OVERRIDE_NOVA_BRANCH: there is no such variable; the nearest name is OVERRIDE_ZUUL_BRANCH'
    DEVSTACK_GATE_TIMEOUTS=5 refused 'DEVSTACK_GATE_TIMEOUTS: there is no such variable; the nearest name is DEVSTACK_GATE_TIMEOUT'
    DEVSTACK_GATE_MINE=1 DEVSTACK_GATE_PASS='OTHER DEVSTACK_GATE_MINE' accepted
    DEVSTACK_GATE_MINE='' DEVSTACK_GATE_PREFIX=x DEVSTACK_GATE_DB=/nowhere accepted
    DEVSTACK_GATE_PASS='a b-c' refused "DEVSTACK_GATE_PASS: expected names of variables, separated by blanks, not 'b-c'"
}

@test "a variable of earlier years that has no effect any more is told, once" {
    export DEVSTACK_GATE_NEUTRON=1 DEVSTACK_GATE_CONFIGDRIVE=0
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    [[ ${#lines[@]} -eq 2 && ${lines[0]} == *"DEVSTACK_GATE_NEUTRON has no effect here: neutron is one of devstack's own services"* ]]
    [[ ${lines[1]} == *'DEVSTACK_GATE_THIS_HOST: expected 1'* ]]
}

@test "functions of the job neither replace ours nor are replaced" {
    cat > "$BATS_TEST_TMPDIR/job" <<'EOT'
helper() { printf 'of the job: %s\n' "$1"; }
log() { helper "$1"; }
sed() { printf 'not sed\n'; }
export -f helper log sed
exec bash -c '
    . "$1/devstack-vm-gate-wrap.sh"; HERE=$1
    . "$1/functions.sh"; . "$1/gate/settings.sh"
    read_functions
    sed s/a/b/ <<< cat
    log ours 2>&1 | cut -d" " -f2
    (hand_over; exec bash -c "log theirs; sed")
    print_functions' bash "$PROJECT_FOLDER"
EOT
    PROJECT_FOLDER=$PROJECT_FOLDER run -0 bash "$BATS_TEST_TMPDIR/job"
    [[ ${lines[*]:0:4} == 'cbt ours of the job: theirs not sed' ]] || { printf '%s\n' "$output"; false; }
    for name in helper log sed; do [[ $output == *"export -f $name"* ]]; done
    bash -n <<< "$(printf '%s\n' "${lines[@]:4}")"
}

@test "a function that bash cannot read ends the run if it is a hook, and is left out if not" {
    shopt -s extglob
    eval 'helper() { echo !(x); }; gate_hook() { echo !(x); }'
    export -f helper
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    [[ ${lines[-1]} == *'DEVSTACK_GATE_THIS_HOST: expected 1'* ]]
    run -0 bash -c '. "$1/gate/settings.sh"; read_functions; find_hidden; env "${HIDDEN[@]}" bash -c :' bash "$PROJECT_FOLDER"
    [[ $(grep -c 'error importing' <<< "$output") -eq 1 ]]
    export -f gate_hook
    run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    [[ ${lines[-1]} == *'gate_hook: expected a function that bash can read without the shopt settings'* ]]
}

@test "scripts that bash does not read from their file are refused" {
    for name in devstack-vm-gate-wrap.sh devstack-vm-gate.sh; do
        run -2 bash < "$PROJECT_FOLDER/$name"
        [[ $output == "$name: expected to be run as a file; "* && ${#lines[@]} -eq 1 ]]
    done
}

@test "variables of the job that have the names of ours reach what runs for the job" {
    cat > "$BATS_TEST_TMPDIR/job" <<'EOT'
export ENVIRONMENT=mine SCRIPTS=mine RUN=mine name=mine DEVSTACK_GATE_PASS=SCRIPTS GIT_BASE=given
exec bash -c '
    . "$1/devstack-vm-gate-wrap.sh"; HERE=$1
    . "$1/functions.sh"; . "$1/gate/settings.sh"; . "$1/gate/reproduce.sh"; . "$1/gate/group.sh"
    leave_jobs_ways
    read_functions
    RUN=ours GATE_DEADLINE=0 GIT_BASE=ours
    read_variables
    printf "RUN=theirs\0" > "$2"
    (as_job "echo \$ENVIRONMENT \$SCRIPTS \$RUN \$name \$GIT_BASE")
    print_settings | grep ^export.SCRIPTS
    take_environment "$2"
    (as_job "echo \$RUN \${SCRIPTS-none}")
    echo "$RUN $ENVIRONMENT"' bash "$PROJECT_FOLDER" "$BATS_TEST_TMPDIR/environment"
EOT
    PROJECT_FOLDER=$PROJECT_FOLDER run -0 bash "$BATS_TEST_TMPDIR/job"
    [[ ${lines[*]} == 'mine mine mine mine ours export SCRIPTS=mine theirs none ours /etc/devstack-gate/test-environment' ]] \
        || { printf '%s\n' "$output"; false; }
}

@test "a folder for temporary files that cannot be used is told" {
    export WORKSPACE=$BATS_TEST_TMPDIR/work TMPDIR
    mkdir -p "$WORKSPACE/logs/tmp"
    for TMPDIR in /nowhere logs "$WORKSPACE/logs/tmp"; do
        run -2 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
        [[ ${#lines[@]} -eq 1 && $output == *": TMPDIR: expected a folder "*", not '$TMPDIR'" ]] || { printf '%s\n' "$output"; return 1; }
    done
    rm -r -- "$WORKSPACE/logs"
}

@test "a full disk for temporary files is told, and no setting is blamed" {
    export WORKSPACE=$BATS_TEST_TMPDIR ZUUL_BRANCH=master TMPDIR=$BATS_TEST_TMPDIR/tmp PROJECT_FOLDER
    mkdir "$TMPDIR"
    full_disk() {
        mount -t tmpfs -o size=4k tmpfs "$TMPDIR"
        head -c 5000 /dev/zero > "$TMPDIR/all" 2> /dev/null
        "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    }
    export -f full_disk
    run -1 unshare --mount bash -c full_disk
    [[ $output == "devstack-vm-gate-wrap.sh: $TMPDIR: expected a folder for temporary files that can be written to, with room on its disk" ]]
}

@test "a Python that cannot read our programs is told" {
    export WORKSPACE=$BATS_TEST_TMPDIR PATH=$BATS_TEST_TMPDIR/bin:$PATH
    mkdir "$BATS_TEST_TMPDIR/bin"
    printf '#!/bin/sh\necho "SyntaxError: future feature annotations is not defined" >&2\nexit 1\n' > "$BATS_TEST_TMPDIR/bin/python3"
    chmod +x "$BATS_TEST_TMPDIR/bin/python3"
    run -1 "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    [[ $output == 'devstack-vm-gate-wrap.sh: python3: expected version 3.8 or later on this machine' ]]
}

@test "sourcing the scripts does nothing" {
    run -0 bash -c '. "$1/devstack-vm-gate-wrap.sh"; . "$1/devstack-vm-gate.sh"; . "$1/gate/host.sh"' bash "$PROJECT_FOLDER"
    [[ ! $output ]]
}

@test "git's settings and variables of the user, right or wrong, have no part in reading ours" {
    zuul openstack/nova master refs/zuul/master/Z1
    printf '[incl\n' > "$HOME/.gitconfig"
    accepted
    GIT_CONFIG_COUNT=1 accepted
    GIT_CONFIG_PARAMETERS=nonsense GIT_TRACE=1 accepted
}

@test "a locale with other letters and other ranges changes nothing" {
    use_turkish
    [[ $(bash -c 'name=i; echo "${name^^}"') == İ ]]
    DEVSTACK_GATE_PROJECTS=openstack/cinder-lib BASE=/opt/inside OVERRIDE_CINDER_LIB_GIT_BASE=file:///x accepted
    run -0 bash -c '. "$1/functions.sh"; leave_jobs_ways; . "$1/gate/source.sh"; project_name_variable openstack/cinder-lib GIT_BASE
        take_jobs_ways; echo "$LC_ALL"' bash "$PROJECT_FOLDER"
    [[ $output == $'OVERRIDE_CINDER_LIB_GIT_BASE\ntr_TR.UTF-8' ]]
}
