#!/usr/bin/env bash
# A devstack in miniature: reads the localrc sections of local.conf, installs, starts one service, waits for it.
set -eu
top=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
awk '/^\[\[/ { ours = ($0 == "[[local|localrc]]"); next } ours' "$top/local.conf" > "$top/.localrc.auto"
# shellcheck source=/dev/null
. "$top/.localrc.auto"
: "${DEST:?}" "${DATA_DIR:?}" "${LOGDIR:?}"
echo "installing into $DATA_DIR"
sudo -n install -d -o stack "$DATA_DIR" "$LOGDIR"
cd "$DEST/adderd"
if [[ ${FAIL_WITH:-} ]]; then
    echo "failing, as told"
    exit "$FAIL_WITH"
fi
# It keeps the console open, as some services do by mistake.
rm -f "$DATA_DIR/adderd.socket"
setsid python3 adderd.py "$DATA_DIR/adderd.socket" "$DEST/adder" 2>> "$LOGDIR/screen-adderd.log" &
for _ in {1..100}; do
    if [[ -S $DATA_DIR/adderd.socket ]]; then break; fi
    sleep 0.1
done
test -S "$DATA_DIR/adderd.socket"
echo "adderd is up, services: adderd${ENABLED_SERVICES:-}"
echo "The password: $ADMIN_PASSWORD"
