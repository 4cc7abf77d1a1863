#!/usr/bin/env bats
# Logs: what is collected, in a folder of the test.
# Each test has an environment of its own, and what is in single quotes is for other shells:
# shellcheck disable=SC1078,SC1079,SC2016,SC2030,SC2031,SC2034,SC2119,SC2120,SC2154,SC2317

bats_require_minimum_version 1.5.0
load helper.bash

setup() {
    setup_gate
    HERE=$PROJECT_FOLDER
    # shellcheck source=devstack-vm-gate-wrap.sh
    . "$PROJECT_FOLDER/devstack-vm-gate-wrap.sh"
    # shellcheck source=gate/logs.sh
    . "$PROJECT_FOLDER/gate/logs.sh"
    # shellcheck source=gate/reproduce.sh
    . "$PROJECT_FOLDER/gate/reproduce.sh"
    export WORKSPACE=$BATS_TEST_TMPDIR/workspace BASE=$BATS_TEST_TMPDIR/stack
    RUN=$BATS_TEST_TMPDIR/run
    LOGS=$WORKSPACE/logs
    SERVICE_LOGS=()
    mkdir -p "$RUN" "$LOGS" "$BASE/new/devstack" "$BASE/logs"
    as_root() { "$@"; }
}

# In a subshell, as the wrap script does; the journal and syslog are this host's and stay out.
collect() (
    save_journal() { :; }
    collect_logs > "$LOGS/cleanup-host.txt" 2>&1
)

files() {
    (cd "$LOGS" && find . -type f | sort)
}

