#!/usr/bin/env bash
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310

usage() {
    cat <<'EOT'
Usage: devstack-vm-gate.sh

Configures and runs the devstack in $BASE/new/devstack, then its exercises or tempest, or an upgrade with grenade.
devstack-vm-gate-wrap.sh runs it, when no gate_hook replaces it. It goes on as the user who owns that devstack: stack.

Settings are environment variables, see README.md: BASE, DEVSTACK_GATE_EXERCISES, DEVSTACK_GATE_TEMPEST and its kin,
DEVSTACK_GATE_GRENADE, ENABLED_SERVICES, DEVSTACK_LOCAL_CONFIG, KEEP_LOCALRC.

Exit code: that of the first part that failed; 2 wrong settings.
EOT
}

declare -gA SECRETS=()
SETTINGS_FILES=()  # of devstack, as they are written
SUDOERS=/etc/sudoers.d/50_stack_sh

check_devstack() {
    : "${DEVSTACK_GATE_TEMPEST:=0}" "${DEVSTACK_GATE_GRENADE:=0}" "${KEEP_LOCALRC:=0}"
    # What is added to devstack's settings must not also reach it by the environment, where it would replace them.
    export -n ENABLED_SERVICES DEVSTACK_LOCAL_CONFIG
    if [[ ! -x $DEVSTACK/stack.sh ]]; then
        die 2 "PROJECTS: expected a devstack among them, there is no $DEVSTACK/stack.sh"
    elif [[ $DEVSTACK_GATE_GRENADE == 1 && ! -x $NEW/grenade/grenade.sh ]]; then
        die 2 "DEVSTACK_GATE_GRENADE: there is no $NEW/grenade/grenade.sh"
    elif [[ $DEVSTACK_GATE_TEMPEST == 1 && ! -d $NEW/tempest ]]; then
        die 2 "DEVSTACK_GATE_TEMPEST: there is no $NEW/tempest"
    fi
    if [[ ! ${DEVSTACK_GATE_EXERCISES:-} ]]; then
        DEVSTACK_GATE_EXERCISES=0
        if [[ -x $DEVSTACK/exercise.sh && $DEVSTACK_GATE_TEMPEST != 1 ]]; then DEVSTACK_GATE_EXERCISES=1; fi
    elif [[ $DEVSTACK_GATE_EXERCISES == 1 && ! -x $DEVSTACK/exercise.sh ]]; then
        die 2 "DEVSTACK_GATE_EXERCISES: there is no $DEVSTACK/exercise.sh"
    fi
}

# Go on as devstack's owner, with the documented settings and what it takes to reach package indexes.
become_owner() {
    local owner=$1 script=$2 name
    # shellcheck disable=SC2016,SC2119  # the owner's bash expands it; no filter
    {
        print_settings
        for name in http_proxy https_proxy no_proxy "${!PIP_@}"; do
            if [[ ${!name:-} ]]; then printf 'export %s=%q\n' "$name" "${!name}"; fi
        done
        if [[ -d $BASE/cache/pip ]]; then printf 'export PIP_FIND_LINKS=%q\n' "$BASE/cache/pip"; fi
    } | as_user "$owner" bash -c 'set -e; eval "$(cat)"; exec bash "$1" < /dev/null' bash "$script"
}

as_user() {
    local user=$1 home
    shift
    cd /
    if (( EUID )); then
        sudo -n -H -u "$user" -- "$@"
    else
        home=$(getent passwd "$user")
        home=${home%:*}
        runuser -u "$user" -- env -i PATH="$PATH" LANG="${LANG:-C.UTF-8}" HOME="${home##*:}" USER="$user" "$@"
    fi
}

# --- devstack's settings ---

# The settings file that a devstack reads: local.conf, unless it knows only localrc.
settings_file() {
    local devstack=$1
    if grep -rqsF local.conf -- "$devstack"/{stack.sh,stackrc,functions,functions-common,inc,lib,tools} \
        || ! grep -qsw localrc -- "$devstack"/{stack.sh,stackrc,functions}; then
        printf '%s/local.conf\n' "$devstack"
    else
        printf '%s/localrc\n' "$devstack"
    fi
}

