#!/usr/bin/env bats
# Which code a project gets, on repositories that really hold the refs.
# Each test has its own environment, and text in single quotes is for other shells:
# shellcheck disable=SC1078,SC1079,SC2016,SC2030,SC2031,SC2034,SC2119,SC2120,SC2154,SC2317

bats_require_minimum_version 1.5.0
load helper.bash

setup() {
    setup_gate
}

# choose BRANCH ID REF...: print which of these refs choose_ref takes.
choose() {
    printf '%s\n' "${@:3}" | choose_ref "$1" "$2"
}

# expect PROJECT BRANCH SUBJECT: check that the gate checks out the commit with this subject.
expect() {
    run -0 set_up "$1" "$2"
    local subject
    subject=$(got "$1")
    [[ $subject == "$3" ]] || { printf '%s on %s: got %s, not %s\n' "$1" "$2" "$subject" "$3"; return 1; }
}

@test "KEEP_LOCALRC keeps the settings of the devstack that is there" {
    make_project openstack/devstack master
    set_up openstack/devstack master
    printf 'A=1\n' > "$TREES/devstack/local.conf"
    KEEP_LOCALRC=1 set_up openstack/devstack master
    [[ $(< "$TREES/devstack/local.conf") == A=1 ]]
    set_up openstack/devstack master
    [[ ! -e $TREES/devstack/local.conf ]]
}

