# shellcheck shell=bash
# What the bash scripts share: messages, secrets, retries, time. Sourcing this file only defines functions and constants.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

GATE_TOOLS=$(readlink -f -- "${BASH_SOURCE[0]}")
GATE_TOOLS=${GATE_TOOLS%/*}/gate
# shellcheck disable=SC2034  # both gate scripts read it
NO_PACKAGES='devstack|devstack-gate|requirements|grenade' # projects that are used as they are, not installed
# shellcheck disable=SC2034  # both gate scripts read it
LAST_STEP='the end' # what devstack-vm-gate.sh records as its step once all of it has passed
TOOL_SETTINGS=(SHELLOPTS BASHOPTS POSIXLY_CORRECT BASH_COMPAT BASH_ENV FUNCNEST PERL5OPT) # of bash and others
JOB_WAYS=() # the job's LC_ALL, if it has one
GIVEN=() # what the run was given, for print_secrets; see gate/reproduce.sh

# --- messages ---

# Write a line to standard error, with the time.
log() {
    printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ || true)" "$*" >&2
}

# die STATUS WORDS...: say why in one line, whatever the words hold, and exit with that status.
die() {
    local status=$1 words
    shift
    words=$*
    words=${words//[[:cntrl:]]/ }
    words=${words:0:1000}
    if [[ $words == *://*@* ]]; then words=$(hide_logins <<< "$words"); fi
    printf '%s: %s\n' "${0##*/}" "$words" >&2
    exit "$status"
}

# Print the script's name and the project's version, which gateprocess.py has.
print_version() {
    sed -n "s/^VERSION = \"\([0-9.]*\)\".*/${0##*/} \1/p" -- "${GATE_TOOLS%/gate}/gateprocess.py"
}

# start_plainly ARGUMENT...: begin again without exported variables that would change bash, perl and other tools: a trace
# with secrets in it, another language, code that runs first.
start_plainly() {
    local name
    for name in "${TOOL_SETTINGS[@]}"; do
        if [[ -v $name && ${!name@a} == *x* ]]; then exec env "${TOOL_SETTINGS[@]/#/-u}" bash "$0" "$@"; fi
    done
}

# From here on, patterns and letters mean what they mean in the C locale, and others can read what is made. In other
# locales [A-Z] may lack letters, and ${name^^} make strange ones.
leave_jobs_ways() {
    JOB_WAYS=()
    if [[ -v LC_ALL ]]; then JOB_WAYS=("LC_ALL=$LC_ALL"); fi
    JOB_UMASK=$(umask)
    export LC_ALL=C
    umask 022
}

# What runs for the job has the job's own locale and umask.
take_jobs_ways() {
    unset LC_ALL
    if (( ${#JOB_WAYS[@]} )); then export "${JOB_WAYS[@]}"; fi
    umask "$JOB_UMASK"
}

# gate_tool NAME ARGUMENT...: run one of our Python programs; nothing in the environment changes what it does.
gate_tool() {
    local name=$1
    shift
    python3 -B -E -s -S "$GATE_TOOLS/$name.py" "$@"
}

# Copy stdin without delay, with the time (UTC) before each line that does not begin with it, and without the run's
# secrets and anything that is not printable text.
stamp() {
    gate_tool console stamp 3< <(print_secrets || true)
}

# The same without the time.
printable() {
    gate_tool console printable 3< <(print_secrets || true)
}

# Print what secrets are looked for in: the settings and functions that the run was given, and devstack's settings.
print_secrets() {
    if (( ${#GIVEN[@]} )); then printf '%s\0' "${GIVEN[@]}"; fi
    if [[ ${BASE:-} && ${RUN:-} ]]; then
        printf 'text\0\0'
        as_root timeout 5 head -q -c 1000000 -- "$BASE"/{new,old}/devstack/{local.conf,localrc,.localrc.auto,.localrc.password} | tr -d '\0' || true
        printf '\0'
    fi 2> /dev/null
}

# Take logins out of the URLs of a text: https://user:secret@host/.
hide_logins() {
    gate_tool hidesecrets logins
}

# hide_secrets FILE...: copy stdin without the secrets that these settings files hold.
hide_secrets() {
    gate_tool hidesecrets stream "$@"
}

# --- what was tested ---

# list_changes BASE: print a word TREE:COMMIT for each tree that setup_project has marked as one with a change.
list_changes() {
    local tree commit
    for tree in "$1"/{new,old}/*; do
        if [[ ! -e $tree/.git/gate-change ]]; then continue; fi
        commit=$(< "$tree/.git/gate-change") || return
        printf '%s:%s\n' "${tree#"$1/"}" "$commit"
    done
}

# list_untested LINES: print a note on each tree with a change that was not tested, by the lines of
# gate/installed.py: it is installed nowhere, read by nothing, or part of something that this run does not use.
list_untested() {
    local lines=$1 name
    sed -n '/^NOT /d; s/: is installed nowhere: .*//p' "$lines" | grep -vxE "$NO_PACKAGES" | sed 's/$/ was not installed/' || true
    sed -n '/^NOT /d; s/: is read by nothing: .*/ was not used/p' "$lines"
    for name in grenade devstack-gate; do
        if ! grep -q "^$name: " "$lines"; then continue; fi
        case $name:${DEVSTACK_GATE_GRENADE:-}:${SKIP_DEVSTACK_GATE_PROJECT:-} in
            grenade:1:* | devstack-gate:*: | devstack-gate:*:0) ;;
            *) printf '%s was not used\n' "$name" ;;
        esac
    done
}

# --- doing things ---

as_root() {
    if (( EUID == 0 )); then
        "$@"
    else
        sudo -n -- "$@"
    fi
}

# Set NOW to the seconds since boot (monotonic).
now() {
    local rest
    read -r NOW rest < /proc/uptime
    NOW=${NOW%.*}
}

# retry ATTEMPTS SECONDS COMMAND...: up to ATTEMPTS tries, each limited to SECONDS, with growing pauses between them.
# Returns the last status; 124 or 137 if the command was stopped.
retry() {
    local attempts=$1 seconds=$2 pause=2 attempt rc=0
    shift 2
    for (( attempt = 1; attempt <= attempts; attempt++ )); do
        rc=0
        timeout -k 10 "$seconds" "$@" || rc=$?
        if (( rc == 0 || attempt == attempts )); then
            break
        fi
        log "$1 failed with $rc, attempt $attempt of $attempts; again in $pause s"
        sleep "$pause"
        pause=$(( pause * 2 ))
    done
    return "$rc"
}
