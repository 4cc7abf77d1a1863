#!/usr/bin/env bash
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310

usage() {
    cat <<'EOT'
Usage: devstack-vm-gate-wrap.sh [[USER@]HOST]

The gate job's build step, on the test node: sets up the code of all projects with the change under test merged,
prepares the machine, runs devstack and its tests, collects logs in $WORKSPACE/logs, all within one time limit.
It changes the machine for good, and refuses one that is neither marked as single-use nor run by Jenkins.

With HOST it does that there, over ssh: copies $WORKSPACE, runs, shows the console, fetches logs/ back.

Settings are environment variables; README.md lists them. WORKSPACE is required. Change under test: ZUUL_URL,
ZUUL_PROJECT, ZUUL_BRANCH and ZUUL_REF, or GERRIT_PROJECT, GERRIT_BRANCH and GERRIT_REFSPEC, or none.

Exit code: that of the test; 1 the machine could not be prepared, 2 wrong settings (nothing was changed), 3 the source
could not be prepared, 124 the time limit was reached, 130 and 143 interrupted.
EOT
}

HOOKS=(pre_test_hook gate_hook post_test_hook)
SCRIPTS=(devstack-vm-gate-wrap.sh devstack-vm-gate.sh functions.sh gate)
MARK=/etc/devstack-gate/node
PHASE=''     # what is running
MINUTES=''   # what each phase took, for the last line
STOPPED=''   # what ended the run early: timeout, or the name of a signal
FOLLOWER=''  # process that shows the phase's output
WATCH=''     # process that watches the clock
GATE_STARTED=${GATE_STARTED:-} # on the clock of now; a re-executed script goes on with it

# --- settings, before anything is touched ---

# No machine is changed that somebody may still need.
check_machine() {
    if [[ -e $MARK || ${DEVSTACK_GATE_THIS_HOST:-} == 1 ]]; then return; fi
    # Each build has these; JENKINS_URL people have in their shells, too.
    if [[ ${BUILD_TAG:-} || ${BUILD_URL:-} || ${BUILD_NUMBER:-} ]]; then return; fi
    die 2 "DEVSTACK_GATE_THIS_HOST: expected 1 to have this machine changed for good: it has no single-use mark ($MARK)" \
        "and Jenkins did not start this"
}

# --- the test ---

run_gate() {
    if declare -F gate_hook > /dev/null; then
        run_phase gate_hook "$LOGS/gate_hook.txt" bash -c gate_hook
    else
        run_phase devstack-vm-gate.sh "$LOGS/devstack-vm-gate.txt" bash "$BASE/gate/devstack-vm-gate.sh"
    fi
}

run_hook() {
    if declare -F "$1" > /dev/null; then
        run_phase "$1" "$LOGS/$1.txt" bash -c "$1"
    fi
}

run_local() {
    RUN=$(mktemp -d)
    LOGS=$WORKSPACE/logs
    start_clock
    trap 'finish $?' EXIT
    trap 'STOPPED=timeout; exit 124' USR1
    trap 'STOPPED=INT; exit 130' INT
    trap 'STOPPED=TERM; exit 143' TERM HUP
    trap 'STOPPED=PIPE; exit 141' PIPE  # nobody reads the console any more
    cd -- "$WORKSPACE"
    # An earlier run's logs would be taken for ours.
    if [[ ! ${RE_EXEC:-} ]]; then
        rm -rf -- "$LOGS"
        as_root rm -rf -- "$BASE"/{logs,{new,old}/{logs,screen-logs},new/devstacklog.txt} || true
        if [[ ${KEEP_LOCALRC:-} != 1 ]]; then as_root rm -f -- "$BASE"/{new,old}/devstack/local{.conf,rc} || true; fi
    fi
    mkdir -p -- "$LOGS"
    export WORKSPACE BASE GIT_BASE DEVSTACK_GATE_TIMEOUT
    print_node
    write_reproduce
    use_changed_gate || exit
    local rc=0
    run_phase setup-workspace "$LOGS/setup-workspace.txt" setup_workspace "${RUN_PROJECTS[@]}" || rc=$?
    if (( rc )); then exit 3; fi
    print_projects "${RUN_PROJECTS[@]}" | tee -a "$LOGS/setup-workspace.txt"
    print_projects "${RUN_PROJECTS[@]}" | sed 's/^/# /' >> "$LOGS/reproduce.sh"
    run_phase setup-host "$LOGS/setup-host.txt" setup_host || exit 1
    run_hook pre_test_hook || exit
    run_gate || exit
    run_hook post_test_hook || exit
    PHASE=
}

