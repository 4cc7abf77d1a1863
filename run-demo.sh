#!/usr/bin/env bash

usage() {
    cat <<'EOF'
Usage: run-demo.sh [--real]

Shows a pool of single-use test machines at work, on this machine alone: two OpenStack clouds and a Jenkins run on
loopback, their virtual machines are Linux namespaces with a Debian of their own. Builds images, fills the pool, runs
builds of the gate on sample projects, loses a provider, runs a test on two machines at once, kills Jenkins under a build,
cleans up. Takes under 4 minutes the first time, then under a minute.

With --real the clouds are two regions of a real OpenStack: Keystone, Glance, Placement, Neutron and Nova, installed
into ~/.cache/devstack-gate-realcloud (600 MB). Takes 2 minutes more the first time, then under 3 minutes.

Needs root on Debian 12 or Ubuntu. Installs what it needs and says so: Debian packages, Python packages into .venv, and
a Debian tree of about 300 MB in ~/.cache/pocketcloud. Leaves nothing running or mounted; it prints where the logs are.

Exit code: 0 all went as told, 1 it did not, 2 it cannot run here.
EOF
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    local -a options=()
    local here
    here=$(readlink -f -- "${BASH_SOURCE[0]}")
    here=${here%/*}
    case ${1:-} in
        "") ;;
        --real) options=(--real) ;;
        -h | --help) usage; return 0 ;;
        --version)
            # shellcheck source=functions.sh
            . "$here/functions.sh"
            print_version
            return
            ;;
        *) printf 'run-demo.sh: unknown argument %s; see --help\n' "$1" >&2; return 2 ;;
    esac
    if (( EUID != 0 )); then
        printf 'run-demo.sh: needs root, to make namespaces for the machines\n' >&2
        return 2
    fi
    cd -- "$here"
    # shellcheck source=tests/prepare.sh
    . tests/prepare.sh
    printf 'This demo needs some Debian and Python packages and a Debian tree for its machines; what is missing is\n'
    printf 'installed first (Python packages into .venv, the tree into ~/.cache/pocketcloud).\n'
    install_packages debootstrap iproute2 openssh-client procps python3 python3-venv sqlite3
    make_venv jobs/requirements.txt
    "$PYTHON" -c 'import jinja2, matplotlib, prometheus_client' 2> /dev/null || install_locked requirements-status.txt
    if ! compgen -G "$HOME/.cache/pocketcloud/debian-*" > /dev/null; then
        printf 'making the Debian tree, about a minute\n'
    fi
    "$PYTHON" -m tests.pocketcloud --base-only
    if (( ${#options[@]} )); then
        printf 'as are the services of OpenStack, into ~/.cache/devstack-gate-realcloud\n'
        "$PYTHON" -m tests.realcloud --prepare-only
    fi
    exec "$PYTHON" -m tests.demo "${options[@]}"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
    exit
fi
