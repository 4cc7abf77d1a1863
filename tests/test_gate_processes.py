"""gate/processes.py alone: what it does if the wrap script ignores signals, at times that no run has."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pool import PROJECT, await_that

sys.path.append(str(PROJECT / "gate"))
import processes

PROGRAM = [sys.executable, "-I", str(PROJECT / "gate/processes.py")]
INIT = """import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
subprocess.Popen(["bash", "-c", sys.argv[1]])
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""
SUDO = """import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: None)
child = os.spawnvp(os.P_NOWAIT, "sleep", ["sleep", sys.argv[1]])
while os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]):
    os.kill(os.getpid(), signal.SIGSTOP)
"""
DEAF = "trap '' USR1 TERM; setsid sleep 5%d & echo ready; read"


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.fixture
def script() -> "Iterator[subprocess.Popen[str]]":
    """Run a stand-in for a wrap script that ignores USR1 and TERM, with a child that has left its session."""
    process = subprocess.Popen(["bash", "-c", DEAF % time.monotonic_ns()], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def child_of(process: "subprocess.Popen[str]") -> int:
    command = ["pgrep", "-P", str(process.pid), "-f", "^sleep 5"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def watch(process: "subprocess.Popen[str]", *options: str) -> int:
    """Start a watcher; return its pid."""
    command = [*PROGRAM, "watch", "--run", str(process.pid), "--grace", "1", *options]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout)


def end(watcher: int) -> None:
    os.kill(watcher, signal.SIGTERM)
    await_that("the watcher's end", lambda: not Path(f"/proc/{watcher}").exists())


def test_a_script_that_is_long_over_its_time_is_killed_with_all_of_its_run(
        script: "subprocess.Popen[str]", tmp_path: Path) -> None:
    child, folder, logs = child_of(script), tmp_path / "run", tmp_path / "logs"
    folder.mkdir()
    logs.mkdir()
    (logs / "gate_hook.txt").write_text("token\n")

    watcher = watch(script, "--deadline", str(now()), "--end", str(now() - 58), "--folder", str(folder),
                    "--logs", str(logs))

    assert script.wait(30) == -signal.SIGKILL
    await_that("the watcher's end", lambda: not Path(f"/proc/{watcher}").exists())
    assert not Path(f"/proc/{child}").exists()
    assert not folder.exists()
    [aside] = tmp_path.glob("logs-uncollected-*")
    assert [path.name for path in logs.iterdir()] == ["cleanup-host.txt"]
    assert (logs / "cleanup-host.txt").read_text().endswith(
        " the time limit was reached, and the wrap script did not end; everything was stopped; "
        f"the logs may hold secrets, and are in {aside}\n")
    assert (aside / "logs/gate_hook.txt").read_text() == "token\n"
    assert aside.stat().st_mode & 0o777 == 0o700


def test_a_watcher_that_is_ended_ends_nothing(script: "subprocess.Popen[str]") -> None:
    child = child_of(script)
    watcher = watch(script, "--deadline", str(now() + 1000), "--end", str(now() + 1000))

    end(watcher)

    assert script.poll() is None
    assert Path(f"/proc/{child}").exists()
    subprocess.run([*PROGRAM, "stop", "--run", str(script.pid), "--grace", "0"], check=True, timeout=20)
    assert not Path(f"/proc/{child}").exists()
    assert script.poll() is None


def test_a_watcher_that_is_ended_at_once_leaves_the_run_in_its_cgroup(script: "subprocess.Popen[str]") -> None:
    cgroup = Path(f"/proc/{script.pid}/cgroup").read_text()
    for _ in range(5):
        end(watch(script, "--deadline", str(now() + 1000), "--end", str(now() + 1000)))

        assert Path(f"/proc/{script.pid}/cgroup").read_text() == cgroup


def test_one_run_at_a_time_has_the_machine(script: "subprocess.Popen[str]", tmp_path: Path) -> None:
    options = ("--deadline", str(now() + 1000), "--end", str(now() + 1000), "--lock", str(tmp_path / "lock"))
    watcher = watch(script, *options)
    command = [*PROGRAM, "watch", "--run", str(script.pid), *options]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)

    assert (done.returncode, done.stderr) == (
        75, f"another run is under way on this machine, process {script.pid}\n")
    end(watcher)
    end(watch(script, *options))


def test_a_run_that_is_none_is_told() -> None:
    done = subprocess.run([*PROGRAM, "watch", "--run", "999999999"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (2, "--run: there is no process 999999999\n")


@pytest.mark.parametrize(("deaf", "grace"), [("", 5.0), ("trap '' TERM;", 0.2)])
def test_a_loop_starts_nothing_between_the_signals_to_its_child_and_to_itself(
        deaf: str, grace: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's script is dead, there is no cgroup, and whoever sends the signals gets the processor seldom."""
    sign = f"sleep 6{time.monotonic_ns()}"
    script = f"setsid bash -c \"{deaf} while :; do {sign}; done\" & echo $$; read"
    init = subprocess.Popen([sys.executable, "-c", INIT, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True)
    assert init.stdout
    run = processes.read_process(int(init.stdout.readline()))
    assert run
    family = processes.Family(run, processes.Cgroup(run), "", "", set())
    await_that("the loop", lambda: len(family.living()) == 2)
    os.kill(run.pid, signal.SIGKILL)
    living, kill = family.living, os.kill

    def kill_slowly(pid: int, number: int) -> None:
        kill(pid, number)
        time.sleep(0.2)

    monkeypatch.setattr(family, "living", lambda: sorted(living(), reverse=True))  # the child comes first
    monkeypatch.setattr(os, "kill", kill_slowly)

    assert processes.stop(family, grace)

    left = subprocess.run(["pgrep", "-f", f"^{sign}"], capture_output=True, text=True, check=False).stdout
    assert left == "", [kill(int(pid), signal.SIGKILL) for pid in left.split()]
    assert init.wait(20) == 0


def test_a_sudo_that_stops_itself_with_its_command_costs_no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals reach it first: once woken, it sees that its command is still stopped."""
    with subprocess.Popen(["bash", "-c", '"$@"; true', "bash", sys.executable, "-c", SUDO, "600"]) as script:
        run = processes.read_process(script.pid)
        assert run
        family = processes.Family(run, processes.Cgroup(run), "", "", set())
        await_that("sudo and its command", lambda: len(family.living()) == 2)
        living, kill, sent = family.living, os.kill, set()

        def kill_slowly(pid: int, number: int) -> None:
            sent.add(number)
            kill(pid, number)
            time.sleep(0.2)

        monkeypatch.setattr(family, "living", lambda: sorted(living()))
        monkeypatch.setattr(os, "kill", kill_slowly)

        assert processes.stop(family, 5.0)

    assert signal.SIGKILL not in sent


def test_a_process_whose_parent_ends_between_two_readings_is_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read before its parent, which is then gone, and with it the link to the run."""
    run = processes.Process(100, "S", 1, 100, 100, 1)
    child = processes.Process(101, "S", 102, 101, 101, 3)
    found = {1: processes.Process(1, "S", 0, 1, 1, 0), 100: run, 101: child}

    def read(pid: int) -> "processes.Process | None":
        if pid == 102:
            found[101] = child._replace(parent=100)
        return found.get(pid)

    monkeypatch.setattr(processes, "read_process", read)
    monkeypatch.setattr(os, "listdir", lambda _: ["1", "100", "101", "102", "self"])

    assert processes.Family(run, processes.Cgroup(run), "", "", set()).living() == [101]
