#!/usr/bin/env bats
# Trees: caches, leftovers, damage, and servers that fail. Nothing that goes wrong may look like a prepared tree.
# Each test has its own environment, and text in single quotes is for other shells:
# shellcheck disable=SC1078,SC1079,SC2016,SC2030,SC2031,SC2034,SC2119,SC2120,SC2154,SC2317

bats_require_minimum_version 1.5.0
load helper.bash

setup() {
    setup_gate
    make_project openstack/nova master stable/essex
    git -C "$SERVER/openstack/nova" checkout -q master
    CACHE=$HOME/workspace-cache/openstack/nova
}

teardown() {
    if [[ ${SERVING:-} ]]; then kill "$SERVING" 2> /dev/null || true; fi  # some servers end with their client
}

make_cache() {
    mkdir -p "${CACHE%/*}"
    git clone -q "$SERVER/openstack/nova" "$CACHE"
}

# serve PERL: run a server that does this for each connection, or nothing for ever; set GIT_BASE to git://HOST:PORT.
serve() {
    # shellcheck disable=SC2016  # Perl
    perl -MIO::Socket::INET -e '
        $| = 1;
        my $s = IO::Socket::INET->new(Listen => 9, LocalAddr => "127.0.0.1") or die;
        print $s->sockport, "\n";
        while (my $c = $s->accept) { push @kept, $c; eval $ARGV[0]; }' "$1" > "$BATS_TEST_TMPDIR/port" 3>&- &
    SERVING=$!
    until [[ -s $BATS_TEST_TMPDIR/port ]]; do command sleep 0.05; done
    export GIT_BASE
    GIT_BASE=git://127.0.0.1:$(< "$BATS_TEST_TMPDIR/port")
}

# refused TEXT: check that the run ended with 3 and one line that says why, with TEXT, and left no tree.
refused() {
    [[ $status -eq 3 && ${lines[-1]} == "functions-test: openstack/nova: "*"$1"* ]] || { printf '%s: %s\n' "$status" "$output"; return 1; }
    [[ ! -e $TREES/nova && ! -e $TREES/nova.making ]]
}

set_up() {
    bash -c '. "$1/functions.sh"; . "$1/gate/source.sh"; GIT_SECONDS_MAX=${GIT_SECONDS:-60}; sleep() { :; }; setup_project openstack/nova "${2:-master}" "$TREES"' \
        functions-test "$PROJECT_FOLDER" "$@"
}

