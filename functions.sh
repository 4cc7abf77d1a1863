# shellcheck shell=bash
# What the bash scripts share: messages, secrets, retries, time. Sourcing this file only defines functions and constants.
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310

# --- messages ---

# Write a line to standard error, with the time.
log() {
    printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ || true)" "$*" >&2
}

# Say why in one line, and exit with a status.
die() {
    local status=$1
    shift
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit "$status"
}

# Put the time (UTC) before each line of stdin that does not begin with it, as soon as it is there.
stamp() {
    perl -MPOSIX=strftime -ne 'BEGIN { $| = 1 } print /^\d{4}-\d\d-\d\dT/ ? "" : strftime("%FT%TZ ", gmtime), $_;
        $open = !/\n\z/; END { print "\n" if $open }'
}

# Take logins out of the URLs of a text: https://user:secret@host/.
hide_logins() {
    sed -E 's,(://)[^/@[:space:]]*@,\1,g'
}

# hide_secrets FILE...: hide the secrets that settings files hold in a text.
hide_secrets() {
    local IFS=$'\n'
    FILES=$* perl -ne '
        BEGIN {
            $| = 1;
            for my $file (split /\n/, $ENV{FILES}) {
                open my $settings, "<", $file or next;
                while (<$settings>) {
                    push @secrets, $1 if /^\s*(?:export\s+)?\w*(?:PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS?|SWIFT_HASH|API_?KEY|PRIVATE_KEY)\d*\s*[=:]\s*(?|"([^"]{6,})"|\x27([^\x27]{6,})\x27|(\S{6,}))/i;
                }
            }
            $any = join "|", map { quotemeta } sort { length $b <=> length $a } @secrets;
        }
        s/$any/********/g if length $any;
        print'
}

# --- doing things ---

as_root() {
    if (( EUID == 0 )); then
        "$@"
    else
        sudo -n -- "$@"
    fi
}

# Put seconds of a clock that nobody sets into NOW.
now() {
    local rest
    read -r NOW rest < /proc/uptime
    NOW=${NOW%.*}
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
