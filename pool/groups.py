"""Groups of machines: a machine, the lead, with subnodes that are booted with it and are useful only together.

Jenkins knows only the lead. Its subnodes are rows of vm.db that name it; triggers move them with it, so whoever takes,
holds or ends the lead does so with the whole group. Nothing here asks the cloud or writes into vm.db.
"""

from __future__ import annotations

import io
import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import gateprocess
import nodessh
from cloud import nova
from vmdatabase import BUILDING, DELETE, ERROR, HOLD, Machine

PRIMARY, SUBNODE = "primary", "subnode"  # the roles in NODES_FILE
NONE = "-"  # stands there for a missing address
REPLACED_MOST = 3  # failed subnodes of one group that a run replaces
REACH_SECONDS = 60  # for the lead to log in to all of its subnodes

FOLDER = "/etc/devstack-gate"
NODES_FILE = f"{FOLDER}/nodes"
KEY_FILE = f"{FOLDER}/group-key"  # the private key of the group, on the lead, for the account of the node
HOSTS_FILE = f"{FOLDER}/group-known-hosts"
SSH_FILE = "/etc/ssh/ssh_config.d/devstack-gate.conf"


@dataclass(frozen=True)
class Place:
    """Where a machine of a group can be reached; login is the pool's, with the host key that was seen."""

    name: str
    role: str
    private: str | None
    public: str | None
    login: nodessh.Login
    server_id: str = ""
    lead_id: int | None = None  # from its server's mark, None if that is not a subnode's

    @property
    def address(self) -> str:
        """The address at which the others of the group reach it."""
        return self.private or self.public or self.login.address


def place_of(machine: Machine, server: nova.Server, login: nodessh.Login) -> Place:
    """Return the place of a machine that has passed the ssh test; its server, as last seen, may lack a floating IP."""
    private = nova.choose_address(server.addresses, "private-v4", set())
    public = nova.choose_address(server.addresses, "public-v4", set())
    if public is None and login.address != private:
        public = login.address
    role = PRIMARY if machine.lead_id is None else SUBNODE
    return Place(str(machine.name), role, private, public, login, server.id, server.lead_id)


class Group:
    """A lead and its subnodes on their way, in one run of launch. Moments are on the monotonic clock."""

    def __init__(self, lead_id: int, subnodes: int) -> None:
        """Begin with a lead that should have this number of subnodes."""
        self.lead_id = lead_id
        self.subnodes = subnodes
        self.over = ""  # why it was given up
        self.is_ready = False
        self.replaced = 0
        self._ends: dict[int, float] = {}  # deadlines of the machines that it began with
        self._places: dict[int, Place | None] = {}  # of each machine, once it was let in

    def __str__(self) -> str:
        """Return the names of its subnodes."""
        return gateprocess.some([place.name for place in self.places[1:]])

    def __contains__(self, machine_id: int) -> bool:
        """Return whether a machine is in the group."""
        return machine_id in self._places

    def expect(self, machine_id: int, end: float, replaces: bool = False) -> None:
        """Add a machine, with its deadline; a machine that replaces another adds no time."""
        if not (replaces or machine_id in self._places):
            self._ends[machine_id] = end
        self._places.setdefault(machine_id, None)

    def end_of(self, machine_id: int, end: float) -> float:
        """Return the deadline in this group of a machine that alone would have until `end`."""
        if machine_id not in self._ends:
            return min(end, self.deadline)
        self._ends[machine_id] = end
        return end

    @property
    def deadline(self) -> float:
        """The group's deadline: the latest of those of the machines that it began with."""
        return max(self._ends.values(), default=math.inf)

    def let_in(self, machine_id: int, place: Place | None) -> None:
        """Record that a machine has passed the ssh test, or (None) that it has to pass it again."""
        self._places[machine_id] = place

    def lose(self, machine_id: int) -> None:
        """Remove a machine from the group."""
        self._places.pop(machine_id, None)

    @property
    def missing(self) -> int:
        """How many subnodes still have to be asked for."""
        return max(0, self.subnodes + 1 - len(self._places))

    @property
    def is_whole(self) -> bool:
        """Whether all are there and have passed the ssh test."""
        return not self.missing and all(self._places.values())

    @property
    def places(self) -> list[Place]:
        """The places of the machines that have passed the ssh test, the lead first."""
        return [place for _, place in sorted(self._places.items(), key=lambda item: (item[0] != self.lead_id, item[0]))
                if place]

    def is_in(self, machine_id: int) -> bool:
        """Return whether a machine of the group has passed the ssh test."""
        return self._places.get(machine_id) is not None

    def marks_to_set(self) -> list[tuple[str, int | None]]:
        """Return the ids of servers whose marks name the wrong lead, each with the id of the right lead's row."""
        leads = [(place, None if place.role == PRIMARY else self.lead_id) for place in self.places]
        return [(place.server_id, lead) for place, lead in leads if place.lead_id != lead]

    @cached_property
    def keys(self) -> Keys:
        """The key pair of this group, made for it; no copy is kept outside its machines."""
        return make_keys()


# --- what its machines know of each other ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """A key pair in OpenSSH's format."""

    private: str
    public: str

    def __repr__(self) -> str:
        """Return it without the private key."""
        return f"Keys({self.public!r})"


def make_keys() -> Keys:
    """Return a new key pair."""
    import paramiko

    key = paramiko.ECDSAKey.generate()
    text = io.StringIO()
    key.write_private_key(text)
    return Keys(text.getvalue(), f"{key.get_name()} {key.get_base64()} {nodessh.GROUP_KEY}")


