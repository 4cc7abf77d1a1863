"""The commands of vmdatabase.py for people: list, load, hold, unhold, backup, moved, forget; other modules add more."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import gateconfig
import gateprocess
import jenkinsnodes
import vmdatabase
from gateconfig import SecureConfig
from gateprocess import ConfigError, GateError, get_log
from pool import autohold, copies, environments, history, script

KEY_TYPES = ("ssh-", "ecdsa-", "sk-")
HOURS_OF_HOLDS = 24 * 366  # a hold for longer is a slip, or one without --hours


def main(argv: list[str] | None = None) -> int:
    """Run vmdatabase.py's command line."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    command: Callable[[argparse.Namespace], int] = options.run
    place = gateconfig.place_of_database(options.db, "--db") if options.db is not None else gateconfig.database_place()
    with vmdatabase.opened(place):
        return command(options)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(vmdatabase.__doc__)
    parser.add_argument("--db", metavar="PATH", help="the database, instead of $DEVSTACK_GATE_DB or ~/vm.db")
    parser.set_defaults(run=_run_list, json=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    command = commands.add_parser("list", help="print the pool")
    command.add_argument("--json", action="store_true", help="as a JSON list of one object per provider and image")
    command = commands.add_parser("load", help="make providers and images equal to a file")
    command.add_argument("file", type=Path, metavar="FILE", help="providers file, YAML")
    command.add_argument("--dry-run", action="store_true", help="print the changes without making them")
    command.set_defaults(run=_run_load)
    command = commands.add_parser("hold", help="keep a machine")
    command.add_argument("node", metavar="NODE")
    command.add_argument("--reason", required=True, type=_reason, metavar="TEXT",
                         help="why, for those who find it")
    command.add_argument("--ssh-key", metavar="FILE|KEY", help="public key to let in")
    command.add_argument("--hours", type=_hours, metavar="N", help="let it go after so many hours (default: never)")
    command.set_defaults(run=_run_hold)
    command = commands.add_parser("unhold", help="let a held machine be deleted")
    command.add_argument("node", metavar="NODE")
    command.set_defaults(run=_run_unhold)
    command = commands.add_parser("backup", help="make a consistent copy of vm.db, also while scripts run")
    command.add_argument("file", type=Path, metavar="FILE",
                         help="where to; an earlier backup of this pool there is replaced")
    command.set_defaults(run=_run_backup)
    command = commands.add_parser("moved", help="say that this vm.db was moved or restored here on purpose")
    command.set_defaults(run=_run_moved)
    command = commands.add_parser("forget", help="drop a provider whose cloud is gone")
    command.add_argument("provider", metavar="PROVIDER")
    command.add_argument("--dry-run", action="store_true", help="print what would be left behind")
    command.set_defaults(run=_run_forget)
    copies.add_parser(commands)
    history.add_parser(commands)
    autohold.add_parser(commands, _hours, _public_key)
    environments.add_parser(commands)
    return parser.parse_args(argv)


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected one line of text, got {text!a}")
    return vmdatabase.printable(text.strip())


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0
    if not 0 < hours < HOURS_OF_HOLDS:
        raise argparse.ArgumentTypeError(f"expected hours, above 0 and below {HOURS_OF_HOLDS}, "
                                         f"got {text!a}")
    return hours


def _run_list(options: argparse.Namespace) -> int:
    cursor = vmdatabase.database.execute_sql("SELECT * FROM pool")
    columns = [column[0] for column in cursor.description]
    rows = cursor.fetchall()
    if options.json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
        return gateprocess.EXIT_OK
    print_table(columns, rows)
    if not rows:
        print(f"{vmdatabase.database.database} has no providers yet; run: vmdatabase.py load FILE")
    return gateprocess.EXIT_OK


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under the names of their columns, with numbers aligned to the right."""
    cells = [[str("" if value is None else value) for value in row] for row in rows]
    widths = [max(len(row[index]) for row in [list(columns), *cells]) for index in range(len(columns))]
    for row in [list(columns), *cells]:
        padded = [cell.rjust(width) if cell.isdigit() else cell.ljust(width)
                  for cell, width in zip(row, widths, strict=True)]
        print("  ".join(padded).rstrip())


def _run_load(options: argparse.Namespace) -> int:
    from pool import providersfile

    content = providersfile.read(options.file)
    with vmdatabase.database.atomic("IMMEDIATE") as transaction:
        changes = [*providersfile.load(content.providers, content.labels), *history.set_days(content.history_days),
                   *providersfile.load_environments(content.environments),
                   *environments.set_wait(content.environment_wait)]
        if options.dry_run:
            transaction.rollback()
    if not options.dry_run:
        environments.tidy_notes()
    for change in changes:
        print(f"would {change}" if options.dry_run else change)
    if not changes:
        print("no changes")
    for warning in (*providersfile.warnings_of_labels(content), *providersfile.warnings_of_environments(content)):
        get_log().warning("%s", warning)
    for provider in content.providers:
        for warning in providersfile.warnings_of(provider, content.labels):
            get_log(provider=provider["name"]).warning("%s", warning)
    return gateprocess.EXIT_OK


def _run_hold(options: argparse.Namespace) -> int:
    """Hold the machine first, so that no script moves it, then take its node out of service and let the person in."""
    import nodessh

    key = _public_key(options.ssh_key) if options.ssh_key is not None else None
    machine = vmdatabase.machine_named(options.node)
    node = vmdatabase.node_of(machine)
    config = gateconfig.load_secure_config() if node or key else None
    nodes = _checked_nodes(config, machine) if config and node else None
    if config and key:
        nodessh.load_key(config.node.ssh_key)
    until = vmdatabase.now() + int(options.hours * 3600) if options.hours else None
    before = vmdatabase.hold(machine, options.reason, until)
    log = vmdatabase.machine_log(machine)
    log.info("%s -> HOLD: %s", before, options.reason)
    if before == vmdatabase.BUILDING and not machine.external_id:
        log.warning("its server is still being created; if none appears, release it with: vmdatabase.py unhold %s",
                    machine.name)
    code = gateprocess.EXIT_OK
    why = f"{jenkinsnodes.HELD}{options.reason}"
    if config and machine.jenkins_name and nodes is None:
        log.error("no Jenkins in %s has its node, so the node stays in service; a build that starts there will "
                  "fail", config.path)
        code = gateprocess.EXIT_FAILED
    try:
        if node and nodes:
            nodes.take_out_of_service(node, why, missing_ok=True)
    except GateError as err:
        log.error("%s; a build that starts there will fail, and reap will see to the node", err)
        code = gateprocess.EXIT_FAILED
    group = [machine, *vmdatabase.members_of(machine)]
    if config and key:
        boot_timeout = machine.base_image.provider.boot_timeout
        for one in group:
            nodessh.authorize(nodessh.Login.of_machine(one, config.node), key, boot_timeout)
    for one in group:
        print(f"{one.name} {one.user}@{one.ip}" if one.ip else one.name, flush=True)
    for one in group:
        if one.external_id and not _mark_held(machine, one, options.reason, until):
            code = gateprocess.EXIT_FAILED
    return code


def _mark_held(machine: vmdatabase.Machine, one: vmdatabase.Machine, reason: str, until: int | None) -> bool:
    """Mark the server in the cloud as held, too, in case vm.db is restored some day; if this fails, reap does it.

    one: the machine or one of its subnodes. Returns False if there is no server to hold.
    """
    from cloud import nova

    try:
        cloud = script.cloud_of(machine.base_image.provider)
        cloud.mark_held(str(one.external_id), reason, until)
    except nova.GoneError:
        vmdatabase.machine_log(one).error("its server is gone, so there is nothing to keep; release it with: "
                                              "vmdatabase.py unhold %s", machine.name)
        return False
    except GateError as err:
        vmdatabase.machine_log(one).info("%s; the next reap marks its server as held", err)
    return True


def _checked_nodes(config: SecureConfig, machine: vmdatabase.Machine) -> jenkinsnodes.Nodes | None:
    """Return a machine's Jenkins, with the login checked; an outage does not stop a person from holding the machine."""
    nodes = script.nodes_of(config, machine)
    if nodes:
        with contextlib.suppress(jenkinsnodes.JenkinsError):
            nodes.check_login()
    return nodes


def _public_key(text: str) -> str:
    key = text.strip()
    if not key.startswith(KEY_TYPES):
        try:
            key = Path(text).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, RuntimeError, UnicodeDecodeError) as err:
            raise ConfigError(f"--ssh-key: {text[:200]!r} is neither a public key nor a file with one") from err
    if not gateconfig.is_public_key(key):
        raise ConfigError("--ssh-key: expected a public key or a file with one, such as 'ssh-ed25519 AAAA... name'")
    return key


