# shellcheck shell=bash
# Sourced by gate/source.sh and devstack-vm-gate.sh: git on servers and caches that nobody vouches for, without the user's
# settings, except those that say how to reach a server.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

ATTEMPTS=3               # of a fetch
GIT_SECONDS_MAX=300      # for one git command that goes over the network
SAID_BYTES=65536         # of git's output, which a server can make long
LINE_CHARACTERS=200      # of a line of somebody else's words
LATE_PAUSES=(2 4 8 10 12 12 12) # between looks for a ref that is not there yet: a minute
# What a server says if it has no such repository: that is final.
NO_REPOSITORY='repository .*not found|does not appear to be a git repository|not exported|does not exist'
SAID=''  # what git printed last, or why the code of a project cannot be had
ASKED='' # the address that was last fetched from
GIT_SETTINGS='' # the file with those of the user's settings that are kept
UNREAD=''       # why the user's settings cannot be read

SHALLOW='a shallow mirror, which has a part of the history only'

# Git before 2.32 always reads the user's settings: these override the ones that would change what is tested.
GIT_COMMAND=(git -c gc.auto=0 -c maintenance.auto=false -c core.hooksPath=/dev/null -c core.autocrlf=false -c core.fsmonitor=false
    -c core.attributesFile=/dev/null -c core.excludesFile=/dev/null -c core.logAllRefUpdates=false
    -c filter.lfs.required=false -c filter.lfs.smudge= -c filter.lfs.clean= -c filter.lfs.process=
    -c protocol.version=2 -c fetch.unpackLimit=1 -c fetch.recurseSubmodules=false -c submodule.recurse=false
    -c commit.gpgSign=false -c merge.ff=true -c merge.verifySignatures=false -c rerere.enabled=false -c log.showSignature=false
    -c init.defaultBranch=master -c init.defaultObjectFormat=sha1 -c init.defaultRefFormat=files
    -c user.name=devstack-gate -c user.email=devstack-gate@localhost -c http.lowSpeedLimit=1000 -c http.lowSpeedTime=60)
# The user's settings and variables that say how a server is reached, which a site may need.
ACCESS_SETTINGS='^(http|credential|url|safe|ssh)\.|^core\.(sshcommand|askpass|gitproxy)$'
ACCESS_VARIABLES=' GIT_BASE GIT_TERMINAL_PROMPT GIT_ASKPASS GIT_SSH GIT_SSH_COMMAND GIT_SSH_VARIANT GIT_PROXY_COMMAND
    GIT_HTTP_USER_AGENT GIT_HTTP_PROXY_AUTHMETHOD GIT_PROXY_SSL_CERT GIT_PROXY_SSL_KEY GIT_PROXY_SSL_CAINFO
    GIT_SSL_NO_VERIFY GIT_SSL_CERT GIT_SSL_KEY GIT_SSL_CAINFO GIT_SSL_CAPATH GIT_SSL_VERSION '

# With these set, git would look at another repository than the one that it is pointed at.
unset_git_variables() {
    unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_COMMON_DIR GIT_OBJECT_DIRECTORY GIT_NAMESPACE \
        GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_SHALLOW_FILE GIT_GRAFT_FILE
}

# From here on, in this shell, git does the same for every user. Makes the file GIT_SETTINGS, which the caller removes.
# UNREAD says why the user's settings cannot be read, if so: then none of them count.
isolate_git() {
    local name entry value
    cd / || return  # not in the job's folder: it may be a damaged repository
    GIT_SETTINGS=$(mktemp) || return
    if UNREAD=$(print_access_settings 2>&1 > "$GIT_SETTINGS.all"); then UNREAD=''; fi
    for name in "${!GIT_@}"; do
        case $name in
            GIT_COMMAND | GIT_SECONDS_MAX | GIT_SETTINGS) continue ;;
            *) ;;
        esac
        if [[ $ACCESS_VARIABLES != *[[:space:]]"$name"[[:space:]]* ]]; then unset "$name"; fi
    done
    # A wrong setting among these variables hides none of those in the user's files.
    if [[ $UNREAD ]] && UNREAD=$(print_access_settings 2>&1 > "$GIT_SETTINGS.all"); then UNREAD=''; fi
    if [[ $UNREAD ]]; then : > "$GIT_SETTINGS.all"; fi
    while IFS= read -r -d '' entry; do
        value=true
        if [[ $entry == *$'\n'* ]]; then value=${entry#*$'\n'}; fi
        git config --file "$GIT_SETTINGS" --add "${entry%%$'\n'*}" "$value" || return
    done < "$GIT_SETTINGS.all"
    rm -f -- "$GIT_SETTINGS.all"
    export GIT_CONFIG_GLOBAL=$GIT_SETTINGS GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1 GIT_NO_REPLACE_OBJECTS=1 LC_ALL=C
    umask 022
}

