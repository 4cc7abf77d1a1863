# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: phases, their processes, and the time limit around all of them.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

MACHINE_LOCK=/run/devstack-gate.lock
GRACE_SECONDS=30 # between TERM and KILL

# Read GATE_RUN, left for us by the script that exec replaced. It begins with our pid, which exec keeps, so no job has
# exported it. Fills ADOPTS (1: adopt_orphans is done) and, if we go on with another script's run, GATE_STARTED and
# RE_EXEC.
# shellcheck disable=SC2034  # the wrap script and gate/source.sh read them
take_over() {
    local pid adopts started rest
    read -r pid adopts started rest <<< "${GATE_RUN:-}"
    unset GATE_RUN GATE_STARTED RE_EXEC
    ADOPTS='' GATE_STARTED='' RE_EXEC=''
    if [[ ${pid:-} != "$$" ]]; then return 0; fi
    ADOPTS=$adopts GATE_STARTED=${started:-}
    if [[ $GATE_STARTED ]]; then RE_EXEC=true; fi
}

# Make orphans of the run our children, so that none escapes the time limit, and let SIGINT reach us even if whoever
# started us in the background had it ignored, and SIGPIPE. SIGHUP stays ignored, as nohup asks for it. Leave the
# terminal of a person, as if Jenkins ran us: what asks there would be stopped, and the run would wait for it. Ctrl-C goes
# to our process group all the same. The number of prctl depends on the architecture.
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
    take_jobs_ways
    hand_over
    # shellcheck disable=SC2016  # Perl, with PR_SET_CHILD_SUBREAPER = 36 and TIOCNOTTY = 0x5422, which a leader must not use
    GATE_RUN="$$ 1 $GATE_STARTED" exec env "${HIDDEN[@]}" perl -e '$SIG{$_} = "DEFAULT" for qw(INT TERM QUIT PIPE USR1); $n = shift; syscall($n, 36, 1, 0, 0, 0) if $n > 0;
        open(S, "/proc/self/stat"); $session = (split " ", <S> =~ s/.*\)//r)[3];
        ioctl(T, 0x5422, 0) if $session != $$ && open(T, "+</dev/tty"); exec @ARGV' \
        "$number" bash "$0" "$@"
}

start_clock() {
    local limit=$(( DEVSTACK_GATE_TIMEOUT * 60 )) reserve
    now
    GATE_STARTED=${GATE_STARTED:-$NOW}
    # For logs, but at most half of the time, so that the test gets some.
    reserve=$(( limit / 10 > 60 ? limit / 10 : 60 ))
    if (( reserve > limit / 2 )); then reserve=$(( limit / 2 )); fi
    GATE_DEADLINE=$(( GATE_STARTED + limit - reserve ))
    GATE_STOP=$(( GATE_STARTED + limit ))
}

# run_processes WHAT OPTION...: run gate/processes.py, as root if we can, with nothing in its environment by which
# others would count it among the build's processes.
run_processes() {
    local -a program=(env -i PATH="$PATH" python3 -I "$GATE_TOOLS/processes.py")
    if (( EUID )) && sudo -n true 2> /dev/null; then program=(sudo -n -- "${program[@]}"); fi
    "${program[@]}" "$@" --run "$$" --user stack
}

# Start a watcher that outlives us: it wakes us with SIGUSR1 at the deadline, and ends the whole run if we are killed or
# stopped. It locks the machine: two runs would use each other's trees, so the later one ends before it touches any.
start_watcher() {
    local rc=0
    local -a lock=()
    export GATE_MARK=$RUN
    if as_root true 2> /dev/null; then lock=(--lock "$MACHINE_LOCK"); fi
    WATCHER=$(run_processes watch --deadline "$GATE_DEADLINE" --end "$GATE_STOP" --grace "$GRACE_SECONDS" --folder "$RUN" \
        --logs "$LOGS" "${lock[@]}" 2> "$RUN/said") || rc=$?
    if (( rc == 75 )); then
        trap - EXIT
        set -- "$(< "$RUN/said")"
        rm -rf -- "$RUN"
        die 1 "$1: only one run at a time may use a machine"
    elif (( rc )); then
        die 1 "the time limit cannot be enforced: gate/processes.py, which needs python3, does not run: $(tail -n 1 -- "$RUN/said" || true)"
    fi
}

end_watcher() {
    local pid=$WATCHER _
    WATCHER=''
    if [[ ! $pid ]] || ! signal_watcher TERM "$pid"; then return 0; fi
    for _ in {1..500}; do
        if [[ ! -e /proc/$pid ]]; then return 0; fi
        sleep 0.01
    done
    signal_watcher KILL "$pid"
}

signal_watcher() {
    kill -s "$1" "$2" || as_root kill -s "$1" -- "$2"
} 2> /dev/null

begin_phase() {
    PHASE=$1
    now
    PHASE_STARTED=$NOW
    log "$PHASE" 2>&1
}

# run_phase NAME FILE COMMAND...: the output goes to FILE, and from there to the console, so that a service that the
# command leaves running can hold up neither the console nor us. Returns the command's status.
run_phase() {
    local file=$2 pid size rc=0
    begin_phase "$1"
    shift 2
    size=$(stat -c %s -- "$file" 2> /dev/null) || size=0
    # If the logs cannot be written, the test goes on, and its verdict counts.
    touch -- "$file" 2> /dev/null || file=$RUN/output
    touch -- "$file" || die 1 "$file cannot be written"
    set -m  # gives the command a process group of its own, with SIGINT as usual
    "$@" >> "$file" 2>&1 < /dev/null &
    pid=$!
    set +m
    follow "$file" "$size" "$pid" &
    FOLLOWER=$!
    wait "$pid" || rc=$?
    # Whoever aborts a build signals us and the test, in any order; our trap must be first to say that it was aborted.
    case $rc in 130 | 143) sleep 1 ;; esac
    end_phase
    return "$rc"
}

# follow FILE BYTES PID: show what a file gets after its first BYTES, until a process has ended. If the console goes
# before that, nobody waits for the run any more.
follow() {
    trap '' TERM INT HUP USR1
    tail -c "+$(( $2 + 1 ))" -s 0.1 -f --pid="$3" -- "$1" | stamp || true
    if kill -0 "$3" 2> /dev/null; then kill -s PIPE "$$"; fi
}

# Whether a child is still running.
is_running() {
    local state=''
    read -r state < "/proc/$1/stat" || return 1  # a bare return in a trap returns the status from before the trap
    [[ ${state##*) } != Z* ]]
} 2> /dev/null

end_phase() {
    local seconds
    # Not wait: in a trap that has interrupted another one, bash 5.2 waits for the watcher instead.
    while [[ $FOLLOWER ]] && is_running "$FOLLOWER"; do sleep 0.02; done
    now
    seconds=$(( NOW - PHASE_STARTED ))
    MINUTES+="${MINUTES:+, }$PHASE $(( seconds / 60 )).$(( seconds % 60 / 6 ))"
    FOLLOWER=''
} 2> /dev/null

# Stop all processes of the run and of the stack user: TERM, time to end, KILL.
stop_processes() {
    local grace
    local -a skip=()
    now
    grace=$(( (GATE_STOP - NOW) / 2 ))
    grace=$(( grace < 0 ? 0 : grace < GRACE_SECONDS ? grace : GRACE_SECONDS ))
    if [[ $FOLLOWER ]]; then skip+=(--skip "$FOLLOWER"); fi
    run_processes stop --grace "$grace" --skip "${WATCHER:-0}" "${skip[@]}" || printf 'Some processes of the run could not be stopped.\n'
}
