#!/usr/bin/env bash
# usage: machine.sh FOLDER LAYERS LOWER READY_FD
# Makes the root file system of one machine under FOLDER and becomes its init. machines.py runs this as the first
# process of new mount, PID, UTS and IPC namespaces, so every mount ends with the machine. LAYERS is the folder that
# has the names in LOWER (an overlay's lowerdir); init.sh writes "ready" to READY_FD. Exit code: 1 something failed.

# Capabilities over the host: its devices, its kernel, its clock, its network settings.
DROPPED=-mknod,-sys_module,-sys_rawio,-sys_time,-net_admin,-syslog,-mac_admin,-mac_override,-audit_control,-bpf,-perfmon

note_pid() {
    local pid rest
    read -r pid rest < /proc/self/stat
    printf '%s\n' "$pid" > "$1"
}

mount_root() {
    local folder=$1 lower=$2
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work,index=off" "$folder/root"
}

mount_kernel() {
    local root=$1
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    local path
    for path in "$root/proc/sys" "$root/proc/sysrq-trigger"; do
        if [[ -e $path ]]; then mount -o bind,ro "$path" "$path"; fi
    done
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
}

mount_dev() {
    local root=$1
    mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
    cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$root/dev/"
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    ln -s fd/0 "$root/dev/stdin"
    ln -s fd/1 "$root/dev/stdout"
    ln -s fd/2 "$root/dev/stderr"
}

mount_run() {
    local root=$1 seed=$2
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
    mkdir -p "$root/run/pocketcloud" "$root/run/sshd" "$root/run/lock"
    cp -- "$seed"/* "$root/run/pocketcloud/"
}

become_init() {
    local root=$1 ready_fd=$2
    cd -- "$root"
    pivot_root . .
    umount -l .
    exec env -i READY_FD="$ready_fd" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/ LANG=C.UTF-8 \
        setpriv --bounding-set "$DROPPED" /bin/bash /run/pocketcloud/init.sh
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    local folder=${1:?folder} layers=${2:?layers} lower=${3:?lower} ready_fd=${4:?ready_fd}
    note_pid "$folder/pid"
    cd -- "$layers"
    mount_root "$folder" "$lower"
    mount_kernel "$folder/root"
    mount_dev "$folder/root"
    mount_run "$folder/root" "$folder/seed"
    become_init "$folder/root" "$ready_fd"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; exit; fi
