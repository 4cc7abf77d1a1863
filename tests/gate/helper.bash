# shellcheck shell=bash disable=SC2317  # called by the tests
# Real repositories under BATS_TEST_TMPDIR: a server has $SERVER/PROJECT, and the gate makes the trees in $TREES.

setup_gate() {
    PROJECT_FOLDER=$(cd -- "$BATS_TEST_DIRNAME/../.." && pwd)
    local name
    for name in "${!ZUUL_@}" "${!GERRIT_@}" "${!OVERRIDE_@}" "${!DEVSTACK_GATE_@}" "${!GRENADE_@}" "${!TEMPEST_@}" "${!JENKINS_@}" \
        PROJECTS BASE BRANCH_OVERRIDE ENABLED_SERVICES KEEP_LOCALRC BUILD_TAG JOB_NAME BUILD_NUMBER RE_EXEC; do
        unset "$name"
    done
    export HOME=$BATS_TEST_TMPDIR/home SERVER=$BATS_TEST_TMPDIR/git TREES=$BATS_TEST_TMPDIR/trees
    export GIT_CONFIG_NOSYSTEM=1 GIT_BASE=file://$SERVER
    export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@localhost GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@localhost
    mkdir -p "$HOME" "$SERVER" "$TREES"
    # shellcheck source=functions.sh
    . "$PROJECT_FOLDER/functions.sh"
    # shellcheck source=gate/settings.sh
    . "$PROJECT_FOLDER/gate/settings.sh"
    # shellcheck source=gate/source.sh
    . "$PROJECT_FOLDER/gate/source.sh"
    sleep() { :; } # pauses between attempts
}

# make_project PROJECT BRANCH...: make a repository with a separate commit on each branch.
make_project() {
    local project=$1 branch
    shift
    git init -q -b "${1:-master}" -- "$SERVER/$project"
    for branch in "$@"; do
        git -C "$SERVER/$project" checkout -q --orphan "$branch"
        commit "$project" "$branch" "tip of $branch"
    done
}

# commit PROJECT CONTENT SUBJECT: commit to what is checked out there; print nothing.
commit() {
    printf '%s\n' "$2" > "$SERVER/$1/file"
    git -C "$SERVER/$1" add file
    git -C "$SERVER/$1" commit -q --allow-empty -m "$3"
}

# make_ref PROJECT REF [BASE]: make a ref with a new commit on top of BASE, whose subject is the ref.
make_ref() {
    local project=$1 ref=$2 base=${3:-HEAD} tree commit
    tree=$(git -C "$SERVER/$project" rev-parse "$base^{tree}")
    commit=$(git -C "$SERVER/$project" commit-tree -p "$base" -m "$ref" "$tree")
    git -C "$SERVER/$project" update-ref "$ref" "$commit"
}

# got PROJECT: print the subject of the commit that the gate checked out.
got() {
    git -C "$TREES/${1##*/}" log -1 --format=%s
}

# set_up PROJECT BRANCH: set a project up in a separate shell, as the gate does; `got` then tells the result.
set_up() {
    bash -c '. "$1/functions.sh"; . "$1/gate/source.sh"; GIT_SECONDS_MAX=${GIT_SECONDS:-60}; sleep() { :; }; setup_project "$2" "$3" "$TREES"' gate "$PROJECT_FOLDER" "$@"
}

zuul() {
    export ZUUL_URL=file://$SERVER ZUUL_PROJECT=$1 ZUUL_BRANCH=$2 ZUUL_REF=$3
}

# workspace: run setup_workspace as the wrap script does, with the exported settings; print its lines.
workspace() {
    bash -c 'set -euo pipefail; shopt -s inherit_errexit; . "$1/devstack-vm-gate-wrap.sh"; HERE=$1
        . "$1/functions.sh"; . "$1/gate/settings.sh"; . "$1/gate/source.sh"
        BASE=$TREES RUN=$(mktemp -d -p "$BATS_TEST_TMPDIR"); sleep() { :; }
        check_branches; check_projects
        setup_workspace "${RUN_PROJECTS[@]}" || exit
        print_projects "${RUN_PROJECTS[@]}"' gate "$PROJECT_FOLDER"
}

# change_of PROJECT [SIDE]: print the subject of the commit that .git/gate-change names.
change_of() {
    git -C "$TREES/${2:-new}/${1##*/}" log -1 --format=%s "$(< "$TREES/${2:-new}/${1##*/}/.git/gate-change")"
}

# Use a locale in which [A-Za-z] lacks i, whose capital letter is another one; few machines have it.
use_turkish() {
    localedef -i tr_TR -f UTF-8 "$BATS_TEST_TMPDIR/tr_TR.UTF-8"
    export LOCPATH=$BATS_TEST_TMPDIR LC_ALL=tr_TR.UTF-8
}