random() {
    od -An -v -N 12 -t x1 /dev/urandom | tr -d ' \n'
}

# One set for the run: an upgrade goes on with what the old cloud was given.
make_secrets() {
    local name
    for name in ADMIN_PASSWORD DATABASE_PASSWORD RABBIT_PASSWORD SERVICE_PASSWORD SERVICE_TOKEN SWIFT_HASH; do
        SECRETS[$name]=$(random) || return
    done
    SECRETS[MYSQL_PASSWORD]=${SECRETS[DATABASE_PASSWORD]}  # older devstacks' name for it
}

# Our settings, of which those that the file has already are left out.
print_localrc() {
    local file=$1 dest=$2 name given
    local -a settings=("DEST=$dest" "DATA_DIR=$BASE/data" "LOGDIR=$BASE/logs" "SCREEN_LOGDIR=$BASE/logs" VERBOSE=True LOG_COLOR=False
        ERROR_ON_CLONE=True RECLONE=no USE_SCREEN=False SWIFT_REPLICAS=1 NOVNC_FROM_PACKAGE=True ROOTSLEEP=0)
    for name in "${!SECRETS[@]}"; do settings+=("$name=${SECRETS[$name]}"); done
    for name in "${settings[@]}"; do
        given=${name%%=*}
        if [[ $given == @(DATABASE|MYSQL)_PASSWORD ]]; then given='(DATABASE|MYSQL)_PASSWORD'; fi
        if ! grep -qsE "^[[:blank:]]*(export[[:blank:]]+)?$given=" -- "$file"; then printf '%s\n' "$name"; fi
    done
    if [[ ${ENABLED_SERVICES:-} =~ ^[A-Za-z0-9_.,:+-]+$ ]]; then
        printf 'ENABLED_SERVICES+=,%s\n' "$ENABLED_SERVICES"
    elif [[ ${ENABLED_SERVICES:-} ]]; then
        printf 'ENABLED_SERVICES+=,%q\n' "$ENABLED_SERVICES"
    fi
    if [[ $DEVSTACK_GATE_TEMPEST == 1 ]]; then printf 'ENABLED_SERVICES+=,tempest\n'; fi
}

# write_settings DEVSTACK DEST: for no other eyes than the stack user's.
write_settings() {
    local file dest=$2 ours
    file=$(settings_file "$1")
    if [[ $KEEP_LOCALRC != 1 ]]; then
        rm -f -- "$1/local.conf" "$1/localrc"
    elif [[ -e $file && ! -O $file ]]; then
        sudo -n chown "$EUID" -- "$file"  # a hook wrote it
    fi
    SETTINGS_FILES+=("$file")
    ours=$(print_localrc "$file" "$dest")
    (
        umask 077
        {
            if [[ $file == */local.conf ]]; then printf '\n[[local|localrc]]\n'; fi
            printf '%s\n' "$ours"
            if [[ ${DEVSTACK_LOCAL_CONFIG:-} ]]; then printf '%s\n' "$DEVSTACK_LOCAL_CONFIG"; fi
        } >> "$file"
    )
    chmod 600 -- "$file"
    log "settings of devstack: $file"
}

# --- parts of the run ---

# step NAME: what runs now, for the last line of the wrap script.
step() {
    log "$1"
    if [[ -w $BASE/gate/step ]]; then printf '%s\n' "$1" > "$BASE/gate/step"; fi
}

# part NAME FILE FOLDER COMMAND...: run it there; the script ends with its status if that is not 0. Its output goes to the
# file, and without secrets to the console: services that it starts may keep the file open.
part() {
    local name=$1 file=$2 folder=$3 pid rc=0
    shift 3
    step "$name"
    rm -f -- "$file"
    (umask 077; : > "$file")
    set -m  # a process group of its own, to which SIGINT is as usual
    (cd -- "$folder" && exec "$@") >> "$file" 2>&1 < /dev/null &
    pid=$!
    set +m
    tail -n +1 -s 0.1 -f --pid="$pid" -- "$file" | hide_secrets "${SETTINGS_FILES[@]}" &
    wait "$pid" || rc=$?
    wait "$!" || true
    if (( rc )); then
        printf '%s: %s failed with %s\n' "${0##*/}" "$name" "$rc" >&2
        exit "$rc"
    fi
}

