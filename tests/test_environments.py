"""Test environments as builds, jobs and people use them: scripts run as processes, on machines with a real sshd."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.pool import PROJECT, Pool, await_line, await_that, image, provider

INPROGRESS, DELETE, REAP, VMDATABASE = (
    "devstack-vm-inprogress.py", "devstack-vm-delete.py", "devstack-vm-reap.py", "vmdatabase.py")
WAITS = "waits for a test environment"
RESET = 'echo "$TEST_ENVIRONMENT $(basename "$TEST_ENVIRONMENT_FILE")" >> resets; [ ! -e hang ] || sleep 300'


@pytest.fixture
def pool(pool: Pool) -> Pool:
    """Return a pool whose builds need a test environment, and that has one."""
    load(pool)
    return pool


def load(pool: Pool, **keys: Any) -> str:
    """Load the providers file with one environment; return what load prints."""
    (pool.folder / "rack-1.json").write_text('{"boxes": 3}')
    environment = {"name": "rack-1", "images": ["noble"], "data": "rack-1.json", "reset": RESET} | keys
    file = pool.folder / "providers.yaml"
    file.write_text(yaml.safe_dump({"providers": [provider(images=[image(test_environment=True)])],
                                    "test-environments": [environment]}))
    return pool.run(VMDATABASE, "load", str(file), expect=0).stdout


def machine(pool: Pool, **columns: Any) -> str:
    """Add a ready machine that lets us in, without a node; return its name."""
    return pool.add_machine(**{"node": False, "host_key": None, **columns})


def environment(pool: Pool) -> tuple[str, str | None]:
    """Return the state of the environment, and the node that has it."""
    (row,) = json.loads(pool.run(VMDATABASE, "environments", "--json", expect=0).stdout)
    return row["state"], row["node"]


def build(number: int) -> dict[str, str]:
    """Return the variables by which Jenkins names a build to a script on this host."""
    return {"JOB_NAME": "gate", "BUILD_NUMBER": str(number)}


def test_two_builds_have_the_one_environment_one_after_the_other_and_it_is_reset_between(pool: Pool) -> None:
    first, second = machine(pool), machine(pool)
    said = pool.run(INPROGRESS, first, expect=0, **build(1)).stderr
    assert "test environment rack-1: its data is on the machine" in said
    assert environment(pool) == ("LOCKED", first)

    run = pool.start(INPROGRESS, second, **build(2))
    await_line(run, WAITS)
    pool.run(DELETE, first, "--result", "SUCCESS", expect=0, **build(1))
    _, err = run.communicate(timeout=90)

    assert (run.returncode, environment(pool)) == (0, ("LOCKED", second)), err
    assert (pool.folder / "resets").read_text() == "rack-1 rack-1.json\n"
    assert pool.sql("SELECT jenkins_build_number, environment, kind FROM result ORDER BY id") == [
        (1, "rack-1", "unknown"), (2, "rack-1", None)]
    assert "boxes" not in "".join(pool.dump())
    history = pool.run(VMDATABASE, "history", "rack-1", expect=0).stdout
    told = [line.split("Z  ", 1)[1] for line in history.splitlines()]
    assert [line.split(" after ")[0] for line in told if "test environment" in line] == [
        "test environment rack-1: in vm.db as FREE: new in the providers file",
        f"{first}  test environment rack-1: FREE -> LOCKED", f"{first}  test environment rack-1: LOCKED -> RESETTING",
        "test environment rack-1: RESETTING -> FREE", f"{second}  test environment rack-1: FREE -> LOCKED"]
    assert "test environment rack-1: FREE -> LOCKED" in pool.run(VMDATABASE, "history", first, expect=0).stdout


def test_a_build_that_gets_none_in_time_fails_before_it_begins_and_its_machine_is_not_kept(pool: Pool) -> None:
    holder, late = machine(pool), machine(pool)
    pool.run(INPROGRESS, holder, expect=0, **build(1))
    no_wait(pool)

    run = pool.run(INPROGRESS, late, expect=1, **build(2))

    words = (f"{late}: no test environment within 0 min (environment-wait): rack-1 is LOCKED ({holder}); "
             "0 waiting before it; this build cannot begin")
    assert run.stderr.splitlines()[-1] == f"devstack-vm-inprogress.py: {words}"
    assert pool.machines() == {holder: "USED", late: "DELETE"}
    pool.run(DELETE, late, "--result", "FAILURE", expect=0, **build(2))
    assert pool.machines()[late] == "DELETE"
    assert pool.sql("SELECT result, kind, phase, reason FROM result WHERE node_name = ?", late) == [
        ("FAILURE", "infrastructure", "devstack-vm-inprogress", words)]
    assert environment(pool) == ("LOCKED", holder)
    assert pool.sql("SELECT * FROM environment_waiter") == []


def test_the_machine_of_a_failed_build_gives_way_and_one_that_is_held_does_not(pool: Pool) -> None:
    failed, held = machine(pool), machine(pool)
    pool.run(INPROGRESS, failed, expect=0, **build(1))
    pool.run(DELETE, failed, "--result", "FAILURE", expect=0, **build(1))
    assert (environment(pool), pool.machines()[failed]) == (("LOCKED", failed), "USED")

    pool.run(INPROGRESS, held, expect=0, **build(2))

    assert (environment(pool), pool.machines()[failed]) == (("LOCKED", held), "DELETE")
    pool.run(DELETE, held, "--result", "TIMEOUT", expect=0, **build(2))
    pool.run(VMDATABASE, "hold", held, "--reason", "a look", expect=0)
    run = pool.start(INPROGRESS, machine(pool), **build(3))
    await_line(run, WAITS)
    assert pool.run(VMDATABASE, "environments", "release", "rack-1", expect=2).stderr.endswith(
        f"rack-1: {held} has it, which is held (a look); release it with: vmdatabase.py unhold {held}\n")
    pool.run(VMDATABASE, "unhold", held, expect=0)
    assert run.wait(30) == 0


def test_builds_that_wait_do_not_wait_for_an_executor_that_they_have_themselves(pool: Pool) -> None:
    """The devstack-vm-delete of the build that has the environment cannot begin: nobody calls it."""
    first, second = machine(pool, node=True), machine(pool)
    assert pool.jenkins
    pool.jenkins.add_job("gate-ends", first, seconds=0.2)
    number = pool.jenkins.wait_started(pool.jenkins.build("gate-ends"))["number"]
    pool.run(INPROGRESS, first, expect=0, JOB_NAME="gate-ends", BUILD_NUMBER=str(number))

    order = {"limits": {"pool.environments.END_LOOK_SECONDS": 0.5}}
    run = subprocess.Popen([sys.executable, "-m", "tests.support.starter", json.dumps(order), INPROGRESS, second],
                           env=pool.environment | build(2) | {"PYTHONPATH": str(PROJECT)}, cwd=pool.folder, text=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, err = run.communicate(timeout=90)

    assert (run.returncode, environment(pool)) == (0, ("LOCKED", second)), err
    assert f"gate-ends #{number} on {first} has ended SUCCESS, and devstack-vm-delete has not come yet" in err
    assert pool.machines()[first] == "DELETE"
    assert pool.sql("SELECT result FROM result WHERE node_name = ?", first) == [("SUCCESS",)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_stopped_while_it_waits_is_out_of_the_line(pool: Pool, number: signal.Signals) -> None:
    holder, stopped, next_one = (machine(pool) for _ in range(3))
    pool.run(INPROGRESS, holder, expect=0, **build(1))
    runs = []
    for name, job in ((stopped, 2), (next_one, 3)):
        runs.append(pool.start(INPROGRESS, name, **build(job)))
        await_line(runs[-1], WAITS)
    shown = pool.run(VMDATABASE, "environments", expect=0).stdout
    assert shown.splitlines()[-1] == f"waiting, in this order: {stopped}, {next_one}"
    runs[0].send_signal(number)
    runs[0].communicate(timeout=90)

    pool.run(DELETE, holder, "--result", "ABORTED", expect=0, **build(1))

    assert runs[1].wait(30) == 0
    assert environment(pool) == ("LOCKED", next_one)
    # A run that is stopped, but not killed, gives its machine up: a person may have lost patience.
    assert pool.machines()[stopped] == ("USED" if number == signal.SIGKILL else "DELETE")
    assert pool.sql("SELECT kind FROM result WHERE node_name = ?", stopped) == [
        (None if number == signal.SIGKILL else "aborted",)]


def test_a_second_build_on_the_node_is_told_who_has_it_while_the_first_still_waits(pool: Pool) -> None:
    pool.run(INPROGRESS, machine(pool), expect=0, **build(1))
    name = machine(pool)
    first = pool.start(INPROGRESS, name, **build(2))
    await_line(first, WAITS)

    second = pool.run(INPROGRESS, name, expect=1, **build(3))

    assert second.stderr.endswith(f"{name}: is USED already, by gate #2; this build must not run on it\n")
    assert pool.machines()[name] == "USED"
    first.terminate()
    assert first.wait(30) == 143


def test_a_server_that_is_deleted_from_outside_gives_its_environment_back_through_reap(pool: Pool) -> None:
    name = machine(pool)
    pool.run(INPROGRESS, name, expect=0, **build(1))
    pool.sql("UPDATE machine SET state_time = state_time - 60")  # reap leaves to the next run what moves as it looks
    assert pool.pocket
    pool.pocket.server("pocket-a", pool.column(name, "external_id"), vanish=True)

    pool.run(REAP, "one", expect=0)

    assert (environment(pool), pool.machines()) == (("FREE", None), {})
    assert (pool.folder / "resets").read_text() == "rack-1 rack-1.json\n"


@pytest.mark.file  # on PostgreSQL a reset ends with its script, see the next test
def test_a_reset_that_was_killed_with_its_script_is_run_again_by_reap(pool: Pool) -> None:
    kill_in_a_reset(pool)
    assert "would reset test environment rack-1\n" in pool.run(REAP, "one", "--dry-run", expect=0).stdout
    pool.run(REAP, "one", expect=0)
    assert environment(pool) == ("RESETTING", None)  # the reset that the killed script began still runs

    subprocess.run(["pkill", "-P", str(child(pool.folder)), "sleep"], check=True)
    (pool.folder / "hang").unlink()
    await_that("the lock", lambda: pool.run(REAP, "one", expect=0) and environment(pool)[0] == "FREE")


def test_a_reset_whose_script_was_killed_is_run_again_also_by_another_host(pool: Pool) -> None:
    shell = kill_in_a_reset(pool)
    (pool.folder / "hang").unlink()
    if pool.address:
        await_that("the end of its reset", lambda: not Path(f"/proc/{shell}").exists())
    else:
        subprocess.run(["pkill", "-P", str(shell), "sleep"], check=True)
    await_that("the lock", lambda: pool.run(REAP, "one", expect=0) and environment(pool)[0] == "FREE")


def kill_in_a_reset(pool: Pool) -> int:
    """Kill the delete of a machine in the middle of a reset; return the process id of the shell of the reset."""
    name = machine(pool)
    pool.run(INPROGRESS, name, expect=0, **build(1))
    (pool.folder / "hang").touch()
    run = pool.start(DELETE, name, "--result", "SUCCESS", **build(1))
    await_that("the reset", (pool.folder / "resets").exists)
    shell = child(pool.folder)
    run.kill()
    run.communicate()
    return shell


def no_wait(pool: Pool) -> None:
    """Let a build have its environment at once or not at all."""
    pool.sql("DELETE FROM setting WHERE name = 'environment-wait'")
    pool.sql("INSERT INTO setting VALUES ('environment-wait', '0')")


def child(folder: Path) -> int:
    """Return the process id of the shell of the reset that runs in a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cwd").resolve() == folder and b"resets" in process.joinpath("cmdline").read_bytes() \
                    and process.joinpath("comm").read_text() == "bash\n":
                return int(process.name)
        except OSError:
            continue
    raise AssertionError("no reset runs")


