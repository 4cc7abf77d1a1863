#!/usr/bin/env bash
# Run a function of a file on code that others wrote, isolated from this host. The function sees a separate file system
# with the system's programs only (no home folder, no /etc, no /var, no /usr/local), and separate processes. It has no
# network, none of our environment, and no rights. Standard input goes to the function. The first line of standard
# output is `shut away`, the rest is the function's; without that line nothing was run, and standard error says why.
#
#     sandbox.sh FILE FUNCTION ARGUMENTS...
#
# It needs Linux namespaces: root always has them, other users only if the system lets them.

NOBODY=65534

main() {
    set -uo pipefail
    local steps=$1 root rc=0
    local -a namespaces=(--mount --pid --net --ipc --uts --fork --kill-child)
    shift
    root=$(mktemp -d) || return
    if (( EUID )); then namespaces+=(--user --map-root-user); fi
    unshare "${namespaces[@]}" -- bash "${BASH_SOURCE[0]}" inside "$EUID" "$root" "$steps" "$@" || rc=$?
    rmdir -- "$root"
    return "$rc"
}

# In the new namespaces: make the new root, change to it for good, give up all rights, and run the function.
inside() {
    set -euo pipefail
    local user=$1 root=$2 steps=$3
    local -a rights=(--no-new-privs --bounding-set=-all --inh-caps=-all)
    shift 3
    umask 022  # the function must be able to read what is made here, as whichever user it runs
    if (( user == 0 )); then rights+=(--reuid="$NOBODY" --regid="$NOBODY" --clear-groups); fi  # it must not own root's files
    mount -t tmpfs -o mode=755,size=256m sandbox "$root"
    cp -- "$steps" "$root/steps.sh"
    chmod 644 "$root/steps.sh"
    cd -- "$root"
    show_system
    show_devices
    mkdir -m 1777 tmp
    mkdir old
    mount -t proc proc proc
    pivot_root . old
    cd /
    umount -l /old
    printf 'shut away\n'
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/tmp TMPDIR=/tmp \
        setpriv "${rights[@]}" bash /steps.sh "$@"
}

show_system() {
    local name
    mkdir usr proc etc
    mount --rbind /usr usr
    if [[ -d usr/local ]]; then mount -t tmpfs -o mode=755,size=1m sandbox usr/local; fi
    for name in bin sbin lib lib32 lib64 libx32; do
        if [[ -L /$name ]]; then
            cp -P -- "/$name" "$name"
        elif [[ -d /$name ]]; then
            mkdir -- "$name"
            mount --rbind "/$name" "$name"
        fi
    done
    for name in os-release ld.so.cache; do
        if [[ -f /etc/$name ]]; then cat -- "/etc/$name" > "etc/$name"; fi
    done
    if [[ -d /etc/alternatives ]]; then cp -RP -- /etc/alternatives etc/alternatives; fi  # links to programs
    printf 'root:x:0:0::/tmp:/bin/bash\nnobody:x:%s:%s::/tmp:/bin/bash\n' "$NOBODY" "$NOBODY" > etc/passwd
}

show_devices() {
    local name
    mkdir dev
    for name in null zero urandom random; do
        : > "dev/$name"
        mount --bind "/dev/$name" "dev/$name"
    done
    ln -s /proc/self/fd dev/fd
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    if [[ ${1:-} == inside ]]; then
        shift
        inside "$@"
    fi
    main "$@"
    exit
fi