@test "a cache saves fetching, its settings and hooks stay behind, and origin is the real base" {
    make_cache
    printf '#!/bin/sh\ntouch "$HOME/hooked"\n' > "$CACHE/.git/hooks/post-checkout"
    chmod +x "$CACHE/.git/hooks/post-checkout"
    git -C "$CACHE" config core.hooksPath "$CACHE/.git/hooks"
    git -C "$CACHE" checkout -q -b local-only
    touch "$CACHE/untracked"
    rm "$HOME/hooked"
    commit openstack/nova newer 'newer than the cache'
    run -0 set_up
    [[ $(got openstack/nova) == 'newer than the cache' && ! -e $HOME/hooked && ! -e $TREES/nova/untracked ]]
    run -0 git -C "$TREES/nova" for-each-ref --format='%(refname)'
    [[ $output == $'refs/heads/master\nrefs/remotes/origin/master\nrefs/remotes/origin/stable/essex' ]]
    run -0 git -C "$TREES/nova" remote get-url origin
    [[ $output == "$GIT_BASE/openstack/nova" ]]
    local object
    object=$(find "$CACHE/.git/objects" -type f | head -n 1)
    [[ $object -ef $TREES/nova/.git/objects/${object#"$CACHE/.git/objects/"} ]]
    run -0 git -C "$CACHE" fsck --no-dangling
}

@test "a cache whose branches are origin's, and one in /opt/git's manner, bare" {
    git clone -q --mirror "$SERVER/openstack/nova" "$HOME/workspace-cache/nova"
    run -0 set_up stable/essex
    [[ $(got openstack/nova) == 'tip of stable/essex' ]]
}

@test "a tree of an earlier run: dirty, in the middle of a merge, on a branch that is gone, with stale refs and locks" {
    git -C "$SERVER/openstack/nova" branch old/name
    run -0 set_up old/name
    cd "$TREES/nova"
    printf 'edited\n' > file
    printf 'new\n' > untracked
    mkdir ignored nested
    git init -q nested
    printf 'ignored\n' > .git/info-exclude
    touch .git/index.lock .git/MERGE_HEAD
    git -C "$SERVER/openstack/nova" branch -D old/name
    git -C "$SERVER/openstack/nova" branch old
    cd "$PROJECT_FOLDER"
    run -0 set_up old
    run -0 git -C "$TREES/nova" status --porcelain --ignored
    [[ ! $output ]]
    run -0 git -C "$TREES/nova" for-each-ref --format='%(refname)' refs/remotes
    [[ $output == $'refs/remotes/origin/master\nrefs/remotes/origin/old\nrefs/remotes/origin/stable/essex' ]]
}

@test "what is not a repository at all is replaced" {
    mkdir -p "$TREES/nova/.git" "$CACHE"
    touch "$TREES/nova/junk"
    run -0 set_up
    [[ ! -e $TREES/nova/junk && $(got openstack/nova) == 'tip of master' ]]
}

@test "a tag that moved, a branch that was pushed anew" {
    git -C "$SERVER/openstack/nova" tag v1 master
    make_cache
    git -C "$SERVER/openstack/nova" tag -f v1 stable/essex
    git -C "$SERVER/openstack/nova" checkout -q -B master stable/essex
    commit openstack/nova other 'pushed anew'
    run -0 set_up
    [[ $(got openstack/nova) == 'pushed anew' ]]
    [[ $(git -C "$TREES/nova" rev-parse v1) == $(git -C "$SERVER/openstack/nova" rev-parse v1) ]]
}

# corrupt_cache HOW: damage the cache, and check that it still gives the right tree.
corrupt_cache() {
    make_cache
    local objects=$CACHE/.git/objects file
    if [[ $1 == pack-cut ]]; then git -C "$CACHE" gc -q; fi
    chmod -R u+w "$objects"
    # Break the hard links that the local clone made, so that the server stays whole.
    cp -a "$objects" "$objects.own" && rm -rf "$objects" && mv "$objects.own" "$objects"
    case $1 in
        objects-gone) find "$objects" -type f -delete ;;
        object-cut) find "$objects" -type f -exec truncate -s 5 {} + ;;
        pack-cut) find "$objects" -name '*.pack' -exec truncate -s 40 {} + ;;
        ref-to-nothing) printf '%040d\n' 1 > "$CACHE/.git/refs/heads/broken" ;;
        unreadable-head) printf 'nonsense\n' > "$CACHE/.git/HEAD" ;;
        shallow) rm -rf "$CACHE"; git clone -q --depth 1 "file://$SERVER/openstack/nova" "$CACHE" ;;
        blob-changed)
            file=$(git -C "$CACHE" rev-parse HEAD:file)
            printf 'junk' > "$objects/${file:0:2}/${file:2}" ;;
    esac
    run -0 set_up
    [[ $(got openstack/nova) == 'tip of master' && $(< "$TREES/nova/file") == master ]]
    run -0 git -C "$TREES/nova" fsck --no-dangling
}

@test "a corrupt cache: all objects gone" { corrupt_cache objects-gone; }
@test "a corrupt cache: objects cut short" { corrupt_cache object-cut; }
@test "a corrupt cache: a pack cut short" { corrupt_cache pack-cut; }
@test "a corrupt cache: a ref to nothing" { corrupt_cache ref-to-nothing; }
@test "a corrupt cache: no HEAD" { corrupt_cache unreadable-head; }
@test "a cache with a part of the history only" { corrupt_cache shallow; }
@test "a corrupt cache: a file's content changed" { corrupt_cache blob-changed; }

@test "no such repository" {
    export GIT_BASE=file://$SERVER/nowhere
    run set_up
    refused 'does not appear to be a git repository'
}

@test "a login in an address is not shown" {
    export GIT_BASE=http://user:secret@127.0.0.1:1
    run set_up
    refused 127.0.0.1
    [[ $output != *secret* ]]
}

@test "an unreachable server, with and without a cache" {
    export GIT_BASE=git://127.0.0.1:1
    run set_up
    refused 'unable to connect'
    make_cache
    run set_up
    refused 'unable to connect'
}

