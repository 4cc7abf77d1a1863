#!/usr/bin/env bats
# The subnodes of a machine, as its file of nodes lists them (gate/group.sh).
# Each test has its own environment:
# shellcheck disable=SC2030,SC2031

bats_require_minimum_version 1.5.0

setup() {
    # shellcheck source=gate/group.sh
    . "$BATS_TEST_DIRNAME/../../gate/group.sh"
    MARK=$BATS_TEST_TMPDIR/node
    NODES=$BATS_TEST_TMPDIR/nodes
    printf 'NODE_IMAGE=trio\nNODE_NAME=a-1\n' > "$MARK"
    printf '%s\n' 'a-1 primary 10.0.0.1 -' 'a-2 subnode 10.0.0.2 198.51.100.2' 'a-3 subnode - 2001:db8::3' > "$NODES"
}

@test "the console names each subnode with the address at which it is reached" {
    read_group
    run -0 print_group
    [[ $output == $'SUBNODE=a-2 10.0.0.2\nSUBNODE=a-3 2001:db8::3' ]]
}

@test "hooks are told of the group, and nothing is told where there is none" {
    read_group
    use_group
    [[ $(env | grep -E '^(SUBNODES|PRIMARY_NODE)=' | sort) == $'PRIMARY_NODE=10.0.0.1\nSUBNODES=10.0.0.2 2001:db8::3' ]]
    unset SUBNODES PRIMARY_NODE
    rm "$NODES"
    SUBNODE_NAMES=()
    read_group
    use_group
    run -1 printenv SUBNODES PRIMARY_NODE
}

@test "a machine that is a subnode itself has none" {
    printf 'NODE_NAME=a-2\n' > "$MARK"
    read_group
    run -0 print_group
    [[ ! $output ]]
}

@test "lines of another form are passed over" {
    # shellcheck disable=SC2016
    printf '%s\n' '.. subnode 10.0.0.8 -' 'a-4 subnode $(reboot) -' '-oProxyCommand=x subnode' 'a;b subnode 10.0.0.9 -' 'a-5 other 10.0.0.5 -' 'a-6 subnode -- -' 'a-7 subnode -c0 -' >> "$NODES"
    read_group
    [[ ${SUBNODE_NAMES[*]} == 'a-2 a-3' ]]
}
