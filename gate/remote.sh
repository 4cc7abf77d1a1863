# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: HOST given. The run there is in a session of its own and writes to files, so that
# a lost connection costs nothing; we show what it writes, pass signals on, and bring its logs and its status back.
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310
# shellcheck disable=SC2153  # HERE is the wrap script's

# shellcheck disable=SC2016  # what is in single quotes is expanded on the host

SSH_OPTIONS=(-o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 -o LogLevel=ERROR)
LOST_SECONDS=600   # beyond the time limit, after which a silent host is given up
SIGNAL_SECONDS=180 # the same, once a signal has been passed on
THERE=''           # the run's folder on the host
ATTENDED=''        # the process that is being attended, if any
GIVE_UP=0          # when a silent host is given up, on the clock of now

# Prepares the folder on the host and prints it.
REMOTE_FOLDER='umask 077
command -v rsync > /dev/null || { echo "rsync is missing there" >&2; exit 1; }
mkdir -p ~/devstack-gate && cd ~/devstack-gate || exit
if [[ -e pid && ! -e status ]] && kill -0 "$(cat pid)" 2> /dev/null; then echo "another run is under way there" >&2; exit 1; fi
rm -rf status pid console workspace/logs
mkdir -p -m 755 workspace gate && mkdir workspace/logs && pwd'

# The session of the run on the host. The status file appears last.
REMOTE_RUN='cd "$1" || exit
exec < /dev/null > /dev/null 2>&1
. ./settings
bash ./gate/devstack-vm-gate-wrap.sh > console 2>&1 &
echo "$!" > pid.new
mv pid.new pid
wait "$!"
echo "$?" > status.new
mv status.new status'

# Shows the console of the run from a byte on, until it ends.
REMOTE_CONSOLE='cd "$1" || exit
until [[ -e pid ]]; do sleep 0.1; done
tail -c "+$2" -f -s 0.1 --pid="$(cat pid)" console'

# Prints the status of the run, or "gone" when it is over without one; fails while it runs.
REMOTE_STATUS='cd "$1" || exit
for try in {1..20}; do
    if [[ -e status ]]; then cat status; exit; fi
    sleep 0.1
done
if kill -0 "$(cat pid)" 2> /dev/null; then exit 1; fi
echo gone'

run_there() {
    local host=$1 rc=0
    check_host "$host"
    RUN=$(mktemp -d)
    LOGS=$WORKSPACE/logs
    # Addresses of single-use machines are used again: the key seen first is the one for this run.
    SSH_OPTIONS+=(-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile="$RUN/known_hosts")
    trap 'leave_there' EXIT
    trap 'exit 143' TERM HUP
    trap 'exit 130' INT
    send_workspace "$host" || die 1 "$host: the workspace could not be copied there"
    now
    GIVE_UP=$(( NOW + DEVSTACK_GATE_TIMEOUT * 60 + LOST_SECONDS ))
    trap 'pass_signal "$host" TERM || true' TERM HUP
    trap 'pass_signal "$host" INT || true' INT
    on_host "$host" setsid -f bash -c "$REMOTE_RUN" bash "$THERE" || die 1 "$host: the run could not be started"
    rm -rf -- "$LOGS"
    mkdir -p -- "$LOGS"
    follow_there "$host" || rc=$?
    trap '' INT TERM HUP
    fetch_logs "$host" || log "$host: its logs could not be fetched"
    return "$rc"
}

# Nothing of ours stays behind on this side.
leave_there() {
    if [[ $ATTENDED ]]; then kill -- "-$ATTENDED" 2> /dev/null || true; fi
    rm -rf -- "$RUN"
}

check_host() {
    if [[ ! $1 =~ ^([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_:.][A-Za-z0-9_:.-]*$ ]]; then
        die 2 "HOST: expected [USER@]HOST, not '$1'"
    elif ! command -v rsync > /dev/null; then
        die 1 'rsync is missing on this machine'
    fi
}

# Run a command so that a signal to us is heard at once and does not reach it.
attend() {
    local rc pid
    setsid "$@" < /dev/null &
    pid=$!
    ATTENDED=$pid
    while :; do
        rc=0
        wait "$pid" || rc=$?
        if ! kill -0 "$pid" 2> /dev/null; then
            ATTENDED=''
            return "$rc"
        fi
    done
}

# on_host HOST WORD...
on_host() {
    local host=$1
    shift
    attend ssh "${SSH_OPTIONS[@]}" -- "$host" "${*@Q}"
}

copy() {
    attend rsync -a --no-owner --no-group --timeout=120 --rsh="ssh ${SSH_OPTIONS[*]@Q}" "$@"
}

# HOST:PATH as rsync wants it.
rsync_path() {
    local user='' host=$1
    if [[ $host == *@* ]]; then
        user=${host%%@*}@
        host=${host#*@}
    fi
    if [[ $host == *:* ]]; then host="[$host]"; fi
    printf '%s%s:%s\n' "$user" "$host" "$2"
}

send_workspace() {
    local host=$1 to
    on_host "$host" bash -c "$REMOTE_FOLDER" > "$RUN/there" || return
    THERE=$(< "$RUN/there")
    [[ $THERE == /* ]] || return
    mkdir -- "$RUN/gate"
    cp -RL -- "${SCRIPTS[@]/#/"$HERE/"}" "$RUN/gate/" || return
    : > "$RUN/settings"
    chmod 600 -- "$RUN/settings"
    { WORKSPACE=$THERE/workspace print_settings && print_functions; } > "$RUN/settings" || return
    to=$(rsync_path "$host" "$THERE/")
    copy --delete --exclude=/logs/ -- "$WORKSPACE/" "${to}workspace/" && copy -- "$RUN/settings" "$RUN/gate" "$to"
}

# Show the console of the run there until its status is there, across lost connections. Returns that status.
follow_there() {
    local host=$1 console=$RUN/console size tee
    : > "$console"
    mkfifo -- "$RUN/pipe"
    while now; (( NOW < GIVE_UP )); do
        size=$(stat -c %s -- "$console")
        setsid tee -a -- "$console" < "$RUN/pipe" &
        tee=$!
        on_host "$host" bash -c "$REMOTE_CONSOLE" bash "$THERE" "$(( size + 1 ))" > "$RUN/pipe" || true
        while kill -0 "$tee" 2> /dev/null; do wait "$tee" || true; done
        if on_host "$host" bash -c "$REMOTE_STATUS" bash "$THERE" > "$RUN/status"; then
            if grep -qxE '[0-9]+' "$RUN/status"; then return "$(< "$RUN/status")"; fi
            log "$host: the run there ended without a status"
            return 1
        fi
        log "$host: the connection is lost, trying again"
        sleep 2
    done
    log "$host: given up"
    return 1
}

# Nothing keeps running there: the run is told, as often as it takes, and ends as it does after a signal.
pass_signal() {
    local host=$1 name=$2 try
    log "SIG$name: stopping the run at $host"
    now
    GIVE_UP=$(( NOW + SIGNAL_SECONDS ))
    for try in 1 2 3 4 5 6; do
        if ssh "${SSH_OPTIONS[@]}" -- "$host" "kill -s $name -- \$(cat ${THERE@Q}/pid)" < /dev/null; then return 0; fi
        sleep "$try"
    done
}

fetch_logs() {
    local from try
    from=$(rsync_path "$1" "$THERE/workspace/logs/")
    for try in 3 6 9; do
        if copy -- "$from" "$LOGS/"; then return 0; fi
        sleep "$try"
    done
    return 1
}