@test "a server that hangs, with and without a cache" {
    serve ''
    export GIT_SECONDS=1
    run set_up
    refused 'not done within 1 seconds: the server hangs or is slow'
    make_cache
    run set_up
    refused 'not done within 1 seconds: the server hangs or is slow'
}

@test "a server that hangs takes no more than is left of the time limit" {
    serve ''
    now
    export GATE_DEADLINE=$(( NOW + 10 ))
    run set_up
    refused 'not done within'
    now
    (( NOW <= GATE_DEADLINE ))
}

@test "a server that hangs up" {
    serve 'close $c; pop @kept'
    run set_up
    refused 'fatal:'
}

@test "a git that says nothing" {
    mkdir "$BATS_TEST_TMPDIR/bin"
    printf '#!/bin/bash\nif [[ $* == *" clone "* ]]; then kill -s PIPE $$; fi\nexec %q "$@"\n' "$(command -v git)" > "$BATS_TEST_TMPDIR/bin/git"
    chmod +x "$BATS_TEST_TMPDIR/bin/git"
    PATH=$BATS_TEST_TMPDIR/bin:$PATH
    run set_up
    refused 'fatal: git ended with status 141 (SIGPIPE)'
}

@test "the change's own ref is missing, though the branch is there and others have it" {
    zuul openstack/nova master refs/zuul/master/ZA
    make_ref openstack/nova refs/zuul/master/ZAB
    make_ref openstack/nova refs/zuul/stable/essex/ZA
    run set_up
    refused "the change under test is missing: there is no refs/zuul/master/ZA at file://"
}

@test "the change's own ref is missing from a tree that had it" {
    make_ref openstack/nova refs/zuul/master/ZA
    zuul openstack/nova master refs/zuul/master/ZA
    run -0 set_up
    git -C "$SERVER/openstack/nova" update-ref -d refs/zuul/master/ZA
    run -3 set_up
    [[ ${lines[-1]} == *'the change under test is missing'* ]]
}

@test "Zuul's server fails" {
    zuul openstack/nova master refs/zuul/master/ZA
    export ZUUL_URL=git://127.0.0.1:1
    run set_up
    refused 'unable to connect'
    zuul openstack/other master refs/zuul/master/ZA
    export ZUUL_URL=git://127.0.0.1:1
    run set_up
    refused 'unable to connect'
}

@test "a merge conflict" {
    commit openstack/nova left 'left'
    git -C "$SERVER/openstack/nova" update-ref refs/changes/01/1/1 HEAD
    git -C "$SERVER/openstack/nova" reset -q --hard HEAD^
    commit openstack/nova right 'right'
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
    run set_up
    refused 'the change refs/changes/01/1/1 does not merge into master'
}

@test "a Gerrit change that is missing, that is no commit, that shares no history" {
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
    make_ref openstack/nova refs/changes/01/1/12
    run set_up
    refused 'there is no refs/changes/01/1/1 at file://'
    git -C "$SERVER/openstack/nova" update-ref refs/changes/01/1/1 "$(git -C "$SERVER/openstack/nova" rev-parse master:file)"
    run set_up
    refused refs/changes/01/1/1
    git -C "$SERVER/openstack/nova" update-ref refs/changes/01/1/1 stable/essex
    run set_up
    refused 'unrelated histories'
}

@test "a Gerrit change for a branch that is gone is not tested on master without it" {
    git -C "$SERVER/openstack/nova" update-ref refs/changes/01/1/1 stable/essex
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=feature/gone GERRIT_REFSPEC=refs/changes/01/1/1
    run set_up feature/gone
    refused 'the change under test cannot be merged: there is no branch feature/gone'
}

@test "a repository whose default branch is not master, with and without a master" {
    git -C "$SERVER/openstack/nova" symbolic-ref HEAD refs/heads/stable/essex
    run -0 set_up
    [[ $(got openstack/nova) == 'tip of master' ]]
    rm -rf "$TREES/nova"
    git -C "$SERVER/openstack/nova" branch -q -D master
    run set_up
    refused "there is no branch master at $GIT_BASE/openstack/nova, only stable/essex: OVERRIDE_NOVA_PROJECT_BRANCH chooses one"
    run set_up feature/x
    refused 'there is neither a branch feature/x nor a branch master'
}