def nodes_text(places: Iterable[Place]) -> str:
    """Return the contents of NODES_FILE: a line for each machine, NAME ROLE PRIVATE PUBLIC."""
    return "".join(f"{one.name} {one.role} {one.private or NONE} {one.public or NONE}\n" for one in places)


def known_hosts(places: Iterable[Place]) -> str:
    """Return the host keys of the subnodes, as seen at their ssh tests, for ssh on the lead."""
    return "".join(f"{','.join(_host_names(one))} {one.login.host_key}\n" for one in places if one.role == SUBNODE)


def _host_names(place: Place) -> list[str]:
    names = dict.fromkeys([place.name, *_addresses(place)])
    port = place.login.port
    return [name if port == 22 else f"[{name}]:{port}" for name in names]  # noqa: PLR2004


def _addresses(place: Place) -> list[str]:
    found = dict.fromkeys(address for address in (place.private, place.public, place.login.address) if address)
    return list(found)


def ssh_config(places: Iterable[Place]) -> str:
    """Return the configuration with which `ssh NAME` and `ssh ADDRESS` on the lead use the group's key alone."""
    return "# The subnodes of this machine, see /etc/devstack-gate/nodes.\n" + "".join(
        f"Host {' '.join([one.name, *_addresses(one)])}\n    HostName {one.address}\n    Port {one.login.port}\n"
        f"    User {one.login.user}\n    IdentityFile {KEY_FILE}\n    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {HOSTS_FILE}\n    StrictHostKeyChecking yes\n"
        for one in places if one.role == SUBNODE)


def introduction(places: Sequence[Place], keys: Keys) -> str:
    """Return the script, for root's sh on the lead, that writes these files there and logs in to the subnodes."""
    user = shlex.quote(places[0].login.user)
    lines = ["set -e", "umask 022", f"mkdir -p {FOLDER} /etc/ssh/ssh_config.d",
             f"rm -f {KEY_FILE}", f"(umask 077; printf %s {shlex.quote(keys.private)} > {KEY_FILE})",
             f"chown {user}: {KEY_FILE}"]
    texts = {HOSTS_FILE: known_hosts(places), SSH_FILE: ssh_config(places), NODES_FILE: nodes_text(places)}
    lines += [f"printf %s {shlex.quote(text)} > {file}; chmod 0644 {file}" for file, text in texts.items()]
    lines += ["grep -qs '^ *Include .*ssh_config\\.d' /etc/ssh/ssh_config ||",
              "    sed -i '1i Include /etc/ssh/ssh_config.d/*.conf' /etc/ssh/ssh_config"]
    is_root = places[0].login.user == "root"
    words = [*([] if is_root else ["sudo", "-n", "-H", "-u", places[0].login.user]), "sh", "-c", REACH, "sh",
             "" if is_root else "sudo -n", *(place.name for place in places if place.role == SUBNODE)]
    return "\n".join([*lines, f"exec {shlex.join(words)} < /dev/null"]) + "\n"


# Run on the lead by the node's account; its arguments are the command that becomes root on a subnode, and the names.
# It logs in to all subnodes side by side, and prints those that it does not reach.
REACH = f"""become=$1; shift; failed=
for name; do
    ssh -o BatchMode=yes -o ConnectTimeout=20 "$name" \
        "$become sh -c 'umask 022; mkdir -p {FOLDER} && cat > {NODES_FILE}'" < {NODES_FILE} &
    pids="$pids $!:$name"
done
for one in $pids; do wait "${{one%%:*}}" || failed="$failed ${{one#*:}}"; done
[ -z "$failed" ] || {{ echo "not reached:$failed"; exit 1; }}"""


def introduce(places: Sequence[Place], keys: Keys, deadline: float) -> None:
    """Run in a worker: tell the lead about its subnodes, and have it reach each of them and tell it about all.

    deadline is on the monotonic clock. Raises GateError if that fails.
    """
    with nodessh.session(places[0].login, deadline=deadline, most=nodessh.WELCOME_BYTES) as connection:
        words = connection.as_root(["sh", "-s"])
        connection.run("log in to the subnodes", words, REACH_SECONDS, introduction(places, keys))


# --- rows ------------------------------------------------------------------------------------------------------------


def by_lead(machines: Iterable[Machine]) -> dict[int, list[Machine]]:
    """Return the subnodes among these machines, by the id of their lead."""
    found: dict[int, list[Machine]] = defaultdict(list)
    for machine in machines:
        if machine.lead_id is not None:
            found[machine.lead_id].append(machine)
    return dict(found)


def members(lead: Machine, subnodes: Mapping[int, Sequence[Machine]]) -> list[Machine]:
    """Return the subnodes that move with a lead, those in its state; one that failed in its boot no longer does."""
    return [one for one in subnodes.get(lead.id, ()) if one.state == lead.state]


def strayed(member: Machine, lead: Machine | None) -> str:
    """Return why nobody has a subnode although its row does not say so; empty if somebody has it or it is going."""
    if member.state in (DELETE, ERROR):
        return ""
    if lead is None:
        return "the machine that it belongs to is gone"
    # A subnode that a person has put on HOLD by hand stays, whatever the state of its lead.
    return "" if member.state in (lead.state, HOLD) else f"{lead.name}, to which it belongs, is {lead.state}"


def wrong_size(lead: Machine, count: int, wanted: int) -> str:
    """Return why a machine does not have the size that the providers file now wants; empty if it does."""
    if lead.state == BUILDING or count == wanted:
        return ""
    return f"it has {count} subnode{'s' * (count != 1)}, and the providers file says {wanted}"
