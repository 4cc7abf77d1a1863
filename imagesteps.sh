#!/usr/bin/env bash
# The steps that make a machine a template, each a function. devstack-vm-update-image.py copies this file to the machine
# and runs `imagesteps.sh STEP ARGUMENTS` there as root. What cannot be had, but is not required, is printed as
# `unavailable: NAME`.

HERE=/var/lib/devstack-gate
APT=(apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold
    -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 -o APT::Cmd::Pattern-Only=true -o APT::Update::Error-Mode=any)
DOWNLOAD_SECONDS=1800  # for one clone or download; the step as a whole has its own limit

# Run a command or function until it succeeds, at most so often, with growing pauses; returns the last status.
retry() {
    local attempts=$1 pause=5 attempt rc=0
    shift
    for (( attempt = 1; attempt <= attempts; attempt++ )); do
        rc=0
        "$@" || rc=$?
        if (( rc == 0 || attempt == attempts )); then
            break
        fi
        printf '%s: failed with %s, attempt %s of %s; again in %s s\n' "$1" "$rc" "$attempt" "$attempts" "$pause"
        sleep "$pause"
        pause=$(( pause * 2 ))
    done
    return "$rc"
}

has() {
    command -v "$1" > /dev/null
}

# --- the machine ---

# Wait until the first boot's own work is over: it holds apt's lock and writes the files that we change.
wait_for_boot() {
    if has cloud-init; then
        timeout --foreground 600 cloud-init status --wait < /dev/null > /dev/null || true
    fi
}

# Print the machine's distribution as devstack calls it: a codename (noble), f40, rhel9, openEuler-22.03.
print_distribution() {
    local ID='' VERSION='' VERSION_ID='' VERSION_CODENAME=''
    # shellcheck source=/dev/null
    . /etc/os-release
    case $ID in
        fedora) printf 'f%s\n' "$VERSION_ID" ;;
        rhel | centos | rocky | almalinux | ol) printf 'rhel%s\n' "${VERSION_ID%%.*}" ;;
        openEuler) printf 'openEuler-%s\n' "$VERSION_ID" ;;
        *)
            if [[ -z $VERSION_CODENAME && $VERSION =~ [,\(]\ *([A-Za-z]+) ]]; then  # before 2016 there was no such line
                VERSION_CODENAME=${BASH_REMATCH[1],,}
            fi
            printf '%s\n' "${VERSION_CODENAME:-$ID$VERSION_ID}"
            ;;
    esac
}

# sudo and others ask for the address of the machine's name.
resolve_hostname() {
    local name
    name=$(hostname)
    if ! getent hosts "$name" > /dev/null; then
        printf '127.0.1.1 %s\n' "$name" >> /etc/hosts
    fi
    getent hosts "$name"
}

# Jobs of the template must not run in the middle of a test.
remove_cron_jobs() {
    local timer folder
    find /etc/cron.d /etc/cron.hourly /etc/cron.daily /etc/cron.weekly /etc/cron.monthly /var/spool/cron \
        -type f ! -name '.*' -print -delete 2> /dev/null || true
    if [[ -e /etc/crontab ]]; then
        printf '# Emptied by devstack-gate: no job of the template runs on test machines.\n' > /etc/crontab
    fi
    for timer in apt-daily.timer apt-daily-upgrade.timer dnf-makecache.timer dnf-automatic.timer; do
        for folder in /lib/systemd/system /usr/lib/systemd/system; do
            if [[ -e $folder/$timer ]]; then
                mkdir -p /etc/systemd/system
                ln -sfn /dev/null "/etc/systemd/system/$timer"
            fi
        done
    done
}

