#!/usr/bin/env bash
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

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
URL=''    # of devstack
LOGIN=''  # the file with the login for it, if there is one

# Have git ask no questions, give up transfers that stand still, accept checkouts whoever owns them, find no repository
# above a damaged one, and run no hooks.
set_up_git() {
    local name
    for name in $(git rev-parse --local-env-vars); do unset "$name"; done  # with these set, git would look elsewhere
    GIT_CEILING_DIRECTORIES=$(readlink -f -- "$WORKSPACE")
    export GIT_CEILING_DIRECTORIES
    export GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=60
    export GIT_CONFIG_COUNT=3 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*' \
        GIT_CONFIG_KEY_1=core.hooksPath GIT_CONFIG_VALUE_1=/dev/null GIT_CONFIG_KEY_2=core.fsmonitor GIT_CONFIG_VALUE_2=false
}

# Fill URL, without an http login, which git reads from a file: everybody on this host can see commands' arguments.
hide_login() {
    local file=$WORKSPACE/devstack.login
    URL=$1
    rm -f -- "$file"  # left by a run that was killed
    if [[ ! $URL =~ ^(https?://)([^/]+@)([^/@]+.*)$ ]]; then return 0; fi
    URL=${BASH_REMATCH[1]}${BASH_REMATCH[3]}
    LOGIN=$file
    (umask 077; set -o noclobber; printf '%s\n' "${BASH_REMATCH[1]}${BASH_REMATCH[2]}${BASH_REMATCH[3]%%/*}" > "$file") || return
    export GIT_CONFIG_COUNT=$(( GIT_CONFIG_COUNT + 1 )) GIT_CONFIG_KEY_3=credential.helper \
        GIT_CONFIG_VALUE_3="store --file='${file//\'/\'\\\'\'}'"
}

# check_is_ours PATH KIND: refuse what others could have put into the workspace, for us to write through or to run.
check_is_ours() {
    local path=$1 kind=$2 loose
    if [[ ! -e $path && ! -L $path ]]; then return 0; fi
    if [[ $kind == file && ( -L $path || ! -f $path ) ]]; then
        die 2 "$path: expected a file of our own; move it away"
    elif [[ $(stat -c %u -- "$path" || true) != "$EUID" || ( -e $path && ! -O $path ) ]]; then
        die 2 "$path: belongs to somebody else; move it away"
    elif ! loose=$(find -H "$path" -maxdepth 0 ! -type l -perm /022) || [[ $loose ]]; then
        die 2 "$path: can be written by others than you; see that nobody has put anything there, and chmod go-w it"
    fi
}

# write_git_settings URL FOLDER: keep only objects and refs of an existing checkout. Its settings may name commands that
# git would run, and hold the login of GIT_BASE, which nobody else may see.
write_git_settings() {
    local url=$1 git=$2/.git
    if [[ -L $git || ! -d $git ]]; then return 1; fi
    rm -rf -- "$git/config" "$git/config.worktree" "$git/config.lock" "$git/hooks" "$git/info" "$git/commondir" \
        "$git/objects/info/alternates" || return
    git config --file "$git/config" core.repositoryFormatVersion 0 || return
    git config --file "$git/config" core.bare false || return
    git config --file "$git/config" remote.origin.url "$url" || return
    git config --file "$git/config" remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*'
}

# Make a checkout equal to its remote: all branches, none that is gone there, no local changes, no stray files.
update_checkout() {
    local url=$1 folder=$2 head
    write_git_settings "$url" "$folder" || return
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

# Clone beside the old checkout, and put the new one in its place only when it is complete.
clone_afresh() {
    local url=$1 folder=$2
    retry 3 "$GIT_SECONDS" git clone --quiet --no-checkout --origin origin --template= -- "$url" "$folder.new" || return
    update_checkout "$url" "$folder.new" || return
    rm -rf -- "$folder" || return
    mv -- "$folder.new" "$folder"
}

# Bring the checkout up to date; replace a damaged one.
have_devstack() {
    local url=$1 folder=$2 loose
    rm -rf -- "$folder.new" || return  # a run that was killed left it
    if [[ -d $folder/.git ]]; then
        chmod go-rwx -- "$folder" || return  # files that git rewrites keep their old modes
        if ! loose=$(find "$folder" ! -type l -perm /022 -print -quit) || [[ $loose ]]; then
            log "$folder holds what others than you could write; cloning it afresh"
        elif update_checkout "$url" "$folder"; then
            return 0
        else
            log "$folder could not be brought up to date; cloning it afresh"
        fi
    fi
    clone_afresh "$url" "$folder"
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    local here mask
    here=$(readlink -f -- "${BASH_SOURCE[0]}")
    here=${here%/*}
    # shellcheck source=functions.sh
    . "$here/functions.sh"
    case ${1:-} in
        -h | --help)
            usage
            return 0
            ;;
        --version)
            print_version
            return
            ;;
        '' | -*) die 2 "expected a provider, or all, as the first argument; see --help" ;;
    esac
    if [[ -z ${WORKSPACE:-} ]]; then
        die 2 "WORKSPACE is not set; it names the folder into which devstack is cloned"
    fi
    if [[ ! -d $WORKSPACE || ! -w $WORKSPACE ]]; then
        die 2 "WORKSPACE: $WORKSPACE is not a folder that can be written to"
    fi
    URL=${GIT_BASE:-https://opendev.org}
    if [[ $URL == *[[:cntrl:]]* || ! $URL =~ ^(/|[A-Za-z][A-Za-z0-9+.-]*://|[^/:~][^/:]*:) ]]; then
        die 2 "GIT_BASE: expected the URL of a git server or an absolute path"  # the value may hold a login
    fi
    URL=${URL%/}/openstack/devstack
    set_up_git
    check_is_ours "$WORKSPACE" folder
    check_is_ours "$WORKSPACE/devstack.lock" file
    check_is_ours "$WORKSPACE/devstack" folder
    check_is_ours "$WORKSPACE/devstack/.git" folder
    exec {lock}>> "$WORKSPACE/devstack.lock"
    flock -w "$LOCK_SECONDS" "$lock" || die 1 "another run has held $WORKSPACE/devstack.lock for $LOCK_SECONDS s"
    trap 'if [[ $LOGIN ]]; then rm -f -- "$LOGIN"; fi' EXIT
    hide_login "$URL" || die 1 "$WORKSPACE/devstack.login: cannot be written"
    mask=$(umask)
    umask 077
    have_devstack "$URL" "$WORKSPACE/devstack" || die 1 "devstack could not be fetched from $URL; nothing was built"
    umask "$mask"
    if [[ $LOGIN ]]; then rm -f -- "$LOGIN"; fi
    exec {lock}>&-
    exec "$here/devstack-vm-update-image.py" "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
    exit
fi