print_access_settings() (
    rc=0
    git config -z --get-regexp "$ACCESS_SETTINGS" || rc=$?
    (( rc < 2 ))  # 1: there are none
)

# begin_of TREE REF COMMIT: print the commit from which the changes up to COMMIT start on the branch of REF.
begin_of() {
    local branch=${2#refs/*/}
    if [[ $2 == refs/zuul/* ]]; then branch=${branch%/*}; fi
    git -C "$1" merge-base "refs/remotes/origin/$branch" "$3" 2> /dev/null
}

# isolated COMMAND...: run it in a shell of its own, with git isolated.
isolated() (
    rc=0
    isolate_git || exit
    "$@" || rc=$?
    rm -f -- "$GIT_SETTINGS"
    exit "$rc"
)

# --- words of others ---

# harmless_lines < text: print its lines, each cut short, without characters that are invisible or move visible ones.
harmless_lines() {
    LENGTH=$LINE_CHARACTERS perl -MEncode -ne 'BEGIN { binmode STDOUT, ":utf8" }
        chomp; $_ = decode("UTF-8", $_);
        s/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]//g;
        $_ = substr($_, 0, $ENV{LENGTH}) . "..." if length > $ENV{LENGTH};
        print "$_\n"'
}

# hide_login URL: print it without user and password; a user alone, which ssh needs, stays.
hide_login() {
    local url=$1 rest authority login
    if [[ $url == *://*@* ]]; then
        rest=${url#*://}
        authority=${rest%%/*}
        # A password with a slash in it: what follows the colon is no port.
        if [[ $authority != *@* && $authority == *:*[!0-9]* ]]; then authority=${rest%@*}@; fi
        login=${authority%@*}
        if [[ $authority == *@* && ( $login == *:* || $url != *ssh://* ) ]]; then rest=${rest#"$login"@}; fi
        url=${url%%://*}://$rest
    fi
    printf '%s\n' "$url"
}

# main_line TEXT: print the line that tells why git failed: the first "fatal:" or "error:", or what ssh said before
# that; otherwise the last.
main_line() {
    local line found='' before='' shown
    while IFS= read -r line; do
        case $line in
            *'Could not read from remote repository'*) found=$before ;;
            *fatal:* | *error:*) found=$line ;;
            *) before=${line:-$before} ;;
        esac
        if [[ $found ]]; then break; fi
    done <<< "$1"
    found=${found:-$before}
    shown=$(hide_login "$ASKED")
    if [[ $ASKED ]]; then found=${found//"$ASKED"/"$shown"}; fi
    harmless_lines <<< "$found" | hide_logins
}

# --- time ---

# part_of_time PARTS: print one part of the seconds that the run has left; nothing without a time limit.
part_of_time() {
    local left
    if [[ ! ${GATE_DEADLINE:-} ]]; then return 0; fi
    now
    left=$(( (GATE_DEADLINE - NOW) / $1 ))
    printf '%s\n' "$(( left < 1 ? 1 : left ))"
}

# Print how many seconds one git command may take: so few that several can fail before the run's time is up.
git_seconds() {
    local left
    left=$(part_of_time 5)
    printf '%s\n' "$(( ${left:-GIT_SECONDS_MAX} < GIT_SECONDS_MAX ? ${left:-GIT_SECONDS_MAX} : GIT_SECONDS_MAX ))"
}

# --- servers ---

# ask URL GIT-ARGUMENT...: run a git command that goes over the network, and try it again unless the server has no such
# repository. SAID is what it printed.
ask() {
    local attempt rc=1
    ASKED=$1
    shift
    for (( attempt = 1; attempt <= ATTEMPTS; attempt++ )); do
        if (( attempt > 1 )); then sleep "$(( 1 << (attempt - 1) ))"; fi
        rc=0
        ask_once "$@" || rc=$?
        if (( rc == 0 )) || [[ $SAID =~ $NO_REPOSITORY ]]; then break; fi
    done
    return "$(( rc > 0 ))"
}

ask_once() {
    local seconds rc=0
    seconds=$(git_seconds)
    SAID=$(set -o pipefail
        timeout -k 10 "$seconds" "${GIT_COMMAND[@]}" "$@" 2>&1 < /dev/null | { head -c "$SAID_BYTES"; cat > /dev/null; }) || rc=$?
    if (( rc == 124 || rc == 137 )); then SAID="not done within $seconds seconds: the server hangs or is slow"; fi
    # If a server hangs up while git still sends, git ends by a signal and says nothing.
    if (( rc )) && [[ ! $SAID ]]; then SAID="fatal: git ended with status $rc$(signal_words "$rc" || true)"; fi
    return "$rc"
}

signal_words() {
    if (( $1 > 128 )); then printf ' (SIG%s)' "$(kill -l "$1" || true)"; fi
}

# fetch TREE URL REFSPEC...: to git, a pattern without a match is no error, so a failure is the server's or the disk's.
fetch() {
    local tree=$1 url=$2
    shift 2
    ask "$url" -C "$tree" fetch -q --prune --no-tags --force -- "$url" "$@" || return
    if [[ $SAID == *'shallow roots are not allowed'* ]]; then
        SAID=$SHALLOW
        return 1
    fi
}

answers() {
    local seconds
    seconds=$(git_seconds)
    timeout -k 5 "$seconds" "${GIT_COMMAND[@]}" ls-remote --heads -- "$1" < /dev/null > /dev/null 2>&1
}

# fetch_ref TREE REF TO URL...: fetch REF as TO from the first address that has it. It must be COMMIT if that is set:
# the same number may be another change elsewhere. 2: no address has it, 1: none answers; SAID tells what each said.
fetch_ref() {
    local tree=$1 ref=$2 to=$3 from shown found words='' rc=1
    shift 3
    for from in "$@"; do
        shown=$(hide_login "$from")
        if fetch "$tree" "$from" "+$ref*:$to*"; then
            if found=$(git -C "$tree" rev-parse --verify -q "$to^0") && [[ ${COMMIT:-$found} == "$found" ]]; then return 0; fi
            rc=2
            if [[ $found ]]; then words+="; $ref at $shown is $found, not $COMMIT"; else words+="; there is no $ref at $shown"; fi
        else
            if [[ $SAID =~ $NO_REPOSITORY ]]; then rc=2; fi
            words+="; $shown: $(main_line "$SAID" || true)"
        fi
    done
    SAID=${words#; }
    return "$rc"
}

# fetch_late_ref WHAT TREE REF TO URL...: as fetch_ref, but look again for a ref that is not there: the news of a change
# may be here before the change is.
fetch_late_ref() {
    local what=$1 pause left rc=0
    shift
    fetch_ref "$@" || rc=$?
    for pause in "${LATE_PAUSES[@]}"; do
        left=$(part_of_time 2)
        if (( rc != 2 || ${left:-pause} < pause )); then break; fi
        if (( pause == LATE_PAUSES[0] )); then log "$what is not there yet ($2); looking again for a minute"; fi
        sleep "$pause"
        rc=0
        ATTEMPTS=1 fetch_ref "$@" || rc=$?
    done
    return "$rc"
}

# --- what is here already ---

# find_store PROJECT TREE: print the repository here that saves fetching a project again, if any; not one that has only
# a part of the history, or depends on another one.
find_store() {
    local project=$1 tree=$2 folder
    for folder in "$tree" "${HOME:-}/workspace-cache/$project" "${HOME:-}/workspace-cache/${project##*/}" \
        "/opt/git/$project" "/opt/git/$project.git"; do
        if [[ -d $folder/.git ]]; then folder=$folder/.git; fi
        if [[ -d $folder/objects && ! -e $folder/shallow && ! -e $folder/objects/info/alternates ]] \
            && ! compgen -G "$folder/objects/pack/*.promisor" > /dev/null; then
            printf '%s\n' "$folder"
            return 0
        fi
    done
}

# --- submodules ---

# allowed_access BASE URL: a change must not make this machine read for it what only the job's user may read. So a
# submodule that is not below the git base of its project is fetched from a server on the network, as nobody.
allowed_access() {
    local base=$1 url=$2
    if [[ $url == *[[:cntrl:]]* ]]; then return 1; fi
    if [[ $url == "$base"/* && /$url/ != */../* ]]; then
        printf 'ours\n'
    elif [[ $url =~ ^(https?|git)://[^@/]+/ ]]; then
        printf 'nobody\n'
    else
        return 1
    fi
}

# as_nobody COMMAND...: run it in a shell of its own, without the user's logins, keys and cookies.
as_nobody() (
    local settings name value rc=0
    settings=$(mktemp) || exit
    { git config --file "$GIT_SETTINGS" -z --get-regexp '^url\..*\.insteadof$|^http\.(.*\.)?(proxy|sslcainfo|sslcapath|sslverify|version)$' || true; } \
        | while IFS=$'\n' read -r -d '' name value; do git config --file "$settings" --add "$name" "$value"; done
    unset GIT_ASKPASS SSH_ASKPASS SSH_AUTH_SOCK GIT_SSH GIT_PROXY_COMMAND GIT_SSL_CERT GIT_SSL_KEY
    export GIT_CONFIG_GLOBAL=$settings GIT_SSH_COMMAND=false GIT_ALLOW_PROTOCOL=http:https:git:file # the last by url.insteadOf only
    HOME=/nonexistent "$@" || rc=$?
    rm -f -- "$settings"
    printf '%s\n' "$SAID" >&3
    exit "$rc"
)

# resolve_url BASE-URL URL: print the URL that a submodule's relative address means.
resolve_url() {
    local from=${1%/} url=$2
    if [[ $url != ./* && $url != ../* ]]; then printf '%s\n' "$url"; return 0; fi
    while [[ $url == ./* || $url == ../* ]]; do
        if [[ $url == ../* ]]; then from=${from%/*}; fi
        url=${url#*/}
    done
    printf '%s/%s\n' "$from" "$url"
}

# submodules_of TREE: print a line for each one that .gitmodules names: commit, path, URL, separated by tabs.
submodules_of() {
    local tree=$1 mode commit path name value _
    local -A known=() # path: section of .gitmodules
    git -C "$tree" rev-parse --verify -q HEAD:.gitmodules > /dev/null || return 0
    while IFS=$'\n' read -r -d '' name value; do
        known[$value]=${name%.path}
    done < <(git -C "$tree" config --blob HEAD:.gitmodules -z --get-regexp '^submodule\..*\.path$' || true)
    while IFS=$' \t' read -r -d '' mode _ commit path; do
        if [[ $mode != 160000 || ! ${known[$path]:-} || $path == *[[:cntrl:]]* ]]; then continue; fi
        value=$(git -C "$tree" config --blob HEAD:.gitmodules --get "${known[$path]}.url") || continue
        printf '%s\t%s\t%s\n' "$commit" "$path" "$value"
    done < <(git -C "$tree" ls-tree -r -z HEAD || true)
}

# clone_submodule TREE URL COMMIT: as clone, with that commit checked out, whether it is on a branch or not.
clone_submodule() {
    local tree=$1 url=$2 commit=$3
    clone "$tree" "$url" || return
    if ! git -C "$tree" cat-file -e "$commit^{commit}" 2> /dev/null; then
        ask "$url" -C "$tree" fetch -q --no-tags -- "$url" "$commit" || return
    fi
    SAID=$("${GIT_COMMAND[@]}" -C "$tree" checkout -q -f --detach "$commit" -- 2>&1)
}

# clone TREE URL [STORE]: clone all branches and tags. git clone writes them at once, but git fetch writes a file for
# each, and checks each that is here and not there. STORE saves fetching: its objects are used, by hard links if
# possible, but none of its settings, hooks, refs or index.
clone() {
    local tree=$1 url=$2 store=${3:-} branches shown
    rm -rf -- "$tree"
    ask "$url" clone -q --no-checkout --no-local --template= ${store:+"--reference=$store"} -- "$url" "$tree" || return
    if [[ -e $tree/.git/shallow ]]; then
        SAID=$SHALLOW
        return 1
    fi
    if [[ $store ]]; then
        if [[ $SAID == *error:* ]]; then return 1; fi  # STORE is damaged, and git has worked around that
        SAID=$(cp -al -- "$store/objects/." "$tree/.git/objects/" 2>&1) \
            || SAID=$(cp -a -- "$store/objects/." "$tree/.git/objects/" 2>&1) || return 1
    fi
    rm -rf -- "$tree/.git/objects/info"
    shown=$(hide_login "$url")
    branches=$(git -C "$tree" for-each-ref --format='delete %(refname)' refs/heads)
    SAID=$(git -C "$tree" remote set-url origin "$shown" 2>&1 \
        && git -C "$tree" update-ref --no-deref --stdin 2>&1 <<< "${branches:+$branches$'\n'}delete refs/remotes/origin/HEAD") || return 1
}