def test_a_reset_that_fails_is_told_until_a_person_releases_the_environment(pool: Pool) -> None:
    load(pool, reset="echo no power; exit 4")
    name = machine(pool)
    pool.run(INPROGRESS, name, expect=0, **build(1))

    run = pool.run(DELETE, name, "--result", "SUCCESS", expect=1, **build(1))

    assert "test environment rack-1: RESETTING -> BROKEN: reset: exit status 4: no power" in run.stderr
    shown = pool.run(VMDATABASE, "environments", expect=0).stdout.splitlines()
    assert shown[1].split()[:2] == ["rack-1", "BROKEN"]
    assert shown[1].endswith("noble   reset: exit status 4: no power")
    load(pool)
    assert pool.run(VMDATABASE, "environments", "release", "rack-1", expect=0).stdout == "rack-1: FREE\n"


def test_a_reset_that_prints_without_end_does_not_fill_the_disk(pool: Pool) -> None:
    load(pool, reset="head -c 200000000 /dev/zero | tr '\\0' x; sleep 1; stat -L -c %b /proc/self/fd/1 > blocks; "
                     "echo last words; exit 4")
    name = machine(pool)
    pool.run(INPROGRESS, name, expect=0, **build(1))

    run = pool.run(DELETE, name, "--result", "SUCCESS", expect=1, **build(1))

    assert int((pool.folder / "blocks").read_text()) * 512 < 100_000_000
    assert run.stderr.split("; when it is well")[0].endswith("last words"), run.stderr[-300:]


