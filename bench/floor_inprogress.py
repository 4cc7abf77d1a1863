"""The floor of devstack-vm-inprogress: a bare process with the same imports, transaction and calls.

Called by latency.py: floor_inprogress.py STEP DATABASE NODE SERVER USER TOKEN JOB NUMBER, where STEP says how far to
go: imports, database, or jenkins for everything.
"""

import os
import sys
import time

import jenkins
import peewee
import requests

FIELDS = "displayName,description,offline,temporarilyOffline,idle,offlineCause[*],offlineCauseReason," \
         "assignedLabels[name]"
BUILD_FIELDS = "builtOn,building,result,actions[causes[upstreamProject,upstreamBuild]]"


def take(path: str, node: str, job: str, number: str) -> None:
    """Move the machine to USED and note the build, in one transaction."""
    database = peewee.SqliteDatabase(path, timeout=30)
    now = int(time.time())
    with database.connection_context(), database.atomic("IMMEDIATE"):
        moved = database.execute_sql(
            "UPDATE machine SET state = 'USED', state_time = ? WHERE name = ? AND state = 'READY'", (now, node))
        assert moved.rowcount == 1
        database.execute_sql(
            "INSERT INTO result (base_image_id, machine_id, node_name, jenkins_job_name, jenkins_build_number, "
            "start_time) SELECT base_image_id, id, name, ?, ?, ? FROM machine WHERE name = ?", (job, number, now, node))


def ask(server: jenkins.Jenkins, method: str, path: str, **query: str) -> str:
    """Make one call and return what Jenkins answers."""
    hooks = {"response": stay}
    return str(server.jenkins_open(requests.Request(method, f"{server.server}{path}", params=query, hooks=hooks)))


def stay(answer: requests.Response, **_arguments: object) -> None:
    """Do not follow a redirect to a page for people."""
    answer.headers.pop("Location", None)


def main() -> None:
    """Go as far as STEP says."""
    step, path, node, url, user, token, job, number = sys.argv[1:]
    if step == "database":
        take(path, node, job, number)
    if step == "jenkins":
        server = jenkins.Jenkins(url, user, token, timeout=30)
        server.crumb = False  # API tokens need no crumb
        ask(server, "GET", "api/json", tree="mode")
        ask(server, "GET", f"job/{job}/{number}/api/json", tree=BUILD_FIELDS)
        look = f"computer/{node}/api/json"
        ask(server, "GET", look, tree=FIELDS)
        take(path, node, job, number)
        ask(server, "GET", look, tree=FIELDS)
        config = server.get_node_config(node)
        server.reconfig_node(node, config.replace("<label>devstack-noble</label>", "<label>devstack-used</label>"))
        ask(server, "POST", f"computer/{node}/changeOfflineCause", offlineMessage=f"in use by {job} #{number}")
        assert "devstack-used" in ask(server, "GET", look, tree=FIELDS)


if __name__ == "__main__":
    main()
    os._exit(0)  # as the scripts end
