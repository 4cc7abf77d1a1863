# shellcheck shell=bash
# What the bash scripts share. Sourcing this file has no effect but to define functions.

# Write a line to standard error, with the time.
log() {
    printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >&2
}

# Say why in one line, and exit with a status.
die() {
    local status=$1
    shift
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit "$status"
}

# Run a command until it succeeds, at most so often, each time for at most so many seconds, with growing pauses.
# Returns the last status; 124 or 137 when the command was stopped.
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
