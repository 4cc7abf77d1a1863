"""Run one script through the starter that listens at a name, as if the script were this process; see starter.py.

    python -I -S tests/support/forked.py NAME ORDER SCRIPT ARGUMENTS

It imports little, so it costs less than starting the script as a separate process.
"""

import json
import os
import signal
import socket
import sys

MESSAGE_BYTES = 1 << 16


def main() -> None:
    name, order, script, *arguments = sys.argv[1:]
    wanted = {**json.loads(order), "order": 0, "script": script, "arguments": arguments,
              "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 - pathlib is slow to load
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as service:
        service.connect(f"\0{name}")
        socket.send_fds(service, [json.dumps(wanted).encode()], [1, 2])
        _, descriptors, _, _ = socket.recv_fds(service, MESSAGE_BYTES, 1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda sent, _: signal.pidfd_send_signal(descriptors[0], sent))
        status = json.loads(service.recv(MESSAGE_BYTES))["status"]
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