@test "names without blanks or colons, large files compressed, folders kept, .log as text" {
    mkdir -p "$BASE/logs/a folder" "$LOGS/hook: own"
    printf 'x\n' > "$BASE/logs/a folder/n api: 2.log"
    printf 'x\n' > "$LOGS/hook: own/a  b"
    head -c 2000000 /dev/zero > "$BASE/logs/screen-n-cpu.log"
    head -c 1048576 /dev/zero > "$BASE/logs/screen-just.log"
    head -c 2000000 /dev/zero > "$LOGS/large"
    collect
    run -0 files
    [[ $output == './a_folder/n_api__2.txt
./cleanup-host.txt
./hook__own/a__b
./large.gz
./screen-just.txt
./screen-n-cpu.txt.gz' ]]
    [[ $(gzip -dc "$LOGS/screen-n-cpu.txt.gz" | wc -c) -eq 2000000 ]]
}

@test "no file takes the place of another one" {
    printf 'ours\n' > "$LOGS/setup-host.txt"
    printf 'theirs\n' > "$BASE/logs/setup-host.txt"
    printf '1\n' > "$BASE/logs/a b.log"
    printf '2\n' > "$BASE/logs/a_b.log"
    printf '3\n' > "$BASE/logs/a_b.txt"
    collect
    [[ $(< "$LOGS/setup-host.txt") == ours && $(< "$LOGS/_setup-host.txt") == theirs ]]
    run -0 sort "$LOGS/a_b.txt" "$LOGS/_a_b.txt" "$LOGS/__a_b.txt"
    [[ $output == $'1\n2\n3' ]]
}

@test "a line without an end is a line" {
    run -0 bash -c '. "$1/functions.sh"; printf "one\ntwo" | stamp | wc -l' bash "$PROJECT_FOLDER"
    [[ $output == 2 ]]
}

@test "links are followed within the tree only" {
    printf 'today\n' > "$BASE/logs/screen-key.2026.log"
    ln -s screen-key.2026.log "$BASE/logs/screen-key.log"
    printf 'secret\n' > "$BATS_TEST_TMPDIR/outside"
    ln -s "$BATS_TEST_TMPDIR/outside" "$BASE/logs/screen-out.log"
    ln -s "$BATS_TEST_TMPDIR" "$BASE/logs/folder"
    ln -s nowhere "$BASE/logs/broken"
    ln -s "$BATS_TEST_TMPDIR/outside" "$LOGS/hook-link"
    ln -s cleanup-host.txt "$LOGS/inside"
    mkfifo "$BASE/logs/pipe" "$LOGS/pipe"
    collect
    run -0 files
    [[ $output == $'./cleanup-host.txt\n./screen-key.txt' ]]
    [[ $(< "$LOGS/screen-key.txt") == today && ! -e $LOGS/hook-link && -L $LOGS/inside && ! -e $LOGS/pipe ]]
    run -1 grep -r secret "$LOGS"
}

@test "a file that is being written is copied as it is now" {
    (while :; do printf 'a line\n'; done > "$BASE/logs/screen-busy.log") 3>&- &
    local writer=$!
    until [[ -s $BASE/logs/screen-busy.log ]]; do :; done
    collect
    kill "$writer"
    compgen -G "$LOGS/screen-busy.txt*"
}

@test "the biggest go first when there is too much, and that is said" {
    LOG_CAP_KB=400 # the state of the machine takes some, too
    local size
    for size in 100 150 200; do head -c "${size}000" /dev/urandom > "$BASE/logs/$size"; done
    collect
    run -0 files
    [[ $output == $'./100\n./150\n./cleanup-host.txt' ]]
    run -0 cat "$RUN/dropped"
    [[ $output == 'Dropped 200 ('*'): more than 400 KB of logs.' ]]
}

@test "devstack's settings and its log, without the passwords" {
    printf '[[local|localrc]]\nADMIN_PASSWORD=abcdef123456\nexport RABBIT_PASSWORD="quoted-secret"\nX=1\n' > "$BASE/new/devstack/local.conf"
    printf 'set abcdef123456 and quoted-secret\n' > "$BASE/new/devstacklog.txt"
    printf 'key abcdef123456\n' > "$BASE/logs/screen-key.log"
    collect
    [[ $(< "$LOGS/local_conf.txt") == $'[[local|localrc]]\nADMIN_PASSWORD=********\nexport RABBIT_PASSWORD="********"\nX=1' ]]
    [[ $(< "$LOGS/devstacklog.txt") == 'set ******** and ********' && $(< "$LOGS/screen-key.txt") == 'key ********' ]]
}

@test "what cannot be read or written does not stop the rest" {
    mkdir "$LOGS/screen-a.txt"
    printf 'x\n' > "$BASE/logs/screen-a.log"
    printf 'x\n' > "$BASE/logs/screen-b.log"
    collect
    [[ -e $LOGS/screen-b.txt ]]
}

@test "reproduce.sh runs the wrap script again with the same settings and hooks, without secrets" {
    mkdir "$BATS_TEST_TMPDIR/gate"
    cat > "$BATS_TEST_TMPDIR/gate/devstack-vm-gate-wrap.sh" <<'END'
#!/usr/bin/env bash
printf '<%s>\n' "$@" "$WORKSPACE" "$ENABLED_SERVICES" "$DEVSTACK_LOCAL_CONFIG" "$GIT_BASE" "$ZUUL_REF" "${DEVSTACK_GATE_THIS_HOST:-none}" "$OVERRIDE_NOVA_PROJECT_BRANCH"
gate_hook
END
    chmod +x "$BATS_TEST_TMPDIR/gate/devstack-vm-gate-wrap.sh"
    gate_hook() { printf '%s\n' "hook 'quoted' \"\$HOME\""; }
    export ENABLED_SERVICES=$'a\n"b" \'c\' $HOME `d`' GIT_BASE=https://me:hidden@example.org/git ZUUL_REF=refs/zuul/master/ZA
    export DEVSTACK_LOCAL_CONFIG=$'A=1\nMY_PASSWORD="hid den"\nmy_api_token = hidden\nB=2' DEVSTACK_GATE_THIS_HOST=1
    export OVERRIDE_NOVA_PROJECT_BRANCH=x OVERRIDE_OTHER=hidden UNDOCUMENTED=hidden
    write_reproduce
    run -1 grep -E 'hidden|hid den' "$LOGS/reproduce.sh"
    run -0 env -i PATH="$PATH" HOME="$HOME" WORKSPACE="$BATS_TEST_TMPDIR/elsewhere" DEVSTACK_GATE="$BATS_TEST_TMPDIR/gate" \
        "$LOGS/reproduce.sh" 'user@host'
    [[ $output == "<user@host>
<$BATS_TEST_TMPDIR/elsewhere>
<"$'a\n"b" \'c\' $HOME `d`>\n<A=1\nMY_PASSWORD=left-out\nmy_api_token =left-out\nB=2>'"
<https://example.org/git>
<refs/zuul/master/ZA>
<none>
<x>
hook 'quoted' \"\$HOME\"" ]] || { printf '%s\n' "$output"; return 1; }
}

@test "results of tempest as JUnit XML and HTML, made by the tools that it brings" {
    local tools=$BASE/new/tempest/.tox/tempest/bin
    mkdir -p "$tools" "$BASE/new/tempest/.stestr"
    printf '#!/bin/sh\n[ "$*" = "last --subunit" ] && [ -d .stestr ] && echo stream\n' > "$tools/stestr"
    printf '#!/bin/sh\nread line; echo "<testsuite>$line</testsuite>"\n' > "$tools/subunit2junitxml"
    printf '#!/bin/sh\nread line < "$1"; echo "<html>$line</html>" > "$2"\n' > "$tools/subunit2html"
    chmod +x "$tools/"*
    collect
    [[ $(< "$LOGS/tempest-results.xml") == '<testsuite>stream</testsuite>' ]]
    [[ $(< "$LOGS/tempest-results.html") == '<html>stream</html>' ]]
    rm "$tools/subunit2html" "$LOGS/"*
    collect
    [[ -e $LOGS/tempest-results.xml && ! -e $LOGS/tempest-results.html ]]
}
