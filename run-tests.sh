#!/usr/bin/env bash
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

usage() {
    cat <<'EOF'
Usage: run-tests.sh [--quick | --real | --all | --database postgresql] [PYTEST ARGUMENTS]

Runs every check of the project: shellcheck, ruff, mypy, and the tests, against clouds and a Jenkins on loopback whose
machines are namespaces of this one. Installs what that takes on a bare Debian 12 or Ubuntu machine (as root): Debian
packages, and Python packages into .venv. With arguments only pytest runs, with these: run-tests.sh -k launch

  --quick  only the checkers and the tests of rules, which need neither root nor a network: half a minute
  --real   only the tests against real OpenStack services, which are installed first, 600 MB in
           ~/.cache/devstack-gate-realcloud (or the folder that DEVSTACK_GATE_REALCLOUD names)
  --all    every check and all tests, these too, and some tests of the pool once more, on PostgreSQL
  --database postgresql
           only tests of the pool, on PostgreSQL: a server of their own on a socket

Exit codes: 0 all passed, 1 something failed, 2 wrong use.
EOF
}

# Run the checks that need no machine; each one that fails says what is wrong.
run_checkers() {
    local -a scripts
    local rc=0 list shell
    list=$(git ls-files -- '*.sh' '*.bash' .ci/run bench/run tests/chaos/run requirements/renew) || return
    mapfile -t scripts <<< "$list"
    shellcheck -x tests/gate/*.bats &
    shell=$!
    shellcheck -x -o check-set-e-suppressed,check-extra-masked-returns "${scripts[@]}" || rc=1
    "$PYTHON" -m ruff check . || rc=1
    "$PYTHON" -m mypy || rc=1
    wait "$shell" || rc=1
    return "$rc"
}

# The tests of what is kept in the database, and some of these that cover all of its rules in little time.
OF_THE_POOL=(tests/test_{autohold,delete,demand,environments,forget,groups,history,inprogress,kill,launch,launch_room,life,reap,several_jenkins,status,vmdatabase}.py
    tests/rules/test_{environments,groups}.py)
ON_BOTH=(tests/rules/test_{environments,groups}.py tests/test_history.py tests/test_autohold.py)

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    local here
    here=$(readlink -f -- "${BASH_SOURCE[0]}")
    here=${here%/*}
    case ${1:-} in
        -h | --help) usage; return 0 ;;
        --version)
            # shellcheck source=functions.sh
            . "$here/functions.sh"
            print_version
            return
            ;;
    esac
    local -a tests=()
    local checkers=1 clouds=1 real=0 again=0
    case ${1:-} in
        --quick) tests=(tests/rules) clouds=0; shift ;;
        --real) tests=(tests/realcloud) checkers=0 real=1; shift ;;
        --all) tests=(-o 'norecursedirs=.*' tests) real=1 again=1; shift ;;  # what pyproject.toml leaves out, too
        --database)
            if [[ ${2:-} != postgresql ]]; then
                printf 'run-tests.sh: --database: expected postgresql, got %s\n' "${2:-nothing}" >&2
                return 2
            fi
            export TEST_DATABASE=postgresql
            tests=("${OF_THE_POOL[@]}") checkers=0
            shift 2
            if (( $# )); then tests=(); fi
            ;;
    esac
    if (( $# )); then
        checkers=0
    fi
    cd -- "$here"
    # shellcheck source=tests/prepare.sh
    . tests/prepare.sh
    install_packages git python3 python3-venv shellcheck
    if (( clouds )); then
        install_packages bats chromium debootstrap default-jre-headless groovy iproute2 locales openssh-client openssh-server postgresql procps \
            prometheus rsync sqlite3
    fi
    make_venv requirements-test.txt
    local failed=0 rc=0
    if (( checkers )); then
        run_checkers || failed=1
        if (( failed )); then
            printf '\nThe checkers above failed; the tests run all the same.\n\n'
        fi
    fi
    if (( clouds )); then "$PYTHON" -m tests.pocketcloud --base-only; fi
    if (( real )); then "$PYTHON" -m tests.realcloud --prepare-only; fi
    # Before the others, so that the output ends with the closing line of all tests.
    if (( again )); then TEST_DATABASE=postgresql "$PYTHON" -m pytest "${ON_BOTH[@]}" "$@" || failed=1; fi
    "$PYTHON" -m pytest "${tests[@]}" "$@" || rc=$?
    if (( rc == 0 && failed )); then
        return 1
    fi
    return "$rc"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
    exit
fi
