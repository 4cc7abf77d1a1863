"""What tests can change about the stand-in for Jenkins."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tests.pocketjenkins.plugins import RECORDED
from tests.support.knobs import Turnable


@dataclass
class Knobs(Turnable):
    """What tests can change while it runs (`PATCH /control`)."""

    CHOICES: ClassVar = {"connect": ("ssh", "instant", "never")}
    ANSWER_CHOICES: ClassVar = {"kind": ("status", "hang", "reset", "close"), "when": ("before", "after")}
    ANSWER_FIELDS: ClassVar = {"body", "status", "times", "seconds"}

    connect: str = "ssh"  # "instant": online without a machine; "never": connecting for ever
    connect_seconds: float = 0.0  # before the connection is made or, with "instant", the node is online
    reconnect_seconds: float = 12.0  # from the loss of an agent to the next launch, as measured
    relaunch_seconds: float = 60.0  # from a failed launch to the next one (the retention strategy's)
    retry_seconds: float | None = None  # instead of the launcher's retryWaitTime
    gap_seconds: float = 0.018  # between two builds of an executor; 17-22 ms were measured
    restart_seconds: float = 1.0  # how long Jenkins answers 503 during a restart
    latency_seconds: float = 0.0
    starting_up: bool = False
    create_races: bool = False  # two creates of one name at once both succeed
    race_seconds: float = 0.1  # how long such a create waits after its check
    rights: dict[str, list[str]] = field(default_factory=dict)  # also "Item.Build/JOB"; who is not listed may do all
    plugins: dict[str, str] = field(default_factory=lambda: dict(RECORDED))  # versions by short name
    inactive: list[str] = field(default_factory=list)  # which of them are switched off
    passwords: dict[str, str] = field(default_factory=dict)  # user by id, of credentials of kind username with password
    departed: list[str] = field(default_factory=list)  # Jenkins users that its user directory no longer knows
    has_address: bool = True  # Manage Jenkins, System; without it, builds get no address of Jenkins
    master_label: str = ""  # of the Jenkins host, beside "master"
    master_executors: int = 2
    master_environment: dict[str, str] = field(default_factory=dict)  # of the steps that run on the Jenkins host
    minute_seconds: float = 60.0  # the length of a minute for the build timeout plugin
    answers: list[dict[str, Any]] = field(default_factory=list)
