# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: what is left of a run for people to read. Every step does what it can; none
# changes the verdict, so nobody looks at most of their statuses. Takes LOGS, BASE, RUN and the functions of functions.sh and the wrap script.
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310
# shellcheck disable=SC2153  # LOGS is the wrap script's

LOG_CAP_KB=$(( 1024 * 1024 )) # for all logs together, compressed
LARGE=$(( 1024 * 1024 ))      # bytes; larger files are compressed
SERVICE_LOGS=(apache2 httpd ceph libvirt mysql mariadb openvswitch ovn postgresql rabbitmq)
declare -gA SAVED=()          # what has been copied already, by its real path

# Collect within what is left of the time limit, but at least 10 seconds.
finish_logs() {
    local pid until
    begin_phase cleanup-host
    until=$(( GATE_STOP > NOW + 10 ? GATE_STOP : NOW + 10 ))
    set -m
    collect_logs >> "$LOGS/cleanup-host.txt" 2>&1 < /dev/null &
    pid=$!
    set +m
    while kill -0 "$pid" 2> /dev/null && (( NOW < until )); do
        sleep 0.1
        now
    done
    if kill -0 "$pid" 2> /dev/null; then
        as_root kill -KILL -- "-$pid"
        printf 'Not all logs could be collected in time.\n'
    fi
    wait "$pid" 2> /dev/null
    if [[ -s $RUN/dropped ]]; then cat -- "$RUN/dropped"; fi
    end_phase
}

collect_logs() {
    set +eu
    log 'state of the machine'
    df -h
    free -m
    save_devstack
    ps -e -ww -o pid,ppid,user,rss,etime,args > "$RUN/processes"
    hide_secrets "$RUN/settings" < "$RUN/processes"
    save_journal
    save_results
    save_tree "$BASE/logs" "$LOGS"
    save_tree "$BASE/new/logs" "$LOGS"
    save_tree "$BASE/new/screen-logs" "$LOGS"
    save_tree "$BASE/old/logs" "$LOGS/old"
    save_tree "$BASE/old/screen-logs" "$LOGS/old"
    local name
    for name in "${SERVICE_LOGS[@]}"; do save_tree "/var/log/$name" "$LOGS/$name"; done
    tidy_logs
}

save_devstack() {
    local file devstack=$BASE/new/devstack settings=''
    for file in "$BASE/old/devstack"/local{rc,.conf} "$devstack"/local{rc,.conf}; do
        if as_root test -f "$file"; then as_root cat -- "$file"; fi
    done > "$RUN/settings"
    for file in "$devstack"/local{rc,.conf}; do
        if as_root test -f "$file"; then settings=$file; fi
    done
    if [[ $settings ]]; then
        save "$settings" "$LOGS/local_conf.txt" "$devstack"
    fi
    for file in "$BASE/new/devstacklog.txt" "$BASE/logs/devstacklog.txt" "$BASE/logs/stack.sh.log"; do
        if as_root test -f "$file"; then
            save "$file" "$LOGS/devstacklog.txt" "$BASE"
            break
        fi
    done
}

