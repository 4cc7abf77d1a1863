#!/usr/bin/env bash
# The steps that make a machine a template, each a function. devstack-vm-update-image.py copies this file to the machine
# and runs `steps.sh STEP ARGUMENTS` there as root. An item that cannot be downloaded, and is not required, is printed as
# `unavailable: NAME`.

HERE=/var/lib/devstack-gate
APT=(apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold
    -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 -o APT::Cmd::Pattern-Only=true -o APT::Update::Error-Mode=any)
LOCKED='^(E: (Could not get lock|Unable to (lock|acquire))|dpkg: error: .* lock)'
DOWNLOAD_SECONDS=1800  # for one clone or download; the step as a whole has its own limit
PIP_RETRIES=8  # with growing pauses, a minute in all
PIP_WORK=cache/pip-work  # what pip keeps from one call to the next; removed at the end
SYSTEMD=/run/systemd/system  # exists if systemd runs
LOCK_SECONDS=600  # how long another process may hold a lock of the package manager
CALL_SECONDS=120  # for devstack code that is run
# These upgrade a machine by themselves, and would do so in the middle of our steps or of a test.
UPGRADE_TIMERS=(apt-daily.timer apt-daily-upgrade.timer dnf-makecache.timer dnf-automatic.timer dnf-automatic-install.timer
    dnf-automatic-download.timer dnf-automatic-notifyonly.timer)
UPGRADE_SERVICES=(apt-daily.service apt-daily-upgrade.service dnf-makecache.service dnf-automatic.service
    dnf-automatic-install.service dnf-automatic-download.service dnf-automatic-notifyonly.service)

# retry ATTEMPTS COMMAND...: run a command or function until it succeeds, at most ATTEMPTS times, with growing pauses.
# Returns the last status.
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

# Switch off automatic upgrades for good. Let one that is under way end: killed, it would leave packages half installed.
stop_upgrades() {
    local deadline=$(( SECONDS + LOCK_SECONDS ))
    mask_upgrades || return
    if ! has systemctl || [[ ! -d $SYSTEMD ]]; then
        return 0
    fi
    systemctl daemon-reload || return
    systemctl stop "${UPGRADE_TIMERS[@]}" > /dev/null 2>&1 || true  # status 5: a unit that does not exist
    while systemctl show --property=ActiveState -- "${UPGRADE_SERVICES[@]}" | grep -qE '=(active|activating|deactivating)$'; do
        if (( SECONDS > deadline )); then
            printf 'an automatic upgrade is still under way after %s s\n' "$LOCK_SECONDS"
            break
        fi
        sleep 2
    done
    systemctl stop unattended-upgrades.service > /dev/null 2>&1 || true  # it only waits for a shutdown
}

mask_upgrades() {
    local unit folder
    for unit in "${UPGRADE_TIMERS[@]}" "${UPGRADE_SERVICES[@]}" unattended-upgrades.service; do
        for folder in /lib/systemd/system /usr/lib/systemd/system; do
            if [[ -e $folder/$unit ]]; then
                mkdir -p /etc/systemd/system && ln -sfn /dev/null "/etc/systemd/system/$unit" || return
            fi
        done
    done
}

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

# Make the machine's name resolve: sudo and others ask for its address.
resolve_hostname() {
    local name
    name=$(hostname)
    if ! getent hosts "$name" > /dev/null; then
        printf '127.0.1.1 %s\n' "$name" >> /etc/hosts
    fi
    getent hosts "$name"
}

# Remove the template's cron jobs, which must not run in the middle of a test.
remove_cron_jobs() {
    find /etc/cron.d /etc/cron.hourly /etc/cron.daily /etc/cron.weekly /etc/cron.monthly /var/spool/cron \
        -type f ! -name '.*' -print -delete 2> /dev/null || true
    if [[ -e /etc/crontab ]]; then
        printf '# Emptied by devstack-gate: no job of the template runs on test machines.\n' > /etc/crontab
    fi
    mask_upgrades  # packages installed since then bring their own
}

