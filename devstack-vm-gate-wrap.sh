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
SCRIPTS=(devstack-vm-gate-wrap.sh devstack-vm-gate.sh functions.sh gatehost.sh gatelogs.sh gateremote.sh projects.txt)
MARK=/etc/devstack-gate/node
GRACE_SECONDS=30 # between TERM and KILL
PHASE=''     # what is running
MINUTES=''   # what each phase took, for the last line
STOPPED=''   # what ended the run early: timeout, or the name of a signal
FOLLOWER=''  # process that shows the phase's output
WATCH=''     # process that watches the clock
GATE_STARTED=${GATE_STARTED:-} # on the clock of now; a re-executed script goes on with it

# --- settings, before anything is touched ---

check_settings() {
    check_workspace
    check_change
    check_branches
    check_projects
    check_tests
}

check_workspace() {
    : "${BASE:=/opt/stack}" "${GIT_BASE:=https://opendev.org}" "${DEVSTACK_GATE_TIMEOUT:=120}"
    if [[ ${WORKSPACE:-} != /* || ! -d $WORKSPACE || ! -w $WORKSPACE ]]; then
        die 2 "WORKSPACE: expected the job's folder, an absolute path that exists and can be written, not '${WORKSPACE:-}'"
    elif [[ $BASE =~ ^/*$ || $BASE != /* || $BASE == *[[:space:]]* || /$BASE/ == */../* ]]; then
        die 2 "BASE: expected an absolute path without blanks, not '$BASE'"
    elif [[ ! $DEVSTACK_GATE_TIMEOUT =~ ^[1-9][0-9]{0,4}$ ]]; then
        die 2 "DEVSTACK_GATE_TIMEOUT: expected minutes, a whole number from 1, not '$DEVSTACK_GATE_TIMEOUT'"
    fi
}

check_change() {
    local name
    if [[ ${ZUUL_REF:-} ]]; then
        need ZUUL_REF ZUUL_URL ZUUL_PROJECT ZUUL_BRANCH
        if [[ ${ZUUL_REF%/*} != "refs/zuul/$ZUUL_BRANCH" || ! ${ZUUL_REF##*/} ]]; then
            die 2 "ZUUL_REF: expected refs/zuul/$ZUUL_BRANCH/ID as ZUUL_BRANCH says, not '$ZUUL_REF'"
        elif [[ ${GERRIT_REFSPEC:-} || ${GERRIT_CHANGES:-} ]]; then
            die 2 "ZUUL_REF and GERRIT_REFSPEC: expected one of them, the change under test is given twice"
        fi
    elif [[ ${GERRIT_REFSPEC:-} && ${ZUUL_BRANCH:-${GERRIT_BRANCH:-}} != "${GERRIT_BRANCH:-}" ]]; then
        die 2 "ZUUL_BRANCH and GERRIT_BRANCH: expected one of them, or the same branch in both"
    fi
    for name in GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC GERRIT_CHANGES; do
        if [[ ${!name:-} && ! ${ZUUL_REF:-} ]]; then need "$name" GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC; fi
    done
    for name in ZUUL_REF GERRIT_REFSPEC; do
        if [[ ${!name:-} ]] && { [[ ${!name} != refs/* ]] || ! git check-ref-format "${!name}"; }; then
            die 2 "$name: expected a full ref, refs/..., not '${!name}'"
        fi
    done
    check_gerrit_changes
}

check_gerrit_changes() {
    local change
    local -a changes=()
    IFS='^' read -r -a changes <<< "${GERRIT_CHANGES:-}"
    for change in ${changes[@]+"${changes[@]}"}; do
        if [[ ! $change =~ ^[^:]+:[^:]+:refs/[^:]+$ ]] || ! git check-ref-format "${change##*:}"; then
            die 2 "GERRIT_CHANGES: expected project:branch:ref^project:branch:ref, not '$change'"
        fi
    done
}

# need FOR NAME...: all of these are set.
need() {
    local given=$1 name
    shift
    for name in "$@"; do
        if [[ ! ${!name:-} ]]; then die 2 "$name: expected a value, since $given is given"; fi
    done
}

check_branches() {
    local name
    for name in ZUUL_BRANCH GERRIT_BRANCH GRENADE_OLD_BRANCH GRENADE_NEW_BRANCH OVERRIDE_ZUUL_BRANCH BRANCH_OVERRIDE \
        "${!OVERRIDE_@}"; do
        if [[ $name == *BRANCH* && ${!name:-} ]] && ! git check-ref-format --branch "${!name}" > /dev/null 2>&1; then
            die 2 "$name: expected the name of a branch, not '${!name}'"
        fi
    done
    if [[ ${OVERRIDE_ZUUL_BRANCH:-} && ${BRANCH_OVERRIDE:-} && $OVERRIDE_ZUUL_BRANCH != "$BRANCH_OVERRIDE" ]]; then
        die 2 "OVERRIDE_ZUUL_BRANCH and BRANCH_OVERRIDE: expected one of them, or the same branch in both"
    fi
    RUN_BRANCH=${OVERRIDE_ZUUL_BRANCH:-${BRANCH_OVERRIDE:-${ZUUL_BRANCH:-${GERRIT_BRANCH:-master}}}}
    if [[ ${DEVSTACK_GATE_GRENADE:-} == 1 ]]; then
        need DEVSTACK_GATE_GRENADE GRENADE_OLD_BRANCH
        RUN_BRANCH=${GRENADE_NEW_BRANCH:-$RUN_BRANCH}
    fi
}

# Fills RUN_PROJECTS: each once, the one under test among them in any case.
check_projects() {
    local project listed trigger=''
    local -A taken=()
    if [[ ${ZUUL_REF:-} ]]; then trigger=$ZUUL_PROJECT; else trigger=${GERRIT_PROJECT:-}; fi
    listed=${DEVSTACK_GATE_PROJECTS:-$(sed 's/#.*//' "$HERE/projects.txt" || true)}
    if [[ ${DEVSTACK_GATE_GRENADE:-} == 1 && " $listed ${PROJECTS:-} $trigger " != *'/grenade'[[:space:]]* ]]; then listed+=' openstack/grenade'; fi
    RUN_PROJECTS=()
    set -f
    # shellcheck disable=SC2086  # a list of words
    set -- ${PROJECTS:-} $listed $trigger
    set +f
    for project in "$@"; do
        if [[ ! $project =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$ ]]; then
            die 2 "PROJECTS: expected names as openstack/nova, not '$project'"
        elif [[ ! ${taken[${project##*/}]:-} ]]; then
            taken[${project##*/}]=$project
            RUN_PROJECTS+=("$project")
        elif [[ ${taken[${project##*/}]} != "$project" ]]; then
            die 2 "PROJECTS: ${taken[${project##*/}]} and $project would have the same folder"
        fi
    done
    if (( ! ${#RUN_PROJECTS[@]} )); then die 2 "DEVSTACK_GATE_PROJECTS: expected projects"; fi
}

check_tests() {
    local name kind=''
    for name in SKIP_DEVSTACK_GATE_PROJECT DEVSTACK_GATE_EXERCISES DEVSTACK_GATE_TEMPEST DEVSTACK_GATE_TEMPEST_FULL \
        DEVSTACK_GATE_TEMPEST_ALL DEVSTACK_GATE_GRENADE KEEP_LOCALRC DEVSTACK_GATE_THIS_HOST; do
        case ${!name:-} in
            '' | 0 | 1) ;;
            *) die 2 "$name: expected 0 or 1, not '${!name}'" ;;
        esac
    done
    if [[ ! ${TEMPEST_CONCURRENCY:-1} =~ ^[1-9][0-9]{0,3}$ ]]; then
        die 2 "TEMPEST_CONCURRENCY: expected a whole number from 1, not '$TEMPEST_CONCURRENCY'"
    fi
    for name in DEVSTACK_GATE_TEMPEST_FULL DEVSTACK_GATE_TEMPEST_ALL DEVSTACK_GATE_TEMPEST_REGEX DEVSTACK_GATE_TEMPEST_TESTS; do
        if [[ ! ${!name:-} || ${!name} == 0 ]]; then continue; fi
        if [[ ${DEVSTACK_GATE_TEMPEST:-0} != 1 ]]; then die 2 "DEVSTACK_GATE_TEMPEST: expected 1, since $name is given"; fi
        if [[ $kind ]]; then die 2 "$kind and $name: expected one of them"; fi
        kind=$name
    done
}

# No machine is changed that somebody may still need.
check_machine() {
    if [[ -e $MARK || ${DEVSTACK_GATE_THIS_HOST:-} == 1 ]]; then return; fi
    # Each build has these; JENKINS_URL people have in their shells, too.
    if [[ ${BUILD_TAG:-} || ${BUILD_URL:-} || ${BUILD_NUMBER:-} ]]; then return; fi
    die 2 "DEVSTACK_GATE_THIS_HOST: expected 1 to have this machine changed for good: it has no single-use mark ($MARK)" \
        "and Jenkins did not start this"
}

# --- one time limit ---

start_clock() {
    local limit=$(( DEVSTACK_GATE_TIMEOUT * 60 )) reserve
    now
    GATE_STARTED=${GATE_STARTED:-$NOW}
    # For logs; when that leaves nothing to the test, half.
    reserve=$(( limit / 10 > 60 ? limit / 10 : 60 ))
    if (( reserve > limit / 2 )); then reserve=$(( limit / 2 )); fi
    GATE_DEADLINE=$(( GATE_STARTED + limit - reserve ))
    GATE_STOP=$(( GATE_STARTED + limit ))
}

# Wake the script with SIGUSR1 at a time. Has no process below it that a test could kill or we would leave behind.
watch_clock() {
    local until=$1 left
    trap '' TERM INT HUP
    while now; left=$(( until - NOW )); (( left > 0 )); do
        read -r -t "$left" <> <(:) || true
    done
    kill -USR1 "$$"
}

begin_phase() {
    PHASE=$1
    now
    PHASE_STARTED=$NOW
    log "$PHASE" 2>&1
}

# run_phase NAME FILE COMMAND...: the output goes to FILE, and from there to the console: a service that the command
# leaves running can hold neither the console nor us. Returns the command's status.
run_phase() {
    local file=$2 pid size rc=0
    begin_phase "$1"
    shift 2
    size=$(stat -c %s -- "$file" 2> /dev/null) || size=0
    # Logs may not be writable; the test goes on, and its verdict counts.
    touch -- "$file" 2> /dev/null || file=$RUN/output
    touch -- "$file" || die 1 "$file cannot be written"
    set -m  # a process group of its own, to which SIGINT is as usual
    "$@" >> "$file" 2>&1 < /dev/null &
    pid=$!
    set +m
    follow "$file" "$size" "$pid" &
    FOLLOWER=$!
    watch_clock "$GATE_DEADLINE" &
    WATCH=$!
    wait "$pid" || rc=$?
    end_phase
    return "$rc"
}

# follow FILE BYTES PID: show what is added to a file beyond its first bytes, until a process has ended. When the console
# goes before that, nobody waits for the run any more.
follow() {
    trap '' TERM INT HUP USR1
    tail -c "+$(( $2 + 1 ))" -s 0.1 -f --pid="$3" -- "$1" | stamp
    if kill -0 "$3" 2> /dev/null; then kill -s PIPE "$$"; fi
}

end_phase() {
    local seconds
    if [[ $WATCH ]]; then
        kill -KILL "$WATCH" 2> /dev/null
        wait "$WATCH" 2> /dev/null
    fi
    if [[ $FOLLOWER ]]; then wait "$FOLLOWER"; fi
    now
    seconds=$(( NOW - PHASE_STARTED ))
    MINUTES+="${MINUTES:+, }$PHASE $(( seconds / 60 )).$(( seconds % 60 / 6 ))"
    WATCH=''
    FOLLOWER=''
} 2> /dev/null

# The processes of the run: all that descends from this one, which adopts orphans, and when it was stopped all of the
# stack user.
list_processes() {
    local stack all
    stack=$(id -u stack 2> /dev/null) || stack=-1
    if [[ ! $STOPPED ]] || (( stack == EUID )); then stack=-1; fi
    all=$(ps -e -o pid= -o ppid= -o ruid= -o euid= -o stat=)
    awk -v me="$$" -v skip="$BASHPID,${FOLLOWER:--},${WATCH:--}" -v stack="$stack" '
        BEGIN { n = split(skip, list, ","); for (i = 1; i <= n; i++) ours[list[i]] = 1 }
        $5 !~ /^Z/ { parent[$1] = $2; if ($3 == stack || $4 == stack) found[$1] = 1 }
        END {
            for (pid in parent) {
                for (p = parent[pid]; !(pid in ours) && p > 1 && p != me && !(p in ours); p = parent[p]);
                if (p == me && !(pid in ours) || found[pid] && pid != me) print pid
            }
        }' <<< "$all"
}

signal_processes() {
    local pids
    pids=$(list_processes)
    # shellcheck disable=SC2086  # a list of numbers
    if [[ $pids ]]; then as_root kill -s "$1" -- $pids; fi
}

# Nothing of the run survives: TERM, time to end, KILL.
stop_processes() {
    local grace pids until
    now
    grace=$(( (GATE_STOP - NOW) / 2 ))
    until=$(( NOW + (grace < GRACE_SECONDS ? grace : GRACE_SECONDS) ))
    if [[ -d /run/systemd/system ]]; then as_root systemctl stop --no-block 'devstack@*'; fi
    signal_processes TERM
    while pids=$(list_processes); now; [[ $pids ]] && (( NOW < until )); do sleep 0.1; done
    until=$(( NOW + 10 ))
    while pids=$(list_processes); now; [[ $pids ]] && (( NOW < until )); do
        signal_processes KILL
        sleep 0.1
    done
} 2> /dev/null

# --- the source ---

# setup_trees BRANCH FOLDER LINES PROJECT...: side by side, the next one as soon as any is done; their lines go to files
# in LINES.
setup_trees() {
    local branch=$1 folder=$2 lines=$3 project most pid
    local -a pids=()
    shift 3
    most=$(nproc)
    most=$(( most > 4 ? most : 4 ))
    for project in "$@"; do
        while (( ${#pids[@]} == most )); do
            sleep 0.05  # no wait -n: it forgets one that ended between two calls
            for pid in "${pids[@]}"; do
                if kill -0 "$pid" 2> /dev/null; then continue; fi
                wait "$pid" || return 3
                unset "pids[$pid]"
            done
        done
        setup_project "$project" "$branch" "$folder" > "$lines/${project##*/}" &
        pids[$!]=$!
    done
    for pid in "${pids[@]}"; do wait "$pid" || return 3; done
}

# A folder of ours to put trees in, whoever made those that are there.
make_folder() {
    local folder=$1
    if [[ ! -d $folder ]]; then mkdir -p -- "$folder" 2> /dev/null || as_root mkdir -p -- "$folder" || return; fi
    local foreign group
    foreign=$(find "$folder" -maxdepth 1 ! -user "$EUID" -print -quit) || return
    group=$(id -g) || return
    if [[ $foreign ]]; then as_root chown -R -- "$EUID:$group" "$folder"; fi
}

setup_workspace() {
    local lines=$RUN/lines
    mkdir -p -- "$lines/new" "$lines/old"
    make_folder "$BASE/new" || return
    setup_trees "$RUN_BRANCH" "$BASE/new" "$lines/new" "$@" || return
    if [[ ${DEVSTACK_GATE_GRENADE:-} == 1 && ! ${ONLY_GATE:-} ]]; then
        make_folder "$BASE/old" || return
        setup_trees "$GRENADE_OLD_BRANCH" "$BASE/old" "$lines/old" "$@" || return
    fi
}

# One line a project, in the order of the list, as plain as can be found again.
print_projects() {
    local tree project
    for tree in old new; do
        for project in "$@"; do
            if [[ -s $RUN/lines/$tree/${project##*/} ]]; then cat -- "$RUN/lines/$tree/${project##*/}"; fi
        done
    done
}

# When a change to devstack-gate itself is under test, go on as the changed script; once.
use_changed_gate() {
    local project changed=$BASE/new/devstack-gate ref changes script
    for project in "${RUN_PROJECTS[@]}"; do
        if [[ ${project##*/} != devstack-gate || ${SKIP_DEVSTACK_GATE_PROJECT:-} == 1 || ${RE_EXEC:-} ]]; then continue; fi
        ONLY_GATE=1 run_phase setup-devstack-gate "$LOGS/setup-workspace.txt" setup_workspace "$project" || return
        ref=$(< "$changed/.git/gate-ref")
        changes=$(changes_of "$project" "${ref#refs/heads/}")
        if [[ $ref != refs/zuul/* && ! $changes ]]; then return 0; fi
        for script in "${SCRIPTS[@]}"; do
            if [[ $script == *.sh ]] && ! bash -n "$changed/$script"; then
                die 3 "$project: the change under test leaves no $script that can run"
            fi
        done
        go_on_as "$changed/devstack-vm-gate-wrap.sh"
    done
}

go_on_as() {
    printf 'devstack-gate is under test: going on as %s\n' "$1"
    rm -rf -- "$RUN"
    trap - EXIT
    export RE_EXEC=true GATE_STARTED
    exec bash "$1"
}

# --- the test ---

print_hooks() {
    local hook
    for hook in "${HOOKS[@]}"; do
        if declare -F "$hook" > /dev/null; then
            declare -f "$hook"
            printf 'export -f %s\n' "$hook"
        fi
    done
}

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

# Orphans of the run become our children, so that none escapes the time limit; and SIGINT reaches us although whoever
# started us in the background had it ignored. The number of prctl is the architecture's.
adopt_orphans() {
    local machine number
    machine=$(uname -m)
    case $machine in
        x86_64) number=157 ;;
        aarch64 | riscv64 | loongarch64) number=167 ;;
        ppc64le) number=171 ;;
        s390x) number=172 ;;
        *) number=-1 ;;
    esac
    # shellcheck disable=SC2016  # Perl, with PR_SET_CHILD_SUBREAPER = 36
    GATE_ADOPTS=$PPID exec perl -e '$SIG{$_} = "DEFAULT" for qw(INT TERM HUP QUIT); $n = shift; syscall($n, 36, 1, 0, 0, 0) if $n > 0; exec @ARGV' \
        "$number" bash "${BASH_SOURCE[0]}" "$@"
}

# Fills HERE, the folder of our other scripts: this one's, or the checkout beside a copy of this one, which is what the
# gate job runs, since the run may change the checkout.
find_scripts() {
    local own folder
    own=$(readlink -f -- "${BASH_SOURCE[0]}")
    own=${own%/*}
    for folder in "$own" "$own/devstack-gate" "${WORKSPACE:-$own}/devstack-gate"; do
        if [[ -r $folder/functions.sh ]]; then
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
    unset_git_variables
    # shellcheck source=gatehost.sh
    . "$HERE/gatehost.sh"
    # shellcheck source=gatelogs.sh
    . "$HERE/gatelogs.sh"
    # shellcheck source=gateremote.sh
    . "$HERE/gateremote.sh"
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