def test_a_machine_that_does_not_take_the_data_is_not_kept_and_the_environment_is_the_next_one_s(pool: Pool) -> None:
    name = machine(pool)
    with closing(socket.create_server(("127.0.0.1", 0))) as nobody:
        port = nobody.getsockname()[1]
    pool.sql("UPDATE provider SET ssh_port = ?", port)

    run = pool.run(INPROGRESS, name, expect=1, **build(1))

    assert f"{name}: the data of test environment rack-1 could not be written: " in run.stderr
    assert pool.machines() == {name: "DELETE"}
    assert pool.sql("SELECT kind FROM result") == [("machine",)]
    pool.run(REAP, "one", expect=0)
    assert environment(pool) == ("FREE", None)


def test_a_person_has_one_with_the_machine_and_gives_both_back(pool: Pool) -> None:
    name = machine(pool)

    run = pool.run(INPROGRESS, "--image", "noble", expect=0)

    assert run.stdout.split()[0] == name
    assert environment(pool) == ("LOCKED", name)
    pool.run(DELETE, name, expect=0)
    assert environment(pool) == ("FREE", None)


def test_one_that_is_renamed_while_a_build_has_it_is_not_given_to_another(pool: Pool) -> None:
    holder, late = machine(pool), machine(pool)
    pool.run(INPROGRESS, holder, expect=0, **build(1))
    note = pool.folder / "vm.db.locks/environment-rack-a"

    file = pool.folder / "providers.yaml"
    load(pool)
    file.write_text(file.read_text().replace("name: rack-1", "name: rack-a"))
    dry = pool.run(VMDATABASE, "load", str(file), "--dry-run", expect=0).stdout
    assert (dry, note.exists()) == ("would rename test-environment rack-1 -> rack-a\n", False)
    assert pool.run(VMDATABASE, "load", str(file), expect=0).stdout == "rename test-environment rack-1 -> rack-a\n"

    assert (environment(pool), note.exists()) == (("LOCKED", holder), not pool.address)
    run = pool.start(INPROGRESS, late, **build(2))
    assert f"rack-a is LOCKED ({holder})" in await_line(run, WAITS)
    pool.run(DELETE, holder, "--result", "SUCCESS", expect=0, **build(1))
    assert run.wait(30) == 0
    assert environment(pool) == ("LOCKED", late)
    assert (pool.folder / "resets").read_text() == "rack-a rack-1.json\n"


