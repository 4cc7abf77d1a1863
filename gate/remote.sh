# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: the run on HOST. It has a session of its own there and writes to files, so that a
# lost connection costs nothing; we show what it writes, pass signals on, and bring its logs and its status back.
# What comes from there is data: bounded in time and size, and checked by gate/received.py.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md
# shellcheck disable=SC2153  # HERE is the wrap script's

# shellcheck disable=SC2016  # what is in single quotes is expanded on the host, or by another bash here

# The user's settings say where the host is and how to log in; nothing of ours is forwarded to it.
SSH_OPTIONS=(-a -k -x -T -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 -o LogLevel=ERROR
    -o ForwardAgent=no -o ForwardX11=no -o ForwardX11Trusted=no -o ClearAllForwardings=yes -o Tunnel=no -o PermitLocalCommand=no
    -o ControlMaster=no -o ControlPath=none -o ControlPersist=no -o RemoteCommand=none -o RequestTTY=no -o UpdateHostKeys=no
    -o AddKeysToAgent=no -o GlobalKnownHostsFile=/dev/null)
SSH_VARIABLES=(PATH HOME USER LOGNAME LANG TMPDIR SSH_AUTH_SOCK KRB5CCNAME) # all that ssh gets, since it may send what it gets
LOST_SECONDS=600   # after the time limit, until a silent host is given up
SIGNAL_SECONDS=180 # the same, after a signal
FETCH_SECONDS=60   # of these, at least, are for the logs
SEND_SECONDS=1800  # for the workspace
CALL_SECONDS=60    # for anything else
FILE_KB=1024       # the most that is kept of an answer
THERE=''           # the run's folder on the host
ATTENDED=''        # the process that is being attended, if any
TIMER=''           # the process that ends it when its time is up
GIVE_UP=0          # when we give up, on the clock of now()
SIGNAL=''          # the name of the signal that came last
PASSED=''          # the name of the signal that was passed on to the host
GIVEN_UP=''        # 1: the host was given up

# Each of these first prints a line, on stdout and stderr, since a shell there may print something at its start.
# gate/received.py knows the line.
BEGIN_LINE='--- devstack-gate ---'
REMOTE_BEGIN="printf -- '$BEGIN_LINE\n'; printf -- '$BEGIN_LINE\n' >&2"

# Prepares the folder on the host and prints it.
REMOTE_FOLDER="$REMOTE_BEGIN"'
umask 077
mkdir -p ~/devstack-gate && cd ~/devstack-gate || exit
if [[ -e pid && ! -e status ]] && kill -0 "$(cat pid)" 2> /dev/null; then echo "another run is under way there" >&2; exit 1; fi
rm -rf status pid console workspace gate settings 2> /dev/null || sudo -n rm -rf status pid console workspace gate settings || exit
mkdir -m 755 workspace gate && mkdir workspace/logs && pwd'

# Unpacks an archive from stdin in a folder.
REMOTE_UNPACK="$REMOTE_BEGIN"'
cd "$1" && exec tar --no-same-owner -xpf -'

# The session of the run on the host. The status file appears last.
REMOTE_RUN='cd "$1" || exit
exec < /dev/null > /dev/null 2>&1
unset SSH_CLIENT SSH2_CLIENT SSH_CONNECTION  # with which each bash of the run would read .bashrc
. ./settings
bash ./gate/devstack-vm-gate-wrap.sh > console 2>&1 &
echo "$!" > pid.new
mv pid.new pid
wait "$!"
echo "$?" > status.new
mv status.new status'

# Shows the console of the run from a byte on, until it ends.
REMOTE_CONSOLE="$REMOTE_BEGIN"'
cd "$1" || exit
until [[ -e pid ]]; do sleep 0.1; done
exec tail -c "+$2" -f -s 0.1 --pid="$(cat pid)" console'

# Prints the status of the run, or "gone" if it ended without one; fails while it runs.
REMOTE_STATUS="$REMOTE_BEGIN"'
cd "$1" || exit
for try in {1..20}; do
    if [[ -e status ]]; then cat status; exit; fi
    sleep 0.1
done
if kill -0 "$(cat pid)" 2> /dev/null; then exit 1; fi
echo gone'

