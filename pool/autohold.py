"""Autoholds: the machines of a job's next failed builds are held, and a person is let in.

A failed build uses one count of one autohold, in the transaction that holds its machine, so counts are exact however
many builds end at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import gateprocess
import vmdatabase
from gateprocess import ConfigError, GateError
from vmdatabase import HOLD, USED, Machine

if TYPE_CHECKING:
    from gateconfig import SecureConfig

COLUMNS = ("id", "job", "change", "count", "remaining", "hours", "reason", "ssh_key", "made")
MOST = 10**6  # machines of one autohold


class Autohold(NamedTuple):
    """A row of the table: which failed builds' machines are held, how many more, for how long, and who is let in."""

    id: int
    job: str
    change: int | None
    machines: int
    remaining: int
    hours: float | None
    reason: str
    ssh_key: str | None
    made: int

    @property
    def hold_reason(self) -> str:
        """The reason that a machine's hold shows."""
        return f"autohold {self.id}: {self.reason}"


def add_parser(commands: Any, hours: Callable[[str], float], public_key: Callable[[str], str]) -> None:
    """Add the command autohold to vmdatabase.py; hours and public_key parse the options that `hold` has, too."""
    command = commands.add_parser(
        "autohold", help="hold the machines of the next builds of a job that fail",
        usage="vmdatabase.py autohold --job JOB [--change N] [--count K] [--hours N] --reason TEXT "
              "[--ssh-key FILE|KEY] | list | delete ID")
    command.add_argument("words", nargs="*", metavar="list | delete ID", help="what there is; end one")
    command.add_argument("--job", type=_text, metavar="JOB", help="the job whose builds are meant")
    command.add_argument("--change", type=_number, metavar="N", help="only those of this change")
    command.add_argument("--count", type=_number, metavar="K", help="how many machines (1)")
    command.add_argument("--hours", type=hours, metavar="N", help="let each go after so many hours (default: never)")
    command.add_argument("--reason", type=_text, metavar="TEXT", help="why, for those who find them")
    command.add_argument("--ssh-key", metavar="FILE|KEY", help="public key to let in")
    command.set_defaults(run=lambda options: run(options, command, public_key))


def _text(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise argparse.ArgumentTypeError(f"expected one line of text, got {value!a}")
    return value.strip()  # no job has a name that begins or ends with a space


def _number(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and 1 <= int(value[:18]) <= 10**15):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {value!a}")
    return int(value)


def run(options: argparse.Namespace, parser: argparse.ArgumentParser, public_key: Callable[[str], str]) -> int:
    """Run the command; return the exit code."""
    given = [name for name in ("job", "change", "count", "hours", "reason", "ssh_key") if getattr(options, name)]
    if options.words and given:
        parser.error(f"--{given[0].replace('_', '-')} does not go with {options.words[0]}")
    if options.words == ["list"]:
        return show()
    if options.words[:1] == ["delete"] and len(options.words) == 2:  # noqa: PLR2004
        return delete(options.words[1])
    if options.words:
        parser.error(f"expected list, delete ID, or --job and --reason, got {' '.join(options.words)!a}")
    if not options.job or not options.reason:
        parser.error(f"--{'reason' if options.job else 'job'} is missing")
    count = options.count or 1
    if count > MOST:
        parser.error(f"--count: expected at most {MOST}")
    key = public_key(options.ssh_key) if options.ssh_key is not None else None
    ((number,),) = vmdatabase.database.execute_sql(
        "INSERT INTO autohold (job, change, count, remaining, hours, reason, ssh_key, made) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (options.job, options.change, count, count, options.hours, options.reason, key, vmdatabase.now())).fetchall()
    print(f"autohold {number}")
    return gateprocess.EXIT_OK


def show() -> int:
    """Print all autoholds, including those that are used up."""
    from pool.commands import print_table

    columns = [name for name in COLUMNS if name not in ("ssh_key", "made")]
    cursor = vmdatabase.database.execute_sql(
        f"SELECT {', '.join(columns)}, CASE WHEN ssh_key IS NULL THEN '' ELSE 'yes' END FROM autohold ORDER BY id")
    print_table([*columns, "ssh key"], [list(row) for row in cursor])
    return gateprocess.EXIT_OK


def delete(text: str) -> int:
    """End an autohold; machines that it holds stay held."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else 0  # noqa: PLR2004
    if not vmdatabase.database.execute_sql("DELETE FROM autohold WHERE id = ?", (number,)).rowcount:
        raise ConfigError(f"ID: there is no autohold {text!a}; see: vmdatabase.py autohold list")
    return gateprocess.EXIT_OK


def take(machine: Machine) -> Autohold | None:
    """Hold the machine of a failed build whose end is recorded, if an autohold wants it.

    Returns the autohold; None if none wants it. One for the build's change goes before those for all changes, an older
    one before a newer.
    """
    result = vmdatabase.last_result(machine)
    if result is None or result.jenkins_job_name is None or machine.state != USED:
        return None
    with vmdatabase.database.atomic("IMMEDIATE"):
        row = vmdatabase.database.execute_sql(
            f"SELECT {', '.join(COLUMNS)} FROM autohold WHERE job = ? AND remaining > 0 "
            "AND (change IS NULL OR change = ?) ORDER BY change IS NULL, id LIMIT 1",
            (result.jenkins_job_name, result.gerrit_change_number)).fetchone()
        if row is None:
            return None
        wanted = Autohold(*row)
        until = vmdatabase.now() + int(wanted.hours * 3600) if wanted.hours else None
        if not vmdatabase.move(machine, USED, HOLD, hold_reason=wanted.hold_reason, hold_until=until):
            return None
        vmdatabase.database.execute_sql("UPDATE autohold SET remaining = remaining - 1 WHERE id = ?", (wanted.id,))
    return wanted


def let_in(machine: Machine, wanted: Autohold, config: SecureConfig) -> None:
    """Put the person's key on a held machine; if that fails, raise a GateError that says how to do it by hand."""
    if wanted.ssh_key is None:
        return
    import nodessh

    try:
        boot_timeout = machine.base_image.provider.boot_timeout
        for one in (machine, *vmdatabase.members_of(machine)):
            nodessh.authorize(nodessh.Login.of_machine(one, config.node), wanted.ssh_key, boot_timeout)
    except GateError as err:
        raise GateError(f"{machine.name}: is held, but the key of autohold {wanted.id} is not on it: {err}; again: "
                        f"vmdatabase.py hold {machine.name} --reason TEXT --ssh-key KEY") from err
