# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: make the machine ready to run devstack. It is changed for good.
# Needs BASE, HERE, RUN (a folder for this run's own files) and the functions of functions.sh and the wrap script.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

STACK_RIGHTS='stack ALL=(ALL) NOPASSWD:ALL
Defaults:stack !requiretty
Defaults:stack env_keep += "http_proxy https_proxy ftp_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY PIP_FIND_LINKS PIP_INDEX_URL PIP_EXTRA_INDEX_URL"'
SUDOERS=/etc/sudoers.d/50_stack_sh
SWAP_FILE=/devstack-gate.swap
APT_SETTINGS=/etc/apt/apt.conf.d/99devstack-gate

setup_host() {
    if ! python3 -I -c 'import json, subprocess' 2> /dev/null; then
        log 'python3: expected its whole standard library on this machine'
        return 1
    fi
    link_cache ~/cache/files "$BASE/new/devstack/files"
    if [[ -d $BASE/old/devstack ]]; then link_cache ~/cache/files "$BASE/old/devstack/files"; fi
    link_cache ~/cache/pip "$BASE/cache/pip"
    start_syslog_afresh
    add_swap || log "no swap: $SWAP_FILE could not be used"
    install_cached_headers
    make_stack_user || return
    install_scripts || return
    use_pip_cache || log "pip's cache could not be put to use"
    trust_trees || return
    as_root chown stack:stack "$BASE" && as_root chmod go+rx "$BASE" "$BASE/new" || return
    if ! as_root runuser -u stack -- test -x "$BASE/new"; then
        log "BASE: expected a folder that the user stack can reach, not $BASE: one above it is closed to others"
        return 1
    fi
}

# Let hooks use git in the trees, with sudo too, and after devstack-vm-gate.sh has given them to the stack user.
trust_trees() {
    local -a git=(env -i PATH="$PATH" git -C / config --system)
    if ! { "${git[@]}" --get-all safe.directory || true; } | grep -qxF '*'; then
        as_root "${git[@]}" --add safe.directory '*'
    fi
}

# link_cache FROM TO: make hard links if possible, else copies; existing files stay.
link_cache() {
    local from=$1 to=$2
    if [[ ! -d $from ]]; then return 0; fi
    as_root mkdir -p -- "$to"
    as_root cp -aln -- "$from/." "$to/" 2> /dev/null || as_root cp -an -- "$from/." "$to/" \
        || log "$from could not be put into $to"
}

# pip compares versions, not places: of two files of one version it takes the one from the index that was named last. So
# the cache becomes an index that is named last, and only what it lacks is downloaded from the real one. If the real one
# does not answer, the cache is the only index: to ask in vain for each package would take longer than the build.
use_pip_cache() {
    local cache=$BASE/cache/pip index=file://$BASE/cache/pip/simple mode=add more
    if ! compgen -G "$cache/*-*" > /dev/null || ! python3 -m pip --version > /dev/null 2>&1; then return 0; fi
    index_pip_cache "$cache" "$RUN/simple" && as_root rm -rf -- "$cache/simple" && as_root cp -r -- "$RUN/simple" "$cache/simple" \
        && as_root chmod -R a+rX "$cache" || return
    restore_pip_settings || return
    more=$(python3 -m pip config --global get global.extra-index-url 2> /dev/null) || more=
    if index_answers; then
        set_pip extra-index-url "${more:+$more }$index" || return
    else
        log "the package index does not answer: pip takes all from the image's cache"
        mode=only
        set_pip index-url "$index" || return
        if [[ $more ]]; then as_root python3 -m pip config --global unset global.extra-index-url > /dev/null || return; fi
        hurry_apt
    fi
    printf '%s\n' "$mode" > "$RUN/pip"
    as_root install -m 644 -- "$RUN/pip" "$BASE/gate/pip"
}

