# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: the subnodes of this machine. The console names them, hooks of the job get their
# addresses, and at the end their logs are fetched. What comes from there is data: a change may be root there.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md
# shellcheck disable=SC2153  # HERE, LOGS, RUN, BASE, SERVICE_LOGS are the wrap script's

NODES=/etc/devstack-gate/nodes # NAME ROLE PRIVATE PUBLIC of each machine of the group, - for no address
SUBNODE_NAMES=()
SUBNODE_ADDRESSES=()
PRIMARY_ADDRESS=''
SUBNODE_SHARE=3 # their logs get a third of the time for logs

# Read NODES before the test can change it. A machine that is a subnode itself has no subnodes.
read_group() {
    local name role private public address
    local -a names=() addresses=()
    if [[ ! -r $NODES ]]; then return 0; fi
    while read -r name role private public _; do
        if [[ ! "$name $private $public" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*(\ (-|[0-9A-Fa-f:][0-9A-Fa-f.:]+)){2}$ ]]; then continue; fi
        if [[ $private != - ]]; then address=$private; else address=$public; fi
        case $role in
            primary)
                if ! grep -qxF -- "NODE_NAME=$name" "$MARK"; then return 0; fi
                PRIMARY_ADDRESS=$address
                ;;
            subnode)
                names+=("$name")
                addresses+=("$address")
                ;;
            *) ;;
        esac
    done < "$NODES"
    if [[ $PRIMARY_ADDRESS ]]; then
        SUBNODE_NAMES=("${names[@]}")
        SUBNODE_ADDRESSES=("${addresses[@]}")
    fi
}

print_group() {
    local number
    for number in "${!SUBNODE_NAMES[@]}"; do
        printf 'SUBNODE=%s %s\n' "${SUBNODE_NAMES[number]}" "${SUBNODE_ADDRESSES[number]}"
    done
}

# Export the group's addresses, only in shells that run something for the job.
use_group() {
    if (( ${#SUBNODE_NAMES[@]} )); then
        export SUBNODES="${SUBNODE_ADDRESSES[*]}" PRIMARY_NODE=$PRIMARY_ADDRESS
    fi
}

# Sends the plain files of a subnode's logs, the small ones first, since the rest may be too much. Its arguments are
# BASE and the services that have logs in /var/log.
# shellcheck disable=SC2016  # the subnode expands it
SUBNODE_LOGS='printf -- "--- devstack-gate ---\n"
umask 077
base=${1#/}; shift
journal=run/devstack-gate-journal
cd / || exit
rm -rf "$journal"; mkdir "$journal" || exit
if command -v journalctl > /dev/null; then journalctl -b --no-pager 2> /dev/null | tail -c 50000000 > "$journal/journal.txt"; fi
find "$base/logs" "$base/new/logs" "$base/new/devstacklog.txt" "${@/#/var/log/}" var/log/syslog var/log/messages "$journal/" \
    -xdev -type f -size +0 -printf "%s %p\0" 2> /dev/null | sort -z -n | cut -z -d " " -f 2- |
    tar --null --no-recursion --format=ustar --owner=0 --group=0 --hard-dereference \
        --transform "s,^$base/new/,," --transform "s,^$base/,," --transform "s,^$journal/,," --transform "s,^var/log/,," -cf - -T -'

# Fetch the logs of all subnodes side by side, within their share of the time, into folders of their names in the logs.
fetch_subnode_logs() {
    local name seconds
    local -a pids=()
    if (( ! ${#SUBNODE_NAMES[@]} )); then return 0; fi
    now
    seconds=$(( GATE_STOP - NOW > 10 * SUBNODE_SHARE ? (GATE_STOP - NOW) / SUBNODE_SHARE : 10 ))
    for name in "${SUBNODE_NAMES[@]}"; do
        fetch_subnode "$name" "$seconds" &
        pids+=("$!")
    done
    wait "${pids[@]}" || true
}

# fetch_subnode NAME SECONDS: fetch its logs, and say what could not be fetched.
fetch_subnode() {
    local name=$1 rc=0 folder=$LOGS/$1 said command
    rm -rf -- "$folder"
    mkdir -p -- "$folder"
    printf -v command ' %q' sudo -n bash -c "$SUBNODE_LOGS" bash "$BASE" "${SERVICE_LOGS[@]}"
    # shellcheck disable=SC2016  # bash expands it
    timeout -k 5 "$2" bash -c 'set -o pipefail; "${@:3}" 2> "$2.errors" | python3 -I "$1" logs "$2" 2> "$2.said"' bash \
        "$GATE_TOOLS/received.py" "$folder" ssh -a -k -x -T -o BatchMode=yes -o ConnectTimeout=10 -o LogLevel=ERROR -- "$name" "$command" \
        < /dev/null || rc=$?
    said=$(cat -- "$folder.said" "$folder.errors" 2> /dev/null | head -c 2000 | head -n 1 | printable || true)
    rm -f -- "$folder.said" "$folder.errors"
    if (( rc )); then
        printf 'The logs of subnode %s could not be fetched%s\n' "$name" "${said:+: $said}"
    elif [[ $said ]]; then
        printf 'Logs of subnode %s: %s\n' "$name" "$said"
    fi
}
