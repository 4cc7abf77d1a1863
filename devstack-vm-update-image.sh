#!/usr/bin/env bash

usage() {
    cat <<'TEXT'
Usage: devstack-vm-update-image.sh PROVIDER [ARGUMENTS]

Run by the job devstack-update-vm-image every day. Clones devstack into $WORKSPACE/devstack, or brings the clone there up to
date, then runs devstack-vm-update-image.py, which reads from it what the new image is to hold; the arguments are passed on.

  WORKSPACE  the job's folder; required
  GIT_BASE   where OpenStack's projects are cloned from (default https://opendev.org)

Exit codes: 0 done, 1 devstack could not be fetched or an image could not be built, 2 wrong use or configuration.
TEXT
}

GIT_SECONDS=900  # for a clone or a fetch of devstack
LOCK_SECONDS=1800  # two jobs may share a workspace

# No questions, no transfer that stands still, checkouts whoever owns them, and no repository above a damaged one.
set_up_git() {
    unset_git_variables
    GIT_CEILING_DIRECTORIES=$(readlink -f -- "$WORKSPACE")
    export GIT_CEILING_DIRECTORIES
    export GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=60
    export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
}

# Make a checkout equal to its remote: every branch, none that is gone there, no local change, no stray file.
update_checkout() {
    local url=$1 folder=$2 head
    git -C "$folder" remote set-url origin "$url" || return
    retry 3 "$GIT_SECONDS" git -C "$folder" fetch --quiet --force --prune --tags origin \
        '+refs/heads/*:refs/remotes/origin/*' || return
    timeout 60 git -C "$folder" remote set-head origin --auto > /dev/null 2>&1 || true
    head=$(choose_head "$folder") || return
    git -C "$folder" checkout --quiet --force --detach "$head" || return
    git -C "$folder" reset --quiet --hard || return
    git -C "$folder" clean --quiet -ffdx
}

# Print the remote's default branch, or the first of master, main and the others.
choose_head() {
    local folder=$1 ref
    for ref in refs/remotes/origin/HEAD refs/remotes/origin/master refs/remotes/origin/main; do
        if git -C "$folder" rev-parse --quiet --verify "$ref^{commit}" > /dev/null; then
            printf '%s\n' "$ref"
            return 0
        fi
    done
    ref=$(git -C "$folder" for-each-ref --count=1 --format='%(refname)' refs/remotes/origin) || return
    if [[ -z $ref ]]; then
        log "$folder: the remote has no branches"
        return 1
    fi
    printf '%s\n' "$ref"
}

# Clone beside the old checkout, and put the new one in its place only when it is whole.
clone_afresh() {
    local url=$1 folder=$2
    retry 3 "$GIT_SECONDS" git clone --quiet --no-checkout --origin origin -- "$url" "$folder.new" || return
    update_checkout "$url" "$folder.new" || return
    rm -rf -- "$folder" || return
    mv -- "$folder.new" "$folder"
}

# Bring the checkout up to date; one that is damaged is replaced.
have_devstack() {
    local url=$1 folder=$2
    rm -rf -- "$folder.new" || return  # a run that was killed left it
    if [[ -d $folder/.git ]]; then
        if update_checkout "$url" "$folder"; then
            return 0
        fi
        log "$folder could not be brought up to date; cloning it afresh"
    fi
    clone_afresh "$url" "$folder"
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    local here url
    here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
    # shellcheck source=functions.sh
    . "$here/functions.sh"
    case ${1:-} in
        -h | --help)
            usage
            return 0
            ;;
        '' | -*) die 2 "expected a provider, or all, as the first argument; see --help" ;;
    esac
    if [[ -z ${WORKSPACE:-} ]]; then
        die 2 "WORKSPACE is not set; it names the folder into which devstack is cloned"
    fi
    if [[ ! -d $WORKSPACE || ! -w $WORKSPACE ]]; then
        die 2 "WORKSPACE: $WORKSPACE is not a folder that can be written to"
    fi
    url=${GIT_BASE:-https://opendev.org}
    url=${url%/}/openstack/devstack
    set_up_git
    exec {lock}> "$WORKSPACE/devstack.lock"
    flock -w "$LOCK_SECONDS" "$lock" || die 1 "another run has held $WORKSPACE/devstack.lock for $LOCK_SECONDS s"
    have_devstack "$url" "$WORKSPACE/devstack" || die 1 "devstack could not be fetched from $(hide_logins <<< "$url"); nothing was built"
    exec {lock}>&-
    exec "$here/devstack-vm-update-image.py" "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
    exit
fi