# The tests must pass without the rights that installing takes.
revoke_sudo() {
    if [[ -e $SUDOERS ]] || sudo -n true 2> /dev/null; then
        sudo -n rm -f -- "$SUDOERS"
        if sudo -n true 2> /dev/null; then log 'the tests run with sudo: something else than the gate allows it'; fi
    fi
}

run_tempest() {
    local environment=smoke expression
    local -a tests
    local -a arguments=(--concurrency "${TEMPEST_CONCURRENCY:-$(nproc || true)}")
    if [[ ${DEVSTACK_GATE_TEMPEST_TESTS:-} ]]; then
        environment=all
        read -r -d '' -a tests <<< "${DEVSTACK_GATE_TEMPEST_TESTS}" || true
        tests=("${tests[@]%%\[*}")  # the ids of a test are no part of its name
        tests=("${tests[@]%,}")
        tests=("${tests[@]//./\\.}")
        expression=$(IFS='|'; printf '(%s)' "${tests[*]}")
        arguments=("$expression" "${arguments[@]}")
    elif [[ ${DEVSTACK_GATE_TEMPEST_REGEX:-} ]]; then
        environment=all
        arguments=("$DEVSTACK_GATE_TEMPEST_REGEX" "${arguments[@]}")
    elif [[ ${DEVSTACK_GATE_TEMPEST_ALL:-} == 1 ]]; then
        environment=all
        arguments=('.*' "${arguments[@]}")
    elif [[ ${DEVSTACK_GATE_TEMPEST_FULL:-} == 1 ]]; then
        environment=full
    fi
    part "tempest $environment" "$NEW/tempest.txt" "$NEW/tempest" tox -e "$environment" -- "${arguments[@]}"
}

run_grenade() {
    write_settings "$BASE/old/devstack" "$BASE/old"
    write_settings "$DEVSTACK" "$NEW"
    cat > "$NEW/grenade/localrc" <<EOT
BASE_RELEASE=old
BASE_RELEASE_DIR=$BASE/old
BASE_DEVSTACK_DIR=$BASE/old/devstack
TARGET_RELEASE=new
TARGET_RELEASE_DIR=$NEW
TARGET_DEVSTACK_DIR=$DEVSTACK
SAVE_DIR=$BASE/save
EOT
    part grenade.sh "$NEW/grenade.txt" "$NEW/grenade" ./grenade.sh
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    case ${1:-} in
        '') ;;
        -h | --help) usage; return 0 ;;
        *) printf '%s: unknown argument %s; see --help\n' "${0##*/}" "$1" >&2; return 2 ;;
    esac
    local here owner
    here=$(readlink -f -- "${BASH_SOURCE[0]}")
    here=${here%/*}
    # shellcheck source=functions.sh
    . "$here/functions.sh"
    # shellcheck source=gate/settings.sh
    . "$here/gate/settings.sh"
    : "${BASE:=/opt/stack}"
    NEW=$BASE/new
    DEVSTACK=$NEW/devstack
    if [[ -d $DEVSTACK && ! -O $DEVSTACK ]]; then
        owner=$(stat -c %U -- "$DEVSTACK")
        become_owner "$owner" "$here/devstack-vm-gate.sh"
        return
    fi
    check_devstack
    make_secrets
    if [[ $DEVSTACK_GATE_GRENADE == 1 ]]; then
        run_grenade
        revoke_sudo
    else
        write_settings "$DEVSTACK" "$NEW"
        part stack.sh "$NEW/devstacklog.txt" "$DEVSTACK" ./stack.sh
        revoke_sudo
        if [[ $DEVSTACK_GATE_EXERCISES == 1 ]]; then part exercise.sh "$NEW/exercise.txt" "$DEVSTACK" ./exercise.sh; fi
        if [[ $DEVSTACK_GATE_TEMPEST == 1 ]]; then run_tempest; fi
    fi
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; exit; fi
