#!/usr/bin/env bash
# usage: workspace.sh gate|cold|cached, with the settings of devstack-vm-gate-wrap.sh in the environment
# One run of bench/workspace.py: put the code of all projects into $BASE/new, as the gate does (gate) or with bare git
# commands (cold, cached), four projects at once either way. Exit code: 0 done, anything else: something failed.

HERE=$(readlink -f -- "${BASH_SOURCE[0]}")
HERE=${HERE%/*/*}
BRANCHES=('+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*')

# The phase setup-workspace, without its log.
gate() {
    # shellcheck source=devstack-vm-gate-wrap.sh
    . "$HERE/devstack-vm-gate-wrap.sh"
    # shellcheck source=functions.sh
    . "$HERE/functions.sh"
    # shellcheck source=gate/settings.sh
    . "$HERE/gate/settings.sh"
    # shellcheck source=gate/clock.sh
    . "$HERE/gate/clock.sh"
    # shellcheck source=gate/source.sh
    . "$HERE/gate/source.sh"
    unset_git_variables
    check_settings
    start_clock
    # shellcheck disable=SC2034  # the wrap script's own
    RUN=$WORKSPACE/run
    setup_workspace "${RUN_PROJECTS[@]}"
    print_projects "${RUN_PROJECTS[@]}"
}

each_project() {
    mkdir -p -- "$BASE/new"
    tr ' ' '\n' <<< "${DEVSTACK_GATE_PROJECTS:?}" | xargs -P 4 -I '{}' bash "${BASH_SOURCE[0]}" "$1" '{}'
}

cold() {
    each_project cold_one
}

cached() {
    each_project cached_one
}

cold_one() {
    local tree=$BASE/new/${1##*/}
    git clone -q --no-checkout -- "$GIT_BASE/$1" "$tree"
    take_change "$1" "$tree"
}

cached_one() {
    local tree=$BASE/new/${1##*/}
    git init -q --template= -- "$tree"
    cp -al -- "$HOME/workspace-cache/$1/.git/objects/." "$tree/.git/objects/"
    cp -a -- "$HOME/workspace-cache/$1/.git/"{packed-refs,refs} "$tree/.git/"
    git -C "$tree" fetch -q --no-tags -- "$GIT_BASE/$1" "${BRANCHES[@]}"
    take_change "$1" "$tree"
}

take_change() {
    local refs=${ZUUL_REF%/*} id=${ZUUL_REF##*/} commit
    git -C "$2" fetch -q --no-tags -- "$ZUUL_URL/$1" "+$refs/$id*:$refs/$id*"
    commit=$(git -C "$2" rev-parse -q --verify "$ZUUL_REF" || git -C "$2" rev-parse "refs/remotes/origin/$ZUUL_BRANCH")
    git -C "$2" checkout -q -f -B "$ZUUL_BRANCH" "$commit" --
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; exit; fi
