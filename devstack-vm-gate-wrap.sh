#!/usr/bin/env bash
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

usage() {
    cat <<'EOT'
Usage: devstack-vm-gate-wrap.sh [[USER@]HOST]

The gate job's build step, on the test node: sets up the code of all projects with the change under test merged,
prepares the machine, runs devstack and its tests, collects logs in $WORKSPACE/logs, all within one time limit.
It changes the machine for good, and refuses one that is neither marked as single-use nor run by Jenkins.

With HOST it does that there, over ssh: copies $WORKSPACE, runs, shows the console, fetches logs/ back.

Settings are environment variables; docs/gate.md lists them. WORKSPACE is required. Change under test: ZUUL_URL,
ZUUL_PROJECT, ZUUL_BRANCH and ZUUL_REF, or GERRIT_PROJECT, GERRIT_BRANCH and GERRIT_REFSPEC, or none.

Exit code: that of the test; 1 the machine could not be prepared, 2 wrong settings (nothing was changed), 3 the source
could not be prepared, 124 the time limit was reached, 130, 141 and 143 interrupted.
EOT
}

SCRIPTS=(devstack-vm-gate-wrap.sh devstack-vm-gate.sh functions.sh gate)
MARK=/etc/devstack-gate/node
ENVIRONMENT=/etc/devstack-gate/test-environment # the name of the machine's test environment; .json beside it has its data
PHASE=''     # the phase that is running
MINUTES=''   # how long each phase took, for the last line
STOPPED=''   # what ended the run early: timeout, or the name of a signal
FAILED_PHASE='' # the phase that failed
NODE_LINES=''   # what the machine's mark says of it
FOLLOWER=''  # process that shows the phase's output
WATCHER=''   # process that watches the clock, and us
# Settings for which a file of settings comes too late, beside OVERRIDE_<PROJECT>_...
DECIDED=(PROJECTS DEVSTACK_GATE_PROJECTS DEVSTACK_GATE_PROJECTS_OVERRIDE BRANCH_OVERRIDE GIT_BASE DEVSTACK_GATE_GRENADE
    GRENADE_OLD_BRANCH GRENADE_NEW_BRANCH SKIP_DEVSTACK_GATE_PROJECT DEVSTACK_GATE_TIMEOUT)
NOT_TRIED=75   # the status by which a hook says that the test could not be tried
NO_TEST='^no (test|exercise)|^tempest ran no test|^devstack-vm-gate\.sh did not|^after post_test_hook' # notes without which PASS would mislead most
KIND_HINT=''   # infrastructure, if a hook said so
NOTES=''       # lines on a run that passed: what was not tested

# --- settings, before anything is touched ---

# Refuse to change a machine that somebody may still need.
check_machine() {
    if [[ -e $MARK || ${DEVSTACK_GATE_THIS_HOST:-} == 1 ]]; then return; fi
    # Each build has these; JENKINS_URL is not asked, since people have it in their shells, too.
    if [[ ${BUILD_TAG:-} || ${BUILD_URL:-} || ${BUILD_NUMBER:-} ]]; then return; fi
    die 2 "DEVSTACK_GATE_THIS_HOST: expected 1 to have this machine changed for good: it has no single-use mark ($MARK)" \
        "and Jenkins did not start this"
}

# Check that Python can read our programs: an older one would blame what it is asked to look at.
check_python() {
    if ! python3 -I -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2> /dev/null; then
        die 1 'python3: expected version 3.8 or later on this machine'
    fi
}

# Check that this machine can read a test environment that the job brings along.
check_environment() {
    if [[ ${TEST_ENVIRONMENT_FILE:-} && ! -r $TEST_ENVIRONMENT_FILE ]]; then
        die 2 "TEST_ENVIRONMENT_FILE: expected a file that can be read on the machine under test, not '$TEST_ENVIRONMENT_FILE'"
    fi
}

# --- the test ---