def _run_unhold(options: argparse.Namespace) -> int:
    machine = vmdatabase.machine_named(options.node)
    if not vmdatabase.move(machine, vmdatabase.HOLD, vmdatabase.DELETE, "unhold"):
        raise ConfigError(f"{options.node}: is not held, its state is {machine.state}")
    vmdatabase.machine_log(machine).info("HOLD -> DELETE")
    return gateprocess.EXIT_OK


def _run_backup(options: argparse.Namespace) -> int:
    file = gateconfig.expanded(str(options.file), "FILE")
    vmdatabase.backup(file)
    print(f"{vmdatabase.printable(str(file))} is a copy of {vmdatabase.database.database}")
    return gateprocess.EXIT_OK


def _run_moved(_options: argparse.Namespace) -> int:
    before = vmdatabase.setting("path")
    last = vmdatabase.moved()
    environments.doubt_notes()
    print(f"{vmdatabase.database.database} belongs to this host and path (before: {before}); new machines have ids "
          f"from {last['machine'] + 1} on")
    return gateprocess.EXIT_OK


def _run_forget(options: argparse.Namespace) -> int:
    """Drop the rows and Jenkins nodes of a provider without asking its cloud, and list what may still exist there."""
    provider = vmdatabase.provider_named(options.provider)
    if provider.active:
        raise ConfigError(f"{provider.name}: is in the providers file; take it out there, and load the file, first")
    with contextlib.ExitStack() as locks:
        for kind in ("launch", "reap", "update-image"):
            if not locks.enter_context(script.provider_lock(kind, provider.name)):
                holder = script.lock_holder(kind, provider.name)
                which = f" ({holder})" if holder else ""
                raise GateError(f"{provider.name}: a {kind} is at work there{which}; try again when it has ended")
        machines = vmdatabase.machines_of(provider)
        held = [str(machine.name) for machine in machines if machine.state == vmdatabase.HOLD]
        if held:
            raise ConfigError(f"{provider.name}: {gateprocess.some(held)} is held; vmdatabase.py unhold it first")
        left = _left_behind(provider, machines)
        if options.dry_run:
            print("\n".join(f"would be left behind: {thing}" for thing in left) or "nothing is left behind")
            return gateprocess.EXIT_OK
        building = _remove_nodes(machines)
        for thing in left:
            print(f"left behind: {thing}")
        if building:
            raise GateError(f"{provider.name}: builds run on {gateprocess.some(building)}; forget it again when they "
                            "have ended")
        vmdatabase.forget(provider)
    print(f"forgot provider {provider.name}; anything else left there carries {vmdatabase.pool_uuid()}: floating IPs "
          "in their description, keypairs in their name, volumes in their metadata")
    return gateprocess.EXIT_OK


def _left_behind(provider: vmdatabase.Provider, machines: Sequence[vmdatabase.Machine]) -> list[str]:
    """Return in words the servers and images of a provider that vm.db knows."""
    left = [f"server {machine.name} {machine.external_id or '(id not known)'}" for machine in machines]
    for snapshot in vmdatabase.snapshots_of(provider):
        if snapshot.server_external_id and snapshot.has_server(vmdatabase.now()):
            left.append(f"server {snapshot.name} {snapshot.server_external_id}")
        if snapshot.external_id:
            left.append(f"image {snapshot.name} {snapshot.external_id}")
    return left


def _remove_nodes(machines: Sequence[vmdatabase.Machine]) -> list[str]:
    """Remove the Jenkins nodes of machines; return the names of those that still build, which stay."""
    in_jenkins = [one for one in machines if one.jenkins_name]
    jenkinses = script.jenkinses_of(gateconfig.load_secure_config()) if in_jenkins else None
    return [str(one.jenkins_name) for one in in_jenkins if jenkinses and (nodes := jenkinses.of(one))
            and not nodes.remove(str(one.jenkins_name), "its provider is forgotten", one.ip)]