REMOTE_SIGNAL="$REMOTE_BEGIN"'
kill -s "$2" -- "$(cat "$1/pid")" || [[ -e $1/status ]]'

# Sends the plain files of the logs, the small ones first, since the rest may be too much.
REMOTE_LOGS="$REMOTE_BEGIN"'
cd "$1/workspace/logs" || exit
find . -type f -printf "%s %p\0" | sort -z -n | cut -z -d " " -f 2- \
    | tar --null --no-recursion --format=ustar --owner=0 --group=0 --hard-dereference -cf - -T -'

# On this side: PACK FOLDER COMMAND...: pipe the folder, without its logs/, to a command. Files may change meanwhile.
PACK='set -o pipefail
{ tar -C "$1" --anchored --exclude=./logs -cf - . || (( $? == 1 )); } | "${@:2}"'

run_there() {
    local host=$1 rc=0
    check_host "$host"
    RUN=$(mktemp -d)
    LOGS=$WORKSPACE/logs
    rm -rf -- "$LOGS"  # an earlier run's, which would be taken for ours
    # Single-use machines reuse addresses, so the first key seen counts for this run only.
    SSH_OPTIONS+=(-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile="\"${RUN//%/%%}/known_hosts\"")
    trap 'leave_there' EXIT
    trap 'exit 143' TERM HUP
    trap 'exit 130' INT
    now
    GIVE_UP=$(( NOW + DEVSTACK_GATE_TIMEOUT * 60 + LOST_SECONDS ))
    send_workspace "$host" || die 1 "$host: the workspace could not be copied there$(reason || true)"
    trap 'take_signal TERM' TERM HUP
    trap 'take_signal INT' INT
    now
    GIVE_UP=$(( NOW + DEVSTACK_GATE_TIMEOUT * 60 + LOST_SECONDS ))
    on_host "$host" setsid -f bash -c "$REMOTE_RUN" bash "$THERE" || die 1 "$host: the run could not be started$(reason || true)"
    follow_there "$host" || rc=$?
    if [[ ! $GIVEN_UP ]]; then fetch_logs "$host" || log "$host: its logs could not be fetched$(reason || true)"; fi
    case $SIGNAL$rc in
        TERM124 | TERM0) rc=143 ;;
        INT124 | INT0) rc=130 ;;
    esac
    tell_end "$host" "$rc"
    return "$rc"
}

# Leave nothing behind on this side.
leave_there() {
    if [[ $ATTENDED ]]; then
        { kill -KILL -- "-$ATTENDED" ${TIMER:+"-$TIMER"}; wait "$ATTENDED"; } 2> /dev/null || true  # bash would report it
    fi
    rm -rf -- "$RUN"
}