# Remove whatever belongs to this machine only; each machine makes it anew at its first boot. The build's key is
# removed, too, so that it opens none of them.
forget_machine() {
    local key=$1 home file
    while IFS=: read -r _ _ _ _ _ home _; do
        if [[ -f $home/.ssh/authorized_keys ]]; then
            sed -i "\\|$key|d" "$home/.ssh/authorized_keys"
        fi
        rm -f -- "$home/.bash_history" "$home/.python_history" "$home/.lesshst"
    done < <(getent passwd || true)
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

# apt-get, non-interactive.
apt() {
    when_unlocked "${APT[@]}" "$@"
}

# Run apt-get or dpkg, again and again while another process holds one of their locks: apt-get's own option for that does
# not cover the locks of the package lists and of the archives.
when_unlocked() {
    local deadline=$(( SECONDS + LOCK_SECONDS )) output rc
    output=$(mktemp) || return
    while :; do
        DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none NEEDRESTART_MODE=a UCF_FORCE_CONFFOLD=1 LC_ALL=C \
            "$@" < /dev/null 2>&1 | tee "$output"
        rc=${PIPESTATUS[0]}
        if (( rc == 0 || SECONDS > deadline )) || ! grep -qE "$LOCKED" "$output"; then
            break
        fi
        sleep 5
    done
    rm -f -- "$output"
    return "$rc"
}

# Finish what an interrupted dpkg left undone: until then apt-get installs nothing.
repair_packages() {
    if has apt-get; then  # rpm systems may have a dpkg, too
        when_unlocked dpkg --force-confdef --force-confold --configure -a && apt --fix-broken install
    fi
}

# Update the package lists, and fail if a mirror fails: older versions of apt call that a success.
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

# Install (or only download) the packages that are named on standard input; print those that are unavailable.
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
        mapfile -t names < <(printf '%s\n' "${names[@]}" | grep -vxF -f <(printf '%s\n' "$missing") || true)
    done
    # They exclude each other: take them one by one, so that the first ones win.
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
        return 0  # it found none of them, and they are printed
    fi
    return "$rc"
}

# Install headers for the kernel that will boot next, which after the upgrade is not the running one.
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

# Apply a puppet manifest of a clone; relative paths start in the clone.
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
    manifest=$(within "$clone" "$manifest") || return
    puppet apply --color=false --detailed-exitcodes --modulepath "$modulepath" "$manifest" || rc=$?
    if (( rc == 2 )); then  # changes were made, none failed
        return 0
    fi
    return "$rc"
}