# Whatever is this machine's own goes; each machine makes its own at its first boot. The build's key opens none of them.
forget_machine() {
    local key=$1 home file
    while IFS=: read -r _ _ _ _ _ home _; do
        if [[ -f $home/.ssh/authorized_keys ]]; then
            sed -i "\\|$key|d" "$home/.ssh/authorized_keys"
        fi
        rm -f -- "$home/.bash_history" "$home/.python_history" "$home/.lesshst"
    done < <(getent passwd)
    if has cloud-init; then
        cloud-init clean --logs
    fi
    for file in /etc/machine-id /var/lib/dbus/machine-id; do
        if [[ -f $file && ! -L $file ]]; then
            : > "$file"
        fi
    done
    rm -f /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/lib/dhcp/*.leases /etc/udev/rules.d/70-persistent-net.rules
    rm -rf -- "$HERE"
    sync
}

# --- packages ---

# apt-get as nobody could interrupt it.
apt() {
    DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none NEEDRESTART_MODE=a UCF_FORCE_CONFFOLD=1 LC_ALL=C \
        "${APT[@]}" "$@" < /dev/null
}

# Older versions of apt call it a success when a mirror fails.
update_lists() {
    local output rc=0
    output=$(apt update 2>&1) || rc=$?
    printf '%s\n' "$output"
    if [[ $output == *'Failed to fetch'* ]]; then
        return 100
    fi
    return "$rc"
}

upgrade() {
    if has apt-get; then
        retry 5 update_lists || return
        retry 5 apt dist-upgrade || return
        apt clean
    elif has dnf; then
        retry 5 dnf -y upgrade --refresh
    else
        printf 'neither apt-get nor dnf is here\n' >&2
        return 1
    fi
}

# Install (or only download) the packages that are named on standard input; print those that cannot be had.
fetch_packages() {
    local mode=$1
    local -a names
    mapfile -t names
    if (( ${#names[@]} == 0 )); then
        return 0
    elif has apt-get; then
        fetch_with_apt "$mode" "${names[@]}"
    else
        fetch_with_dnf "$mode" "${names[@]}"
    fi
}

fetch_with_apt() {
    local mode=$1 output missing name
    local -a names=("${@:2}") words=(install)
    if [[ $mode == download ]]; then
        words+=(--download-only)
    fi
    while (( ${#names[@]} )); do
        if output=$(apt --simulate install -- "${names[@]}" 2>&1); then
            retry 5 apt "${words[@]}" -- "${names[@]}"
            return
        fi
        missing=$(unknown_to_apt <<< "$output" | grep -xF -f <(printf '%s\n' "${names[@]}"))
        if [[ -z $missing ]]; then
            break
        fi
        while IFS= read -r name; do
            printf 'unavailable: %s\n' "$name"
        done <<< "$missing"
        mapfile -t names < <(printf '%s\n' "${names[@]}" | grep -vxF -f <(printf '%s\n' "$missing"))
    done
    # They do not go together: one by one, the first ones win.
    for name in "${names[@]}"; do
        if ! apt --simulate install -- "$name" > /dev/null 2>&1 || ! retry 5 apt "${words[@]}" -- "$name"; then
            printf 'unavailable: %s\n' "$name"
        fi
    done
}

# Print the names that apt-get says it does not have.
unknown_to_apt() {
    sed -nE "s/^E: (Unable to locate package (.+)|Package '(.+)' has no installation candidate)$/\2\3/p" | sort -u
}

fetch_with_dnf() {
    local mode=$1 rc=0 output
    local -a words=(install --setopt=strict=0 --setopt=keepcache=1)
    shift
    if [[ $mode == download ]]; then
        words+=(--downloadonly)
    fi
    output=$(retry 5 dnf -y "${words[@]}" "$@" 2>&1) || rc=$?
    printf '%s\n' "$output"
    sed -nE 's/^No match for argument: (.+)$/unavailable: \1/p' <<< "$output" | sort -u
    if (( rc )) && [[ $output == *'Unable to find a match'* ]]; then
        return 0  # all of them
    fi
    return "$rc"
}

# Headers for the kernel that will boot next, which after the upgrade is not the one that runs.
install_headers() {
    local kernel
    kernel=$(find /boot -maxdepth 1 -name 'vmlinuz-*' ! -name '*rescue*' -printf '%f\n' 2> /dev/null | sort -V | tail -n 1)
    if [[ -z $kernel ]]; then
        printf 'no kernel is installed in /boot, so there are no headers to install\n'
    elif has apt-get; then
        fetch_packages install <<< "linux-headers-${kernel#vmlinuz-}"
    else
        fetch_packages install <<< "kernel-devel-${kernel#vmlinuz-}"
    fi
}

clone_puppet() {
    retry 5 clone_repository "$@"
}

# Apply a puppet manifest of a clone; relative paths are in it.
apply_puppet() {
    local clone=$1 modulepath=$2 manifest=$3 part rc=0
    local -a parts
    if ! has puppet; then
        fetch_packages install <<< puppet-agent || return
        has puppet || fetch_packages install <<< puppet || return
    fi
    IFS=: read -ra parts <<< "$modulepath"
    modulepath=
    for part in "${parts[@]}"; do
        modulepath+=${modulepath:+:}$(within "$clone" "$part")
    done
    puppet apply --color=false --detailed-exitcodes --modulepath "$modulepath" "$(within "$clone" "$manifest")" || rc=$?
    if (( rc == 2 )); then  # changes were made, none failed
        return 0
    fi
    return "$rc"
}

# Print a path, seen from a folder if it is not absolute.
within() {
    local folder=$1 path=$2
    if [[ $path == /* ]]; then
        printf '%s\n' "$path"
    else
        printf '%s\n' "$folder/$path"
    fi
}

# --- the account ---

# Make the node account, with its key, sudo and the folder in which Jenkins works.
make_account() {
    local user=$1 key=$2 remote_fs=$3 home group
    local -a in_group=()
    if ! id -u "$user" > /dev/null 2>&1; then
        mkdir -p -- "$(dirname -- "$remote_fs")" || return
        if getent group "$user" > /dev/null; then
            in_group=(-g "$user")
        fi
        useradd -m -d "$remote_fs" -s /bin/bash "${in_group[@]}" "$user" || return
        usermod -p '*' "$user" || return  # no password, yet not locked
    fi
    home=$(getent passwd "$user" | cut -d: -f6)
    group=$(id -gn "$user")
    install -d -m 700 -o "$user" -g "$group" "$home/.ssh" || return
    printf '%s\n' "$key" > "$home/.ssh/authorized_keys"
    chmod 600 "$home/.ssh/authorized_keys"
    chown "$user:$group" "$home/.ssh/authorized_keys"
    install -d -o "$user" -g "$group" "$remote_fs" "$remote_fs/workspace" || return
    if [[ $user != root ]]; then
        printf '%s ALL=(ALL) NOPASSWD:ALL\n' "$user" > /etc/sudoers.d/devstack-gate
        chmod 440 /etc/sudoers.d/devstack-gate
    fi
    if has restorecon; then
        restorecon -R "$home/.ssh" /etc/sudoers.d
    fi
}

# Run another step as the node account, from its home folder.
as_user() {
    local user=$1 home
    shift
    home=$(getent passwd "$user" | cut -d: -f6)
    cd -- "$home" || return
    runuser -u "$user" -- env HOME="$home" bash "${BASH_SOURCE[0]}" "$@"
}

# --- caches, as the node account ---

# Clone the projects that are named on standard input into ~/workspace-cache, four at once, with all their branches.
clone_projects() {
    local base=$1
    export -f clone_project clone_repository hide_login retry
    export DOWNLOAD_SECONDS
    mkdir -p workspace-cache
    xargs -r -P 4 -I '{}' bash -c 'clone_project "$@"' clone "$base" '{}'
}

clone_project() {
    local base=$1 project=$2 output
    if ! output=$(retry 3 clone_repository "$base/$project" "workspace-cache/$project"); then
        printf 'unavailable: %s (%s)\n' "$project" "${output##*$'\n'}"
    fi
}

# Clone a repository from a git bundle on standard input, as if it came from its URL.
clone_bundle() {
    local url=$1 folder=$2
    rm -rf -- "$folder"
    mkdir -p -- "${folder%/*}" || return
    cat > "$folder.bundle" || return
    git clone --quiet --origin origin -- "$folder.bundle" "$folder" < /dev/null || return
    git -C "$folder" remote set-url origin "$(hide_login "$url")" || return
    rm -f -- "$folder.bundle"
}

# Print a URL without its login: the tests can read what is on the image.
hide_login() {
    sed -E 's,(://)[^/@]*@,\1,' <<< "$1"
}

clone_repository() {
    local url=$1 folder=$2
    rm -rf -- "$folder" "$folder.part"
    GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=60 \
        timeout --foreground -k 10 "$DOWNLOAD_SECONDS" git clone --quiet --origin origin -- "$url" "$folder.part" < /dev/null 2>&1 || return
    git -C "$folder.part" remote set-url origin "$(hide_login "$url")" || return
    mv -- "$folder.part" "$folder"
}

# Print a file of a clone as it is on the first of some refs that the clone has.
show_file() {
    local clone=$1 file=$2 ref
    local -a git=(env GIT_CEILING_DIRECTORIES="$(realpath -m -- "$clone/..")" git -c safe.directory='*' -C "$clone")
    shift 2
    for ref in "$@"; do
        if "${git[@]}" rev-parse --quiet --verify "$ref^{commit}" > /dev/null 2>&1; then
            "${git[@]}" show "$ref:$file" 2> /dev/null
            return 0
        fi
    done
}

# Print the requirements, on a branch or else the default one, of the projects that are named on standard input.
show_requirements() {
    local branch=$1 cache=$2 project
    while IFS= read -r project; do
        show_file "$(clone_of "$cache" "$project")" requirements.txt "origin/$branch" "$branch" origin/HEAD HEAD < /dev/null
        printf '\n'
    done
}

# Print the upper constraints of a branch; nothing where the requirements project is not cloned or has no such branch.
show_constraints() {
    local branch=$1 cache=$2
    show_file "$(clone_of "$cache" openstack/requirements)" upper-constraints.txt "origin/$branch" "$branch"
}

# Print the folder of a project's clone.
clone_of() {
    local cache=$1 project=$2
    if [[ -e $cache/${project##*/}/.git && ! -e $cache/$project ]]; then
        printf '%s\n' "$cache/${project##*/}"
    else
        printf '%s\n' "$cache/$project"
    fi
}

