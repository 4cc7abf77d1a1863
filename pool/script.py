"""How the scripts that work on a provider begin: with its row, its lock, and Jenkins if there is one."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import gateconfig
import gateprocess
import vmdatabase
from gateconfig import SecureConfig
from gateprocess import GateError, get_log
from pool import environments
from vmdatabase import Machine, Provider

if TYPE_CHECKING:
    from cloud import nova
    from jenkinsnodes import Nodes
    from pool.jenkinses import Jenkinses

PACED_CALLS = 10  # at most so many for each server in one run, at the provider's pace


def run_for_provider(name: str, argv: Sequence[str] | None, work: Callable[[Provider], int]) -> int:
    """Open vm.db and do a script's work for the provider of that name, or for `all`; return the exit code."""
    with vmdatabase.opened(gateconfig.database_place()):
        check_database()
        vmdatabase.leave_out_noted_ids()
        environments.publish_notes()
        if name != "all":
            gateconfig.check_clouds_yaml()
            return work(vmdatabase.provider_named(name))
        names = vmdatabase.provider_names()
    return gateprocess.run_each(names, argv)


def check_database() -> None:
    """Raise ConfigError if the database may be a copy of one at work, or holds wrong values that a person wrote."""
    from pool import rows

    vmdatabase.require_home()
    rows.check()


def run_alone(
    kind: str, provider: Provider, work: Callable[[], int], longest: float, wait_seconds: float = 0,
    again_seconds: float = 0,
) -> int:
    """Do work under the provider's lock of that kind, or leave it to the run that has the lock; return the exit code.

    again_seconds: until so long after its start, a run repeats the work for other runs that left it to this one
    meanwhile, perhaps after its last look. longest: how many seconds the work can take, beside what the provider's pace
    adds. If the run that has the lock is older, it has gone wrong and blocks this kind of work: the exit code is 1.
    """
    began = time.monotonic()
    database, asked = vmdatabase.database, _lock_of(f"again-{kind}", provider.name)
    codes: list[int] = []
    if again_seconds:  # before the lock is tried: its holder looks for the word after releasing it
        database.leave_word(asked)
    while not codes or (database.has_word(asked) and time.monotonic() - began < again_seconds):
        with provider_lock(kind, provider.name, wait_seconds) as mine:
            if not mine:
                break
            database.take_word(asked)
            with _hint_of_forget(provider):
                codes.append(work())
    if codes:
        return max(codes)
    log = get_log(provider=provider.name)
    holder = lock_holder(kind, provider.name)
    longest += again_seconds + PACED_CALLS * provider.max_servers / (provider.calls_per_second or math.inf)
    if holder and vmdatabase.now() - holder.since > longest:
        log.error("another %s has been at work on this provider for longer than the %d s that it can take: %s; nothing "
                  "is done here before it ends", kind, longest, holder)
        return gateprocess.EXIT_FAILED
    log.warning("another %s is at work on this provider; leaving it to that one (%s)", kind,
                holder or "its process is not visible from this host")
    return gateprocess.EXIT_OK


@contextlib.contextmanager
def _hint_of_forget(provider: Provider) -> Iterator[None]:
    """Add to an error how to drop a provider that left the providers file, in case its cloud is gone."""
    try:
        yield
    except GateError as err:
        if not provider.active:
            err.args = (f"{err}; if that cloud is gone for good: vmdatabase.py forget {provider.name}",)
        raise


def provider_lock(kind: str, provider: str, wait_seconds: float = 0) -> contextlib.AbstractContextManager[bool]:
    """Hold the lock for launch, reap or update-image on a provider; yields False if another process has it."""
    return vmdatabase.lock(_lock_of(kind, provider), wait_seconds)


def lock_holder(kind: str, provider: str) -> gateprocess.Holder | None:
    """Return which process has the lock of one kind of work on a provider; None if none is visible from here."""
    holder: gateprocess.Holder | None = vmdatabase.database.holder(_lock_of(kind, provider))
    return holder


def _lock_of(kind: str, provider: str) -> str:
    return f"{kind}-{provider}"


def cloud_of(provider: Provider) -> nova.Cloud:
    """Return the cloud of a provider, logged in; raises ConfigError if the provider's machines are in another one."""
    from cloud import nova

    cloud = nova.Cloud(provider, vmdatabase.pool_uuid())
    vmdatabase.check_place(provider, *cloud.place)
    return cloud


def jenkinses_of(config: SecureConfig) -> Jenkinses | None:
    """Return every Jenkins of this pool; None if there is no [jenkins] section."""
    if not config.jenkinses:
        return None
    from pool.jenkinses import Jenkinses

    return Jenkinses(config, vmdatabase.lock, vmdatabase.pool_uuid())


def lost_section(config: SecureConfig, provider: Provider) -> str:
    """Return in words that machines have nodes although no Jenkins is configured; empty if that is not so."""
    if config.jenkinses:
        return ""
    count = sum(machine.jenkins_name is not None for machine in vmdatabase.machines_of(provider))
    if not count:
        return ""
    return f"there is no [jenkins] section in {config.path}, but {count} machines have nodes in Jenkins"


def nodes_of(config: SecureConfig, machine: Machine) -> Nodes | None:
    """Return the Nodes of a machine's Jenkins; None if there is none, or none any more."""
    jenkinses = jenkinses_of(config)
    return jenkinses.find(machine) if jenkinses else None