# within FOLDER PATH: print the path; if it is relative, below the folder.
within() {
    local folder=$1 path=$2
    if [[ $path == /* ]]; then
        printf '%s\n' "$path"
    else
        printf '%s\n' "$folder/$path"
    fi
}

# --- the account ---

# Make the node account, with its key, sudo rights and the folder in which Jenkins works.
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
    url=$(hide_login "$url") || return
    git -C "$folder" remote set-url origin "$url" || return
    rm -f -- "$folder.bundle"
}

# Print a URL without its login, because tests can read everything on the image.
hide_login() {
    sed -E 's,(://)[^/@]*@,\1,' <<< "$1"
}

clone_repository() {
    local url=$1 folder=$2
    rm -rf -- "$folder" "$folder.part"
    GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=60 \
        timeout --foreground -k 10 "$DOWNLOAD_SECONDS" git clone --quiet --origin origin -- "$url" "$folder.part" < /dev/null 2>&1 || return
    url=$(hide_login "$url") || return
    git -C "$folder.part" remote set-url origin "$url" || return
    mv -- "$folder.part" "$folder"
}

# show_file CLONE FILE REF...: print a file from the first of these refs that the clone has. This only reads: it runs
# nothing that the clone's settings name, and fetches nothing.
show_file() {
    local clone=$1 file=$2 ref
    ref=$(first_ref "$clone" "${@:3}") || return 0
    git_reads "$clone" cat-file blob "$ref:$file" 2> /dev/null || true
}

git_reads() {
    GIT_CEILING_DIRECTORIES=$(realpath -m -- "$1/.." || true) GIT_ALLOW_PROTOCOL='' GIT_NO_LAZY_FETCH=1 \
        git -c safe.directory='*' -C "$@" < /dev/null
}

first_ref() {
    local clone=$1 ref
    for ref in "${@:2}"; do
        if git_reads "$clone" rev-parse --quiet --verify "$ref^{commit}" > /dev/null 2>&1; then
            printf '%s\n' "$ref"
            return 0
        fi
    done
    return 1
}

# Print the files that say which pip packages the projects on standard input need, a line for each file: project,
# `branch` if it has the branch or else `default`, file, content in base64. The whole output is compressed, in base64.
show_needs() {
    local branch=$1 cache=$2 project clone ref file kind text
    while IFS= read -r project; do
        clone=$(clone_of "$cache" "$project")
        ref=$(first_ref "$clone" "origin/$branch" "$branch" origin/HEAD HEAD) || continue
        kind=branch
        if [[ $ref == *HEAD ]]; then kind=default; fi
        for file in {,test-,doc/}requirements.txt setup.cfg pyproject.toml setup.py tox.ini; do
            text=$(git_reads "$clone" cat-file blob "$ref:$file" 2> /dev/null | base64 -w 0)
            if [[ $text ]]; then printf '%s %s %s %s\n' "$project" "$kind" "$file" "$text"; fi
        done
    done | gzip | base64 -w 0
}

# Print the upper constraints of a branch; nothing if the requirements project is not cloned or has no such branch.
show_constraints() {
    local branch=$1 cache=$2
    show_file "$(clone_of "$cache" openstack/requirements || true)" upper-constraints.txt "origin/$branch" "$branch"
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

# Download the pip requirements on standard input, with their dependencies, into ~/cache/pip, as wheels if possible. The
# upper constraints of a branch apply, if one is named.
cache_pips() {
    local branch=$1 folder
    local -a requirements constrained=()
    if ! python3 -m pip --version > /dev/null 2>&1; then
        printf 'unavailable: pip itself\n'
        return 0
    fi
    mapfile -t requirements
    mkdir -p cache/pip
    folder=$(mktemp -d) || return
    if [[ $branch ]]; then
        show_constraints "$branch" workspace-cache > "$folder/constraints"
        constrained=(--constraint "$folder/constraints")
    fi
    printf '%s\n' "${requirements[@]}" > "$folder/requirements"
    if ! build_wheels "$PIP_RETRIES" "${constrained[@]}" --requirement "$folder/requirements"; then
        get_apart "${requirements[@]}"
    fi
    rm -rf -- "$folder"
}

# get_apart REQUIREMENT...: get requirements, under the constraints of cache_pips, that pip did not get all at once. One
# that is unavailable must not cost the others, nor a call of pip for each of them: so each half is tried, and its halves
# if it fails. A package that does not build here, for want of a library, is kept as it came.
get_apart() {
    local half=$(( $# / 2 ))
    if (( SECONDS > DOWNLOAD_SECONDS )); then
        printf 'unavailable: %s\n' "$@"
    elif (( $# > 1 )); then
        get_half "${@:1:half}"
        get_half "${@:half + 1}"
    elif ! run_pip 1 download --dest cache/pip "${constrained[@]}" "$1" > /dev/null 2>&1; then
        printf 'unavailable: %s\n' "$1"
    fi
}

get_half() {
    if (( SECONDS > DOWNLOAD_SECONDS )) || ! build_wheels 1 "${constrained[@]}" "$@" > /dev/null 2>&1; then
        get_apart "$@"
    fi
}

# Build wheels, so that tests need not.
build_wheels() {
    run_pip "$1" wheel --wheel-dir cache/pip "${@:2}"
}

run_pip() {
    timeout --foreground -k 10 "$DOWNLOAD_SECONDS" python3 -m pip --disable-pip-version-check --no-input --quiet --retries "$1" \
        --cache-dir "$PWD/$PIP_WORK" "${@:2}" < /dev/null
}

forget_pip_work() {
    rm -rf -- "$PIP_WORK"
}

# Print the URLs of the test images and other files that a devstack wants for a distribution; standard input is a tar of
# its files. tools/image_list.sh names them. If that is missing, or fails, as it does by itself in every devstack since
# 2021, stackrc has them. EXTRA_CACHE_URLS of stackrc is always added. This runs devstack's code: call it on a template,
# or in sandbox.sh.
print_image_urls() {
    local distribution=$1 folder tree urls='' more='' rc=0
    folder=$(mktemp -d) || return
    tree=$folder/devstack
    mkdir -- "$tree" "$folder/bin" && tar -xf - -C "$tree" && make_stand_ins "$folder/bin" "$distribution" || return
    : > "$folder/reason"
    if [[ -f $tree/stackrc ]]; then
        more=$(ask_devstack "$folder" stackrc -c "$ASK_STACKRC" 2>> "$folder/reason") || rc=1
    fi
    if [[ -f $tree/tools/image_list.sh ]]; then
        if urls=$(ask_devstack "$folder" tools/image_list.sh tools/image_list.sh 2>> "$folder/reason"); then rc=0; else rc=1 urls=''; fi
    fi
    if [[ $urls || $more ]]; then
        rc=0  # stackrc may end early, but after these
    elif (( rc )); then
        cat -- "$folder/reason" >&2
    fi
    if [[ ! $urls ]]; then urls=$(grep -av '^extra ' <<< "$more" || true); fi
    printf '%s\n%s\n' "$urls" "$(sed -n 's/^extra //p' <<< "$more" || true)" | grep -aoE '[a-z]+://[^[:space:],]+' | sort -u
    rm -rf -- "$folder"
    return "$rc"
}

# shellcheck disable=SC2016  # the bash that sources stackrc expands it
ASK_STACKRC='HOST_IP=SKIP; exec 3>&1 1>&2
trap '\''printf "%s\n" "${IMAGE_URLS:-}" >&3; printf "extra %s\n" "${EXTRA_CACHE_URLS:-}" >&3'\'' EXIT
source ./stackrc'

# ask_devstack FOLDER NAME ARGUMENTS...: run bash in the tree of a devstack. Prints the lines of its output that hold
# URLs, and returns its status.
ask_devstack() {
    local folder=$1 name=$2 output rc=0 last
    shift 2
    (cd -- "$folder/devstack" && env -i HOME="$folder" PATH="$folder/bin:/usr/sbin:/usr/bin:/sbin:/bin" LC_ALL=C \
        timeout -k 5 "$CALL_SECONDS" bash "$@") > "$folder/output" 2> "$folder/errors" < /dev/null || rc=$?
    if (( rc == 124 || rc == 137 )); then
        printf '%s: not done after %s s\n' "$name" "$CALL_SECONDS" >&2
        return 1
    fi
    output=$(tr -d '\000' < "$folder/output" | grep -aE '[a-z]+://')
    if (( rc )); then
        last=$(grep -a . "$folder/errors" | tail -n 1)
        printf '%s: exit status %s: %s\n' "$name" "$rc" "${last:-${output:-no output}}" >&2
    fi
    printf '%s\n' "$output"
    return "$rc"
}

# Make programs that tell devstack the distribution, and that keep it from installing the tool with which it asks.
make_stand_ins() {
    local folder=$1 distribution=$2 vendor=Ubuntu name
    case ${distribution,,} in
        wheezy | jessie | stretch | buster | bullseye | bookworm | trixie | forky | duke | sid) vendor=Debian ;;
        fedora* | f[0-9]* | rhel* | centos* | rocky* | almalinux* | ol[0-9]* | *euler*) vendor=Fedora ;;
    esac
    for name in sudo apt-get yum dnf zypper; do
        printf "#!/bin/sh\necho '%s is not available here' >&2\nexit 1\n" "$name" > "$folder/$name"
    done
    {
        # shellcheck disable=SC2016  # the script expands it
        printf '#!/bin/sh\nfor word in "$@"; do\n    case $word in\n'
        printf '        -*i* | --id) echo "%s" ;;\n' "$vendor"
        printf '        -*r* | --release) echo "%s" ;;\n' "$(release_of "$distribution" || true)"
        printf '        -*c* | --codename) echo "%s" ;;\n    esac\ndone\n' "$distribution"
    } > "$folder/lsb_release"
    chmod 755 "$folder"/*
}

release_of() {
    local digits=${1//[!0-9]/}
    printf '%s\n' "${digits:-0}"
}

# Download the URLs on standard input into ~/cache/files; an incomplete file never gets the final name.
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
