"""Run storms over the real scripts, and audit what is left; or kill every script at every point.

    tests/chaos/run --rounds 500 --seed 1      many rounds, peace every 5 rounds
    tests/chaos/run --points                   one run for each point between two outside calls
    tests/chaos/run --restores 50 --seed 1     after an hour of traffic, restore vm.db from a backup of a random moment

With --database postgresql the pool is on its own PostgreSQL server, which dies and fails over to a lagging replica.
Needs root: vm.db lies on a small disk mounted for it in a new namespace.
Exit codes: 0 no violation, 1 violations, 2 wrong use.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.chaos import killpoints
from tests.chaos.events import Events
from tests.chaos.restores import Restores
from tests.chaos.runs import Starter
from tests.chaos.servers import Servers
from tests.chaos.storm import Storm
from tests.chaos.world import World, open_site

PROVIDERS = {"one": "pocket-a", "two": "pocket-b"}


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    _enter_namespace()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}; the event log is {folder}/events.jsonl", flush=True)
    began = time.monotonic()
    with ExitStack() as stack:
        events = Events(folder / "events.jsonl")
        if options.points:
            wrong = killpoints.run(stack, folder, events, options)
        else:
            pocket, jenkins = open_site(stack, folder, PROVIDERS.values())
            starter = stack.enter_context(Starter(events))
            servers = stack.enter_context(Servers()) if options.database == "postgresql" else None
            world = stack.enter_context(World(folder / "world", pocket, jenkins, starter, events, PROVIDERS,
                                              servers=servers))
            if options.restores:
                wrong = Restores(world, options.seed).run(options.restores)
                print(f"{wrong} violations in {time.monotonic() - began:.0f} s")
                return 1 if wrong else 0
            tally = Storm(world, options.seed, options.peace_every, options.side_by_side).run(options.rounds)
            print(tally.text())
            wrong = len(tally.violations)
    print(f"{wrong} violations in {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/chaos/run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peace-every", type=int, default=5, metavar="ROUNDS")
    parser.add_argument("--side-by-side", type=int, default=3, metavar="N", help="scripts at once, or lanes of points")
    parser.add_argument("--restores", type=int, default=0, metavar="N", help="restore vm.db N times instead of rounds")
    parser.add_argument("--points", action="store_true", help="kill each script at each point, instead of rounds")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite",
                        help="where the pool is; on postgresql the scripts run on two hosts, a restore is a failover")
    parser.add_argument("--script", action="append", choices=tuple(killpoints.SCENARIOS), metavar="NAME",
                        help="with --points: only this scenario (repeatable)")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="with --points: start at point N")
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM", "INT"), help="with --points")
    parser.add_argument("--folder", type=Path,
                        help="for the event log and all files, from the folder of the project on; default: a new one "
                             "in /tmp")
    return parser.parse_args(argv)


def _enter_namespace() -> None:
    """Start again in a new mount namespace, so that nothing stays mounted however the program ends."""
    inside = "CHAOS_NAMESPACE"
    if os.environ.pop(inside, None) is None:
        words = [sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
        os.execvpe("unshare", ["unshare", "--mount", "--propagation", "private", *words], os.environ | {inside: "1"})


if __name__ == "__main__":
    sys.exit(main())