def test_what_a_reset_prints_is_told_without_the_secrets_of_its_data(pool: Pool) -> None:
    load(pool, reset='cat "$TEST_ENVIRONMENT_FILE"; echo ipmitool -P sesame-open, pin 12; exit 3')
    (pool.folder / "rack-1.json").write_text(json.dumps(
        {"seed-ip": "192.0.2.1", "power": {"user": "operator", "password": "sesame-open", "pin": 12},
         "tokens": ["abcd-1234", {"x": "line one\nline two"}]}))
    name = machine(pool)
    pool.run(INPROGRESS, name, expect=0, **build(1))
    said = pool.run(DELETE, name, "--result", "SUCCESS", expect=1, **build(1)).stderr
    pool.run("devstack-vm-status.py", "--output", "told", expect=0)

    told = ('reset: exit status 3: {"seed-ip": "192.0.2.1", "power": {"user": "operator", "password": "***", '
            '"pin": 12}, "tokens": ["***", {"x": "***\\n***"}]}ipmitool -P ***, pin 12')
    assert f"RESETTING -> BROKEN: {told}; when it is well" in said
    (row,) = json.loads(pool.run(VMDATABASE, "environments", "--json", expect=0).stdout)
    assert row["reason"] == told
    page = (pool.folder / "told/index.html").read_text() + (pool.folder / "told/status.json").read_text()
    assert not [secret for secret in ("sesame-open", "abcd-1234", "line one") if secret in page]

    (pool.folder / "rack-1.json").unlink()
    assert "sesame" not in pool.run(VMDATABASE, "environments", "release", "rack-1", expect=1).stderr


