# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: the logs that a run leaves for people and machines to read, and known failures.
# gate/collectlogs.py decides what is collected, and how. None of it changes the verdict.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md
# shellcheck disable=SC2153  # LOGS, HERE are the wrap script's

LOG_CAP_KB=$(( 1024 * 1024 )) # for all logs together, compressed
LOG_CAP_FILES=20000
ROOM_KB=16384 # kept free on the disk of the logs while the test runs
SERVICE_LOGS=(apache2 httpd ceph libvirt mysql mariadb openvswitch ovn postgresql rabbitmq)
KNOWN_FAILURES='[]' # the signatures as knownfailures.py prints them, as they were at the start

# Read and check the signatures of known failures, before anything is changed.
check_known_failures() {
    local file=${DEVSTACK_GATE_KNOWN_FAILURES:-$HERE/gate/known-failures.ini} said
    if ! KNOWN_FAILURES=$(gate_tool knownfailures "$file" 2>&1); then
        said=$KNOWN_FAILURES
        die 2 "DEVSTACK_GATE_KNOWN_FAILURES: $said"
    fi
}

# Keep some of the disk free, so that even a test that fills it leaves room for the logs that say so.
keep_room() {
    fallocate -l "${ROOM_KB}K" -- "$LOGS/.room" 2> /dev/null || true
}

# Print how many tests failed that a hook has run, by their results, whatever the hook's status says; nothing if none did.
# devstack-vm-gate.sh does so for those that it runs itself.
failed_tests() {
    local start='' seconds
    if [[ ! ${JOB_FUNCTIONS[gate_hook]:-}${JOB_FUNCTIONS[post_test_hook]:-} ]]; then return 0; fi
    if [[ -r $RUN/journal-start ]]; then start=$(< "$RUN/journal-start"); fi
    now
    seconds=$(( GATE_STOP - NOW > 40 ? (GATE_STOP - NOW) / 4 : 10 ))
    as_root timeout -k 5 "$seconds" python3 -B -E -s -S "$GATE_TOOLS/collectlogs.py" failed "$BASE" "$start" \
        || printf 'the results of its tests could not be read\n'
}

# finish_logs STATUS STEP WORDS: collect within what is left of the time limit, but at least 10 seconds.
finish_logs() {
    local seconds
    local -a root=(as_root)
    begin_phase cleanup-host
    fetch_subnode_logs
    now
    seconds=$(( GATE_STOP - NOW > 10 ? GATE_STOP - NOW : 10 ))
    if ! as_root true 2> /dev/null; then
        printf 'sudo no longer works: logs that only root can read are missing.\n'
        root=()
    fi
    if ! { print_facts "$seconds" "$@" || true; } | "${root[@]}" timeout -k 5 "$(( seconds + 20 ))" \
        python3 -B -E -s -S "$GATE_TOOLS/collectlogs.py" run; then
        set_logs_aside
    fi
    end_phase
}

# Move logs that nobody has cleaned out of logs/, which Jenkins keeps.
set_logs_aside() {
    local folder words='The logs could not be collected'
    local -a root=()
    if as_root true 2> /dev/null; then root=(as_root); fi
    mkdir -p -- "$LOGS"
    if folder=$(mktemp -d -- "$LOGS-uncollected-XXXXXXXX") && "${root[@]}" mv -T -- "$LOGS" "$folder/logs"; then
        words+=": they may hold secrets, and are in $folder"
    else
        words+=" or moved: logs/ may hold secrets"
    fi
    mkdir -p -- "$LOGS"
    printf '%s.\n' "$words" | tee -- "$LOGS/cleanup-host.txt"
}

# Print what collectlogs.py must know: triples of kind, name and text.
print_facts() {
    local name start=''
    if [[ -r $RUN/journal-start ]]; then start=$(< "$RUN/journal-start"); fi
    local -A facts=([seconds]=$1 [status]=$2 [step]=$3 [words]=$4 [stopped]=$STOPPED [phase]=$FAILED_PHASE [minutes]=$MINUTES
        [hint]=$KIND_HINT [logs]=$LOGS [base]=$BASE [gate]=$HERE [services]=${SERVICE_LOGS[*]} [cap_kb]=$LOG_CAP_KB
        [cap_files]=$LOG_CAP_FILES [uid]=$EUID [journal_start]=$start [known]=$KNOWN_FAILURES [node]=$NODE_LINES
        [tested]=$TESTED [sha1]=$CHANGE_SHA1)
    facts[gid]=$(id -g)
    if (( ${#GIVEN[@]} )); then printf '%s\0' "${GIVEN[@]}"; fi
    for name in "${!facts[@]}"; do printf 'fact\0%s\0%s\0' "$name" "${facts[$name]}"; done
}

# tidy_fetched FROM TO: copy logs that another machine has sent into a new folder, by the same rules: files only, no
# link out of it, plain names and modes, within the limits.
tidy_fetched() {
    gate_tool collectlogs tidy "$1" "$2"
}