# If no mirror answers, devstack gives up after five minutes of apt-get update. With a single try, each mirror takes
# half a minute at most, and then the image's package lists are used.
hurry_apt() {
    if [[ -d ${APT_SETTINGS%/*} ]]; then
        printf 'Acquire::%s "%s";\n' Retries 0 http::Timeout 10 https::Timeout 10 > "$RUN/apt"
        as_root install -m 644 -- "$RUN/apt" "$APT_SETTINGS" || log "$APT_SETTINGS could not be written"
    fi
}

# Restore /etc/pip.conf to what it was before the first run on this machine.
restore_pip_settings() {
    local file=/etc/pip.conf saved=/etc/pip.conf.before-devstack-gate
    as_root rm -f -- "$APT_SETTINGS" || return
    if [[ -e $saved ]]; then
        as_root cp -- "$saved" "$file"
    elif [[ -e $file ]]; then
        as_root cp -- "$file" "$saved"
    else
        as_root install -m 644 -- /dev/null "$saved"
    fi
}

set_pip() {
    as_root python3 -m pip config --global set "global.$1" "$2" > /dev/null
}

# Whether the real index answers: asked for a version that does not exist, it names those that do.
index_answers() {
    local answer
    answer=$(cd / && PIP_FIND_LINKS='' timeout 120 python3 -m pip --disable-pip-version-check --no-input --retries 2 --timeout 15 \
        download --no-cache-dir --no-deps --dest "$RUN/nothing" pbr===0.0.0.0 2>&1 < /dev/null) || true
    [[ $answer == *'(from versions: '* && $answer != *'(from versions: none)'* ]]
}

# Print the names of the damaged packages in a folder: pip would take one of them, and fail.
damaged_packages() {
    (cd / && python3 -I -c 'import os, sys, tarfile, zipfile
for name in sorted(os.listdir(sys.argv[1])):
    path = os.path.join(sys.argv[1], name)
    try:
        if name.endswith((".whl", ".zip")):
            zipfile.ZipFile(path).close()
        elif name.endswith((".tar.gz", ".tar.bz2")):
            with tarfile.open(path) as archive:
                archive.getmembers()
    except Exception:
        print(name)' "$1")
}

# index_pip_cache FOLDER INDEX: make the pages of a simple index (PEP 503) for a folder's files, which lie two folders
# above the pages.
index_pip_cache() {
    local folder=$1 index=$2 file name damaged
    rm -rf -- "$index"
    damaged=$(damaged_packages "$folder") || return
    if [[ $damaged ]]; then log "left out of pip's cache, damaged: ${damaged//$'\n'/ }"; fi
    mkdir -- "$index" || return
    for file in "$folder"/*-*; do
        file=${file##*/}
        if [[ $'\n'$damaged$'\n' == *$'\n'"$file"$'\n'* ]]; then
            as_root rm -f -- "$folder/$file" || return  # it is our own link; pip also looks into the folder itself
            continue
        fi
        case $file in
            *.whl) name=${file%%-*} ;;
            *.tar.gz | *.tar.bz2 | *.zip) name=${file%-*} ;;
            *) continue ;;
        esac
        name=${name,,}
        name=${name//[-_.]/-}
        while [[ $name == *--* ]]; do name=${name//--/-}; done
        mkdir -p -- "$index/$name" || return
        printf '<a href="../../%s">%s</a>\n' "${file//+/%2B}" "$file" >> "$index/$name/index.html" || return
    done
}

# Set aside what was logged before this run. The journal is read from this moment on.
start_syslog_afresh() {
    date +%s > "$RUN/journal-start"
    if [[ -f /var/log/syslog ]]; then
        as_root cp -a /var/log/syslog /var/log/syslog-before-devstack-gate
        as_root truncate -s 0 /var/log/syslog
    fi
}

# Add swap if there is none: a file on the root disk, as large as memory, at most 8 GB and a quarter of the free space.
add_swap() {
    local swaps free megabytes memory
    swaps=$(wc -l < /proc/swaps)
    if (( swaps > 1 )) || [[ -e $SWAP_FILE ]]; then return 0; fi
    memory=$(awk '$1 == "MemTotal:" { print int($2 / 1024) }' /proc/meminfo)
    free=$(df -m --output=avail /) || return
    free=${free##*[[:space:]]}
    megabytes=$(( memory < 8192 ? memory : 8192 ))
    megabytes=$(( megabytes < free / 4 ? megabytes : free / 4 ))
    if (( megabytes < 64 )); then return 1; fi
    if as_root fallocate -l "${megabytes}M" "$SWAP_FILE" && as_root chmod 600 "$SWAP_FILE" \
        && as_root mkswap -q "$SWAP_FILE" && as_root swapon "$SWAP_FILE"; then
        log "swap: $megabytes MB in $SWAP_FILE"
        return 0
    fi
    as_root rm -f "$SWAP_FILE"
    return 1
}

install_cached_headers() {
    local package
    package=$(uname -r)
    package=linux-headers-$package
    if compgen -G "/var/cache/apt/archives/${package}_*.deb" > /dev/null && [[ ! -d /usr/src/$package ]]; then
        DEBIAN_FRONTEND=noninteractive as_root apt-get -q -y install --no-download "$package" || log "$package could not be installed"
    fi
}

# Make the user that devstack runs as. devstack-vm-gate.sh takes its sudo rights away again before the tests.
make_stack_user() {
    if ! id -u stack > /dev/null 2>&1; then
        as_root useradd --user-group --shell /bin/bash --home-dir "$BASE" --no-create-home stack || return
    fi
    # Hooks of many jobs run tempest as a user of that name, without rights.
    if ! id -u tempest > /dev/null 2>&1; then as_root useradd --user-group --create-home --shell /bin/bash tempest || return; fi
    local rule=$RUN/50_stack_sh
    printf '%s\n' "$STACK_RIGHTS" > "$rule"
    as_root install -o root -g root -m 440 -- "$rule" "$SUDOERS" || return
    as_root visudo -cqf "$SUDOERS" || { as_root rm -f "$SUDOERS"; return 1; }
}

# Copy these scripts to where the stack user can read them, whatever the workspace's permissions. Hooks find them in
# $BASE/new/devstack-gate, as if devstack-gate were a project of the run.
install_scripts() {
    local folder=$BASE/new/devstack-gate group
    # A folder without the mark is from an earlier run.
    if [[ ! -e $folder/.git/gate-ref || ! -e $folder/devstack-vm-gate.sh || ${SKIP_DEVSTACK_GATE_PROJECT:-} == 1 ]]; then
        if [[ ! -e $folder/.git && ! $HERE -ef $folder ]]; then rm -rf -- "$folder"; fi
        mkdir -p -- "$folder" || return
        if [[ ! $HERE -ef $folder ]]; then cp -RL -- "${SCRIPTS[@]/#/"$HERE/"}" "$folder/" || return; fi
    fi
    as_root rm -rf -- "$BASE/gate" && as_root install -d -m 755 "$BASE/gate" || return
    as_root cp -RL --no-preserve=all -- "${SCRIPTS[@]/#/"$HERE/"}" "$BASE/gate/" || return
    printf '%s\n' "${CHANGES[@]}" > "$RUN/changes"
    as_root cp -- "$RUN/changes" "$BASE/gate/changes" || return
    as_root chmod -R u=rwX,go=rX "$BASE/gate" || return
    # For devstack-vm-gate.sh, which a hook starts as the job's user.
    group=$(id -g) || return
    as_root install -m 664 -o stack -g "$group" -- /dev/null "$BASE/gate/step" \
        && as_root install -m 664 -o stack -g "$group" -- /dev/null "$BASE/gate/note"
}
