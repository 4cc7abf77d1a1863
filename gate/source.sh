# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: which code is tested, and its trees under $BASE.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md
# shellcheck disable=SC2153  # BASE, HERE, RUN, LOGS and RUN_BRANCH are the wrap script's

# shellcheck source=gate/git.sh
. "${BASH_SOURCE[0]%/*}/git.sh"

SUBMODULES_MAX=50 # of a project
SUBMODULE_DEPTH=3 # of submodules in submodules
NOTE=''      # what to say about a project's code, beside its line
TOLD=''      # a folder in which each failure that was told leaves its mark
ONLY_GATE='' # 1: only the tree of devstack-gate is set up, the others follow
EXTRA=''     # 1: the job did not name these projects, but devstack may want them: one that does not exist is left out
CHANGES=()   # a word TREE:COMMIT for each tree that was set up with a change
declare -A EXTRA_REFS=() # of such projects, the branch or tag that devstack was told

# --- the choice ---

# names_of BRANCH: print the branch and the other name that OpenStack may have given it. A series' branch is renamed
# when it is no longer maintained.
names_of() {
    printf '%s\n' "$1"
    case $1 in
        stable/*) printf 'unmaintained/%s\n' "${1#*/}" ;;
        unmaintained/*) printf 'stable/%s\n' "${1#*/}" ;;
        *) ;;
    esac
}

# tags_of BRANCH: print the tags that replace a series' branch: its end of life, the end of its maintenance.
tags_of() {
    case $1 in
        stable/* | unmaintained/*) printf '%s\n' "${1#*/}-eol" "${1#*/}-eom" ;;
        *) ;;
    esac
}

# candidates BRANCH ID: print the refs of which the first that exists is tested, in the order that docs/gate.md gives.
# ID is the last part of ZUUL_REF, or empty.
candidates() {
    local branch=$1 id=$2 names tags name
    names=$(names_of "$branch")
    tags=$(tags_of "$branch")
    for name in $names; do
        if [[ $id ]]; then printf 'refs/zuul/%s/%s\n' "$name" "$id"; fi
        printf 'refs/heads/%s\n' "$name"
    done
    if [[ $id ]]; then printf 'refs/zuul/master/%s\n' "$id"; fi
    for name in $tags; do printf 'refs/tags/%s\n' "$name"; done
    # Projects without branches for series tag the last commit that goes with one.
    if [[ $tags ]]; then printf 'refs/tags/%s-last\n' "${branch#*/}"; fi
    printf 'refs/heads/master\n'
}

# choose_ref BRANCH ID < refs: print the one to test of the refs that exist. Fails if there is none.
choose_ref() {
    local refs candidate wanted
    refs=$'\n'$(cat)$'\n'
    wanted=$(candidates "$1" "$2")
    for candidate in $wanted; do
        if [[ $refs == *$'\n'"$candidate"$'\n'* ]]; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# is_of_branch REF BRANCH: whether a ref is the branch, under whichever name it has today.
is_of_branch() {
    local name names
    names=$(names_of "$2")
    for name in $names; do
        case $1 in "refs/heads/$name" | "refs/zuul/$name/"*) return 0 ;; *) ;; esac
    done
    names=$(tags_of "$2")
    for name in $names; do
        if [[ $1 == "refs/tags/$name" ]]; then return 0; fi
    done
    return 1
}

