"""If this host or a limit of its process has no more of something, a script says so in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pool import PROJECT, Pool, image, provider

BODY = """import resource, sys, threading
import gateconfig
import gateprocess
def body():
    {body}
sys.argv = ["script.py"]
gateprocess.run(body)
"""
NO_THREADS = ("resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); threading.stack_size(1 << 32); "
              "return gateprocess.Workers(1).submit(int).result()")


def limited(pool: Pool, limit: str, *words: str, to: str = "/dev/null") -> tuple[int, str]:
    """Run vmdatabase.py under a limit of bash's; return exit code and stderr."""
    script = [sys.executable, str(PROJECT / "vmdatabase.py"), *words]
    command = ["bash", "-c", f'{limit}; exec "$@" >{to}', "bash", *script]
    result = subprocess.run(command, env=pool.environment, cwd=pool.folder, capture_output=True, text=True, timeout=60,
                            check=False)
    return result.returncode, result.stderr


def test_a_commit_that_fails_is_told_by_its_own_error(pool: Pool) -> None:
    pool.load(provider())
    file = pool.folder / "more.yaml"
    pool.load(provider(images=[image(f"noble-{number}") for number in range(300)]))
    (pool.folder / "providers.yaml").rename(file)
    pool.load(provider())
    before = pool.dump()

    code, err = limited(pool, "ulimit -f 40", "-q", "load", str(file))  # KB; the log of the transaction needs more

    said = err.splitlines()[-1]
    assert (code, said.startswith(f"vmdatabase.py: {pool.database}: disk I/O error (SQLITE_IOERR_WRITE); the disk is "
                                  "full or broken")) == (1, True), err
    assert pool.dump() == before
    pool.run("vmdatabase.py", "-q", "load", str(file), expect=0)


def test_an_output_that_cannot_be_written_is_told(pool: Pool) -> None:
    pool.load(provider())
    code, err = limited(pool, "true", "list", to="/dev/full")
    assert (code, err) == (1, "vmdatabase.py: standard output, or a file: No space left on device\n")


@pytest.mark.parametrize(("word", "code", "said"), [
    ("nonsense", 2, "vmdatabase.py: argument "), ("--version", 0, "vmdatabase.py ")])
def test_wrong_use_ends_well_also_without_an_output(pool: Pool, word: str, code: int, said: str) -> None:
    result, err = limited(pool, "true", word, to="&-")
    assert (result, err.startswith(said), err.count("\n")) == (code, True, 1), err


@pytest.mark.parametrize("files", [5, 6, 7])
def test_too_few_file_descriptors_are_told(pool: Pool, files: int) -> None:
    pool.load(provider())
    code, err = limited(pool, f"ulimit -n {files}", "-q", "list")
    assert (code, len(err.splitlines())) == (1, 1), err
    assert err.endswith(": Too many open files; see ulimit -n\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [("return len(bytearray(1 << 50))", "this host, or the limit of this process, has no more memory"),
     ("return gateprocess.Workers(1).submit(bytearray, 1 << 50).result()",
      "this host, or the limit of this process, has no more memory"),
     (NO_THREADS, "can't start a new thread: this host, or the limit of this account's processes, allows no more"),
     ("open('/proc/self/mem', 'rb').read(1)",
      "standard output, or a file: Input/output error; is the disk broken?")])
def test_what_runs_out_is_told_in_one_line(body: str, said: str, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", BODY.format(body=body)], cwd=PROJECT, capture_output=True, text=True,
                            timeout=60, check=False, env={"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)})
    assert (result.returncode, result.stderr) == (1, f"script.py: {said}\n")
