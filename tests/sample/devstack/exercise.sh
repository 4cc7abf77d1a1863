#!/usr/bin/env bash
# Asks the running service for a sum; the service takes its arithmetic from another project.
set -eu
top=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=/dev/null
. "$top/.localrc.auto"
if sudo -n true 2> /dev/null; then
    echo "the tests must not have sudo"
    exit 1
fi
answer=$(python3 "$DEST/adderd/ask.py" "$DATA_DIR/adderd.socket" "1 2 39")
echo "1 + 2 + 39 = $answer"
test "$answer" = 42