@test "an empty repository" {
    rm -rf "$SERVER/openstack/nova"
    git init -q --bare "$SERVER/openstack/nova"
    run set_up
    refused "there is no branch master at $GIT_BASE/openstack/nova"
}

@test "a full disk" {
    head -c 3000000 /dev/urandom > "$SERVER/openstack/nova/large"
    git -C "$SERVER/openstack/nova" add large
    git -C "$SERVER/openstack/nova" commit -q -m large
    make_cache
    full_disk() {
        mount -t tmpfs -o size=1m tmpfs "$TREES" && set_up
    }
    export -f full_disk set_up
    export PROJECT_FOLDER
    run unshare --mount bash -c full_disk
    refused 'No space left on device'
}

@test "the subject of a change cannot write to the console more than a line" {
    make_ref openstack/nova $'refs/zuul/master/ZA'
    git -C "$SERVER/openstack/nova" commit -q --allow-empty -m $'red \e[31m\rPASS'
    run -0 set_up
    [[ $output == 'openstack/nova master '*' red [31mPASS' ]]
}

@test "a project that takes long holds up none of those after it" {
    serve ''
    export OVERRIDE_NOVA_GIT_BASE=$GIT_BASE GIT_BASE=file://$SERVER
    local -a projects=(openstack/nova)
    local number most
    most=$(nproc)
    for (( number = 0; number < (most > 4 ? most : 4); number++ )); do
        projects+=("openstack/p$number")
        make_project "${projects[-1]}" master
    done
    mkdir "$BATS_TEST_TMPDIR/lines"
    run -3 bash -c '. "$1/devstack-vm-gate-wrap.sh"; . "$1/functions.sh"; . "$1/gate/source.sh"; ATTEMPTS=1 GIT_SECONDS_MAX=10
        setup_trees master "$TREES" "$2" "${@:3}"' gate "$PROJECT_FOLDER" "$BATS_TEST_TMPDIR/lines" "${projects[@]}"
    [[ $output == *'openstack/nova: '*'not done within 10 seconds: the server hangs or is slow' ]]
    [[ $(got "${projects[-1]}") == 'tip of master' ]]
}

# late COMMAND: set the project up with pauses that take no time; COMMAND runs in the third one.
late() {
    bash -c '. "$1/functions.sh"; . "$1/gate/source.sh"; pauses=0
        eval "sleep() { pauses=\$(( pauses + 1 )); if (( pauses == 3 )); then $2; fi; }"
        setup_project openstack/nova master "$TREES"' functions-test "$PROJECT_FOLDER" "$1"
}