run_gate() {
    if [[ ${JOB_FUNCTIONS[gate_hook]:-} ]]; then
        run_hook gate_hook || return
        run_phase check-installed "$LOGS/check-installed.txt" check_gate_hook
    else
        run_phase devstack-vm-gate.sh "$LOGS/devstack-vm-gate.txt" run_devstack_gate
    fi
}

run_devstack_gate() {
    take_jobs_ways
    exec bash "$BASE/gate/devstack-vm-gate.sh"
}

# Check that the change is in what a hook has installed, which may be anything. devstack-vm-gate.sh does so itself.
check_installed() {
    as_root python3 -I "$GATE_TOOLS/installed.py" "${CHANGES[@]/#/--change=}" "$BASE"
}

check_gate_hook() {
    check_installed | tee -- "$RUN/installed"
}

# Fill NOTES with those of devstack-vm-gate.sh, made true for a run with hooks. If they called it and its last call did
# not pass, that is told, since the hooks may have gone on; what a gate_hook left untested is told if no call has done so.
# Hooks may run tests, with trees that they name; but if tempest was to run and ran no test, nothing else may have been
# tested. A post_test_hook may install what it tests, with tox; if it has put other code in the place of the change, what
# it has tested is unknown.
settle_notes() {
    local step name words='s/^tempest ran no test$/no test was run/' hooks="${JOB_FUNCTIONS[*]}"
    step=$(first_words "$BASE/gate/step")
    NOTES=$(first_words "$BASE/gate/note" 30000)
    NOTES=${NOTES//; /$'\n'}
    if [[ $step && $step != "$LAST_STEP" ]]; then NOTES="devstack-vm-gate.sh did not pass: $step"$'\n'$NOTES; fi
    if [[ -e $RUN/installed && $step != "$LAST_STEP" ]]; then NOTES+=$'\n'$(list_untested "$RUN/installed"); fi
    if lacks_tempest; then NOTES+=$'\ntempest ran no test'; fi
    if [[ ${JOB_FUNCTIONS[post_test_hook]:-} ]]; then
        check_installed > "$RUN/after" &
        wait "$!" || true  # which our traps can interrupt
        NOTES+=$'\n'$(sed -n 's/^NOT TESTED: \([^:]*\): the change .*/after post_test_hook \1 lacks its change/p' "$RUN/after")
    fi
    if [[ ${JOB_FUNCTIONS[gate_hook]:-}${JOB_FUNCTIONS[post_test_hook]:-} ]]; then words='/^no test was run$/d'; fi
    for name in "${RUN_PROJECTS[@]##*/}"; do
        if hooks_use "$name" "$hooks"; then words+="; /^${name//./\\.} was not used\$/d"; fi
        if grep -qs "^${name//./\\.}: .* is installed " "$RUN/after"; then words+="; /^${name//./\\.} was not installed\$/d"; fi
    done
    NOTES=$(sed -E "$words" <<< "$NOTES" | awk 'NF && !seen[$0]++')
}

# Whether a tempest that was asked for ran no test beside a gate_hook: nothing in its tree tells of a run, no hook names
# that tree, and no devstack-vm-gate.sh, which would say so itself, was called.
lacks_tempest() {
    if [[ ${DEVSTACK_GATE_TEMPEST:-} != 1 || ${DEVSTACK_GATE_TEMPEST_NOTESTS:-} == 1 ]]; then return 1; fi
    if [[ ! ${JOB_FUNCTIONS[gate_hook]:-} || "${JOB_FUNCTIONS[*]}" == */tempest* || -s $BASE/gate/step ]]; then return 1; fi
    ! compgen -G "$BASE/new/tempest/.stestr/[0-9]*" > /dev/null && ! compgen -G "$BASE/new/tempest/.testrepository/[0-9]*" > /dev/null
}

# hooks_use NAME CODE: whether the code names a project's tree. With SKIP_DEVSTACK_GATE_PROJECT=1 our own scripts lie in
# the tree of devstack-gate, so only its other files are the project's.
hooks_use() {
    local pattern="/${1//./\\.}([^A-Za-z0-9_.-]|\$)" code=$2 script
    if [[ $1 == devstack-gate && ${SKIP_DEVSTACK_GATE_PROJECT:-} == 1 ]]; then
        for script in "${SCRIPTS[@]}"; do code=${code//"/devstack-gate/$script"/}; done
        pattern='/devstack-gate/[A-Za-z0-9_.-]'
    fi
    [[ $code =~ $pattern ]]
}

# Run an exported function of the job, if there is one of that name.
run_hook() {
    if [[ ! ${JOB_FUNCTIONS[$1]:-} ]]; then return 0; fi
    local rc=0
    run_phase "$1" "$LOGS/$1.txt" as_job "$1" || rc=$?
    if (( rc == NOT_TRIED )); then KIND_HINT=infrastructure; fi
    return "$rc"
}

# as_job NAME [SECONDS]: become a function of the job, with the job's own functions, in the time that is left.
as_job() {
    now
    local seconds=$(( GATE_DEADLINE > NOW ? GATE_DEADLINE - NOW : 0 )) clock
    clock=$(date +%s)
    trap - INT TERM HUP PIPE USR1
    take_jobs_ways
    use_environment
    use_group
    export REMAINING_TIME=$(( seconds < 60 ? 1 : seconds / 60 )) GATE_DEADLINE=$(( clock + seconds ))
    hand_over
    if [[ ${2:-} ]]; then exec timeout -k 5 "$2" env "${HIDDEN[@]}" bash -c "$1"; fi
    exec env "${HIDDEN[@]}" bash -c "$1"
}

# Export the test environment of this machine, unless the job brings one along. Only what runs for the job gets it:
# whoever runs this again elsewhere has another one, or none.
use_environment() {
    if [[ ! ${TEST_ENVIRONMENT_FILE:-} && -r $ENVIRONMENT.json ]]; then
        export TEST_ENVIRONMENT_FILE=$ENVIRONMENT.json TEST_ENVIRONMENT
        TEST_ENVIRONMENT=$(head -c 300 -- "$ENVIRONMENT")
    fi
}

# Run cleanup_hook, whatever happened, so that hooks can give back what they have taken; its status changes nothing.
run_cleanup_hook() {
    if [[ ! ${JOB_FUNCTIONS[cleanup_hook]:-} ]]; then return 0; fi
    now
    local seconds=$(( GATE_STOP - NOW > 20 ? (GATE_STOP - NOW) / 2 : 10 ))
    export GATE_STATUS=$1 GATE_REASON=$2
    GATE_DEADLINE=$(( NOW + seconds ))
    run_phase cleanup_hook "$LOGS/cleanup_hook.txt" as_job cleanup_hook "$seconds" || log "cleanup_hook ended with $?" 2>&1
}

# Source a file of the job, and take over the variables that it exports and the settings that it assigns, as if the job
# had exported them; but refuse those that come too late.
run_settings_file() {
    local -a words
    local name
    local -A before=()
    read -r -d '' -a words <<< "${DEVSTACK_GATE_SETTINGS:-}" || true
    if (( ! ${#words[@]} )); then return 0; fi
    PHASE=gate_settings
    if [[ ! -f ${words[0]} ]]; then die 2 "DEVSTACK_GATE_SETTINGS: there is no file ${words[0]}"; fi
    for name in "${!OVERRIDE_@}" "${DECIDED[@]}"; do before[$name]=${!name:-}; done
    # This works whatever the file does to its shell: the names are in the code, and the trap runs if the shell ends.
    JOB_FUNCTIONS[gate_settings_keep]="() { local name; for name in ${SETTINGS[*]}; do
        if [[ -v \$name ]]; then export \"\$name\"; fi; done; command -p env -0 > \"\$GATE_ENVIRONMENT\"; }"
    # shellcheck disable=SC2016  # the job's shell expands it
    JOB_FUNCTIONS[gate_settings]='() { trap gate_settings_keep EXIT; set -- $DEVSTACK_GATE_SETTINGS; local file=$1; shift
        . "$file" "$@"; set -- $?; gate_settings_keep; return "$1"; }'
    note_given # with what is secret in the file, before it can print that
    GATE_ENVIRONMENT=$RUN/environment run_hook gate_settings || return
    unset 'JOB_FUNCTIONS[gate_settings]' 'JOB_FUNCTIONS[gate_settings_keep]'
    if [[ ! -s $RUN/environment ]]; then
        die 2 "DEVSTACK_GATE_SETTINGS: expected settings, but ${words[0]} ends its shell in a trap of its own"
    fi
    take_environment "$RUN/environment"
    for name in "${!OVERRIDE_@}" "${DECIDED[@]}"; do
        if [[ ${!name:-} != "${before[$name]:-}" && $name != OVERRIDE_ENABLED_SERVICES ]]; then
            die 2 "DEVSTACK_GATE_SETTINGS: ${words[0]} sets $name, but the projects are set up already; the job must set it"
        fi
    done
    check_names
    read_older_words
    check_tests
}

# take_environment FILE: take over what a file of settings exports, ended by NULs, and unset what it has unset.
take_environment() {
    local entry name
    local -A seen=()
    JOB_WAYS=()
    while IFS= read -r -d '' entry; do
        name=${entry%%=*}
        seen[$name]=1
        if [[ $name == LC_ALL ]]; then JOB_WAYS=("$entry"); continue; fi
        if [[ $name == BASH_FUNC_*'%%' ]]; then
            name=${name#BASH_FUNC_}
            if [[ $name != gate_settings* ]]; then JOB_FUNCTIONS[${name%'%%'}]=${entry#*=}; fi
        elif may_be_set "$name"; then
            # shellcheck disable=SC2163  # NAME=VALUE
            export "$entry"
        fi
        if [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && $name != BASH_FUNC_* ]]; then JOB_VARIABLES[$name]=${entry#*=}; fi
    done < "$1"
    for name in "${!JOB_VARIABLES[@]}"; do
        if [[ ! ${seen[$name]:-} ]]; then unset "JOB_VARIABLES[$name]"; fi
    done
    for name in "${SETTINGS[@]}" "${!OVERRIDE_@}"; do
        if [[ $name == *[!A-Z0-9_]* || ! -v $name || ${seen[$name]:-} ]]; then continue; fi
        if may_be_set "$name"; then unset "$name"; fi
    done
}

# Whether a file of settings may set a variable: not this script's own, nor the shell's, nor those that name the change.
may_be_set() {
    case $1 in
        WORKSPACE | BASE | HOME | PATH | PWD | OLDPWD | SHLVL | _ | IFS | BASH* | LD_* | SHELLOPTS | GATE_* | REMAINING_TIME | TEST_ENVIRONMENT* | SUBNODE* | PRIMARY_* | ZUUL_* | GERRIT_*) return 1 ;;
        *[!A-Za-z0-9_]*) return 1 ;;
    esac
    if is_hidden "$1"; then return 1; fi
    [[ ! -v $1 || $(declare -p -- "$1" 2> /dev/null || true) == 'declare -x '* ]]
}

run_local() {
    local rights=1
    RUN=$(mktemp -d)
    LOGS=$WORKSPACE/logs
    # The run may change the checkout, or remove it.
    cp -RL -- "$HERE/gate" "$RUN/" || die 1 "$RUN: the scripts cannot be copied there"
    GATE_TOOLS=$RUN/gate
    as_root true 2> /dev/null || rights=''
    start_clock
    trap 'finish $?' EXIT
    trap 'STOPPED=timeout; exit 124' USR1
    trap 'STOPPED=INT; exit 130' INT
    trap 'STOPPED=TERM; exit 143' TERM HUP
    trap 'STOPPED=PIPE; exit 141' PIPE  # nobody reads the console any more
    cd -- "$WORKSPACE"
    start_watcher
    # Remove an earlier run's logs, which would be taken for ours. A hook of it may have put root's files among them.
    if [[ ! ${RE_EXEC:-} ]]; then
        ${rights:+as_root} rm -rf -- "$LOGS" "$LOGS"-uncollected-*
        if [[ $rights ]]; then as_root rm -rf -- "$BASE"/{logs,{new,old}/{logs,screen-logs},new/devstacklog.txt} || true; fi
        if [[ $rights && ${KEEP_LOCALRC:-} != 1 ]]; then as_root rm -f -- "$BASE"/{new,old}/devstack/local{.conf,rc} || true; fi
    fi
    mkdir -p -- "$LOGS"
    keep_room
    export WORKSPACE BASE GIT_BASE DEVSTACK_GATE_TIMEOUT
    note_given
    NODE_LINES=$(print_node)
    if [[ $NODE_LINES ]]; then printf '%s\n' "$NODE_LINES"; fi
    read_group
    print_group
    if [[ ! $rights ]]; then lack_rights; fi
    use_changed_gate || exit
    local rc=0
    run_phase setup-workspace "$LOGS/setup-workspace.txt" setup_workspace "${RUN_PROJECTS[@]}" || rc=$?
    if (( rc )); then exit 3; fi
    read_changes
    print_projects "${RUN_PROJECTS[@]}" | printable | tee -a "$LOGS/setup-workspace.txt"
    note_tested "${RUN_PROJECTS[@]}"
    run_phase setup-host "$LOGS/setup-host.txt" setup_host || exit 1
    run_settings_file || exit
    note_given
    run_hook pre_test_hook || exit
    run_gate || exit
    run_hook post_test_hook || exit
    settle_notes
    PHASE=
}

lack_rights() {
    begin_phase setup-host
    die 1 "expected passwordless sudo for $(id -un || true): preparing the machine needs root"
}

print_node() {
    if [[ -r $MARK ]]; then grep -E '^NODE_[A-Z]+=' "$MARK" || true; fi
    use_environment
    if [[ ${TEST_ENVIRONMENT_FILE:-} ]]; then printf 'TEST_ENVIRONMENT=%s\n' "${TEST_ENVIRONMENT:-$TEST_ENVIRONMENT_FILE}" | printable; fi
}

# --- whatever happened ---

finish() {
    local rc=$1 step='' words=PASS note failed full=''
    FAILED_PHASE=$PHASE
    trap - EXIT
    trap '' INT TERM HUP PIPE USR1
    set +e
    if [[ $STOPPED || $PHASE == setup-* ]]; then stop_processes; fi
    if [[ $FOLLOWER ]]; then end_phase; fi
    case $STOPPED in
        '') ;;
        timeout) printf 'The time limit (%s minutes) was reached during %s; everything was stopped.\n' "$DEVSTACK_GATE_TIMEOUT" "$PHASE" ;;
        *) printf 'SIG%s came during %s; everything was stopped.\n' "$STOPPED" "$PHASE" ;;
    esac
    if (( rc )); then
        words="FAIL ($rc) in ${PHASE:-the beginning}"
        if [[ $PHASE == devstack-vm-gate.sh ]]; then step=$(first_words "$BASE/gate/step"); fi
        words+=${step:+: $step}
        full=$(full_disks)
    else
        note=$(print_notes)
        failed=$(failed_tests)
        note=$failed${failed:+${note:+; }}$note
        words+=${note:+ ($note)}
    fi
    rm -f -- "$LOGS/.room"
    # For people, and for the signature of a known failure: with a full disk no log could say it.
    if [[ $full ]]; then printf '%s\n' "$full" | tee -a -- "$LOGS/cleanup-host.txt"; fi
    run_cleanup_hook "$rc" "$words"
    finish_logs "$rc" "$step" "$words"
    end_watcher
    rm -rf -- "$RUN"
    printf '%s. Minutes: %s\n' "$words" "$MINUTES"
    exit "$rc"
}

# Print what is to be said of a run that passed, whole notes in 300 letters at most. Those on tests that were not run come
# first; of the others each has a line of its own on the console.
print_notes() {
    local note words='' more=0
    while IFS= read -r note; do
        if (( ${#words} + ${#note} > 280 )); then
            more=$(( more + 1 ))
        elif [[ $note ]]; then
            words+="${words:+; }$note"
        fi
    done < <(grep -E "$NO_TEST" <<< "$NOTES" || true; grep -vE "$NO_TEST" <<< "$NOTES" || true)
    if (( more )); then words+="${words:+; }and $more more"; fi
    printf '%s\n' "$words"
}

# first_words FILE [BYTES]: print the first line of a file that the test may have written, fit for one of our lines.
first_words() {
    local words=''
    if [[ -f $1 ]]; then words=$(head -c "${2:-300}" -- "$1" | head -n 1 | printable); fi
    printf '%s\n' "${words//[[:cntrl:]]/ }"
} 2> /dev/null

full_disks() {
    local folder free
    for folder in "$WORKSPACE" "$BASE" /tmp; do
        free=$(df -k --output=avail -- "$folder" 2> /dev/null) && free=${free##*[[:space:]]}
        if [[ $free ]] && (( free < 1024 )); then printf 'No space is left on the disk of %s.\n' "$folder"; fi
    done
}

# Fill HERE, the folder of our other scripts: this one's, or the checkout beside a copy of this one. The gate job runs
# such a copy, since the run may change the checkout.
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

# Add the folders of administrators' commands to PATH: that of sshd, cron or a service may lack them. Hooks use them, too.
find_commands() {
    local folder
    for folder in /usr/local/sbin /usr/sbin /sbin; do
        if [[ :${PATH:-}: != *:"$folder":* ]]; then export PATH=${PATH:+$PATH:}$folder; fi
    done
}

# Set HOME to ours: sudo without -H, or a service's environment, gives another one or none.
find_home() {
    local entry
    if [[ ${HOME:-} && -O $HOME ]] || ! entry=$(getent passwd "$EUID"); then return 0; fi
    entry=${entry%:*}
    export HOME=${entry##*:}
}

# Remove the login with which the job's first step may have called Jenkins, if it is still there: no change may see it.
wipe_jenkins_login() {
    local file=~/.devstack-gate-jenkins
    if [[ -f $file && ! -L $file ]]; then
        dd if=/dev/zero of="$file" bs=4096 count=1 conv=notrunc,fsync 2> /dev/null || true
    fi
    rm -f -- "$file"
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    if [[ ! -f ${BASH_SOURCE[0]} ]]; then
        printf '%s: expected to be run as a file; bash reads it from somewhere else\n' devstack-vm-gate-wrap.sh >&2
        exit 2
    fi
    export GIT_TERMINAL_PROMPT=0
    find_commands
    find_scripts
    # shellcheck source=functions.sh
    . "$HERE/functions.sh"
    start_plainly "$@"
    leave_jobs_ways
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
    # shellcheck source=gate/group.sh
    . "$HERE/gate/group.sh"
    # shellcheck source=gate/reproduce.sh
    . "$HERE/gate/reproduce.sh"
    # shellcheck source=gate/remote.sh
    . "$HERE/gate/remote.sh"
    read_functions
    unset_git_variables
    take_over
    case ${1:-} in
        -h | --help) usage; return 0 ;;
        --version) print_version; return ;;
        -*) die 2 "unknown option $1; see --help" ;;
    esac
    if (( $# > 1 )); then die 2 "expected at most one HOST, not $# arguments; see --help"; fi
    find_home
    check_settings
    check_python
    check_known_failures
    if [[ ! ${1:-} ]]; then
        check_machine
        check_environment
        wipe_jenkins_login
    fi
    if [[ ! $ADOPTS ]]; then adopt_orphans "$@"; fi
    if [[ ${1:-} ]]; then
        run_there "$1"
    else
        run_local
    fi
}

if [[ ${BASH_SOURCE[0]:-$0} == "$0" ]]; then main "$@"; exit; fi
