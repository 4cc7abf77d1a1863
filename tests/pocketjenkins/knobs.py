"""What tests may change about the stand-in for Jenkins."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tests.pocketjenkins.plugins import RECORDED
from tests.support.knobs import Turnable


@dataclass
class Knobs(Turnable):
    """What tests may change while it runs (`PATCH /control`)."""

    CHOICES: ClassVar = {"connect": ("ssh", "instant", "never")}
    ANSWER_CHOICES: ClassVar = {"kind": ("status", "hang", "reset", "close"), "when": ("before", "after")}
    ANSWER_FIELDS: ClassVar = {"body", "status", "times", "seconds"}

    connect: str = "ssh"  # or "instant": online without a machine; or "never": connecting for ever
    connect_seconds: float = 0.0  # before a connection is made or, with "instant", the node is online
    reconnect_seconds: float = 12.0  # from the loss of an agent to the next launch, as measured
    relaunch_seconds: float = 60.0  # from a failed launch to the next one, which the retention strategy asks for
    retry_seconds: float | None = None  # instead of the launcher's retryWaitTime
    gap_seconds: float = 0.018  # an executor between two builds; 17-22 ms were measured
    restart_seconds: float = 1.0  # how long a restart answers 503
    latency_seconds: float = 0.0
    starting_up: bool = False
    create_races: bool = False  # two creates of one name at once both succeed
    race_seconds: float = 0.1  # how long such a create looks away
    rights: dict[str, list[str]] = field(default_factory=dict)  # also "Item.Build/JOB"; not listed: may do everything
    plugins: dict[str, str] = field(default_factory=lambda: dict(RECORDED))  # versions by short name
    inactive: list[str] = field(default_factory=list)  # which of them are switched off
    passwords: dict[str, str] = field(default_factory=dict)  # user by id: credentials of kind username with password
    departed: list[str] = field(default_factory=list)  # users of Jenkins' that its user directory no longer knows
    has_address: bool = True  # Manage Jenkins, System: otherwise builds are not told where Jenkins is
    master_label: str = ""  # of the Jenkins host, beside "master"
    master_executors: int = 2
    master_environment: dict[str, str] = field(default_factory=dict)  # of the steps that run there
    minute_seconds: float = 60.0  # how long a minute of the build timeout plugin is
    answers: list[dict[str, Any]] = field(default_factory=list)