@pytest.mark.parametrize(("make", "why"), [
    (os.mkfifo, "is not a plain file"), (Path.mkdir, "cannot be read (Is a directory)"),
    (lambda path: path.write_text('{"load": NaN}'), "is not JSON: NaN is no number there")])
def test_data_that_became_something_else_breaks_its_environment_and_no_build_hangs(
        pool: Pool, make: Callable[[Path], object], why: str) -> None:
    data = pool.folder / "rack-1.json"
    data.unlink()
    make(data)
    no_wait(pool)
    run = pool.run(INPROGRESS, machine(pool), expect=1, **build(1))
    assert f"test environment rack-1: LOCKED -> BROKEN: data: {data}: {why}\n" in run.stderr


def test_a_release_runs_no_other_reset(pool: Pool) -> None:
    load(pool)
    file = pool.folder / "providers.yaml"
    told = yaml.safe_load(file.read_text())
    told["test-environments"].append({**told["test-environments"][0], "name": "rack-2"})
    file.write_text(yaml.safe_dump(told))
    said = pool.run(VMDATABASE, "load", str(file), expect=0).stderr
    assert "test-environment rack-2: data: is that of test-environment rack-1, too: two builds may have at once" in said
    pool.sql("UPDATE test_environment SET state = 'RESETTING' WHERE name = 'rack-2'")
    pool.sql("UPDATE test_environment SET state = 'BROKEN' WHERE name = 'rack-1'")
    assert pool.run(VMDATABASE, "environments", "release", "rack-1", expect=0).stdout == "rack-1: FREE\n"
    assert (pool.folder / "resets").read_text() == "rack-1 rack-1.json\n"


def test_names_that_a_person_wrote_amiss_are_named_and_the_node_takes_no_other_build(pool: Pool) -> None:
    pool.sql("UPDATE test_environment SET images = 'noble'")
    name = machine(pool, node=True)
    words = "test-environment rack-1: images: expected a JSON list of names, got noble; load the providers file again\n"
    assert pool.run(INPROGRESS, name, expect=2, **build(1)).stderr.endswith(words)
    assert (pool.machines()[name], pool.in_service(name)) == ("READY", False)
    for words_of in ((VMDATABASE, "environments"), ("devstack-vm-status.py", "--output", "told")):
        assert pool.run(*words_of, expect=2).stderr.endswith(words)
    said = pool.run(REAP, "one", expect=2).stderr
    assert "images: expected a list of names of images, one or more, got noble" in said


def test_a_build_waits_no_longer_for_what_its_image_type_does_not_need_any_more(pool: Pool) -> None:
    pool.run(INPROGRESS, machine(pool), expect=0, **build(1))
    late = machine(pool)
    run = pool.start(INPROGRESS, late, **build(2))
    await_line(run, WAITS)
    pool.load(provider(images=[image()]))
    _, err = run.communicate(timeout=90)
    assert (run.returncode, pool.machines()[late]) == (0, "USED"), err
    assert err.endswith("no longer waits for a test environment: its image type no longer needs one\n")


def test_a_reset_that_somebody_kills_is_told_as_that(pool: Pool) -> None:
    load(pool, reset="kill -9 $PPID")
    name = machine(pool)
    pool.run(INPROGRESS, name, expect=0, **build(1))
    said = pool.run(DELETE, name, "--result", "SUCCESS", expect=1, **build(1)).stderr
    assert "RESETTING -> BROKEN: reset: killed by SIGKILL; when" in said
