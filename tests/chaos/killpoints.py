"""One run for each point."""
import argparse
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.events import Events


def run(stack: ExitStack, folder: Path, events: Events, options: argparse.Namespace) -> int:
    raise NotImplementedError