# save FILE COPY ROOT: copy what it holds now, though it may be growing; not what a link out of ROOT leads to.
save() {
    local file=$1 copy=$2 root=$3 real size
    real=$(as_root readlink -e -- "$file") && root=$(as_root readlink -e -- "$root") || return
    if [[ $real != "$root"/* ]]; then
        log "$file leads out of $root, left out"
        return
    fi
    if [[ ${SAVED[$real]:-} ]] || ! as_root test -f "$real"; then return; fi
    SAVED[$real]=1
    size=$(as_root stat -c %s -- "$real") && mkdir -p -- "${copy%/*}" || return
    while [[ -e $copy || -e $copy.gz ]]; do copy=${copy%/*}/_${copy##*/}; done  # ours, or another one's
    if (( size > LARGE )); then copy+=.gz; fi
    if ! copy_bytes "$real" "$size" "$copy"; then
        log "$file could not be copied"
        rm -f -- "$copy"
    fi
}

copy_bytes() {
    local file=$1 size=$2 copy=$3
    local -a filter=(hide_secrets "$RUN/settings") pack=(cat)
    if ! as_root grep -qI '' -- "$file"; then filter=(cat); fi  # no text: it may be one endless line
    if [[ $copy == *.gz ]]; then pack=(gzip); fi
    # shellcheck disable=SC2312  # pipefail
    as_root head -c "$size" -- "$file" | "${filter[@]}" | "${pack[@]}" > "$copy"
}

# All files of a folder; links first: devstack's have the better names.
save_tree() {
    local folder=$1 to=$2 file name kind
    if ! as_root test -d "$folder"; then return; fi
    for kind in l f; do
        while IFS= read -r -d '' file; do
            name=${file#"$folder"/}
            case $name in
                *.log) name=${name%.log}.txt ;;
            esac
            save "$file" "$to/${name//[[:cntrl:][:blank:]:]/_}" "$folder"
        done < <(as_root find "$folder" -type "$kind" -print0 || true)
    done
}

# syslog.txt, and a file for each of devstack's services where systemd runs them.
save_journal() {
    local start unit name
    start=$(cat -- "$RUN/journal-start" 2> /dev/null) || return
    if [[ -d /run/systemd/system ]]; then
        as_root journalctl --no-pager -o short-precise --since "@$start" > "$LOGS/syslog.txt"
        while read -r unit _; do
            name=${unit#devstack@}
            name=${name%.service}
            as_root journalctl --no-pager -o short-precise --since "@$start" -u "$unit" > "$LOGS/$name.txt"
        done < <(systemctl list-units --all --no-legend --plain 'devstack@*' || true)
    elif as_root test -f /var/log/syslog; then
        save /var/log/syslog "$LOGS/syslog.txt" /var/log
    fi
}

# Results as JUnit XML for Jenkins, and as HTML, where the tools that make them exist.
save_results() {
    local tempest=$BASE/new/tempest tools subunit=$RUN/results.subunit
    if [[ ! -d $tempest/.stestr && ! -d $tempest/.testrepository ]]; then return; fi
    tools=$tempest/.tox/tempest/bin:$BASE/data/venv/bin:$PATH
    run_tool "$tools" "$tempest" stestr last --subunit > "$subunit" || run_tool "$tools" "$tempest" testr last --subunit > "$subunit"
    if [[ -s $subunit ]]; then
        run_tool "$tools" "$tempest" subunit2junitxml < "$subunit" > "$LOGS/tempest-results.xml"
        run_tool "$tools" "$tempest" subunit2html /dev/stdin /dev/stdout < "$subunit" > "$LOGS/tempest-results.html"
    fi
    find "$LOGS" -maxdepth 1 -name 'tempest-results.*' -empty -delete
}

run_tool() {
    local tools=$1 folder=$2
    shift 2
    as_root env -C "$folder" PATH="$tools" timeout -k 5 120 "$@" 2> /dev/null
}

# Whatever is in the folder now, from hooks too: readable, no links out of it, plain names, compressed, not too much.
tidy_logs() {
    local file real group logs
    group=$(id -g)
    logs=$(readlink -e -- "$LOGS")
    as_root chown -R -h "$EUID:$group" "$LOGS"
    chmod -R u+rwX "$LOGS"
    while IFS= read -r -d '' file; do
        real=$(readlink -e -- "$file")
        if [[ $real != "$logs"/* ]]; then
            log "$file leads out of the logs, removed"
            rm -f -- "$file"
        fi
    done < <(find "$LOGS" -type l -print0 || true)
    find "$LOGS" ! -type d ! -type f ! -type l -delete
    rename_logs
    find "$LOGS" -type f -size "+${LARGE}c" ! -name '*.gz' ! -name '*.xz' ! -name '*.bz2' ! -name '*.zip' ! -name '*.tgz' \
        ! -name cleanup-host.txt ! -name tempest-results.xml -exec gzip -f -- {} +
    cap_logs
}

rename_logs() {
    local file name
    while IFS= read -r -d '' file; do
        name=${file##*/}
        name=${name//[[:cntrl:][:blank:]:]/_}
        while [[ -e ${file%/*}/$name ]]; do name=_$name; done
        mv -- "$file" "${file%/*}/$name"
    done < <(LC_ALL=C find "$LOGS" -mindepth 1 -depth -name '*[[:cntrl:][:blank:]:]*' -print0 || true)
}

# Drop the biggest until the rest is within the cap.
cap_logs() {
    local total size file
    total=$(du -s --apparent-size --block-size=1K -- "$LOGS")
    total=${total%%[[:space:]]*}
    while (( total > LOG_CAP_KB )) && IFS= read -r -d '' file; do
        size=$(( ${file%% *} / 1024 ))
        file=${file#* }
        rm -f -- "$file"
        total=$(( total - size ))
        printf 'Dropped %s (%s KB): more than %s KB of logs.\n' "${file#"$LOGS"/}" "$size" "$LOG_CAP_KB" >> "$RUN/dropped"
    done < <(find "$LOGS" -type f -printf '%s %p\0' | sort -z -rn || true)
}
