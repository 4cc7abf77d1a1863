"""The process that forks for each run of a script outlives whoever ordered a run."""

import json
import os
import socket
import subprocess
from pathlib import Path

from tests.support.pool import await_that
from tests.support.starter_client import Starter

VERSION = ("vmdatabase.py", ["--version"])


def test_it_serves_on_after_one_that_was_gone_before_it_read_how_its_run_ended(tmp_path: Path) -> None:
    with Starter() as starter:
        name = starter.command()[-2]
        script, arguments = VERSION
        order = {"order": 0, "script": script, "arguments": arguments, "folder": str(tmp_path),
                 "environment": dict(os.environ)}
        output = tmp_path / "output"
        with output.open("wb") as told, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
            gone.connect(f"\0{name}")
            socket.send_fds(gone, [json.dumps(order).encode()], [told.fileno()])
            await_that("its version", output.read_bytes)
        assert starter.run(*VERSION, os.environ, tmp_path, 30).returncode == 0


def test_it_serves_on_while_those_that_order_runs_are_killed(tmp_path: Path) -> None:
    with Starter() as starter:
        for seconds in range(12):
            runs = [subprocess.Popen([*starter.command(), VERSION[0], *VERSION[1]], stdout=subprocess.DEVNULL,
                                     cwd=tmp_path) for _ in range(3)]
            for run in runs:
                try:
                    run.wait(seconds / 60)
                except subprocess.TimeoutExpired:
                    run.kill()
            for run in runs:
                run.wait()
        assert starter.run(*VERSION, os.environ, tmp_path, 30).returncode == 0
