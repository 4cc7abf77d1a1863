"""The knobs of one cloud, which can be turned while it runs: their types and allowed values."""

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tests.support.knobs import KnobError, Turnable

KINDS = ("namespace", "shared-ssh", "none")  # of servers
ANSWER_KINDS = ("status", "hang", "reset", "close", "truncate", "html", "after")


@dataclass
class Knobs(Turnable):
    """The knobs of one cloud; times in seconds."""

    CHOICES: ClassVar = {
        "machines": KINDS,
        "boot_failure": ("error", "stuck", "no-address", "no-ssh", "silent-ssh", "unknown"),
        "snapshot_failure": (None, "queued", "stuck", "killed", "error"),
    }
    ANSWER_CHOICES: ClassVar = {
        "service": ("identity", "compute", "image", "network", "block-storage"),
        "kind": ANSWER_KINDS,
        "then": ANSWER_KINDS[:-1],
    }
    ANSWER_FIELDS: ClassVar = {"status", "times", "body", "headers"}

    machines: str = "none"  # the kind of servers created from now on
    boot_seconds: float = 0.0  # from create to ACTIVE
    boot_jitter: float = 0.0  # random extra time, at most
    boot_failure_rate: float = 0.0  # 0 to 1
    boot_failure: str = "error"  # how a boot fails
    boot_failure_next: int = 0  # this many boots from now on fail for certain
    boot_failure_every: int = 0  # every Nth boot fails for certain; 0: none
    boot_fault: str = "No valid host was found. "  # {id} becomes the server's id
    boot_fault_code: int = 500
    random_seed: int = 1  # setting it restarts the random numbers
    ssh_delay_seconds: float = 0.0  # from ACTIVE to an answering sshd
    delete_seconds: float = 0.0
    delete_ignored: bool = False  # a delete is answered with 204, but nothing happens
    latency_seconds: float = 0.0  # before each answer of each service
    rate_limit: float | None = None  # compute calls a second
    rate_limit_status: int = 429
    quota_instances: int | None = None
    quota_cores: int | None = None
    quota_ram: int | None = None  # MB
    answers: list[dict[str, Any]] = field(default_factory=list)  # scripted answers, see README.md
    list_empty: int = 0  # this many server lists from now on are empty
    list_stale_seconds: float = 0.0  # server lists come from a copy that is renewed at this interval
    snapshot_seconds: float = 0.0
    snapshot_failure: str | None = None  # the image stays queued, stays saving (stuck), is killed, or goes (error)
    no_disks: bool = False  # no flavor has a disk: servers boot from volumes only
    volume_seconds: float = 0.0  # from a volume's create until it is available
    volume_failures: int = 0  # this many volumes from now on become error
    volume_quota: int | None = None
    volume_gigabytes_quota: int | None = None
    volumes_stay: bool = False  # a server leaves its volume behind, as Nova does when Cinder fails
    second_network: str | None = None  # name of a network beside private; a create must then choose one
    floating_seconds: float = 1.0  # from a floating IP's binding until the server shows it and it answers
    floating_quota: int | None = None
    token_seconds: float = 3600.0  # lifetime of tokens issued from now on
    shared_ssh_keys: list[str] | None = None  # public keys that shared-ssh lets in; null: any
    shared_ssh_users: list[str] = field(default_factory=lambda: ["root", "jenkins", "debian"])


def parse_setting(text: str) -> tuple[str, object]:
    """Split NAME=VALUE; VALUE is JSON, or else a plain string. Raises KnobError if there is no `=`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise KnobError(f"{text!r}: expected KNOB=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