# project_name_variable PROJECT NAME: print OVERRIDE_<PROJECT>_<NAME>.
project_name_variable() {
    local name=${1##*/}
    name=${name^^}
    printf 'OVERRIDE_%s_%s\n' "${name//[-.]/_}" "$2"
}

# older_name_variable PROJECT NAME: the same as jobs of earlier years spell it, without the dots.
older_name_variable() {
    local name=${1##*/}
    project_name_variable "${name//./}" "$2"
}

# project_variable PROJECT NAME: print OVERRIDE_<PROJECT>_<NAME>, or its older spelling if only that is set.
project_variable() {
    local name older
    name=$(project_name_variable "$1" "$2")
    older=$(older_name_variable "$1" "$2")
    if [[ ! ${!name:-} && ${!older:-} ]]; then name=$older; fi
    printf '%s\n' "$name"
}

# project_setting PROJECT NAME: print the value of OVERRIDE_<PROJECT>_<NAME>, or nothing.
project_setting() {
    local name
    name=$(project_variable "$1" "$2")
    printf '%s\n' "${!name:-}"
}

# own_branch PROJECT: print the branch that the job sets for this project, whatever the run's branch is.
own_branch() {
    local own
    own=$(project_setting "$1" PROJECT_BRANCH)
    if [[ $own != default ]]; then printf '%s\n' "$own"; fi
}

# indicated_branch PROJECT BRANCH: print the project's branch to test in a run about BRANCH.
indicated_branch() {
    local own
    own=$(own_branch "$1")
    printf '%s\n' "${own:-$2}"
}

project_url() {
    local base
    base=$(project_setting "$1" GIT_BASE)
    base=${base:-${GIT_BASE:-https://opendev.org}}
    printf '%s/%s\n' "${base%"${base##*[!/]}"}" "$1"
}

# given_changes PROJECT: print a line branch:ref for each of its Gerrit changes, in order; the triggering one is last.
given_changes() {
    local change trigger=''
    local -a changes=()
    IFS='^' read -r -a changes <<< "${GERRIT_CHANGES:-}"
    if [[ ${GERRIT_REFSPEC:-} ]]; then
        trigger=$GERRIT_PROJECT:$GERRIT_BRANCH:$GERRIT_REFSPEC
        case ^${GERRIT_CHANGES:-}^ in *"^$trigger^"*) ;; *) changes+=("$trigger") ;; esac
    fi
    for change in ${changes[@]+"${changes[@]}"}; do
        if [[ $change == "$1:"* ]]; then printf '%s\n' "${change#*:}"; fi
    done
}

# changes_of PROJECT BRANCH: print the refs of the Gerrit changes to be merged there, in order.
changes_of() {
    local branch ref
    while IFS=: read -r branch ref; do
        if [[ $branch == "$2" ]]; then printf '%s\n' "$ref"; fi
    done < <(given_changes "$1" || true)
}

# --- one project ---

# setup_project PROJECT BRANCH FOLDER: put its code into FOLDER and print its line; run this in a shell of its own.
# Returns 3 if the code cannot be had, and one line has said why.
setup_project() {
    local project=$1 branch=$2 tree=$3/${1##*/} rc=0
    SAID='' NOTE=''
    if isolate_git; then
        replace_tree "$project" "$branch" "$tree" || rc=$?
    else
        SAID="git's settings cannot be written" rc=3
    fi
    if [[ $UNREAD && ${TOLD:-} ]] && mkdir -- "$TOLD/.unread" 2> /dev/null; then
        log "git's settings of $(id -un || true) cannot be read, so none of them count: $(main_line "$UNREAD" || true)"
    fi
    if (( rc == 0 )); then
        branch=$(indicated_branch "$project" "$branch")
        describe_project "$project" "$branch" "$tree" || rc=3
    elif [[ $EXTRA && $SAID =~ $NO_REPOSITORY|could\ not\ read\ Username ]] && (( rc == 1 )); then
        rm -rf -- "$tree"
        log "$project: left out, although devstack may want it: there is no such repository at $(hide_login "$ASKED" || true)"
        rc=0
    else
        tell_failure "$project" "$rc"
        rc=3
    fi
    rm -f -- "$GIT_SETTINGS"
    return "$rc"
}

# tell_failure PROJECT STATUS: say why in one line; if several projects fail alike, say it once.
tell_failure() {
    local project=$1 shown words=$SAID key
    if (( $2 == 1 )); then
        shown=$(hide_login "$ASKED")
        words=$(main_line "$SAID")
        words="git failed with $shown: $words"
    fi
    if [[ $TOLD ]]; then
        key=$(cksum <<< "${words//"$project"/}")
        mkdir -- "$TOLD/${key// /-}" 2> /dev/null || return 0
    fi
    printf '%s: %s: %s\n' "${0##*/}" "$project" "$words" >&2
}

# replace_tree PROJECT BRANCH TREE: start from what is here, a tree of an earlier run or a cache, which only saves
# fetching; if that is damaged, from nothing. 1: git failed, 3: the code cannot be had; SAID tells why.
replace_tree() {
    local project=$1 branch=$2 tree=$3 url store rc=0
    url=$(project_url "$project")
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
        return "$rc"
    fi
    if [[ ${KEEP_LOCALRC:-} == 1 ]]; then keep_settings "$tree" "$tree.making" || return 3; fi
    SAID="$tree cannot be replaced"
    rm -rf -- "$tree" && mv -- "$tree.making" "$tree" || return 3
}

# make_tree PROJECT BRANCH TREE URL [STORE]
make_tree() {
    local project=$1 branch=$2 tree=$3 url=$4 store=${5:-}
    ASKED=$url
    clone "$tree" "$url" "$store" || return 1
    take_code "$project" "$branch" "$tree" || return
    rm -f -- "$tree/.git/FETCH_HEAD"
}

# keep_settings OLD NEW: copy devstack's settings from the old tree.
keep_settings() {
    local name
    for name in local.conf localrc; do
        if [[ ${1##*/} == devstack && -f $1/$name && ! -e $2/$name ]]; then cp -p -- "$1/$name" "$2/$name" || return; fi
    done
}

# take_code PROJECT BRANCH TREE: fetch, choose, check out, merge. 1: git failed, 3: it fails for good; SAID tells why.
take_code() {
    local project=$1 run=$2 tree=$3 id=${ZUUL_REF:-} own branch refs chosen changes
    id=${id##*/}
    own=$(own_branch "$project")
    if [[ $id ]]; then fetch_refs "$project" "$run" "$own" "$tree" || return; fi
    refs=$(list_refs "$project" "$run" "$own" "$tree") || { SAID=$refs; return 1; }
    if [[ ! $own ]] && ! has_change "$project" "$run" "$refs"; then own=${EXTRA_REFS[$project]:-}; fi
    branch=${own:-$run}
    chosen=$(choose_ref "$branch" "$id" <<< "$refs") || chosen=''
    if [[ $own ]] && ! is_of_branch "$chosen" "$own" && [[ $'\n'$refs$'\n' == *$'\n'"refs/tags/$own"$'\n'* ]]; then chosen=refs/tags/$own; fi
    check_choice "$project" "$run" "$own" "$chosen" "$tree" "$refs" || return
    check_out "$tree" "$chosen" || return
    MERGED=''
    merge_changes "$project" "${chosen#refs/heads/}" "$tree" || return
    take_submodules "$project" "$tree" "$chosen" || return
    changes=$(changes_of "$project" "${chosen#refs/heads/}")
    note_choice "$project" "$branch" "$chosen" "$refs"
    NOTE+=${MERGED:+${NOTE:+; }$MERGED}
    if grep -qs 'filter=lfs' -- "$tree/.gitattributes"; then NOTE+="${NOTE:+; }files of Git LFS are pointers"; fi
    printf '%s\n' "$chosen" > "$tree/.git/gate-ref"
    if [[ $chosen == refs/zuul/* || $changes ]]; then
        SAID=$(git -C "$tree" rev-parse HEAD 2>&1) || return 1
        printf '%s\n' "$SAID" > "$tree/.git/gate-change"
    fi
}

# fetch_refs PROJECT BRANCH OWN TREE: fetch what Zuul has for this run.
fetch_refs() {
    local project=$1 run=$2 own=$3 tree=$4 zuul=${ZUUL_URL:-} id=${ZUUL_REF##*/} branch branches
    local -a wanted=()
    branches=$({ branches_of_run "$run" "$own"; zuul_branches "$project"; } | sort -u)
    for branch in $branches; do wanted+=("+refs/zuul/$branch/$id*:refs/zuul/$branch/$id*"); done
    zuul=${zuul%/}/$project
    if ! fetch "$tree" "$zuul" "${wanted[@]}" && [[ ! $SAID =~ $NO_REPOSITORY ]]; then return 1; fi
    fetch_missing "$project" "$tree" "$zuul"
}

# branches_of_run BRANCH OWN: print the branches on which Zuul may have refs for this run.
branches_of_run() {
    local branch names
    for branch in "$1" ${2:+"$2"} ${ZUUL_BRANCH:+"$ZUUL_BRANCH"} master; do
        names=$(names_of "$branch")
        printf '%s\n' "$names"
    done | sort -u
}

# zuul_branches PROJECT: print the branches on which Zuul has merged the project's changes for this run.
zuul_branches() {
    local changes=${ZUUL_CHANGES:-}
    if [[ $1 == "$ZUUL_PROJECT" ]]; then printf '%s\n' "$ZUUL_BRANCH"; fi
    printf '%s\n' "${changes//^/$'\n'}" | awk -F : -v project="$1" '$1 == project { print $2 }'
}

# fetch_missing PROJECT TREE URL: fetch those refs that Zuul must have of a project and that have not come yet.
fetch_missing() {
    local project=$1 tree=$2 branch branches ref what found COMMIT rc
    branches=$(zuul_branches "$project" | sort -u)
    for branch in $branches; do
        ref=refs/zuul/$branch/${ZUUL_REF##*/} what='a change of ZUUL_CHANGES' COMMIT='' rc=0
        if [[ $project == "$ZUUL_PROJECT" && $ref == "$ZUUL_REF" ]]; then what='the change under test' COMMIT=${ZUUL_COMMIT:-}; fi
        found=$(git -C "$tree" rev-parse --verify -q "$ref^0") && [[ ${COMMIT:-$found} == "$found" ]] && continue
        fetch_late_ref "$project: $what" "$tree" "$ref" "$ref" "$3" || rc=$?
        if (( rc )); then
            SAID="$what is missing: $SAID"
            return 3
        fi
    done
}

# list_refs PROJECT BRANCH OWN TREE: print the existing ones of the refs that may be chosen or must be known.
list_refs() {
    local branch wanted refs id=${ZUUL_REF:-}
    wanted=$(
        for branch in "$2" ${3:+"$3"} ${EXTRA_REFS[$1]:+"${EXTRA_REFS[$1]}"} ${ZUUL_BRANCH:+"$ZUUL_BRANCH"}; do
            candidates "$branch" "${id##*/}"
            printf 'refs/tags/%s\n' "$branch"
        done)
    # shellcheck disable=SC2086  # a list of refs, which have no blanks and no wildcards
    refs=$(git -C "$4" for-each-ref --format='%(refname)' ${wanted//refs\/heads\//refs/remotes/origin/} 2>&1) || { printf '%s\n' "$refs"; return 1; }
    printf '%s\n' "${refs//refs\/remotes\/origin\//refs/heads/}"
}

# has_change PROJECT BRANCH REFS: whether this run has a change to the project's branch.
has_change() {
    local id=${ZUUL_REF:-} changes
    changes=$(changes_of "$1" "$2")
    [[ $changes || ( $id && $'\n'$3$'\n' == *$'\n'"refs/zuul/$2/${id##*/}"$'\n'* ) ]]
}

# check_choice PROJECT BRANCH OWN REF TREE REFS: whether the chosen REF can have been meant. SAID tells why not.
check_choice() {
    local project=$1 run=$2 own=$3 chosen=$4 branch=${3:-$2} name changes what='a change of GERRIT_CHANGES' url
    url=$(project_url "$project")
    url=$(hide_login "$url")
    name=$(project_variable "$project" PROJECT_BRANCH)
    changes=$(changes_of "$project" "$branch")
    if [[ $project:$branch == "${GERRIT_REFSPEC:+$GERRIT_PROJECT:$GERRIT_BRANCH}" ]]; then what='the change under test'; fi
    if [[ $changes && $chosen != "refs/heads/$branch" ]]; then
        SAID="$what cannot be merged: there is no branch $branch at $url"
    elif [[ $own && $own != "$run" && $chosen != refs/zuul/* && ! $changes ]] && has_change "$project" "$run" "$6"; then
        SAID="$name: $own would be tested without the change of this run on $run"
    elif [[ $own && $chosen != "refs/tags/$own" ]] && ! is_of_branch "$chosen" "$own"; then
        SAID="${!name:+$name: }there is no branch $own at $url"
    elif [[ ! $chosen ]]; then
        SAID=$(tell_branches "$branch" "$url" "$name" "$5")
    else
        return 0
    fi
    return 3
}

# tell_branches BRANCH URL VARIABLE TREE: say that there is neither BRANCH nor master, and which branches there are.
tell_branches() {
    local branches words="there is no branch $1"
    if [[ $1 != master ]]; then words="there is neither a branch $1 nor a branch master"; fi
    branches=$(git -C "$4" for-each-ref --count=4 --format='%(refname)' refs/remotes/origin) || branches=''
    branches=${branches//refs\/remotes\/origin\//}
    printf '%s at %s%s\n' "$words" "$2" "${branches:+, only ${branches//$'\n'/, }: $3 chooses one}"
}

# note_choice PROJECT BRANCH REF REFS: set NOTE to what a reader of the project's line would not expect.
note_choice() {
    local asked change
    local -A left=() # branch: 1
    NOTE=''
    case $3 in "refs/heads/$2" | "refs/zuul/$2/"* | "refs/tags/$2") ;; *) NOTE="no branch $2" ;; esac
    if [[ ${ZUUL_REF:-} ]]; then
        if has_change "$1" "$ZUUL_BRANCH" "$4"; then left[$ZUUL_BRANCH]=1; fi
        while IFS= read -r asked; do
            left[$asked]=1
        done < <(zuul_branches "$1" || true)
    else
        while IFS=: read -r asked change; do
            if [[ $change ]]; then left[$asked]=1; fi
        done < <(given_changes "$1" || true)
    fi
    for asked in "${!left[@]}"; do
        if ! is_of_branch "$3" "$asked"; then NOTE+="${NOTE:+; }without its change on $asked"; fi
    done
}

# check_out TREE REF: REF is one that choose_ref printed; a branch becomes a local branch of that name.
check_out() {
    local tree=$1 ref=$2 branch commit
    local -a how=(--detach)
    case $ref in
        refs/heads/*) how=(-B "${ref#refs/heads/}"); ref=refs/remotes/origin/${ref#refs/heads/} ;;
        refs/zuul/*) branch=${ref#refs/zuul/}; how=(-B "${branch%/*}") ;;
        *) ;;
    esac
    if ! commit=$(git -C "$tree" rev-parse --verify -q "$ref^{commit}" 2> /dev/null); then
        SAID="$ref is no commit"
        return 1
    fi
    SAID=$("${GIT_COMMAND[@]}" -C "$tree" checkout -q -f "${how[@]}" "$commit" -- 2>&1) || return 1
}

# merge_changes PROJECT BRANCH TREE: merge the Gerrit changes as Gerrit itself would.
merge_changes() {
    local project=$1 branch=$2 tree=$3 ref refs rc
    refs=$(changes_of "$project" "$branch")
    for ref in $refs; do
        fetch_change "$project" "$ref" "$tree" || return
        rc=0
        if git -C "$tree" merge-base --is-ancestor "refs/gerrit/$ref" HEAD; then MERGED+="${MERGED:+; }$ref is in it already"; fi
        SAID=$("${GIT_COMMAND[@]}" -C "$tree" merge -q -s resolve --no-edit "refs/gerrit/$ref" 2>&1) || rc=$?
        if (( rc > 2 )); then  # git itself failed
            return 1
        elif (( rc )); then
            head -n 20 <<< "$SAID" | harmless_lines | sed 's/^/    /' >&2
            SAID="the change $ref does not merge into $branch"
            return 3
        fi
    done
}

# fetch_change PROJECT REF TREE: fetch it from the branches' server or, if it is not there, from Gerrit.
fetch_change() {
    local project=$1 ref=$2 tree=$3 gerrit='' url rc=0
    if [[ ${GERRIT_HOST:-} ]]; then
        gerrit=${GERRIT_SCHEME:-https}://$GERRIT_HOST${GERRIT_PORT:+:$GERRIT_PORT}/$project
    fi
    url=$(project_url "$project")
    local COMMIT=''
    if [[ $project:$ref == "${GERRIT_PROJECT:-}:${GERRIT_REFSPEC:-}" ]]; then COMMIT=${GERRIT_PATCHSET_REVISION:-}; fi
    fetch_late_ref "$project: the change to be merged" "$tree" "$ref" "refs/gerrit/$ref" "$url" ${gerrit:+"$gerrit"} || rc=$?
    if (( rc )); then
        SAID="the change to be merged is missing: $SAID"
        return 3
    fi
    if ! git -C "$tree" rev-parse --verify -q "refs/gerrit/$ref^{commit}" > /dev/null; then
        SAID="the change to be merged, $ref, is no commit"
        return 3
    fi
}

# take_submodules PROJECT TREE REF: get the submodules of the checkout, with theirs. One that this run's change adds or
# moves is required; others, which no run needed so far, are only logged as missing.
take_submodules() {
    local project=$1 tree=$2 begin url
    url=$(project_url "$project")
    begin=$(begin_of "$tree" "$3" HEAD) || begin=HEAD
    SUBMODULES=0
    take_submodules_in "$project" "$tree" "$url" "$begin" "$SUBMODULE_DEPTH"
}

# take_submodules_in PROJECT TREE URL COMMIT DEPTH: COMMIT is what the change starts from.
take_submodules_in() {
    local project=$1 tree=$2 url=$3 begin=$4 depth=$5 commit path address lines
    lines=$(submodules_of "$tree") || return 0
    while IFS=$'\t' read -r commit path address; do
        if [[ ! $commit ]]; then continue; fi
        address=$(resolve_url "$url" "$address")
        SUBMODULES=$(( SUBMODULES + 1 ))
        if take_submodule "$project" "$tree/$path" "$address" "$commit" && take_submodules_in "$project" "$tree/$path" "$address" HEAD "$(( depth - 1 ))"; then
            continue
        fi
        find "$tree/$path" -mindepth 1 -delete 2> /dev/null || mkdir -p -- "$tree/$path"
        SAID="the submodule $path cannot be fetched from $(hide_login "$address" || true): $SAID"
        if [[ $(git -C "$tree" rev-parse -q --verify "$begin:$path" 2> /dev/null || true) != "$commit" ]]; then return 3; fi
        log "$project: $(harmless_lines <<< "$SAID" || true)"
    done <<< "$lines"
}

# take_submodule PROJECT FOLDER URL COMMIT
take_submodule() {
    local project=$1 folder=$2 url=$3 commit=$4 base access
    base=$(project_url "$project")
    base=${base%"/$project"}
    ASKED=$url
    SAID='it is neither below the git base of the project nor an address http, https or git without a login'
    access=$(allowed_access "$base" "$url") || return 3
    SAID="there are more than $SUBMODULES_MAX, or too many in each other"
    if (( SUBMODULES > SUBMODULES_MAX || depth == 0 )); then return 3; fi
    if [[ $access == ours ]]; then
        clone_submodule "$folder" "$url" "$commit" || { SAID=$(main_line "$SAID"); return 3; }
    else
        SAID=$({ as_nobody clone_submodule "$folder" "$url" "$commit"; } 3>&1 > /dev/null) || { SAID=$(main_line "$SAID"); return 3; }
    fi
}

# describe_project PROJECT BRANCH TREE: print name, branch (or tag), short sha1, subject; and NOTE.
describe_project() {
    local project=$1 tree=$3 ref commit
    ref=$(< "$tree/.git/gate-ref")
    case $ref in
        refs/zuul/*) ref=${ref#refs/zuul/} ref=${ref%/*} ;;
        *) ref=${ref#refs/*/} ;;
    esac
    commit=$("${GIT_COMMAND[@]}" -C "$tree" log -1 --encoding=UTF-8 --format='%h %s' | harmless_lines) || return
    printf '%s %s %s%s\n' "$project" "$ref" "$commit" "${NOTE:+ ($NOTE)}"
}

# --- all projects ---

# setup_trees BRANCH FOLDER LINES PROJECT...: set up projects side by side, the next one as soon as any is done; their
# lines go to files in LINES.
setup_trees() {
    local branch=$1 folder=$2 lines=$3 project most pid
    local -a pids=()
    shift 3
    TOLD=$lines
    most=$(nproc)
    most=$(( most > 4 ? most : 4 ))
    for project in "$@"; do
        while (( ${#pids[@]} == most )); do
            sleep 0.05  # not wait -n: it forgets one that ended between two calls
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

# Make a folder for trees; it, or what it links to, is ours afterwards, whoever made the trees that are there.
make_folder() {
    local folder=$1
    if [[ ! -d $folder ]]; then mkdir -p -- "$folder" 2> /dev/null || as_root mkdir -p -- "$folder" || return; fi
    local foreign group
    foreign=$(find "$folder/" -maxdepth 1 ! -user "$EUID" -print -quit) || return
    group=$(id -g) || return
    if [[ $foreign ]]; then as_root chown -R -- "$EUID:$group" "$folder/"; fi
}

setup_workspace() {
    local old=''
    if [[ ${DEVSTACK_GATE_GRENADE:-} == 1 && ! $ONLY_GATE ]]; then old=1; fi
    setup_side new "$RUN_BRANCH" "$@" || return
    if [[ $old ]]; then setup_side old "$GRENADE_OLD_BRANCH" "$@" || return; fi
    if [[ $ONLY_GATE ]]; then return 0; fi
    tell_unused_overrides "$@"
    check_change_is_in new ${old:+old}
}

# setup_side new|old BRANCH PROJECT...: set up the projects, and what their devstack would clone beside them.
setup_side() {
    local side=$1 branch=$2 lines=$RUN/lines/$1
    shift 2
    mkdir -p -- "$lines"
    make_folder "$BASE/$side" || return
    if [[ ! $ONLY_GATE ]]; then forget_trees "$side" "$@"; fi
    setup_trees "$branch" "$BASE/$side" "$lines" "$@" || return
    if [[ $ONLY_GATE ]]; then return 0; fi
    check_branch_is_there "$side" "$branch" "$@" || return
    setup_clones "$side" "$branch"
}

# forget_trees new|old PROJECT...: remove the trees that an earlier run has set up and this one does not: they would be
# taken for this run's, with a change in them that nobody asked for.
forget_trees() {
    local side=$1 tree folders=' ' project target
    for project in "${@:2}"; do folders+="${project##*/} "; done
    for tree in "$BASE/$side"/*; do
        target=$(readlink -- "$tree") || target=/
        if [[ $target != */* ]] || [[ -e $tree/.git/gate-ref && $folders != *" ${tree##*/} "* ]]; then
            log "$tree: removed, this run has no such project"
            rm -rf -- "$tree"
        fi
    done
}

# check_branch_is_there new|old BRANCH PROJECT...: check that some project has the branch; else its name is wrong.
check_branch_is_there() {
    local side=$1 branch=$2 project ref own asked=''
    shift 2
    for project in "$@"; do
        own=$(own_branch "$project")
        if [[ $own ]]; then continue; fi
        ref=$(< "$BASE/$side/${project##*/}/.git/gate-ref")
        if is_of_branch "$ref" "$branch"; then return 0; fi
        asked=1
    done
    if [[ ! $asked ]]; then return 0; fi
    printf '%s: %s: no project of this run has a branch %s\n' "${0##*/}" "$(branch_variable "$side" || true)" "$branch" >&2
    return 3
}

# branch_variable new|old: print the name of the variable that says which branch the run is about.
branch_variable() {
    local name
    if [[ $1 == old ]]; then
        printf 'GRENADE_OLD_BRANCH\n'
        return 0
    fi
    for name in GRENADE_NEW_BRANCH OVERRIDE_ZUUL_BRANCH BRANCH_OVERRIDE ZUUL_BRANCH GERRIT_BRANCH; do
        if [[ $name == GRENADE_* && ${DEVSTACK_GATE_GRENADE:-} != 1 ]]; then continue; fi
        if [[ ${!name:-default} != default ]]; then break; fi
    done
    printf '%s\n' "$name"
}

# check_change_is_in SIDE...: check that the project under test has the change itself in one of the tested trees, and
# not only another of its changes, on another branch. Leaves the sha1 of that tree in the run's folder.
check_change_is_in() {
    local side project=${ZUUL_REF:+$ZUUL_PROJECT} ref=${ZUUL_REF:-} tree own variable
    project=${project:-${GERRIT_PROJECT:-}}
    if [[ ! $project ]]; then return 0; fi
    ref=${ref:-refs/gerrit/$GERRIT_REFSPEC}
    for side in "$@"; do
        tree=$BASE/$side/${project##*/}
        if [[ -s $tree/.git/gate-change ]] && isolated "${GIT_COMMAND[@]}" -C "$tree" merge-base --is-ancestor "$ref" HEAD 2> /dev/null; then
            cp -- "$tree/.git/gate-change" "$RUN/change" || true  # for the verdict only
            return 0
        fi
    done
    own=$(own_branch "$project")
    variable=$(branch_variable new)
    if [[ $own ]]; then variable=$(project_variable "$project" PROJECT_BRANCH); fi
    printf '%s: %s: the change under test, %s, is not in what would be tested: %s asks for branch %s of it\n' "${0##*/}" \
        "$project" "${ref#refs/gerrit/}" "$variable" "${own:-$RUN_BRANCH}" >&2
    return 3
}

# Say for each variable that is for one project if there is no such project in this run.
tell_unused_overrides() {
    local name project known=' '
    local -a names=() projects=("$@")
    if [[ -s $RUN/more-projects ]]; then mapfile -t -O "${#projects[@]}" projects < "$RUN/more-projects"; fi
    for project in "${projects[@]}"; do
        for name in PROJECT_BRANCH GIT_BASE; do
            names+=("$(project_name_variable "$project" "$name" || true)")
            known+="${names[-1]} $(older_name_variable "$project" "$name" || true) "
        done
    done
    for name in "${!OVERRIDE_@}"; do
        if [[ $name != OVERRIDE_?*_@(PROJECT_BRANCH|GIT_BASE) || ! ${!name:-} || $known == *" $name "* ]]; then continue; fi
        log "$name has no effect: no project of this run has that name; the nearest is $(nearest_name "$name" "${names[@]}" || true)"
    done
}

# setup_clones new|old BRANCH: set up what devstack would otherwise clone by itself, without this run's changes.
setup_clones() {
    local side=$1 folder=$BASE/$1 clones=$RUN/clones-$1 project base ref name
    local -a projects=()
    if [[ ! -e $folder/devstack/stackrc ]]; then return 0; fi
    if ! python3 -I "$HERE/gate/devstackclones.py" "$folder/devstack" > "$clones"; then
        log "cannot tell what devstack would clone; devstack itself will say what is missing"
        return 0
    fi
    while read -r project base ref name; do
        if [[ -e $folder/$name || -e $folder/${project##*/} ]]; then continue; fi
        if [[ $base != - ]]; then set_default "$(project_variable "$project" GIT_BASE || true)" "$base"; fi
        if [[ $ref != - ]]; then EXTRA_REFS[$project]=$ref; fi
        log "$project: set up as well, since devstack would clone it"
        projects+=("$project")
    done < "$clones"
    if (( ${#projects[@]} )); then
        EXTRA=1 setup_trees "$2" "$folder" "$RUN/lines/$side" "${projects[@]}" || return
        printf '%s\n' "${projects[@]}" >> "$RUN/more-projects"
    fi
    while read -r project base ref name; do
        if [[ ! -e $folder/$name && -d $folder/${project##*/} ]]; then ln -s -- "${project##*/}" "$folder/$name" || return; fi
    done < "$clones"
}

# set_default NAME VALUE: export a variable with this value if it is not set.
set_default() {
    if [[ ! ${!1:-} ]]; then export "$1=$2"; fi
}

# Fill CHANGES before any hook runs: a hook may put other trees in place of those with a change.
read_changes() {
    local words
    words=$(list_changes "$BASE") || exit 3
    # shellcheck disable=SC2034  # the wrap script and gate/host.sh hand it over
    read -r -d '' -a CHANGES <<< "$words" || true
}

# Print one unstamped line per project, in list order, so that tools can grep it.
print_projects() {
    local tree project
    local -a more=()
    if [[ -s $RUN/more-projects ]]; then mapfile -t more < <(sort -u "$RUN/more-projects" || true); fi
    for tree in old new; do
        for project in "$@" ${more[@]+"${more[@]}"}; do
            if [[ -s $RUN/lines/$tree/${project##*/} ]]; then cat -- "$RUN/lines/$tree/${project##*/}"; fi
        done
    done
}

# If a change to devstack-gate itself is under test, go on as the changed script, once.
use_changed_gate() {
    local project changed=$BASE/new/devstack-gate ref changes script
    for project in "${RUN_PROJECTS[@]}"; do
        if [[ ${project##*/} != devstack-gate || ${SKIP_DEVSTACK_GATE_PROJECT:-} == 1 || ${RE_EXEC:-} ]]; then continue; fi
        ONLY_GATE=1 run_phase setup-devstack-gate "$LOGS/setup-workspace.txt" setup_workspace "$project" || return
        ref=$(< "$changed/.git/gate-ref")
        changes=$(changes_of "$project" "${ref#refs/heads/}")
        if [[ $ref != refs/zuul/* && ! $changes ]]; then return 0; fi
        for script in devstack-vm-gate-wrap.sh devstack-vm-gate.sh functions.sh gate; do
            if [[ ! -e $changed/$script ]]; then die 3 "$project: the change under test removes $script"; fi
        done
        for script in "$changed"/{devstack-vm-gate,functions,gate/}*.sh; do
            if ! bash -n "$script"; then
                die 3 "$project: the change under test breaks ${script#"$changed"/}: bash cannot parse it"
            fi
        done
        check_tools "$project" "$changed"
        go_on_as "$changed/devstack-vm-gate-wrap.sh"
    done
}

# check_tools PROJECT TREE: end the run with 3 if a Python program of the changed gate, or one that its scripts name, cannot
# even be imported.
check_tools() {
    local name said
    for name in "$HERE"/gate/*.py "$2"/gate/*.py; do
        name=${name##*/} name=${name%.py}
        if [[ ! -e $2/gate/$name.py ]] && ! grep -qsE "gate_tool $name |/$name\.py" -- "$2"/{devstack-vm-gate,functions,gate/}*.sh; then
            continue
        fi
        said=$(timeout 60 python3 -B -E -s -S -c 'import sys; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2])' \
            "$2/gate" "$name" 2>&1) || die 3 "$1: the change under test breaks gate/$name.py: ${said##*$'\n'}"
    done
}

go_on_as() {
    printf 'devstack-gate is under test: going on as %s\n' "$1"
    end_watcher
    rm -rf -- "$RUN"
    trap - EXIT
    take_jobs_ways
    hand_over
    GATE_RUN="$$ 1 $GATE_STARTED" exec env "${HIDDEN[@]}" bash "$1"
}
