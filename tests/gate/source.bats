#!/usr/bin/env bats
# Trees: caches, leftovers, damage, and servers that fail. Nothing that goes wrong may look like a prepared tree.
# Each test has an environment of its own, and what is in single quotes is for other shells:
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
    if [[ ${SERVING:-} ]]; then kill "$SERVING"; fi
}

make_cache() {
    mkdir -p "${CACHE%/*}"
    git clone -q "$SERVER/openstack/nova" "$CACHE"
}

# Answers the first line of each connection as told: a Perl expression, or nothing for ever. Prints git://HOST:PORT.
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

# refused: the run said in one clear line why, with status 3, and left no tree.
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

# corrupt_cache HOW: it still gives the right tree.
corrupt_cache() {
    make_cache
    local objects=$CACHE/.git/objects file
    if [[ $1 == pack-cut ]]; then git -C "$CACHE" gc -q; fi
    chmod -R u+w "$objects"
    # Not through the hard links that the local clone made.
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
    refused 'no answer within 1 seconds'
    make_cache
    run set_up
    refused 'no answer within 1 seconds'
}

@test "a server that hangs takes no more than is left of the time limit" {
    serve ''
    now
    export GATE_DEADLINE=$(( NOW + 10 ))
    run set_up
    refused 'no answer within'
    now
    (( NOW <= GATE_DEADLINE ))
}

@test "a server that hangs up" {
    serve 'close $c; pop @kept'
    run set_up
    refused 'fatal:'
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
    refused 'there is neither a branch master nor a branch master'
    run set_up feature/x
    refused 'there is neither a branch feature/x nor a branch master'
}

@test "an empty repository" {
    rm -rf "$SERVER/openstack/nova"
    git init -q --bare "$SERVER/openstack/nova"
    run set_up
    refused 'there is neither a branch'
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
    [[ $output == *'openstack/nova: '*'no answer within 10 seconds' ]]
    [[ $(got "${projects[-1]}") == 'tip of master' ]]
}
