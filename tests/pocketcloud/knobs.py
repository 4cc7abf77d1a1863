"""What can be turned at one cloud while it runs: the knobs, their types and what they may be set to."""

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any

CHOICES: dict[str, tuple[str | None, ...]] = {
    "machines": ("namespace", "shared-ssh", "none"),
    "boot_failure": ("error", "stuck", "no-address", "no-ssh", "silent-ssh", "unknown"),
    "snapshot_failure": (None, "queued", "stuck", "killed", "error"),
}
ANSWER_KINDS = ("status", "hang", "reset", "close", "truncate", "html", "after")
ANSWER_FIELDS = {"service", "match", "status", "times", "body", "headers", "kind", "then"}
SERVICES = ("identity", "compute", "image", "network", "block-storage")


class KnobError(ValueError):
    """There is no such knob, or it cannot have that value."""


@dataclass
class Knobs:
    """The knobs of one cloud; times in seconds."""

    machines: str = "none"  # the kind of the servers created from now on
    boot_seconds: float = 0.0  # from create to ACTIVE
    boot_jitter: float = 0.0  # up to so much longer, at random
    boot_failure_rate: float = 0.0  # 0 to 1
    boot_failure: str = "error"  # how a boot fails
    boot_failure_next: int = 0  # so many boots from now on fail for certain
    boot_failure_every: int = 0  # each so-manieth boot fails for certain; 0: none
    boot_fault: str = "No valid host was found. "  # {id} becomes the server's id
    boot_fault_code: int = 500
    random_seed: int = 1  # setting it starts the random numbers anew
    ssh_delay_seconds: float = 0.0  # from ACTIVE to an answering sshd
    delete_seconds: float = 0.0
    delete_ignored: bool = False  # a delete is answered with 204 and nothing happens
    latency_seconds: float = 0.0  # before each answer of each service
    rate_limit: float | None = None  # compute calls a second
    rate_limit_status: int = 429
    quota_instances: int | None = None
    quota_cores: int | None = None
    quota_ram: int | None = None  # MB
    answers: list[dict[str, Any]] = field(default_factory=list)  # scripted answers, see README.md
    list_empty: int = 0  # so many server lists from now on are empty
    list_stale_seconds: float = 0.0  # server lists come from a copy, made now and renewed so often
    snapshot_seconds: float = 0.0
    snapshot_failure: str | None = None  # stays queued, stays saving (stuck), killed, or is gone again (error)
    no_disks: bool = False  # no flavor has a disk: servers boot from volumes only
    volume_seconds: float = 0.0  # from a volume's create until it is available
    volume_failures: int = 0  # so many volumes from now on become error
    volume_quota: int | None = None
    volume_gigabytes_quota: int | None = None
    volumes_stay: bool = False  # a server leaves its volume behind, as Nova does when Cinder fails
    second_network: str | None = None  # name of a network beside private, between which a create then has to choose
    floating_seconds: float = 1.0  # from a floating IP's binding until the server shows it and it answers
    floating_quota: int | None = None
    token_seconds: float = 3600.0  # how long the tokens issued from now on are good
    shared_ssh_keys: list[str] | None = None  # public keys that shared-ssh lets in; null: any
    shared_ssh_users: list[str] = field(default_factory=lambda: ["root", "jenkins", "debian"])

    def turn(self, name: str, value: object) -> None:
        """Set one knob; raises KnobError, naming the knob and what was expected."""
        hints = typing.get_type_hints(Knobs)
        if name not in hints:
            raise KnobError(f"no knob {name!r}; there are {', '.join(sorted(hints))}")
        if not _fits(value, hints[name]):
            raise KnobError(f"knob {name}: {value!r} is not {getattr(hints[name], '__name__', hints[name])}")
        if name in CHOICES and value not in CHOICES[name]:
            raise KnobError(f"knob {name}: {value!r} is not one of {', '.join(map(str, CHOICES[name]))}")
        if name == "answers":
            _check_answers(typing.cast(list[dict[str, Any]], value))
        setattr(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """All knobs with their values, for JSON."""
        return dataclasses.asdict(self)


def parse_setting(text: str) -> tuple[str, object]:
    """Take NAME=VALUE apart; VALUE is JSON, or else a plain string. Raises KnobError when there is no `=`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise KnobError(f"{text!r}: expected KNOB=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if typing.get_origin(hint) is list:
        inner = typing.get_args(hint)[0]
        return isinstance(value, list) and all(isinstance(one, typing.get_origin(inner) or inner) for one in value)
    return isinstance(value, hint)


def _check_answers(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        strange = set(answer) - ANSWER_FIELDS
        if strange:
            raise KnobError(f"knob answers: no field {', '.join(sorted(strange))}")
        if answer.get("service", "compute") not in SERVICES:
            raise KnobError(f"knob answers: service {answer['service']!r} is not one of {', '.join(SERVICES)}")
        if answer.get("kind", "status") not in ANSWER_KINDS or answer.get("then", "status") not in ANSWER_KINDS[:-1]:
            raise KnobError(f"knob answers: kind and then are one of {', '.join(ANSWER_KINDS)}")
        try:
            re.compile(answer["match"])
        except (KeyError, TypeError, re.error) as err:
            raise KnobError(f"knob answers: match of {answer!r} is not a regular expression") from err
