# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: HOST given. The run there is in a session of its own and writes to files, so that
# a lost connection costs nothing; we show what it writes, pass signals on, and bring its logs and its status back.
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310

SSH_OPTIONS=(-o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 -o LogLevel=ERROR)
LOST_SECONDS=600 # beyond the time limit, after which a silent host is given up
THERE=''         # the run's folder on the host
SIGNAL=''        # that we were sent

# What the session on the host does. The status file appears last.
REMOTE_RUN='cd "$1" || exit
. ./settings
bash ./gate/devstack-vm-gate-wrap.sh > console 2>&1 < /dev/null &
echo "$!" > pid
while :; do
    wait "$(cat pid)"
    status=$?
    kill -0 "$(cat pid)" 2> /dev/null || break
done
echo "$status" > status.new
mv status.new status'

run_there() {
    local host=$1 rc=0
    check_host "$host"
    RUN=$(mktemp -d)
    LOGS=$WORKSPACE/logs
    # Addresses of single-use machines are used again: the key seen now is the one for this run.
    SSH_OPTIONS+=(-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile="$RUN/known_hosts")
    trap 'rm -rf -- "$RUN"' EXIT
    trap 'exit 143' TERM HUP
    trap 'exit 130' INT
    mkdir -p -- "$LOGS"
    send_workspace "$host" || die 1 "$host: the workspace could not be copied there"
    trap 'pass_signal TERM' TERM HUP
    trap 'pass_signal INT' INT
    start_there "$host" || die 1 "$host: the run could not be started there"
    follow_there "$host" || rc=$?
    trap '' INT TERM HUP
    fetch_logs "$host" || log "$host: its logs could not be fetched"
    return "$rc"
}

check_host() {
    if [[ ! $1 =~ ^([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_:.][A-Za-z0-9_.:-]*$ ]]; then
        die 2 "HOST: expected [USER@]HOST, not '$1'"
    elif ! command -v rsync > /dev/null; then
        die 1 'rsync is missing here'
    fi
}

# Run a command there, in the background as far as bash is concerned: a signal is heard at once.
there() {
    local host=$1 rc=0 pid
    shift
    setsid ssh "${SSH_OPTIONS[@]}" -- "$host" "${*@Q}" &
    pid=$!
    while :; do
        rc=0
        wait "$pid" || rc=$?
        if ! kill -0 "$pid" 2> /dev/null; then return "$rc"; fi
    done
}

copy() {
    rsync -a --rsh="ssh ${SSH_OPTIONS[*]@Q}" --timeout=120 "$@"
}

# HOST:PATH as rsync wants it.
rsync_path() {
    local user='' host=$1
    if [[ $host == *@* ]]; then user=${host%%@*}@ host=${host#*@}; fi
    if [[ $host == *:* ]]; then host="[$host]"; fi
    printf '%s%s:%s\n' "$user" "$host" "$2"
}

send_workspace() {
    local host=$1 name
    THERE=$(ssh "${SSH_OPTIONS[@]}" -- "$host" 'umask 077; command -v rsync > /dev/null || { echo "rsync is missing there" >&2; exit 1; }
        mkdir -p ~/devstack-gate && cd ~/devstack-gate && mkdir -p -m 755 workspace gate && rm -f status pid console && pwd') || return
    [[ $THERE == /* ]] || return
    umask 077
    WORKSPACE=$THERE/workspace print_settings > "$RUN/settings"
    print_hooks >> "$RUN/settings"
    umask 022
    mkdir "$RUN/gate"
    for name in "${SCRIPTS[@]}"; do cp -- "$HERE/$name" "$RUN/gate/"; done
    local to
    to=$(rsync_path "$host" "$THERE/")
    copy --delete --exclude=/logs/ -- "$WORKSPACE/" "${to}workspace/" && copy -- "$RUN/settings" "$RUN/gate" "$to"
}

start_there() {
    local host=$1
    THERE_STARTED=1
    there "$host" setsid -f bash -c "$REMOTE_RUN" bash "$THERE" > /dev/null 2>&1 < /dev/null
}

# Show the console of the run there until its status is there, across lost connections. Returns that status.
follow_there() {
    local host=$1 console=$RUN/console size status='' until
    now
    until=$(( NOW + DEVSTACK_GATE_TIMEOUT * 60 + LOST_SECONDS ))
    : > "$console"
    while now; (( NOW < until )); do
        size=$(stat -c %s -- "$console")
        there "$host" bash -c 'cd "$1" && until [[ -e pid || -e status ]]; do sleep 0.2; done
            tail -c "+$2" -f -s 0.2 --pid="$(cat pid)" console' bash "$THERE" "$(( size + 1 ))" < /dev/null > >(tee -a "$console") || true
        wait "$!" 2> /dev/null || true
        if status=$(ask_status "$host"); then
            if [[ $status =~ ^[0-9]+$ ]]; then return "$status"; fi
            die 1 "$host: the run there ended without a status"
        fi
        log "$host: the connection is lost, trying again"
        sleep 5
    done
    die 1 "$host: lost, and not back in time"
}

# The status of the run there; "gone" when it is over without one; fails when the host cannot be asked.
ask_status() {
    there "$1" bash -c 'cd "$1" || exit 0
        for try in 1 2 3 4 5 6 7 8 9 10; do if [[ -e status ]]; then cat status; exit; fi; sleep 0.3; done
        if [[ -e pid ]] && kill -0 "$(cat pid)" 2> /dev/null; then exit 1; fi
        echo gone' bash "$THERE" < /dev/null
}

# Nothing keeps running there: the run is told, as often as it takes, and ends as it does after a signal.
pass_signal() {
    local name=$1 try
    SIGNAL=$name
    log "SIG$name: stopping the run at $HOST"
    for try in 1 2 3 4 5 6; do
        if ssh "${SSH_OPTIONS[@]}" -- "$HOST" "kill -s $name -- \$(cat ${THERE@Q}/pid)" < /dev/null; then return; fi
        sleep "$try"
    done
}

fetch_logs() {
    local from try
    from=$(rsync_path "$1" "$THERE/workspace/logs/")
    for try in 1 2 3; do
        if copy -- "$from" "$LOGS/"; then return 0; fi
        sleep "$(( try * 3 ))"
    done
    return 1
}