check_host() {
    if [[ ! $1 =~ ^([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_:.][A-Za-z0-9_:.-]*(%[A-Za-z0-9_.-]+)?$ ]]; then
        die 2 "HOST: expected [USER@]HOST, not '$1'"
    elif [[ $1 =~ ^[^:]*:[^:]*$ ]]; then
        die 2 "HOST: expected [USER@]HOST, not '$1': a port is for your ssh settings to tell"
    fi
}

# --- calls ---

# attend SECONDS COMMAND...: run it in a session of its own, which gets none of our signals, until its time or ours is
# up. It can write at most FILE_KB to a file; its stderr goes to $RUN/errors. Returns its status.
attend() {
    local seconds=$1 rc=0 name pid
    local -a given=()
    shift
    now
    seconds=$(( seconds < GIVE_UP - NOW ? seconds : GIVE_UP - NOW ))
    if (( seconds < 1 )); then return 124; fi
    for name in "${SSH_VARIABLES[@]}"; do
        if [[ ${!name:-} ]]; then given+=("$name=${!name}"); fi
    done
    (ulimit -S -f "$FILE_KB"; exec setsid env -i "${given[@]}" "$@") < /dev/null 2> "$RUN/errors" &
    pid=$!
    ATTENDED=$pid
    setsid bash -c 'sleep "$1"; kill -- "-$2"; sleep 2; kill -KILL -- "-$2"' timer "$seconds" "$pid" "$RUN" \
        < /dev/null > /dev/null 2>&1 &
    TIMER=$!
    while :; do
        rc=0
        wait "$pid" || rc=$?
        if ! kill -0 "$pid"; then break; fi
    done 2> /dev/null
    { kill -KILL -- "-$pid"; kill -KILL -- "-$TIMER"; wait "$TIMER"; } 2> /dev/null || true
    ATTENDED='' TIMER=''
    now
    return "$rc"
}

# Print words as the login shell there reads them, whichever POSIX shell that is.
quoted() {
    local word text='' mark="'" inside="'\\''"
    for word in "$@"; do text+=" '${word//$mark/$inside}'"; done
    printf '%s' "${text# }"
}

# on_host HOST WORD...: run it there; what it prints after the mark is in $RUN/answer.
on_host() {
    local host=$1 rc=0
    shift
    attend "$CALL_SECONDS" ssh "${SSH_OPTIONS[@]}" -- "$host" "$(quoted "$@" || true)" > "$RUN/output" || rc=$?
    behind_mark < "$RUN/output" > "$RUN/answer"
    return "$rc"
}

behind_mark() {
    LC_ALL=C sed -e "0,/^$BEGIN_LINE\$/d"
}

# Print what the last call said on stderr.
errors_of_call() {
    if grep -qxF -- "$BEGIN_LINE" "$RUN/errors"; then
        behind_mark < "$RUN/errors" || true
    else
        cat -- "$RUN/errors" || true
    fi | head -c 10000 || true
}

# Print why the last call failed, as the end of a line: the first thing that it said on stderr, if any.
reason() {
    local text
    text=$({ errors_of_call || true; } | { LC_ALL=C tr -c '\n\40-\176' '?' || true; } | LC_ALL=C grep -m 1 '[^[:space:]?]') || text='no answer in time'
    printf ': %s\n' "${text:0:300}"
}

# Note a signal and end the call that is under way; then follow_there passes the signal on.
take_signal() {
    local until
    SIGNAL=$1
    now
    until=$(( NOW + SIGNAL_SECONDS ))
    GIVE_UP=$(( until < GIVE_UP ? until : GIVE_UP ))
    if [[ $ATTENDED ]]; then kill -KILL -- "-$ATTENDED" 2> /dev/null || true; fi
}

# --- parts of a run there ---

send_workspace() {
    local host=$1
    on_host "$host" bash -c "$REMOTE_FOLDER" || return
    THERE=$(head -n 1 -- "$RUN/answer")
    if [[ $THERE != /* || $THERE == *[[:cntrl:]]* ]]; then
        printf 'it names no folder\n' > "$RUN/errors"
        return 1
    fi
    mkdir -m 700 -- "$RUN/send" && mkdir -- "$RUN/send/gate" && cp -RL -- "${SCRIPTS[@]/#/"$HERE/"}" "$RUN/send/gate/" || return
    (umask 077; : > "$RUN/send/settings")
    print_settings_there > "$RUN/send/settings" || return
    send "$host" "$WORKSPACE" "$THERE/workspace" && send "$host" "$RUN/send" "$THERE"
}

# Print what the run there is given; the files that settings name have other places there.
print_settings_there() {
    local known=${DEVSTACK_GATE_KNOWN_FAILURES:-} file=${DEVSTACK_GATE_SETTINGS:-}
    file=${file/#"$WORKSPACE/"/"$THERE/workspace/"}
    if [[ $known ]]; then cp -L -- "$known" "$RUN/send/gate/known" || return; fi
    WORKSPACE=$THERE/workspace DEVSTACK_GATE_SETTINGS=$file DEVSTACK_GATE_KNOWN_FAILURES=${known:+$THERE/gate/known} \
        print_settings && print_functions
}

# send HOST FOLDER TO: add the files in a folder to one there.
send() {
    attend "$SEND_SECONDS" bash -c "$PACK" bash "$2" ssh "${SSH_OPTIONS[@]}" -- "$1" "$(quoted bash -c "$REMOTE_UNPACK" bash "$3" || true)" > "$RUN/output"
}

# Show the console of the run there, across lost connections, until its status is there. Returns that status, or 124, as
# at a time limit, if the host is given up.
follow_there() {
    local host=$1 rc=0
    printf '0 0\n\n' > "$RUN/shown"
    mkfifo -- "$RUN/pipe"
    while now; (( NOW < GIVE_UP - FETCH_SECONDS )); do
        if [[ $SIGNAL != "$PASSED" ]]; then pass_signal "$host" || true; fi
        if (( rc == 0 )); then
            show_console "$host" || rc=$?
            case $rc in
                3) log "$host: its console is too long; the rest is not shown" ;;
                4) take_signal TERM ;;
                *) rc=0 ;;
            esac
        else
            sleep 5
        fi
        if [[ $SIGNAL != "$PASSED" ]]; then continue; fi
        if on_host "$host" bash -c "$REMOTE_STATUS" bash "$THERE"; then
            read_status "$host"
            return
        fi
        if (( rc == 0 )); then
            log "$host: the connection is lost, trying again"
            sleep 2
        fi
    done
    GIVEN_UP=1
    log "$host: given up, $(given_up_after || true); its run may still be going on"
    return 124
}

given_up_after() {
    if [[ $SIGNAL ]]; then
        printf 'its run did not end within %s s after SIG%s\n' "$(( SIGNAL_SECONDS - FETCH_SECONDS ))" "$SIGNAL"
    else
        printf 'its run did not end within %s s after the time limit (%s minutes)\n' "$(( LOST_SECONDS - FETCH_SECONDS ))" "$DEVSTACK_GATE_TIMEOUT"
    fi
}

# Show what the console got since the last time. Returns the status of gate/received.py, which shows it.
show_console() {
    local host=$1 shown shower rc
    read -r shown rc < "$RUN/shown"
    python3 -I "$RUN/send/gate/gate/received.py" console "$RUN/shown" < "$RUN/pipe" &
    shower=$!
    attend "$(( GIVE_UP - FETCH_SECONDS - NOW ))" \
        ssh "${SSH_OPTIONS[@]}" -- "$host" "$(quoted bash -c "$REMOTE_CONSOLE" bash "$THERE" "$(( shown + 1 ))" || true)" > "$RUN/pipe" || true
    while :; do
        rc=0
        wait "$shower" || rc=$?
        if ! kill -0 "$shower" 2> /dev/null; then return "$rc"; fi
    done
}

# Return the status that the host told.
read_status() {
    local status
    status=$(head -c 100 -- "$RUN/answer")
    if [[ $status =~ ^[0-9]{1,3}$ ]] && (( 10#$status < 256 )); then return "$(( 10#$status ))"; fi
    log "$1: the run there ended without a status"
    return 1
}

# Pass the signal on to the run there, which ends as it does after any signal.
pass_signal() {
    log "SIG$SIGNAL: stopping the run at $1"
    on_host "$1" bash -c "$REMOTE_SIGNAL" bash "$THERE" "$SIGNAL" && PASSED=$SIGNAL
}

fetch_logs() {
    local host=$1 try FILE_KB=unlimited
    for try in 3 6 9; do
        rm -rf -- "$LOGS"
        mkdir -p -- "$LOGS"
        if attend "$(( GIVE_UP - NOW ))" bash -c '"${@:3}" | python3 -I "$1" logs "$2"' bash "$RUN/send/gate/gate/received.py" "$LOGS" \
            ssh "${SSH_OPTIONS[@]}" -- "$host" "$(quoted bash -c "$REMOTE_LOGS" bash "$THERE" || true)"; then
            errors_of_call > "$RUN/notes"
            if [[ -s $RUN/notes ]]; then log "$host: its logs$(reason || true)"; fi
            return 0
        fi
        if [[ $SIGNAL != "$PASSED" ]]; then return 1; fi
        sleep "$try"
    done
    return 1
}

# See to it that the last line tells the true status, whatever the console ended with.
tell_end() {
    local rc=$2 last
    last=$(sed -n 2p "$RUN/shown")
    case $rc:$last in
        0:PASS*) ;;
        0:*) printf 'PASS according to %s, although its console ends differently.\n' "$1" ;;
        *:"FAIL ($rc)"*) ;;
        *) printf 'FAIL (%s) at %s.\n' "$rc" "$1" ;;
    esac
}