@test "a change that reaches the server late is looked for again, which one line tells" {
    make_ref openstack/nova refs/late
    local arrive="git -C $SERVER/openstack/nova update-ref refs/changes/01/1/1 refs/late"
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
    run --separate-stderr -0 late "$arrive"
    [[ $(got openstack/nova) == refs/late ]]
    [[ ${#stderr_lines[@]} -eq 1 && $stderr == *'openstack/nova: the change to be merged is not there yet (refs/changes/01/1/1); looking again for a minute' ]]
    unset GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC
    zuul openstack/nova master refs/zuul/master/ZL
    run --separate-stderr -0 late "${arrive/changes\/01\/1\/1/zuul/master/ZL}"
    [[ $(got openstack/nova) == refs/late ]]
    [[ ${#stderr_lines[@]} -eq 1 && $stderr == *'openstack/nova: the change under test is not there yet (refs/zuul/master/ZL); looking again for a minute' ]]
}

@test "a missing change is told in one line: which, where, and why it cannot be had there" {
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/78/78/1
    export GERRIT_HOST=127.0.0.1 GERRIT_PORT=1 GERRIT_SCHEME=ssh
    run --separate-stderr -3 set_up
    [[ ${stderr_lines[-1]} == "functions-test: openstack/nova: the change to be merged is missing: there is no refs/changes/78/78/1 at $GIT_BASE/openstack/nova; ssh://127.0.0.1:1/openstack/nova: ssh: connect to host 127.0.0.1 port 1: Connection refused" ]]
    [[ ${#stderr_lines[@]} -eq 2 ]]  # the other line: it was looked for again
    serve 'while (<$c>) { last if /^\r/ } print $c "HTTP/1.0 503 Service Unavailable\r\n\r\n"; close $c; pop @kept'
    GERRIT_PORT=${GIT_BASE##*:} GERRIT_SCHEME=http GIT_BASE=file://$SERVER
    run --separate-stderr -3 set_up
    [[ ${stderr_lines[-1]} == *"there is no refs/changes/78/78/1 at $GIT_BASE/openstack/nova; http://127.0.0.1:$GERRIT_PORT/openstack/nova: fatal: unable to access "*' 503' ]] || { printf '%s\n' "$stderr"; return 1; }
}

@test "projects that fail alike at the same server say so once" {
    export GIT_BASE=git://127.0.0.1:1 DEVSTACK_GATE_PROJECTS='openstack/nova openstack/glance openstack/cinder'
    run --separate-stderr -3 workspace
    [[ ${#stderr_lines[@]} -eq 1 && $stderr == 'gate: openstack/'*': git failed with git://127.0.0.1:1/openstack/'*'unable to connect to 127.0.0.1'* ]]
}

@test "a shallow mirror is no source" {
    commit openstack/nova more 'more'
    git clone -q --bare --depth 1 --no-single-branch "file://$SERVER/openstack/nova" "$SERVER/shallow/openstack/nova"
    export GIT_BASE=file://$SERVER/shallow
    run set_up
    refused "git failed with $GIT_BASE/openstack/nova: a shallow mirror, which has a part of the history only"
    zuul openstack/nova master refs/zuul/master/ZA
    export ZUUL_URL=$GIT_BASE GIT_BASE=file://$SERVER
    git -C "$SERVER/openstack/nova" checkout -q --detach
    commit openstack/nova below 'below the change'
    commit openstack/nova change 'change'
    git -C "$SERVER/openstack/nova" update-ref refs/heads/change HEAD
    git -C "$SERVER/shallow/openstack/nova" fetch -q --depth 1 "file://$SERVER/openstack/nova" change:refs/zuul/master/ZA
    git -C "$SERVER/openstack/nova" checkout -q master
    git -C "$SERVER/openstack/nova" update-ref -d refs/heads/change
    run set_up
    refused 'a shallow mirror'
}

@test "a login in the addresses is in no file of the tree and on no console" {
    make_ref openstack/nova refs/zuul/master/ZA
    local port=$(( 20000 + BASHPID % 10000 ))
    git daemon --listen=127.0.0.1 --port="$port" --base-path="$SERVER" --export-all 3>&- &
    SERVING=$!
    until (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do command sleep 0.05; done
    zuul openstack/nova master refs/zuul/master/ZA
    # git's own protocol has no logins; addresses with a login are led there
    git config --global "url.git://127.0.0.1:$port/.insteadOf" http://robot:hunter2secret@git.example.org/
    export GIT_BASE=http://robot:hunter2secret@git.example.org ZUUL_URL=http://robot:hunter2secret@git.example.org
    run -0 set_up
    [[ $output != *hunter2secret* ]]
    run -1 grep -r hunter2secret "$TREES/nova"
    run -0 git -C "$TREES/nova" remote get-url origin
    [[ $output == http://git.example.org/openstack/nova ]]
}

@test "logins are taken out of addresses, whatever is in them" {
    local pair
    for pair in 'https://u:p@h/x https://h/x' 'https://token@h:8/x https://h:8/x' 'https://u:p@q@h/x https://h/x' \
        'https://u:p/q@h/x https://h/x' 'https://h:8/~a@b/x https://h:8/~a@b/x' 'ssh://git@h/x ssh://git@h/x' \
        'ssh://u:p@h/x ssh://h/x' 'git@h:x git@h:x' '/srv/a@b /srv/a@b'; do
        run -0 hide_login "${pair% *}"
        [[ $output == "${pair#* }" ]] || { printf '%s: %s\n' "$pair" "$output"; return 1; }
    done
}

# what_is_in: print all that a test could see in the tree, except times.
what_is_in() {
    (cd -- "$TREES/nova" && find . -path ./.git -prune -o -printf '%p %m %y\n' | sort && git rev-parse 'HEAD^{tree}' && cat file text lfs && git config --list --local)
}

@test "nothing of the user's settings, variables, locale, umask or templates changes a tree" {
    cd "$SERVER/openstack/nova"
    printf '* text=auto\nlfs filter=lfs diff=lfs\n' > .gitattributes
    printf 'one\ntwo\n' > text
    cp text lfs
    git add . && git commit -q -m attributes
    git checkout -q --detach
    git commit -q --allow-empty -m change && git update-ref refs/changes/01/1/1 HEAD
    git checkout -q master
    git commit -q --allow-empty -m newer
    cd "$PROJECT_FOLDER"
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
    set_up
    local expected
    expected=$(what_is_in)
    mkdir -p "$HOME/templates/hooks" "$HOME/.config/git"
    printf '#!/bin/sh\nexit 1\n' > "$HOME/templates/hooks/post-checkout"
    chmod +x "$HOME/templates/hooks/post-checkout"
    printf 'text eol=crlf\n* filter=upper\n' > "$HOME/.config/git/attributes"
    cp "$HOME/.config/git/attributes" "$HOME/attributes"
    local setting
    for setting in merge.verifySignatures=true commit.gpgSign=true merge.ff=only core.autocrlf=true core.eol=crlf \
        filter.lfs.required=true filter.lfs.smudge=false filter.upper.smudge='tr a-z A-Z' core.fileMode=false \
        core.attributesFile="$HOME/attributes" init.templateDir="$HOME/templates" fetch.fsckObjects=true fetch.prune=false \
        core.sharedRepository=world remote.origin.fetch=nonsense log.showSignature=true log.decorate=full core.abbrev=40 \
        user.useConfigOnly=true protocol.allow=never core.hooksPath="$HOME/templates/hooks" core.logAllRefUpdates=always \
        clone.defaultRemoteName=upstream clone.rejectShallow=true merge.conflictStyle=nonsense extensions.nonsense=1; do
        git config --global "${setting%%=*}" "${setting#*=}"
    done
    use_turkish
    unset LC_ALL
    local -a hostile=(LC_ALL=tr_TR.UTF-8 LANGUAGE=de GIT_TRACE=1 GIT_ALLOW_PROTOCOL=https GIT_DEFAULT_HASH=sha256 GIT_AUTHOR_NAME=
        GIT_COMMITTER_EMAIL= GIT_ALTERNATE_OBJECT_DIRECTORIES=/nowhere GIT_TEMPLATE_DIR="$HOME/templates" GIT_PROTOCOL=version=0
        GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=core.bare GIT_CONFIG_VALUE_0=true GIT_CEILING_DIRECTORIES=/ GIT_LITERAL_PATHSPECS=1
        GIT_SHALLOW_FILE=/nowhere GIT_QUARANTINE_PATH=/nowhere GIT_ATTR_SOURCE=HEAD GIT_MERGE_AUTOEDIT=yes GIT_FLUSH=0)
    export -f set_up
    export PROJECT_FOLDER
    rm -rf "$TREES/nova"
    run -0 env -u GIT_CONFIG_NOSYSTEM "${hostile[@]}" bash -c 'umask 077; set_up'
    [[ $(HOME=$TREES what_is_in) == "$expected" ]] || { diff <(HOME=$TREES what_is_in) <(printf '%s\n' "$expected"); return 1; }
    rm -rf "$TREES/nova"
    run -0 env -u HOME "${hostile[@]}" bash -c 'umask 0; set_up'
    [[ $(HOME=$TREES what_is_in) == "$expected" ]]
}

@test "how a server is reached is the user's to say" {
    git config --global "url.file://$SERVER/.insteadOf" https://git.example.org/
    export GIT_BASE=https://git.example.org
    run -0 set_up
    [[ $(got openstack/nova) == 'tip of master' ]]
    git config --global --unset-all "url.file://$SERVER/.insteadOf"
    git config --global http.https://git.example.org/.extraHeader 'AUTHORIZATION: basic c2VjcmV0'
    GIT_TRACE=1 GIT_BASE=file://$SERVER run -0 set_up
    [[ $output != *c2VjcmV0* && ${#lines[@]} -eq 1 ]]
    printf 'a line that git does not understand [\n' >> "$HOME/.gitconfig"
    GIT_BASE=file://$SERVER run -0 set_up
}

@test "settings of the user that git cannot read do not count, which one line tells; wrong variables hide none" {
    make_project openstack/glance master
    make_ref openstack/nova refs/zuul/master/Z1
    zuul openstack/nova master refs/zuul/master/Z1
    export DEVSTACK_GATE_PROJECTS='openstack/nova openstack/glance'
    TREES=$TREES/one GIT_CONFIG_COUNT=1 run -0 workspace
    TREES=$TREES/two GIT_CONFIG_PARAMETERS=nonsense run -0 workspace
    git config --global "url.file://$SERVER/.insteadOf" https://git.example.org/
    TREES=$TREES/three GIT_CONFIG_COUNT=1 GIT_BASE=https://git.example.org run -0 workspace
    [[ $output != *'cannot be read'* ]]
    printf '[incl\n' > "$HOME/.gitconfig"
    TREES=$TREES/four run -0 workspace
    [[ $(grep -c "cannot be read, so none of them count: fatal: bad config line 1 in file $HOME/.gitconfig" <<< "$output") -eq 1 ]]
}

@test "a cache with thousands of refs leaves nothing but what the server has, in one file" {
    make_cache
    local commit
    commit=$(git -C "$CACHE" rev-parse master)
    git -C "$CACHE" update-ref --stdin < <(
        for kind in heads tags remotes/origin changes; do
            for (( number = 0; number < 750; number++ )); do printf 'create refs/%s/a%d/b %s\n' "$kind" "$number" "$commit"; done
        done)
    git -C "$SERVER/openstack/nova" tag a1 master  # the cache has a1/b
    run -0 set_up
    run -0 git -C "$TREES/nova" for-each-ref --format='%(refname)'
    [[ $output == $'refs/heads/master\nrefs/remotes/origin/master\nrefs/remotes/origin/stable/essex\nrefs/tags/a1' ]]
    run -0 find "$TREES/nova/.git/refs" -type f
    [[ ${#lines[@]} -le 2 ]]
}

@test "a cache that leans on another repository leaves no tree that does" {
    git clone -q --mirror "$SERVER/openstack/nova" "$HOME/other"
    mkdir -p "${CACHE%/*}"
    git clone -q --shared "$HOME/other" "$CACHE"
    run -0 set_up
    rm -rf "$HOME/other" "$CACHE"
    run -0 git -C "$TREES/nova" fsck --no-dangling
}

@test "a subject with what moves a terminal's writing, and a long one" {
    local long
    long=$(printf 'x%.0s' {1..500})
    git -C "$SERVER/openstack/nova" commit -q --allow-empty -m $'a\u202eb\u009b2Jc\u2028d \xff '"$long"
    run -0 set_up
    [[ ${#lines[@]} -eq 1 && $output == 'openstack/nova master '*' ab2Jcd '*xxx... && ${#output} -lt 260 ]]
    [[ $output != *$'\xe2\x80\xae'* && $output != *$'\xc2\x9b'* ]]
}

@test "a server that talks without end does not fill the memory or the console" {
    serve 'print $c sprintf("%04x%s", 64004, "ERR " . "x" x 63996) for 1 .. 40; close $c; pop @kept'
    run -3 set_up
    [[ ${#output} -lt 400 ]]
}

# --- what devstack would clone ---

# make_devstack: make openstack/devstack with only what matters here.
make_devstack() {
    git init -q -b master -- "$SERVER/openstack/devstack"
    cd "$SERVER/openstack/devstack" || return
    mkdir lib extras.d
    printf '%s\n' 'ENABLED_SERVICES=key,n-api' 'ENABLED_SERVICES+=,tempest' \
        'NOVA_REPO=${NOVA_REPO:-${GIT_BASE}/openstack/nova.git}' 'SWIFT_REPO=${SWIFT_REPO:-${GIT_BASE}/openstack/swift.git}' \
        'IMAGES_REPO=${IMAGES_REPO:-${GIT_BASE}/openstack/os-test-images.git}' 'IMAGES_DIR=${DEST}/os-test-images' \
        'GONE_REPO=${GONE_REPO:-${GIT_BASE}/openstack/gone.git}' \
        'GITREPO["oslo.db"]=${OSLODB_REPO:-${GIT_BASE}/openstack/oslo.db.git}' > stackrc
    printf '%s\n' 'if is_service_enabled swift; then' '    install_swift' 'fi' 'git_clone $GONE_REPO $DEST/gone master' > stack.sh
    printf '%s\n' 'if is_service_enabled tempest; then' '    configure_tempest' 'fi' > extras.d/80-tempest.sh
    printf '%s\n' 'function is_swift_enabled {' '    [[ ,${ENABLED_SERVICES} =~ ,"s-" ]] && return 0' '}' 'SWIFT_DIR=$DEST/swift' \
        'function install_swift {' '    git_clone $SWIFT_REPO $SWIFT_DIR $SWIFT_BRANCH' '}' > lib/swift
    printf '%s\n' 'function configure_tempest {' '    if is_service_enabled nova; then' \
        '        git_clone $IMAGES_REPO $IMAGES_DIR $IMAGES_BRANCH' '    fi' '}' > lib/tempest
    printf '%s\n' 'function is_nova_enabled {' '    [[ ,${ENABLED_SERVICES} =~ ,"n-" ]] && return 0' '}' \
        'NOVA_DIR=$DEST/nova' 'function install_nova {' '    git_clone $NOVA_REPO $NOVA_DIR $NOVA_BRANCH' '}' > lib/nova
    printf '%s\n' '    if use_library_from_git "oslo.db"; then' '        git_clone_by_name "oslo.db"' '    fi' > lib/libraries
    git add . && git commit -q -m devstack
    cd "$PROJECT_FOLDER" || return
    make_project openstack/os-test-images master
    make_project openstack/swift master
    make_project openstack/oslo.db master
    export DEVSTACK_GATE_PROJECTS='openstack/devstack openstack/nova'
}

@test "what devstack would clone for the services that are on is set up, with this run's change, and what is nowhere is left out" {
    make_devstack
    make_ref openstack/os-test-images refs/zuul/master/ZA
    make_ref openstack/nova refs/zuul/master/ZA
    zuul openstack/nova master refs/zuul/master/ZA
    run --separate-stderr -0 workspace
    [[ ${lines[2]} == 'openstack/os-test-images master '*' refs/zuul/master/ZA' && ${#lines[@]} -eq 3 ]]
    [[ $(change_of openstack/os-test-images) == refs/zuul/master/ZA && ! -e $TREES/new/swift ]]
    [[ $stderr == *"openstack/gone: left out, although devstack may want it: there is no such repository at $GIT_BASE/openstack/gone"* ]]
    ENABLED_SERVICES=-tempest,s-proxy LIBS_FROM_GIT=oslo.db run --separate-stderr -0 workspace
    [[ -d $TREES/new/swift && -d $TREES/new/oslo.db ]]
    rm -rf "$TREES/new"
    DEVSTACK_LOCAL_CONFIG=$'disable_service tempest\nenable_service s-proxy' run -0 workspace
    [[ -d $TREES/new/swift && ! -e $TREES/new/os-test-images ]]
}

@test "devstack's plugins are set up from where the job says, on this run's branch, or on the plugin's own if it is named" {
    make_devstack
    make_project openstack/heat master stable/x
    make_project me/plug master feature
    export DEVSTACK_LOCAL_CONFIG="enable_plugin heat $GIT_BASE/openstack/heat
enable_plugin my-plug file://$SERVER/me/plug.git feature"
    git -C "$SERVER/openstack/devstack" branch stable/x
    export ZUUL_BRANCH=stable/x
    run --separate-stderr -0 workspace
    [[ $output == *$'\nopenstack/heat stable/x '* && $output == *$'\nme/plug feature '* ]]
    [[ $TREES/new/my-plug -ef $TREES/new/plug ]]
}

@test "devstack's plugins are set up however the lines of the job's settings are written" {
    make_devstack
    local name
    for name in one two three four five; do make_project "x/$name" master; done
    export DEVSTACK_LOCAL_CONFIG='[[ $X ]] && enable_plugin one $GIT_BASE/x/one
enable_plugin two \
    $GIT_BASE/x/two
if [[ $X ]]; then enable_plugin three $GIT_BASE/x/three; fi
NAMES="a,
b"
enable_plugin four $GIT_BASE/x/four
[[post-config|$NOVA_CONF]]
localrc = 1
enable_plugin five $GIT_BASE/x/five'
    run --separate-stderr -0 workspace
    for name in one two three four; do [[ -e $TREES/new/$name/.git/gate-ref ]] || { echo "$name"; return 1; }; done
    [[ ! -e $TREES/new/five ]]
}
