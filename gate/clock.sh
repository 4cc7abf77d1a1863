# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: phases, their processes, and the time limit around all of them.
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310

GRACE_SECONDS=30 # between TERM and KILL
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
    restore_functions
    # shellcheck disable=SC2016  # Perl, with PR_SET_CHILD_SUBREAPER = 36
    GATE_ADOPTS=$PPID exec perl -e '$SIG{$_} = "DEFAULT" for qw(INT TERM HUP QUIT); $n = shift; syscall($n, 36, 1, 0, 0, 0) if $n > 0; exec @ARGV' \
        "$number" bash "$0" "$@"
}

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
