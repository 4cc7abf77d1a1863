"""The least that a launch with nothing to do must read: a login, all servers, all nodes, all machines.

Called by idle.py: floor_idle.py CLOUD DATABASE SERVER USER TOKEN; prints how many of each there are.
"""

import json
import os
import sqlite3
import sys

import jenkins
import novaclient.client
import openstack
import requests

NODE_FIELDS = "displayName,description,offline,temporarilyOffline,idle,offlineCause[*],offlineCauseReason," \
              "assignedLabels[name]"


def count_nodes(url: str, user: str, token: str) -> int:
    """Return how many nodes Jenkins has, by the one call that lists them."""
    server = jenkins.Jenkins(url, user, token, timeout=30)
    server.crumb = False  # API tokens need no crumb
    request = requests.Request("GET", f"{url}computer/api/json", params={"tree": f"computer[{NODE_FIELDS}]"})
    return len(json.loads(server.jenkins_open(request))["computer"])


def count_servers(cloud: str) -> int:
    """Return how many servers the cloud has, by pages of 1,000."""
    config = openstack.config.OpenStackConfig().get_one(cloud)
    session = openstack.connection.Connection(config=config).session
    compute = novaclient.client.Client("2.1", session=session, service_type="compute").client
    count = 0
    url = "/servers/detail?limit=1000"
    while url:
        body = compute.get(url)[1]
        count += len(body["servers"])
        following = [link["href"] for link in body.get("servers_links", []) if link["rel"] == "next"]
        url = f"/servers/detail?{following[0].partition('?')[2]}" if following else ""
    return count


def main() -> None:
    """Print the counts."""
    cloud, path, *jenkins_login = sys.argv[1:]
    nodes = count_nodes(*jenkins_login)
    servers = count_servers(cloud)
    machines = len(sqlite3.connect(path).execute("SELECT * FROM machine").fetchall())
    print(nodes, servers, machines, flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # as the scripts end
