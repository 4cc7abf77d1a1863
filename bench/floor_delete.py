"""The floor of devstack-vm-delete: a bare process with the same imports, transaction and calls.

Called by latency.py: floor_delete.py STEP DATABASE NODE HOST PORT USER TOKEN JOB NUMBER, where STEP says how far to go:
imports, database, or jenkins for everything.
"""

import base64
import json
import os
import socket
import sys
import time
from urllib.parse import quote

import peewee

FIELDS = "displayName,description,offline,temporarilyOffline,idle,offlineCause[*],offlineCauseReason," \
         "assignedLabels[name]"


def give_back(path: str, node: str) -> None:
    """Record the result and mark the machine, in one transaction."""
    database = peewee.SqliteDatabase(path, timeout=30)
    now = int(time.time())
    with database.connection_context(), database.atomic("IMMEDIATE"):
        database.execute_sql(
            "UPDATE result SET end_time = ?, result = 'SUCCESS' WHERE end_time IS NULL AND machine_id = "
            "(SELECT id FROM machine WHERE name = ?)", (now, node))
        moved = database.execute_sql(
            "UPDATE machine SET state = 'DELETE', state_time = ? WHERE name = ? AND state = 'USED'", (now, node))
        assert moved.rowcount == 1


def get(path: str, host: str, port: str, login: str) -> tuple[bytes, bytes]:
    """Return head and body of Jenkins' answer for a path."""
    request = (f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n"
               f"Authorization: Basic {base64.b64encode(login.encode()).decode()}\r\n\r\n")
    with socket.create_connection((host, int(port)), 30) as stream:
        stream.sendall(request.encode())
        head, _, body = stream.makefile("rb").read().partition(b"\r\n\r\n")
    return head, body


def main() -> None:
    """Go as far as STEP says."""
    step, path, node, host, port, user, token, job, number = sys.argv[1:]
    if step == "jenkins":  # ask whether the node is out of service, and for the build's verdict, which it lacks
        server = host, port, f"{user}:{token}"
        assert json.loads(get(f"/computer/{node}/api/json?tree={quote(FIELDS)}", *server)[1])["temporarilyOffline"]
        assert b" 404 " in get(f"/job/{job}/{number}/artifact/logs/verdict.json", *server)[0]
    if step in ("database", "jenkins"):
        give_back(path, node)


if __name__ == "__main__":
    main()
    os._exit(0)  # as the scripts end