print_node() {
    if [[ -r $MARK ]]; then grep -E '^NODE_[A-Z]+=' "$MARK" || true; fi
}

# --- whatever happened ---

finish() {
    local rc=$1 step=$PHASE words=PASS
    trap - EXIT
    trap '' INT TERM HUP PIPE USR1
    set +e
    if [[ $STOPPED || $PHASE == setup-* ]]; then stop_processes; fi
    if [[ $FOLLOWER ]]; then end_phase; fi
    case $STOPPED in
        '') ;;
        timeout) printf 'The time limit (%s minutes) was reached during %s; everything was stopped.\n' "$DEVSTACK_GATE_TIMEOUT" "$step" ;;
        *) printf 'SIG%s came during %s; everything was stopped.\n' "$STOPPED" "$step" ;;
    esac
    if (( rc )); then
        words="FAIL ($rc) in ${step:-the beginning}"
        if [[ $step == devstack-vm-gate.sh && -s $BASE/gate/step ]]; then words+=": $(< "$BASE/gate/step")"; fi
        note_full_disks
    fi
    finish_logs
    rm -rf -- "$RUN"
    printf '%s. Minutes: %s\n' "$words" "$MINUTES"
    exit "$rc"
}

note_full_disks() {
    local folder free
    for folder in "$WORKSPACE" "$BASE" /tmp; do
        free=$(df -k --output=avail -- "$folder" 2> /dev/null) && free=${free##*[[:space:]]}
        if [[ $free ]] && (( free < 1024 )); then printf 'No space is left on the disk of %s.\n' "$folder"; fi
    done
}

# Fills HERE, the folder of our other scripts: this one's, or the checkout beside a copy of this one, which is what the
# gate job runs, since the run may change the checkout.
find_scripts() {
    local own folder
    own=$(readlink -f -- "${BASH_SOURCE[0]}")
    own=${own%/*}
    for folder in "$own" "$own/devstack-gate" "${WORKSPACE:-$own}/devstack-gate"; do
        if [[ -r $folder/functions.sh && -d $folder/gate ]]; then
            HERE=$folder
            return 0
        fi
    done
    printf '%s: functions.sh is neither in %s nor in a checkout devstack-gate there\n' "${0##*/}" "$own" >&2
    exit 2
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    export GIT_TERMINAL_PROMPT=0
    find_scripts
    # shellcheck source=functions.sh
    . "$HERE/functions.sh"
    # shellcheck source=gate/settings.sh
    . "$HERE/gate/settings.sh"
    # shellcheck source=gate/clock.sh
    . "$HERE/gate/clock.sh"
    # shellcheck source=gate/source.sh
    . "$HERE/gate/source.sh"
    # shellcheck source=gate/host.sh
    . "$HERE/gate/host.sh"
    # shellcheck source=gate/logs.sh
    . "$HERE/gate/logs.sh"
    # shellcheck source=gate/reproduce.sh
    . "$HERE/gate/reproduce.sh"
    # shellcheck source=gate/remote.sh
    . "$HERE/gate/remote.sh"
    unset_git_variables
    case ${1:-} in
        -h | --help) usage; return 0 ;;
        -*) die 2 "unknown option $1; see --help" ;;
    esac
    if (( $# > 1 )); then die 2 "expected at most one HOST, not $# arguments; see --help"; fi
    check_settings
    if [[ ! ${1:-} ]]; then
        check_machine
        rm -f -- ~/.devstack-gate-jenkins # with which the job's first step may have called Jenkins: not for the change
    fi
    if [[ ${GATE_ADOPTS:-} != "$PPID" ]]; then adopt_orphans "$@"; fi
    unset GATE_ADOPTS
    if [[ ${1:-} ]]; then
        run_there "$1"
    else
        run_local
    fi
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; exit; fi
