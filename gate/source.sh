# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: which code is tested, and its trees under $BASE.
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310
# shellcheck disable=SC2153  # BASE, HERE, RUN and LOGS are the wrap script's

ATTEMPTS=3          # of a command that goes over the network
GIT_SECONDS_MAX=300 # for one git command that does
# What a server says that has no such repository: no answer could be more final.
NO_REPOSITORY='repository .*not found|does not appear to be a git repository|not exported|does not exist'
SAID=''  # what git printed last, or why the code of a project cannot be had
ASKED='' # the address that was last fetched from

# Nothing of the user's own git settings or of a repository's hooks may change what is tested.
GIT_COMMAND=(env LC_ALL=C git -c gc.auto=0 -c maintenance.auto=false -c core.hooksPath=/dev/null -c core.autocrlf=false
    -c fetch.unpackLimit=1 -c commit.gpgSign=false -c merge.ff=true -c init.defaultBranch=master
    -c user.name=devstack-gate -c user.email=devstack-gate@localhost -c http.lowSpeedLimit=1000 -c http.lowSpeedTime=60)

# The line of a text that tells why git failed: its first "fatal:" or "error:", otherwise its last.
main_line() {
    local line found=${1##*$'\n'}
    while IFS= read -r line; do
        if [[ $line == *fatal:* || $line == *error:* ]]; then
            found=$line
            break
        fi
    done <<< "$1"
    hide_logins <<< "$found"
}

# What one git command may take: a part of what is left of the run, so that several failures still end before it does.
git_seconds() {
    local seconds=$GIT_SECONDS_MAX left
    if [[ ${GATE_DEADLINE:-} ]]; then
        now
        left=$(( (GATE_DEADLINE - NOW) / 5 ))
        seconds=$(( left < 1 ? 1 : left < seconds ? left : seconds ))
    fi
    printf '%s\n' "$seconds"
}

# choose_ref BRANCH ID < refs: of the refs that exist, the one to test on a branch, in the order that README.md gives.
# ID is the last part of ZUUL_REF, or empty. Fails when there is none.
choose_ref() {
    local branch=$1 id=$2 refs candidate
    local -a candidates=()
    refs=$'\n'$(cat)$'\n'
    if [[ $id ]]; then candidates+=("refs/zuul/$branch/$id"); fi
    candidates+=("refs/heads/$branch")
    if [[ $id ]]; then candidates+=("refs/zuul/master/$id"); fi
    if [[ $branch == stable/* ]]; then candidates+=("refs/tags/${branch#stable/}-eol"); fi
    candidates+=(refs/heads/master)
    for candidate in "${candidates[@]}"; do
        if [[ $refs == *$'\n'"$candidate"$'\n'* ]]; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# project_setting PROJECT NAME: the value of OVERRIDE_<PROJECT>_<NAME>, or nothing.
project_setting() {
    local name=${1##*/}
    name=${name^^}
    name=OVERRIDE_${name//[-.]/_}_$2
    printf '%s\n' "${!name:-}"
}

# indicated_branch PROJECT BRANCH: the branch to test of a project when the run is about BRANCH.
indicated_branch() {
    local own
    own=$(project_setting "$1" PROJECT_BRANCH)
    printf '%s\n' "${own:-$2}"
}

project_url() {
    local base
    base=$(project_setting "$1" GIT_BASE)
    base=${base:-${GIT_BASE:-https://opendev.org}}
    printf '%s/%s\n' "${base%/}" "$1"
}

# changes_of PROJECT BRANCH: the refs of the Gerrit changes to be merged there, in order; the triggering one is last.
changes_of() {
    local project=$1 branch=$2 change trigger=''
    local -a changes=()
    IFS='^' read -r -a changes <<< "${GERRIT_CHANGES:-}"
    if [[ ${GERRIT_REFSPEC:-} ]]; then
        trigger=$GERRIT_PROJECT:$GERRIT_BRANCH:$GERRIT_REFSPEC
        case ^${GERRIT_CHANGES:-}^ in *"^$trigger^"*) ;; *) changes+=("$trigger") ;; esac
    fi
    for change in ${changes[@]+"${changes[@]}"}; do
        if [[ $change == "$project:$branch:"* ]]; then
            printf '%s\n' "${change##*:}"
        fi
    done
}

# setup_project PROJECT BRANCH FOLDER: have its code in FOLDER, and print its line. Starts from what is there: a tree of
# an earlier run or a cache, which only saves fetching; when that is damaged, from nothing.
setup_project() {
    local project=$1 branch tree=$3/${1##*/} url store rc=0
    branch=$(indicated_branch "$project" "$2")
    url=$(project_url "$project")
    SAID=
    rm -rf -- "$tree.making"
    store=$(find_store "$project" "$tree")
    if [[ $store ]]; then
        make_tree "$project" "$branch" "$tree.making" "$url" "$store" || rc=$?
        # Is the server to blame, or what was here before?
        if (( rc == 1 )) && answers "$ASKED"; then
            log "$project: cloning anew, $store is of no use: $(main_line "$SAID" || true)"
            store=
        fi
    fi
    if [[ ! $store ]]; then
        rc=0
        make_tree "$project" "$branch" "$tree.making" "$url" || rc=$?
    fi
    if (( rc )); then
        rm -rf -- "$tree.making"
        if (( rc == 1 )); then SAID="git failed with $(hide_logins <<< "$ASKED" || true): $(main_line "$SAID" || true)"; fi
        printf '%s: %s: %s\n' "${0##*/}" "$project" "$SAID" >&2
        return 3
    fi
    if [[ ${KEEP_LOCALRC:-} == 1 ]]; then keep_settings "$tree" "$tree.making" || return 3; fi
    { rm -rf -- "$tree" && mv -- "$tree.making" "$tree"; } || return 3
    describe_project "$project" "$tree"
}

# make_tree PROJECT BRANCH TREE URL [STORE]
make_tree() {
    local project=$1 branch=$2 tree=$3 url=$4 store=${5:-}
    ASKED=$url
    start_tree "$tree" "$url" "$store" || return 1
    take_code "$project" "$branch" "$tree" "$url"
}

answers() {
    local seconds
    seconds=$(git_seconds)
    timeout -k 5 "$seconds" "${GIT_COMMAND[@]}" ls-remote --heads -- "$1" < /dev/null > /dev/null 2>&1
}

# keep_settings OLD NEW: a devstack's settings stay with it.
keep_settings() {
    local name
    for name in local.conf localrc; do
        if [[ ${1##*/} == devstack && -f $1/$name && ! -e $2/$name ]]; then cp -p -- "$1/$name" "$2/$name" || return; fi
    done
}

# The repository that saves fetching a project again, if any; not one that has only a part of the history.
find_store() {
    local project=$1 tree=$2 folder
    for folder in "$tree" "${HOME:-}/workspace-cache/$project" "${HOME:-}/workspace-cache/${project##*/}" \
        "/opt/git/$project" "/opt/git/$project.git"; do
        if [[ -d $folder/.git ]]; then folder=$folder/.git; fi
        if [[ -d $folder/objects && ! -e $folder/shallow ]] && ! compgen -G "$folder/objects/pack/*.promisor" > /dev/null; then
            printf '%s\n' "$folder"
            return 0
        fi
    done
}

# start_tree TREE URL [STORE]: an empty repository with the objects of STORE, by hard links where that can be, and its
# refs under refs/store, which tell the server what is here. No setting, hook or index of STORE comes along.
start_tree() {
    local tree=$1 url=$2 store=${3:-} refs
    rm -rf -- "$tree"
    SAID=$("${GIT_COMMAND[@]}" init -q --template= -- "$tree" 2>&1 && git -C "$tree" remote add origin "$url" 2>&1) || return 1
    if [[ ! $store ]]; then
        return 0
    fi
    SAID=$(cp -al -- "$store/objects/." "$tree/.git/objects/" 2>&1) \
        || SAID=$(cp -a -- "$store/objects/." "$tree/.git/objects/" 2>&1) || return 1
    refs=$(git --git-dir="$store" for-each-ref --format='create refs/store/%(refname) %(objectname)' 2>&1) \
        || { SAID=$refs; return 1; }
    if [[ $refs ]]; then
        SAID=$(git -C "$tree" update-ref --stdin 2>&1 <<< "$refs") || return 1
    fi
}

# take_code PROJECT BRANCH TREE URL: fetch, choose, check out, merge. SAID tells why not: 1 git failed, 3 for good.
take_code() {
    local project=$1 branch=$2 tree=$3 url=$4 id=${ZUUL_REF:-} chosen
    id=${id##*/}
    fetch_refs "$project" "$branch" "$tree" "$url" || return
    local refs
    refs=$(git -C "$tree" for-each-ref --format='%(refname)' refs/remotes/origin refs/tags refs/zuul 2>&1) \
        || { SAID=$refs; return 1; }
    refs=${refs//refs\/remotes\/origin\//refs/heads/}
    if [[ $id && $project == "${ZUUL_PROJECT:-}" && $'\n'$refs$'\n' != *$'\n'"$ZUUL_REF"$'\n'* ]]; then
        SAID="the change under test is missing: there is no $ZUUL_REF at ${ZUUL_URL%/}/$project"
        return 3
    fi
    if ! chosen=$(choose_ref "$branch" "$id" <<< "$refs"); then
        SAID="there is neither a branch $branch nor a branch master at $url"
        return 3
    fi
    if [[ ${GERRIT_REFSPEC:-} && $project == "$GERRIT_PROJECT" && $branch == "$GERRIT_BRANCH" && $chosen != "refs/heads/$branch" ]]; then
        SAID="the change under test cannot be merged: there is no branch $branch at $url"
        return 3
    fi
    if [[ ${ZUUL_REF:+$ZUUL_PROJECT} == "$project" && $chosen != refs/zuul/* || ${GERRIT_REFSPEC:+$GERRIT_PROJECT:$GERRIT_BRANCH} == "$project:"* \
        && ${GERRIT_BRANCH:-} != "$branch" ]]; then
        log "$project: the change under test is not in what is tested: the run asks for branch $branch of it"
    fi
    check_out "$tree" "$chosen" || return
    merge_changes "$project" "${chosen#refs/heads/}" "$tree" || return
    printf '%s\n' "$chosen" > "$tree/.git/gate-ref"
}

# Fetch all branches and tags, and what Zuul has for this run. A pattern that matches nothing is no error to git, so
# that every failure is the server's or the disk's.
fetch_refs() {
    local project=$1 branch=$2 tree=$3 url=$4 zuul=${ZUUL_URL:-} id=${ZUUL_REF:-} name
    local -a refspecs=('+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*') wanted=()
    zuul=${zuul%/}/$project
    id=${id##*/}
    if [[ $id ]]; then
        for name in "$branch" "$ZUUL_BRANCH" master; do
            wanted+=("+refs/zuul/$name/$id*:refs/zuul/$name/$id*")
        done
        if [[ $zuul == "$url" ]]; then
            refspecs+=("${wanted[@]}")
            wanted=()
        fi
    fi
    fetch "$tree" "$url" "${refspecs[@]}" || return 1
    if (( ${#wanted[@]} )) && ! ATTEMPTS=1 fetch "$tree" "$zuul" "${wanted[@]}" && [[ ! $SAID =~ $NO_REPOSITORY ]]; then
        fetch "$tree" "$zuul" "${wanted[@]}" || return 1
    fi
    local stale
    stale=$(git -C "$tree" for-each-ref --format='delete %(refname)' refs/store) || return 1
    if [[ $stale ]]; then
        SAID=$(git -C "$tree" update-ref --stdin 2>&1 <<< "$stale") || return 1
    fi
}

# fetch TREE URL REFSPEC...
fetch() {
    local tree=$1 seconds rc=0
    ASKED=$2
    shift 2
    seconds=$(git_seconds)
    SAID=$(retry "$ATTEMPTS" "$seconds" "${GIT_COMMAND[@]}" -C "$tree" fetch -q --prune --no-tags --force -- "$ASKED" "$@" 2>&1 < /dev/null) \
        || rc=$?
    if (( rc == 124 || rc == 137 )); then SAID="no answer within $seconds seconds"; fi
    return "$rc"
}

# check_out TREE REF: REF is one that choose_ref printed; a branch becomes a local branch of that name.
check_out() {
    local tree=$1 ref=$2 branch commit
    local -a how=(--detach)
    case $ref in
        refs/heads/*) how=(-B "${ref#refs/heads/}"); ref=refs/remotes/origin/${ref#refs/heads/} ;;
        refs/zuul/*) branch=${ref#refs/zuul/}; how=(-B "${branch%/*}") ;;
    esac
    if ! commit=$(git -C "$tree" rev-parse --verify -q "$ref^{commit}" 2> /dev/null); then
        SAID="$ref is no commit"
        return 1
    fi
    SAID=$("${GIT_COMMAND[@]}" -C "$tree" checkout -q -f "${how[@]}" "$commit" -- 2>&1) || return 1
}

# Merge the Gerrit changes of a project and branch, as Gerrit itself would.
merge_changes() {
    local project=$1 branch=$2 tree=$3 ref refs rc
    refs=$(changes_of "$project" "$branch")
    for ref in $refs; do
        fetch_change "$project" "$ref" "$tree" || return
        rc=0
        SAID=$("${GIT_COMMAND[@]}" -C "$tree" merge -q -s resolve --no-edit "refs/gerrit/$ref" 2>&1) || rc=$?
        if (( rc > 2 )); then  # git itself failed
            return 1
        elif (( rc )); then
            log "$project: $SAID"
            SAID="the change $ref does not merge into $branch"
            return 3
        fi
    done
}

# Fetch a change from where the branches come from or, when it is not there, from Gerrit.
fetch_change() {
    local project=$1 ref=$2 tree=$3 gerrit=''
    if [[ ${GERRIT_HOST:-} ]]; then
        gerrit=${GERRIT_SCHEME:-https}://$GERRIT_HOST${GERRIT_PORT:+:$GERRIT_PORT}/$project
    fi
    local from url
    url=$(project_url "$project")
    for from in "$url" ${gerrit:+"$gerrit"}; do
        fetch "$tree" "$from" "+$ref*:refs/gerrit/$ref*" || return
        if git -C "$tree" rev-parse --verify -q "refs/gerrit/$ref^{commit}" > /dev/null; then
            return 0
        fi
    done
    SAID="the change to be merged is missing: there is no $ref at $url${gerrit:+ or $gerrit}"
    return 3
}

# The line of a project: name, branch (or tag), short sha1, subject.
describe_project() {
    local project=$1 tree=$2 ref commit
    ref=$(< "$tree/.git/gate-ref")
    case $ref in
        refs/zuul/*) ref=${ref#refs/zuul/} ref=${ref%/*} ;;
        *) ref=${ref#refs/*/} ;;
    esac
    commit=$("${GIT_COMMAND[@]}" -c log.showSignature=false -C "$tree" log -1 --format='%h %s') || return
    printf '%s %s %s\n' "$project" "$ref" "${commit//[[:cntrl:]]/}"
}

# With these set, git would look at another repository than the one that it is pointed at.
unset_git_variables() {
    unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_COMMON_DIR GIT_OBJECT_DIRECTORY GIT_NAMESPACE
}

# setup_trees BRANCH FOLDER LINES PROJECT...: side by side, the next one as soon as any is done; their lines go to files
# in LINES.
setup_trees() {
    local branch=$1 folder=$2 lines=$3 project most pid
    local -a pids=()
    shift 3
    most=$(nproc)
    most=$(( most > 4 ? most : 4 ))
    for project in "$@"; do
        while (( ${#pids[@]} == most )); do
            sleep 0.05  # no wait -n: it forgets one that ended between two calls
            for pid in "${pids[@]}"; do
                if kill -0 "$pid" 2> /dev/null; then continue; fi
                wait "$pid" || return 3
                unset "pids[$pid]"
            done
        done
        setup_project "$project" "$branch" "$folder" > "$lines/${project##*/}" &
        pids[$!]=$!
    done
    for pid in "${pids[@]}"; do wait "$pid" || return 3; done
}

# A folder of ours to put trees in, whoever made those that are there.
make_folder() {
    local folder=$1
    if [[ ! -d $folder ]]; then mkdir -p -- "$folder" 2> /dev/null || as_root mkdir -p -- "$folder" || return; fi
    local foreign group
    foreign=$(find "$folder" -maxdepth 1 ! -user "$EUID" -print -quit) || return
    group=$(id -g) || return
    if [[ $foreign ]]; then as_root chown -R -- "$EUID:$group" "$folder"; fi
}

setup_workspace() {
    local lines=$RUN/lines
    mkdir -p -- "$lines/new" "$lines/old"
    make_folder "$BASE/new" || return
    setup_trees "$RUN_BRANCH" "$BASE/new" "$lines/new" "$@" || return
    if [[ ${DEVSTACK_GATE_GRENADE:-} == 1 && ! ${ONLY_GATE:-} ]]; then
        make_folder "$BASE/old" || return
        setup_trees "$GRENADE_OLD_BRANCH" "$BASE/old" "$lines/old" "$@" || return
    fi
}

# One line a project, in the order of the list, as plain as can be found again.
print_projects() {
    local tree project
    for tree in old new; do
        for project in "$@"; do
            if [[ -s $RUN/lines/$tree/${project##*/} ]]; then cat -- "$RUN/lines/$tree/${project##*/}"; fi
        done
    done
}

# When a change to devstack-gate itself is under test, go on as the changed script; once.
use_changed_gate() {
    local project changed=$BASE/new/devstack-gate ref changes script
    for project in "${RUN_PROJECTS[@]}"; do
        if [[ ${project##*/} != devstack-gate || ${SKIP_DEVSTACK_GATE_PROJECT:-} == 1 || ${RE_EXEC:-} ]]; then continue; fi
        ONLY_GATE=1 run_phase setup-devstack-gate "$LOGS/setup-workspace.txt" setup_workspace "$project" || return
        ref=$(< "$changed/.git/gate-ref")
        changes=$(changes_of "$project" "${ref#refs/heads/}")
        if [[ $ref != refs/zuul/* && ! $changes ]]; then return 0; fi
        for script in devstack-vm-gate-wrap.sh devstack-vm-gate.sh functions.sh gate; do
            if [[ ! -e $changed/$script ]]; then die 3 "$project: the change under test leaves no $script"; fi
        done
        for script in "$changed"/{devstack-vm-gate,functions,gate/}*.sh; do
            if ! bash -n "$script"; then
                die 3 "$project: the change under test leaves no ${script#"$changed"/} that can run"
            fi
        done
        go_on_as "$changed/devstack-vm-gate-wrap.sh"
    done
}

go_on_as() {
    printf 'devstack-gate is under test: going on as %s\n' "$1"
    end_watcher
    rm -rf -- "$RUN"
    trap - EXIT
    restore_functions
    GATE_RUN="$$ 1 $GATE_STARTED" exec bash "$1"
}
