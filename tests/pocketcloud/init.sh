#!/usr/bin/env bash
# The first process of a machine: does what cloud-init does at a first boot, then only reaps dead processes.
# It reads instance-id, hostname, address, public-key, user-data, resolv.conf and sshd.conf from /run/pocketcloud.

SEED=/run/pocketcloud
STATE=/var/lib/cloud/data
ROOT_COMMAND='no-port-forwarding,no-agent-forwarding,no-X11-forwarding,command="echo '\''Please login as the user \"debian\" rather than the user \"root\".'\'';echo;sleep 1;exit 142"'

log() {
    local uptime rest
    read -r uptime rest < /proc/uptime
    printf '[%12s] %s\n' "$uptime" "$*"
}

set_names() {
    local name address
    name=$(< "$SEED/hostname")
    address=$(< "$SEED/address")
    hostname -- "$name"
    printf '%s\n' "$name" > /etc/hostname
    printf '127.0.0.1 localhost\n%s %s\n::1 localhost ip6-localhost ip6-loopback\n' "${address:-127.0.1.1}" "$name" > /etc/hosts
}

write_settings() {
    rm -f /etc/resolv.conf
    cp "$SEED/resolv.conf" /etc/resolv.conf
    cp "$SEED/sshd.conf" /etc/ssh/sshd_config.d/00-pocketcloud.conf
}

clear_tmp() {
    find /tmp -mindepth 1 -delete
}

# cloud-init replaces the instance's own key and leaves others alone.
install_key() {
    local user=$1 home=$2 options=$3
    local key file=$home/.ssh/authorized_keys
    key=$(< "$SEED/public-key")
    install -d -m 700 -o "$user" -g "$user" "$home/.ssh"
    touch "$file"
    if [[ -n $key ]]; then
        local material=${key#* }
        grep -vF -- "${material%% *}" "$file" > "$file.new" || [[ $? -eq 1 ]]
        printf '%s%s\n' "${options:+$options }" "$key" >> "$file.new"
        mv -- "$file.new" "$file"
    fi
    chmod 600 "$file"
    chown "$user:$user" "$file"
}

make_host_keys() {
    local name
    name=$(< "$SEED/hostname")
    rm -f /etc/ssh/ssh_host_*
    ssh-keygen -q -t ed25519 -N '' -C "root@$name" -f /etc/ssh/ssh_host_ed25519_key
}

first_boot() {
    log "cloud-init: first boot of instance $1"
    set_names
    install_key debian /home/debian ''
    install_key root /root "$ROOT_COMMAND"
    make_host_keys
    mkdir -p "$STATE"
    cp "$SEED/instance-id" "$STATE/instance-id"
}

run_user_data() {
    local first name
    name=$(< "$SEED/hostname")
    IFS= read -r -n 2 first < "$SEED/user-data" || true
    if [[ $first == '#!' ]]; then
        log 'cloud-init: running user data'
        cp "$SEED/user-data" /var/lib/cloud/user-script
        chmod 700 /var/lib/cloud/user-script
        local rc=0
        /var/lib/cloud/user-script 2>&1 < /dev/null || rc=$?
        log "cloud-init: user data ended with $rc"
    fi
    log 'cloud-init: finished'
    printf '\nDebian GNU/Linux 12 %s ttyS0\n\n%s login: \n' "$name" "$name"
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    local version known='' ours new=0
    version=$(uname -r)
    log "Linux version $version (pocketcloud)"
    ours=$(< "$SEED/instance-id")
    if [[ -e $STATE/instance-id ]]; then known=$(< "$STATE/instance-id"); fi
    if [[ $known != "$ours" ]]; then new=1; fi
    clear_tmp
    write_settings
    if ((new)); then first_boot "$ours"; else hostname -F /etc/hostname; fi
    printf 'ready\n' >&"$READY_FD"
    exec {READY_FD}>&-
    if ((new)); then run_user_data & fi
    while :; do
        sleep infinity &
        wait $! || true
    done
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; exit; fi