@test "choose_ref takes the first that exists of: Zuul on the branch, the branch, Zuul on master, eol tag, master" {
    local all=(refs/zuul/stable/havana/ZA refs/heads/stable/havana refs/zuul/master/ZA refs/tags/havana-eol refs/heads/master)
    local order=("${all[@]}")
    while (( ${#order[@]} )); do
        run -0 choose stable/havana ZA "${order[@]}" refs/heads/other
        [[ $output == "${order[0]}" ]]
        order=("${order[@]:1}")
    done
    run -1 choose stable/havana ZA refs/heads/other
}

@test "choose_ref compares whole names" {
    run -0 choose stable/e '' refs/heads/stable/essex refs/tags/essex-eol refs/heads/master
    [[ $output == refs/heads/master ]]
    run -0 choose stable/essex ZA refs/zuul/stable/essex/ZAB refs/zuul/stable/essexZA refs/heads/stable/essex
    [[ $output == refs/heads/stable/essex ]]
    run -0 choose 'rel*' '' refs/heads/release refs/heads/master
    [[ $output == refs/heads/master ]]
    run -0 choose essex '' refs/tags/essex-eol refs/tags/essex refs/heads/master
    [[ $output == refs/heads/master ]]
}

@test "one change on master" {
    make_project openstack/devstack-gate master
    make_ref openstack/devstack-gate refs/zuul/master/ZA
    zuul openstack/devstack-gate master refs/zuul/master/ZA
    expect openstack/devstack-gate master refs/zuul/master/ZA
}

@test "two changes on master: each project as Zuul prepared it for the later one, others at their tips" {
    make_project openstack/devstack-gate master
    make_project openstack/glance master
    make_project openstack/swift master
    make_ref openstack/devstack-gate refs/zuul/master/ZA
    make_ref openstack/devstack-gate refs/zuul/master/ZB refs/zuul/master/ZA
    make_ref openstack/glance refs/zuul/master/ZB
    zuul openstack/glance master refs/zuul/master/ZB
    expect openstack/devstack-gate master refs/zuul/master/ZB
    expect openstack/glance master refs/zuul/master/ZB
    expect openstack/swift master 'tip of master'
}

@test "changes on several branches, the last on master: a change to stable does not come in" {
    make_project openstack/devstack-gate master
    make_project openstack/glance master stable/havana
    make_project openstack/python-glanceclient master
    make_ref openstack/devstack-gate refs/zuul/master/ZC
    make_ref openstack/glance refs/zuul/stable/havana/ZB stable/havana
    make_ref openstack/glance refs/zuul/stable/havana/ZC stable/havana
    make_ref openstack/python-glanceclient refs/zuul/master/ZC
    zuul openstack/python-glanceclient master refs/zuul/master/ZC
    expect openstack/devstack-gate master refs/zuul/master/ZC
    expect openstack/glance master 'tip of master'
    expect openstack/python-glanceclient master refs/zuul/master/ZC
}

@test "a change on stable, with a project override: branchless projects from Zuul's master, else stable, else master" {
    make_project openstack/devstack-gate master
    make_project openstack/glance master stable/havana
    make_project openstack/python-glanceclient master
    make_project openstack/tempest master stable/havana
    make_project openstack/nova master stable/havana
    make_project openstack/oslo.config master
    make_ref openstack/devstack-gate refs/zuul/master/ZD
    make_ref openstack/python-glanceclient refs/zuul/master/ZD
    make_ref openstack/glance refs/zuul/stable/havana/ZD stable/havana
    zuul openstack/glance stable/havana refs/zuul/stable/havana/ZD
    export OVERRIDE_TEMPEST_PROJECT_BRANCH=master
    expect openstack/devstack-gate stable/havana refs/zuul/master/ZD
    expect openstack/glance stable/havana refs/zuul/stable/havana/ZD
    expect openstack/python-glanceclient stable/havana refs/zuul/master/ZD
    expect openstack/tempest stable/havana 'tip of master'
    expect openstack/nova stable/havana 'tip of stable/havana'
    expect openstack/oslo.config stable/havana 'tip of master'
}

@test "only stable: a change there, and others without that branch" {
    make_project openstack/devstack-gate master
    make_project openstack/glance master stable/havana
    make_project openstack/python-glanceclient master
    make_ref openstack/devstack-gate refs/zuul/master/ZB
    make_ref openstack/glance refs/zuul/stable/havana/ZB stable/havana
    zuul openstack/glance stable/havana refs/zuul/stable/havana/ZB
    expect openstack/devstack-gate stable/havana refs/zuul/master/ZB
    expect openstack/glance stable/havana refs/zuul/stable/havana/ZB
    expect openstack/python-glanceclient stable/havana 'tip of master'
}

grenade_projects() {
    make_project openstack/devstack-gate master
    make_project openstack/nova master stable/havana
    make_project openstack/keystone master stable/havana
    make_project openstack/glance master stable/havana
    make_project openstack/swift master stable/havana
    make_project openstack/python-glanceclient master
    make_ref openstack/devstack-gate refs/zuul/master/ZE
    make_ref openstack/keystone refs/zuul/stable/havana/ZE stable/havana
    make_ref openstack/keystone refs/zuul/master/ZE master
}

@test "upgrade backward: the change is on master, the old trees are stable with what is queued there" {
    grenade_projects
    make_ref openstack/nova refs/zuul/stable/havana/ZE stable/havana
    make_ref openstack/glance refs/zuul/master/ZE master
    zuul openstack/glance master refs/zuul/master/ZE
    expect openstack/devstack-gate stable/havana refs/zuul/master/ZE
    expect openstack/nova stable/havana refs/zuul/stable/havana/ZE
    expect openstack/keystone stable/havana refs/zuul/stable/havana/ZE
    expect openstack/glance stable/havana 'tip of stable/havana'
    expect openstack/swift stable/havana 'tip of stable/havana'
    expect openstack/python-glanceclient stable/havana 'tip of master'
    expect openstack/devstack-gate master refs/zuul/master/ZE
    expect openstack/nova master 'tip of master'
    expect openstack/keystone master refs/zuul/master/ZE
    expect openstack/glance master refs/zuul/master/ZE
    expect openstack/swift master 'tip of master'
    expect openstack/python-glanceclient master 'tip of master'
}

@test "upgrade forward: the change is on stable, the new trees are master with what is queued there" {
    grenade_projects
    make_ref openstack/nova refs/zuul/master/ZE master
    make_ref openstack/glance refs/zuul/stable/havana/ZE stable/havana
    zuul openstack/glance stable/havana refs/zuul/stable/havana/ZE
    expect openstack/nova stable/havana 'tip of stable/havana'
    expect openstack/keystone stable/havana refs/zuul/stable/havana/ZE
    expect openstack/glance stable/havana refs/zuul/stable/havana/ZE
    expect openstack/nova master refs/zuul/master/ZE
    expect openstack/keystone master refs/zuul/master/ZE
    expect openstack/glance master 'tip of master'
    expect openstack/swift master 'tip of master'
}

@test "branch override: all on another branch than the change's" {
    make_project openstack/devstack-gate master
    make_project openstack/glance master stable/havana
    make_project openstack/swift master stable/havana
    make_project openstack/python-glanceclient master
    make_ref openstack/devstack-gate refs/zuul/master/ZB
    make_ref openstack/glance refs/zuul/stable/havana/ZB stable/havana
    zuul openstack/devstack-gate master refs/zuul/master/ZB
    expect openstack/devstack-gate stable/havana refs/zuul/master/ZB
    expect openstack/glance stable/havana refs/zuul/stable/havana/ZB
    expect openstack/swift stable/havana 'tip of stable/havana'
    expect openstack/python-glanceclient stable/havana 'tip of master'
}

@test "periodic: a branch and no ref" {
    make_project openstack/glance master stable/havana
    export ZUUL_PROJECT=openstack/glance ZUUL_BRANCH=stable/havana
    expect openstack/glance stable/havana 'tip of stable/havana'
}

@test "another git base for one project; its Zuul ref still comes from Zuul" {
    make_project openstack/glance master
    make_project fork/openstack/glance master
    commit fork/openstack/glance fork 'the fork'
    make_ref openstack/glance refs/zuul/master/ZA
    export OVERRIDE_GLANCE_GIT_BASE=file://$SERVER/fork/
    expect openstack/glance master 'the fork'
    run -0 git -C "$TREES/glance" remote get-url origin
    [[ $output == "file://$SERVER/fork/openstack/glance" ]]
    zuul openstack/glance master refs/zuul/master/ZA
    expect openstack/glance master refs/zuul/master/ZA
}

@test "a Zuul ref that only Zuul's own server has, which does not know all projects" {
    make_project openstack/glance master
    make_project openstack/swift master
    git clone -q --mirror "$SERVER/openstack/glance" "$SERVER/zuul/openstack/glance"
    make_ref zuul/openstack/glance refs/zuul/master/ZA
    zuul openstack/glance master refs/zuul/master/ZA
    export ZUUL_URL=file://$SERVER/zuul
    expect openstack/glance master refs/zuul/master/ZA
    expect openstack/swift master 'tip of master'
}

@test "stable/essex gone: its eol tag; stable/e is not stable/essex" {
    make_project openstack/nova master stable/essex
    expect openstack/nova stable/e 'tip of master'
    git -C "$SERVER/openstack/nova" checkout -q master
    git -C "$SERVER/openstack/nova" tag -a -m eol essex-eol stable/essex
    git -C "$SERVER/openstack/nova" branch -q -D stable/essex
    run -0 set_up openstack/nova stable/essex
    [[ $output == "openstack/nova essex-eol "*" tip of stable/essex (no branch stable/essex)" ]]
}

@test "a tag with the branch's name does not hide the branch" {
    make_project openstack/nova master stable/essex
    git -C "$SERVER/openstack/nova" tag stable/essex master
    git -C "$SERVER/openstack/nova" tag origin/stable/essex master
    expect openstack/nova stable/essex 'tip of stable/essex'
}

@test "a project with a dot, a branch with slashes and odd letters" {
    make_project openstack/oslo.config master 'feature/a.b/c+d%s@x'
    make_ref openstack/oslo.config 'refs/zuul/feature/a.b/c+d%s@x/ZA' 'feature/a.b/c+d%s@x'
    expect openstack/oslo.config 'feature/a.b/c+d%s@x' 'tip of feature/a.b/c+d%s@x'
    zuul openstack/oslo.config 'feature/a.b/c+d%s@x' 'refs/zuul/feature/a.b/c+d%s@x/ZA'
    run -0 set_up openstack/oslo.config 'feature/a.b/c+d%s@x'
    [[ $output == 'openstack/oslo.config feature/a.b/c+d%s@x '*' refs/zuul/feature/a.b/c+d%s@x/ZA' ]]
    unset ZUUL_REF
    OVERRIDE_OSLO_CONFIG_PROJECT_BRANCH=master expect openstack/oslo.config 'feature/a.b/c+d%s@x' 'tip of master'
    OVERRIDE_OSLOCONFIG_PROJECT_BRANCH=master expect openstack/oslo.config 'feature/a.b/c+d%s@x' 'tip of master'
    export OVERRIDE_OSLO_CONFIG_PROJECT_BRANCH='feature/a.b/c+d%s@x' OVERRIDE_OSLOCONFIG_PROJECT_BRANCH=master
    expect openstack/oslo.config 'feature/a.b/c+d%s@x' 'tip of feature/a.b/c+d%s@x'
}

@test "Gerrit's changes are merged in order, only where project and branch match, the triggering one too" {
    make_project openstack/nova master stable/essex
    for number in 1 2 3; do
        git -C "$SERVER/openstack/nova" checkout -q --detach master
        printf 'x\n' > "$SERVER/openstack/nova/change$number"
        git -C "$SERVER/openstack/nova" add .
        git -C "$SERVER/openstack/nova" commit -q -m "change $number"
        git -C "$SERVER/openstack/nova" update-ref "refs/changes/0$number/$number/1" HEAD
    done
    make_ref openstack/nova refs/changes/04/4/1 stable/essex
    git -C "$SERVER/openstack/nova" checkout -q master
    commit openstack/nova newer 'newer tip'
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/03/3/1
    export GERRIT_CHANGES=openstack/nova:master:refs/changes/02/2/1^openstack/nova:stable/essex:refs/changes/04/4/1^openstack/glance:master:refs/changes/01/1/1
    run -0 set_up openstack/nova master
    run -0 git -C "$TREES/nova" log --first-parent --format=%s
    [[ ${lines[0]} == *refs/changes/03/3/1* && ${lines[1]} == *refs/changes/02/2/1* && ${lines[2]} == 'newer tip' ]]
    [[ ! -e $TREES/nova/change1 && -e $TREES/nova/change2 && -e $TREES/nova/change3 ]]
    expect openstack/nova stable/essex refs/changes/04/4/1
}

@test "a Gerrit change that is only at Gerrit's own address" {
    make_project openstack/nova master
    git clone -q --mirror "$SERVER/openstack/nova" "$SERVER/gerrit/openstack/nova"
    make_ref gerrit/openstack/nova refs/changes/01/1/1
    git config --global "url.file://$SERVER/gerrit/.insteadOf" https://review.example.org:8443/
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
    export GERRIT_SCHEME=https GERRIT_HOST=review.example.org GERRIT_PORT=8443
    expect openstack/nova master refs/changes/01/1/1
}

@test "a commit that is not the one that was told is another change; the next address may have the right one" {
    make_project openstack/nova master
    git clone -q --mirror "$SERVER/openstack/nova" "$SERVER/gerrit/openstack/nova"
    make_ref openstack/nova refs/changes/01/1/1
    git -C "$SERVER/openstack/nova" commit -q --allow-empty -m newer
    make_ref gerrit/openstack/nova refs/changes/01/1/1 refs/heads/master
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1 GERRIT_PATCHSET_REVISION
    GERRIT_PATCHSET_REVISION=$(GIT_AUTHOR_NAME=other git -C "$SERVER/gerrit/openstack/nova" commit-tree -m right -p master 'master^{tree}')
    git -C "$SERVER/gerrit/openstack/nova" update-ref refs/changes/01/1/1 "$GERRIT_PATCHSET_REVISION"
    run -3 set_up openstack/nova master
    [[ $output == *"the change to be merged is missing: refs/changes/01/1/1 at $GIT_BASE/openstack/nova is "*", not $GERRIT_PATCHSET_REVISION" ]]
    git config --global "url.file://$SERVER/gerrit/.insteadOf" https://review.example.org/
    export GERRIT_SCHEME=https GERRIT_HOST=review.example.org
    run -0 set_up openstack/nova master
    run -0 git -C "$TREES/nova" merge-base --is-ancestor "$GERRIT_PATCHSET_REVISION" HEAD
    unset "${!GERRIT_@}"
    make_ref openstack/nova refs/zuul/master/Z1
    zuul openstack/nova master refs/zuul/master/Z1
    ZUUL_COMMIT=$(printf %040d 1) run -3 set_up openstack/nova master
    [[ $output == *'the change under test is missing: refs/zuul/master/Z1 at '*' is '*", not $(printf %040d 1)" ]]
    ZUUL_COMMIT=$(git -C "$SERVER/openstack/nova" rev-parse refs/zuul/master/Z1) run -0 set_up openstack/nova master
}

@test "a Gerrit change that the branch has already is told" {
    make_project openstack/nova master
    git -C "$SERVER/openstack/nova" update-ref refs/changes/01/1/1 HEAD
    git -C "$SERVER/openstack/nova" commit -q --allow-empty -m newer
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/01/1/1
    run -0 set_up openstack/nova master
    [[ $output == *' newer (refs/changes/01/1/1 is in it already)' ]]
}

# --- submodules ---

# add_submodule PROJECT PATH URL COMMIT: make a change, refs/zuul/master/Z1, that adds it.
add_submodule() {
    local tree=$SERVER/$1
    git -C "$tree" checkout -q --detach master
    git config --file "$tree/.gitmodules" submodule.s.path "$2"
    git config --file "$tree/.gitmodules" submodule.s.url "$3"
    git -C "$tree" update-index --add --cacheinfo "160000,$4,$2"
    git -C "$tree" add .gitmodules
    git -C "$tree" commit -q -m 'a submodule'
    git -C "$tree" update-ref refs/zuul/master/Z1 HEAD
    git -C "$tree" checkout -q -f master
    zuul "$1" master refs/zuul/master/Z1
}

commit_of() {
    git -C "$SERVER/$1" rev-parse "$2"
}

@test "a submodule that a change adds is there, and so are its own" {
    make_project openstack/nova master
    make_project openstack/part master
    make_project openstack/inner master
    add_submodule openstack/part inner "$GIT_BASE/openstack/inner" "$(commit_of openstack/inner HEAD)"  # Z1 is on no branch
    add_submodule openstack/nova lib/part ../part "$(commit_of openstack/part refs/zuul/master/Z1)"
    git -C "$SERVER/openstack/part" config uploadpack.allowAnySHA1InWant true
    run -0 set_up openstack/nova master
    [[ $(< "$TREES/nova/lib/part/file") == master && $(< "$TREES/nova/lib/part/inner/file") == master ]]
    [[ $(git -C "$TREES/nova/lib/part" rev-parse HEAD) == "$(commit_of openstack/part refs/zuul/master/Z1)" ]]
    run -0 git -C "$TREES/nova" status --porcelain
    [[ ! $output ]]
}

@test "a submodule that cannot be had ends the run if the change adds it, and is told if it was there" {
    make_project openstack/nova master
    local gone=$GIT_BASE/openstack/gone
    add_submodule openstack/nova part "$gone" "$(printf %040d 1)"
    run -3 set_up openstack/nova master
    [[ ${lines[-1]} == "gate: openstack/nova: the submodule part cannot be fetched from $gone: fatal: "*' does not appear to be a git repository' ]]
    git -C "$SERVER/openstack/nova" merge -q refs/zuul/master/Z1
    unset "${!ZUUL_@}"
    run -0 set_up openstack/nova master
    [[ $output == *" openstack/nova: the submodule part cannot be fetched from $gone: "* ]]
    [[ -d $TREES/nova/part && ! $(ls "$TREES/nova/part") ]]
}

@test "a change's submodule is no way to files, keys and logins of the job's user" {
    make_project openstack/nova master
    make_project secret master
    local url commit
    commit=$(commit_of secret HEAD)
    mv "$SERVER/secret" "$BATS_TEST_TMPDIR/secret"
    printf '#!/bin/sh\ntouch "$HOME/asked"\n' > "$BATS_TEST_TMPDIR/helper"
    chmod +x "$BATS_TEST_TMPDIR/helper"
    git config --global credential.helper "!$BATS_TEST_TMPDIR/helper"
    export GIT_SSH_COMMAND=$BATS_TEST_TMPDIR/helper GIT_ASKPASS=$BATS_TEST_TMPDIR/helper
    # A server that wants a login.
    perl -MIO::Socket::INET -e '$| = 1; my $s = IO::Socket::INET->new(Listen => 9, LocalAddr => "127.0.0.1") or die; print $s->sockport, "\n";
        while (my $c = $s->accept) { while (<$c>) { last if /^\r?\n/ }
            print $c "HTTP/1.1 401 no\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"; close $c }' \
        > "$BATS_TEST_TMPDIR/port" 3>&- &
    local serving=$! port
    until [[ -s $BATS_TEST_TMPDIR/port ]]; do command sleep 0.05; done
    port=$(< "$BATS_TEST_TMPDIR/port")
    for url in "http://127.0.0.1:$port/secret" "file://$BATS_TEST_TMPDIR/secret" "$BATS_TEST_TMPDIR/secret" ../../../secret "$GIT_BASE/../secret" ssh://127.0.0.1/secret \
        git@127.0.0.1:secret "ext::$BATS_TEST_TMPDIR/helper" "http://user@127.0.0.1:$port/secret"; do
        git -C "$SERVER/openstack/nova" reset -q --hard master
        add_submodule openstack/nova part "$url" "$commit"
        run -3 set_up openstack/nova master
        [[ ${lines[-1]} == 'gate: openstack/nova: the submodule part cannot be fetched from '* ]]
        [[ ! -e $HOME/asked && ! -e $TREES/nova ]] || { echo "$url"; kill "$serving"; return 1; }
    done
    run ! git ls-remote "http://127.0.0.1:$port/secret"
    [[ -e $HOME/asked ]]  # whoever asks as the user does run the helper
    kill "$serving"
}

# --- the whole run ---

# refused WORDS: check that setup_workspace ends with 3 and this last line.
refused() {
    run --separate-stderr -3 workspace
    local last=${stderr##*$'\n'}
    [[ $last == "gate: $1" ]] || { printf 'status %s: %s\n' "$status" "$stderr"; return 1; }
}

two_branches() {
    export DEVSTACK_GATE_PROJECTS='openstack/nova openstack/glance openstack/oslo.utils'
    make_project openstack/nova master stable/victoria
    make_project openstack/glance master stable/victoria
    make_project openstack/oslo.utils master
    make_ref openstack/nova refs/zuul/stable/victoria/Z2 stable/victoria
    make_ref openstack/nova refs/changes/01/1/1 stable/victoria
}

@test "BRANCH_OVERRIDE=default, as OpenStack's job templates have it, tests the change" {
    two_branches
    zuul openstack/nova stable/victoria refs/zuul/stable/victoria/Z2
    export BRANCH_OVERRIDE=default OVERRIDE_GLANCE_PROJECT_BRANCH=default
    run --separate-stderr -0 workspace
    [[ ${lines[0]} == 'openstack/nova stable/victoria '*' refs/zuul/stable/victoria/Z2' ]]
    [[ ${lines[1]} == 'openstack/glance stable/victoria '*' tip of stable/victoria' ]]
    [[ ${lines[2]} == 'openstack/oslo.utils master '*' tip of master (no branch stable/victoria)' ]]
    [[ $(change_of openstack/nova) == refs/zuul/stable/victoria/Z2 && ! -e $TREES/new/glance/.git/gate-change ]]
}

@test "an override that takes the project under test away from its change ends the run" {
    two_branches
    zuul openstack/nova stable/victoria refs/zuul/stable/victoria/Z2
    BRANCH_OVERRIDE=master refused 'openstack/nova: the change under test, refs/zuul/stable/victoria/Z2, is not in what would be tested: BRANCH_OVERRIDE asks for branch master of it'
    BRANCH_OVERRIDE=stable/victoria run -0 workspace
    OVERRIDE_NOVA_PROJECT_BRANCH=master refused 'openstack/nova: OVERRIDE_NOVA_PROJECT_BRANCH: master would be tested without the change of this run on stable/victoria'
    unset ZUUL_REF ZUUL_URL ZUUL_PROJECT ZUUL_BRANCH
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=stable/victoria GERRIT_REFSPEC=refs/changes/01/1/1
    OVERRIDE_ZUUL_BRANCH=master refused 'openstack/nova: the change under test, refs/changes/01/1/1, is not in what would be tested: OVERRIDE_ZUUL_BRANCH asks for branch master of it'
    OVERRIDE_NOVA_PROJECT_BRANCH=master refused 'openstack/nova: OVERRIDE_NOVA_PROJECT_BRANCH: master would be tested without the change of this run on stable/victoria'
    OVERRIDE_ZUUL_BRANCH=stable/victoria run -0 workspace
    [[ $(change_of openstack/nova) == refs/changes/01/1/1 ]]
}

@test "another change of the project under test, on the branch that an override asks for, is not the one under test" {
    two_branches
    make_ref openstack/nova refs/zuul/master/Z2 master
    zuul openstack/nova master refs/zuul/master/Z2
    local words='openstack/nova: the change under test, refs/zuul/master/Z2, is not in what would be tested'
    OVERRIDE_ZUUL_BRANCH=stable/victoria refused "$words: OVERRIDE_ZUUL_BRANCH asks for branch stable/victoria of it"
    OVERRIDE_NOVA_PROJECT_BRANCH=stable/victoria refused "$words: OVERRIDE_NOVA_PROJECT_BRANCH asks for branch stable/victoria of it"
    unset ZUUL_REF ZUUL_URL ZUUL_PROJECT ZUUL_BRANCH
    make_ref openstack/nova refs/changes/02/2/1 master
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=master GERRIT_REFSPEC=refs/changes/02/2/1
    export GERRIT_CHANGES=openstack/nova:stable/victoria:refs/changes/01/1/1
    OVERRIDE_ZUUL_BRANCH=stable/victoria refused 'openstack/nova: the change under test, refs/changes/02/2/1, is not in what would be tested: OVERRIDE_ZUUL_BRANCH asks for branch stable/victoria of it'
    run --separate-stderr -0 workspace
    [[ ${lines[0]} == 'openstack/nova master '*' refs/changes/02/2/1 (without its change on stable/victoria)' ]]
}

@test "projects of the changes that this one depends on are set up, whether the job lists them or not" {
    two_branches
    make_project openstack/heat master
    make_ref openstack/heat refs/changes/02/2/1
    make_ref openstack/heat refs/zuul/stable/victoria/Z2
    zuul openstack/nova stable/victoria refs/zuul/stable/victoria/Z2
    export ZUUL_CHANGES=openstack/heat:stable/victoria:refs/changes/02/2/1^openstack/nova:stable/victoria:refs/changes/01/1/1
    run --separate-stderr -0 workspace
    [[ ${lines[3]} == 'openstack/heat stable/victoria '*' refs/zuul/stable/victoria/Z2' ]]
    [[ $(change_of openstack/heat) == refs/zuul/stable/victoria/Z2 ]]
    unset ZUUL_REF ZUUL_URL ZUUL_PROJECT ZUUL_BRANCH ZUUL_CHANGES
    export GERRIT_PROJECT=openstack/nova GERRIT_BRANCH=stable/victoria GERRIT_REFSPEC=refs/changes/01/1/1
    export GERRIT_CHANGES=openstack/heat:master:refs/changes/02/2/1
    run --separate-stderr -0 workspace
    [[ ${lines[3]} == 'openstack/heat master '*' refs/changes/02/2/1 (no branch stable/victoria)' ]]
    [[ $(change_of openstack/heat) == refs/changes/02/2/1 ]]
}

@test "a variable for a project that the run does not have is told with the nearest one" {
    two_branches
    export OVERRIDE_NOVAA_PROJECT_BRANCH=stable/victoria OVERRIDE_OSLOUTILS_PROJECT_BRANCH=master OVERRIDE_GLANCE_GIT_BASE=$GIT_BASE
    run --separate-stderr -0 workspace
    [[ $stderr == *'OVERRIDE_NOVAA_PROJECT_BRANCH has no effect: no project of this run has that name; the nearest is OVERRIDE_NOVA_PROJECT_BRANCH' ]]
    [[ $stderr != *OSLO* && $stderr != *'OVERRIDE_GLANCE_GIT_BASE has'* ]]
}

@test "a branch that no project has ends the run, whoever asks for it" {
    two_branches
    zuul openstack/oslo.utils master refs/zuul/master/Z3
    make_ref openstack/oslo.utils refs/zuul/master/Z3
    ONLY_GATE=1 TOLD=/nowhere OVERRIDE_ZUUL_BRANCH=stable/victoira refused 'OVERRIDE_ZUUL_BRANCH: no project of this run has a branch stable/victoira'
    unset ZUUL_REF ZUUL_PROJECT ZUUL_URL
    export ZUUL_BRANCH=stable/victoira
    refused 'ZUUL_BRANCH: no project of this run has a branch stable/victoira'
    export ZUUL_BRANCH=master DEVSTACK_GATE_GRENADE=1 GRENADE_OLD_BRANCH=stable/victoira
    make_project openstack/grenade master
    refused 'GRENADE_OLD_BRANCH: no project of this run has a branch stable/victoira'
}

@test "an override for one project: a branch or tag that is there, or the run ends" {
    two_branches
    git -C "$SERVER/openstack/glance" tag 21.0.0 stable/victoria
    OVERRIDE_GLANCE_PROJECT_BRANCH=stable/vicotria refused "openstack/glance: OVERRIDE_GLANCE_PROJECT_BRANCH: there is no branch stable/vicotria at $GIT_BASE/openstack/glance"
    OVERRIDE_GLANCE_PROJECT_BRANCH=21.0.0 run -0 workspace
    [[ $output == *$'\nopenstack/glance 21.0.0 '*$' tip of stable/victoria\n'* ]]
}

@test "a change to a client on the services' stable branch: the client has it, the line of another project with a change says so" {
    two_branches
    make_ref openstack/oslo.utils refs/zuul/master/Z3
    make_ref openstack/glance refs/zuul/master/Z3
    zuul openstack/oslo.utils master refs/zuul/master/Z3
    export BRANCH_OVERRIDE=stable/victoria
    run --separate-stderr -0 workspace
    [[ ${lines[1]} == 'openstack/glance stable/victoria '*' tip of stable/victoria (without its change on master)' ]]
    [[ ${lines[2]} == 'openstack/oslo.utils master '*' refs/zuul/master/Z3 (no branch stable/victoria)' ]]
    [[ $(change_of openstack/oslo.utils) == refs/zuul/master/Z3 && ! -e $TREES/new/glance/.git/gate-change ]]
    OVERRIDE_GLANCE_PROJECT_BRANCH=stable/victoria BRANCH_OVERRIDE=master refused \
        'openstack/glance: OVERRIDE_GLANCE_PROJECT_BRANCH: stable/victoria would be tested without the change of this run on master'
}

@test "a change that ZUUL_CHANGES names on another branch, which is the one that is tested of that project, must be there" {
    two_branches
    zuul openstack/nova stable/victoria refs/zuul/stable/victoria/Z2
    export ZUUL_CHANGES=openstack/oslo.utils:master:refs/changes/02/2/1^openstack/nova:stable/victoria:refs/changes/01/1/1
    run --separate-stderr -3 workspace
    [[ $stderr == *"gate: openstack/oslo.utils: a change of ZUUL_CHANGES is missing: there is no refs/zuul/master/Z2 at $GIT_BASE/openstack/oslo.utils" ]]
    make_ref openstack/oslo.utils refs/zuul/master/Z2
    run --separate-stderr -0 workspace
    [[ ${lines[2]} == 'openstack/oslo.utils master '*' refs/zuul/master/Z2 (no branch stable/victoria)' ]]
}

@test "a tree of an earlier run that this one does not have is no part of it" {
    two_branches
    make_project x/plugin master
    make_ref x/plugin refs/zuul/master/Z9
    zuul x/plugin master refs/zuul/master/Z9
    run -0 workspace
    [[ -e $TREES/new/plugin/.git/gate-change ]]
    mkdir -p "$TREES/new/mine"
    ln -s plugin "$TREES/new/link"
    unset "${!ZUUL_@}"
    run -0 workspace
    [[ ! -e $TREES/new/plugin && ! -L $TREES/new/link && -d $TREES/new/mine ]]
}

@test "a dependency has its change noted, and one that ZUUL_CHANGES names must be there" {
    two_branches
    make_ref openstack/glance refs/zuul/stable/victoria/Z2 stable/victoria
    zuul openstack/nova stable/victoria refs/zuul/stable/victoria/Z2
    export ZUUL_CHANGES=openstack/glance:stable/victoria:refs/changes/02/2/1^openstack/nova:stable/victoria:refs/changes/01/1/1
    run -0 workspace
    [[ $(change_of openstack/glance) == refs/zuul/stable/victoria/Z2 ]]
    git -C "$SERVER/openstack/glance" update-ref -d refs/zuul/stable/victoria/Z2
    refused "openstack/glance: a change of ZUUL_CHANGES is missing: there is no refs/zuul/stable/victoria/Z2 at $GIT_BASE/openstack/glance"
}

@test "a series' branch is followed when it is renamed, and to the tags at its end" {
    make_project openstack/nova master unmaintained/victoria
    make_project openstack/glance master stable/victoria
    expect openstack/nova stable/victoria 'tip of unmaintained/victoria'
    run -0 set_up openstack/nova stable/victoria
    [[ $output == 'openstack/nova unmaintained/victoria '*' tip of unmaintained/victoria (no branch stable/victoria)' ]]
    expect openstack/glance unmaintained/victoria 'tip of stable/victoria'
    make_ref openstack/nova refs/zuul/unmaintained/victoria/Z4 unmaintained/victoria
    zuul openstack/nova unmaintained/victoria refs/zuul/unmaintained/victoria/Z4
    expect openstack/nova unmaintained/victoria refs/zuul/unmaintained/victoria/Z4
    expect openstack/nova stable/victoria refs/zuul/unmaintained/victoria/Z4
    unset ZUUL_REF
    local end
    for end in last eom eol; do  # each one wins over those made before it
        make_ref openstack/nova "refs/tags/victoria-$end" unmaintained/victoria
    done
    git -C "$SERVER/openstack/nova" checkout -q master
    git -C "$SERVER/openstack/nova" branch -q -D unmaintained/victoria
    for end in eol eom last; do
        expect openstack/nova stable/victoria "refs/tags/victoria-$end"
        run -0 set_up openstack/nova unmaintained/victoria
        [[ $output == "openstack/nova victoria-$end "*" refs/tags/victoria-$end (no branch unmaintained/victoria)" ]]
        git -C "$SERVER/openstack/nova" tag -d "victoria-$end"
    done
    expect openstack/nova unmaintained/victoria 'tip of master'
}

@test "an upgrade has the change in the old trees or in the new ones, or ends" {
    two_branches
    make_project openstack/grenade master
    zuul openstack/nova stable/victoria refs/zuul/stable/victoria/Z2
    export DEVSTACK_GATE_GRENADE=1 GRENADE_OLD_BRANCH=stable/victoria GRENADE_NEW_BRANCH=master
    run -0 workspace
    [[ $(change_of openstack/nova old) == refs/zuul/stable/victoria/Z2 && ! -e $TREES/new/nova/.git/gate-change ]]
    [[ $(cat "$BATS_TEST_TMPDIR"/tmp.*/change) == "$(git -C "$SERVER/openstack/nova" rev-parse refs/zuul/stable/victoria/Z2)" ]]
    GRENADE_OLD_BRANCH=master refused 'openstack/nova: the change under test, refs/zuul/stable/victoria/Z2, is not in what would be tested: GRENADE_NEW_BRANCH asks for branch master of it'
}