# Download the pip requirements that are on standard input, with what they need, into ~/cache/pip.
cache_pips() {
    local branch=$1 folder requirement
    local -a requirements constrained=()
    if ! python3 -m pip --version > /dev/null 2>&1; then
        printf 'unavailable: pip itself\n'
        return 0
    fi
    mapfile -t requirements
    mkdir -p cache/pip
    folder=$(mktemp -d) || return
    show_constraints "$branch" workspace-cache > "$folder/constraints"
    if [[ -s $folder/constraints ]]; then
        constrained=(--constraint "$folder/constraints")
    fi
    printf '%s\n' "${requirements[@]}" > "$folder/requirements"
    if ! retry 3 download_pips "${constrained[@]}" --requirement "$folder/requirements"; then
        for requirement in "${requirements[@]}"; do  # one that cannot be had must not cost the others
            if (( SECONDS > DOWNLOAD_SECONDS )) || ! download_pips "${constrained[@]}" "$requirement" > /dev/null 2>&1; then
                printf 'unavailable: %s\n' "$requirement"
            fi
        done
    fi
    rm -rf -- "$folder"
}

download_pips() {
    timeout --foreground -k 10 "$DOWNLOAD_SECONDS" python3 -m pip --disable-pip-version-check --no-input download --quiet \
        --no-cache-dir --dest cache/pip "$@" < /dev/null
}

# Download the URLs that are on standard input into ~/cache/files; nothing half there keeps its name.
cache_files() {
    local url name output
    mkdir -p cache/files
    while IFS= read -r url; do
        name=${url%%[?#]*}
        name=${name##*/}
        if [[ -z $name || -e cache/files/$name ]]; then
            continue
        fi
        if output=$(retry 3 download "$url" "cache/files/$name.part" 2>&1); then
            mv -- "cache/files/$name.part" "cache/files/$name"
        else
            rm -f -- "cache/files/$name.part"
            printf 'unavailable: %s (%s)\n' "$url" "${output##*$'\n'}"
        fi
    done
}

download() {
    local url=$1 file=$2
    curl -sS -f -L --connect-timeout 30 --max-time "$DOWNLOAD_SECONDS" --speed-limit 1000 --speed-time 60 \
        -o "$file" -- "$url" < /dev/null
}

main() {
    set -uo pipefail
    umask 022
    "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
    exit
fi
