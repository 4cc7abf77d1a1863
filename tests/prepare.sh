# shellcheck shell=bash
# Sourced by run-tests.sh and run-demo.sh: installs what they need on a bare Debian or Ubuntu machine.

PROJECT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$PROJECT/.venv/bin/python

# Print those of the given packages that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        { dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null || true; } | grep -qx installed || printf '%s\n' "$package"
    done
}

# Install the given Debian packages that are missing; their services are not started on this machine.
install_packages() {
    local missing policy=/usr/sbin/policy-rc.d made=0 rc=0
    mapfile -t missing < <(missing_packages "$@" || true)
    if (( ${#missing[@]} == 0 )); then
        return 0
    fi
    if (( EUID != 0 )); then
        printf '%s: missing Debian packages, which only root can install: %s\n' "$0" "${missing[*]}" >&2
        return 2
    fi
    printf 'installing Debian packages: %s\n' "${missing[*]}"
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
        made=1
    fi
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "${missing[@]}"; } \
        > "$PROJECT/.prepare.log" 2>&1 || rc=$?
    if (( made )); then
        rm -f -- "$policy"
    fi
    if (( rc )); then
        tail -n 20 -- "$PROJECT/.prepare.log" >&2
        printf '%s: apt-get failed\n' "$0" >&2
        return 1
    fi
}

# Install the packages of a requirements file into .venv, checked by their hashes.
install_locked() {
    local requirements=$1
    shift
    "$PROJECT/.venv/bin/pip" install -q --disable-pip-version-check --require-hashes "$@" -r "$PROJECT/$requirements"
}

# Print the Python for .venv: the distribution's, if it is new enough. A Jenkins host has that one, and it takes a sixth
# less time than one compiled without optimization.
find_python() {
    local python
    for python in /usr/bin/python3 python3; do
        if "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            command -v "$python"
            return
        fi
    done
    printf '%s: needs Python 3.11 or later\n' "$0" >&2
    return 2
}

# Make .venv from a requirements file, or make it again if one of the requirements files has changed.
make_venv() {
    local requirements=$1 stamp=$PROJECT/.venv/made-from python wanted
    python=$(find_python) || return
    wanted=$(cd -- "$PROJECT" && sha256sum -- requirements*.txt requirements/build.txt; printf '%s\n' "$python" "$requirements")
    if [[ -x $PYTHON && -e $stamp ]]; then
        # The tests' packages include those of the demo.
        case $(< "$stamp") in
            "$wanted" | "${wanted%"$requirements"}requirements-test.txt") return 0 ;;
        esac
    fi
    printf 'installing Python packages of %s into .venv\n' "$requirements"
    if [[ -L $PROJECT/.venv ]]; then
        rm -- "$PROJECT/.venv"  # --clear would empty the folder that it leads to
    fi
    "$python" -m venv --clear "$PROJECT/.venv" || return
    { install_locked requirements/build.txt && install_locked "$requirements" --no-build-isolation; } 2> "$PROJECT/.prepare.log" || {
        tail -n 20 -- "$PROJECT/.prepare.log" >&2
        printf '%s: pip failed\n' "$0" >&2
        return 1
    }
    printf '%s\n' "$wanted" > "$stamp"
}
