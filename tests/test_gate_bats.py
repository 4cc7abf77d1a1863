"""The bats files with the tests of the bash functions; each test there is one test here."""

import os
import subprocess
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "gate").glob("*.bats"))
BATS_SECONDS = 1800


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_bats(file: Path) -> None:
    done = subprocess.run(["bats", str(file)], env={**os.environ, "TERM": "dumb"}, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=BATS_SECONDS, check=False)

    assert done.returncode == 0, "\n".join(
        line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("ok "))


def test_there_are_bats_files() -> None:
    assert FILES
