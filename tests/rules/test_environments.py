"""Test environments in a real vm.db: the lock goes with the machine, and machines that wait get theirs in turn."""

import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import vmdatabase
from gateprocess import ConfigError, GateError
from pool import environments, providersfile
from pool.migrations import MIGRATIONS
from tests.support.pool import await_that
from vmdatabase import BaseImage, Event, Machine, Provider, Result

Environment = vmdatabase.TestEnvironment

BUILD = {"JOB_NAME": "gate", "BUILD_NUMBER": "7"}


@pytest.fixture
def folder(tmp_path: Path, place: Path | str) -> Iterator[Path]:
    """Yield the folder of an open database: provider one has two image types, and the second needs no environment."""
    with vmdatabase.opened(place):
        provider = Provider.create(name="one", cloud="c", max_servers=99, boot_timeout=9, max_concurrency=1,
                                   networks="[]", floating_ips="auto", address="public-v4", ssh_port=22,
                                   security_groups="[]", availability_zones="[]")
        for name in ("noble", "plain"):
            BaseImage.create(provider=provider, name=name, external_id="x", min_ready=1, min_ram=0,
                             test_environment=name == "noble")
        yield tmp_path


def load(folder: Path, *names: str, **keys: Any) -> list[str]:
    """Load the environments of these names, and no others; return a line for each change."""
    (folder / "data.json").write_text('{"boxes": 3}')
    return providersfile.load_environments([
        {"name": name, "images": ["noble"], "providers": [], "data": str(folder / "data.json"), "reset": None} | keys
        for name in names])


def machine(state: str = "READY", image: str = "noble") -> Machine:
    base_image = BaseImage.get(BaseImage.name == image)
    row = Machine.create(base_image=base_image, state=state, state_time=vmdatabase.now())
    vmdatabase.set_columns(row, name=f"node-{row.id}")
    return row


def take(row: Machine, environ: dict[str, str] | None = None) -> None:
    """Take a machine as inprogress does, in one transaction."""
    with vmdatabase.database.atomic("IMMEDIATE"):
        assert vmdatabase.move(row, "READY", "USED", "taken")
        vmdatabase.record_start(row, BUILD if environ is None else environ)
        environments.queue_up(row)


def taken(environ: dict[str, str] | None = None) -> Machine:
    """Take a new machine, which then leaves the line whether it got an environment or not; return it."""
    row = machine()
    with environments.standing_in_line(row):
        take(row, environ)
    return row


def states() -> dict[str, tuple[str, int | None]]:
    return {row.name: (row.state, row.machine_id) for row in Environment.select()}


def moves(name: str) -> list[tuple[str | None, str | None, str | None, str | None]]:
    return [(row.from_state, row.to_state, row.node_name, row.reason)
            for row in Event.select().where(Event.environment == name).order_by(Event.id)]


# The lock


def test_a_machine_that_is_taken_has_an_environment_in_the_same_transaction(folder: Path) -> None:
    load(folder, "rack-1")
    row = machine()

    with environments.standing_in_line(row):
        take(row)

    assert states() == {"rack-1": ("LOCKED", row.id)}
    assert [one.environment for one in Result.select()] == ["rack-1"]
    assert moves("rack-1") == [(None, "FREE", None, "new in the providers file"),
                               ("FREE", "LOCKED", row.name, "gate #7")]


def test_a_take_that_fails_leaves_neither_lock_nor_place_in_the_line(folder: Path) -> None:
    load(folder, "rack-1")
    row = machine()

    with pytest.raises(RuntimeError), environments.standing_in_line(row), vmdatabase.database.atomic("IMMEDIATE"):
        vmdatabase.move(row, "READY", "USED")
        environments.queue_up(row)
        raise RuntimeError

    assert states() == {"rack-1": ("FREE", None)}
    assert vmdatabase.EnvironmentWaiter.select().count() == 0


def test_a_machine_whose_image_type_needs_none_gets_none(folder: Path) -> None:
    load(folder, "rack-1", images=["plain"])
    row = machine(image="plain")

    with environments.standing_in_line(row):
        take(row)

    assert states() == {"rack-1": ("FREE", None)}


@pytest.mark.parametrize(("reset", "state"), [(None, "FREE"), ("true", "RESETTING")])
@pytest.mark.parametrize("end", ["UPDATE machine SET state = 'DELETE'", "UPDATE machine SET state = 'ERROR'",
                                 "DELETE FROM machine"], ids=["deleted", "failed", "row gone"])
@pytest.mark.parametrize("begin", ["USED", "HOLD"])
def test_an_environment_goes_with_its_machine_whoever_ends_that(
    folder: Path, begin: str, end: str, reset: str | None, state: str
) -> None:
    load(folder, "rack-1", reset=reset)
    row = taken()
    if begin == "HOLD":
        vmdatabase.hold(row, "a look", None)
    assert states() == {"rack-1": ("LOCKED", row.id)}

    vmdatabase.database.execute_sql(end)

    assert states() == {"rack-1": (state, None)}
    assert moves("rack-1")[-1][:3] == ("LOCKED", state, row.name)
    assert vmdatabase.EnvironmentWaiter.select().count() == 0


@pytest.mark.parametrize("state", ["BUILDING", "READY", "ERROR", "DELETE", None])
def test_nobody_can_give_an_environment_to_a_machine_that_is_not_in_use(folder: Path, state: str | None) -> None:
    load(folder, "rack-1")
    number = machine(state).id if state else 99

    with pytest.raises(vmdatabase.IntegrityError, match="only a machine that is USED or HOLD"):
        vmdatabase.database.execute_sql(
            "UPDATE test_environment SET state = 'LOCKED', machine_id = ?", (number,))


def test_a_machine_has_at_most_one_and_a_lock_without_a_machine_cannot_be(folder: Path) -> None:
    load(folder, "rack-1", "rack-2")
    row = taken()

    for statement in (f"UPDATE test_environment SET state = 'LOCKED', machine_id = {row.id}",
                      "UPDATE test_environment SET state = 'LOCKED' WHERE name = 'rack-2'",
                      "UPDATE test_environment SET machine_id = NULL WHERE name = 'rack-1'"):
        with pytest.raises(vmdatabase.IntegrityError):
            vmdatabase.database.execute_sql(statement)


# The line


def test_who_took_a_machine_first_gets_the_next_environment(folder: Path) -> None:
    load(folder, "rack-1")
    first, *others = [machine() for _ in range(4)]
    with ExitStack() as line:
        for row in (first, *others):
            line.enter_context(environments.standing_in_line(row))
            take(row)

        for before, row in itertools.pairwise([first, *others]):
            waiting = [one for one in others[::-1] if one.id >= row.id]
            assert [environments._turn(one) for one in waiting] == [None] * len(waiting)
            assert vmdatabase.move(before, "USED", "DELETE")
            environments._turn(others[-1])  # no matter who looks first
            assert states() == {"rack-1": ("LOCKED", row.id)}


def test_one_that_was_killed_while_it_waited_keeps_nobody_waiting(folder: Path) -> None:
    load(folder, "rack-1")
    holder = taken()
    killed, row = taken(), machine()
    with environments.standing_in_line(row):
        take(row)
        vmdatabase.move(holder, "USED", "DELETE")

        assert environments._turn(row)

    assert states() == {"rack-1": ("LOCKED", row.id)}
    assert killed.state == "USED"


def test_a_machine_that_is_given_up_while_it_waits_is_told(folder: Path) -> None:
    load(folder, "rack-1")
    taken()
    row = machine()
    with environments.standing_in_line(row):
        take(row)
        vmdatabase.move(row, "USED", "DELETE")

        with pytest.raises(GateError, match=rf"{row.name}: is DELETE by now"):
            environments._turn(row)


@pytest.mark.parametrize("ended", [True, False], ids=["a kept machine", "a build that runs"])
def test_a_kept_machine_gives_way_to_a_build_that_waits_and_one_that_builds_does_not(folder: Path, ended: bool) -> None:
    load(folder, "rack-1")
    kept, row = taken(), machine()
    if ended:
        vmdatabase.record_end(kept, {}, "FAILURE")
    with environments.standing_in_line(row):
        take(row)
        assert bool(environments._turn(row)) == ended

    assert states() == {"rack-1": ("LOCKED", row.id if ended else kept.id)}
    assert vmdatabase.state_of(kept) == ("DELETE" if ended else "USED")


@pytest.mark.parametrize("whose", ["held", "a person's"])
def test_what_a_person_has_never_gives_way(folder: Path, whose: str) -> None:
    load(folder, "rack-1")
    kept = taken({} if whose == "a person's" else BUILD)
    vmdatabase.record_end(kept, {}, "FAILURE")
    if whose == "held":
        vmdatabase.hold(kept, "a look", None)
    row = machine()
    with environments.standing_in_line(row):
        take(row)
        assert environments._turn(row) is None


def test_one_that_is_being_reset_is_waited_for_before_a_kept_machine_goes(folder: Path) -> None:
    load(folder, "rack-1", "rack-2", reset="true")
    kept, done, row = taken(), taken(), machine()
    vmdatabase.record_end(kept, {}, "FAILURE")
    vmdatabase.move(done, "USED", "DELETE")
    with environments.standing_in_line(row):
        take(row)
        assert environments._turn(row) is None

    assert vmdatabase.state_of(kept) == "USED"


def test_one_whose_data_cannot_be_read_is_broken_and_the_next_one_is_tried(folder: Path) -> None:
    load(folder, "rack-1")
    good = folder / "good.json"
    good.write_text("{}")
    providersfile.load_environments([
        {"name": name, "images": ["noble"], "providers": [], "data": str(data), "reset": None}
        for name, data in (("rack-1", folder / "data.json"), ("rack-2", good))])
    (folder / "data.json").unlink()
    row = machine()
    with environments.standing_in_line(row):
        take(row)
        had = environments._wait(row, None, vmdatabase.machine_log(row))

    assert had
    assert (had[0].name, had[1]) == ("rack-2", b"{}")
    assert states() == {"rack-1": ("BROKEN", None), "rack-2": ("LOCKED", row.id)}
    assert moves("rack-1")[-1] == (
        "LOCKED", "BROKEN", row.name, f"data: {folder}/data.json: cannot be read (No such file or directory)")


def test_fifty_builds_that_ask_for_three_environments_at_once_get_one_each_in_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "POLL_SECONDS", 0.6)  # with shorter pauses, one may starve on a busy machine
    load(folder, "rack-1", "rack-2", "rack-3")
    rows = [machine() for _ in range(50)]
    failed: list[Exception] = []

    def build(row: Machine) -> None:
        try:
            with vmdatabase.connected(), environments.standing_in_line(row):
                take(row)
                environments._wait(row, None, vmdatabase.machine_log(row))
                time.sleep(0.3)  # long enough for three to be locked at once
                assert vmdatabase.move(row, "USED", "DELETE")
        except Exception as err:  # noqa: BLE001 - told below
            failed.append(err)

    threads = [threading.Thread(target=build, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    order = [row.machine_id for row in Event.select().where(Event.to_state == "USED").order_by(Event.id)]
    locks = [str(row.node_name) for row in Event.select().where(Event.to_state == "LOCKED").order_by(Event.id)]
    assert locks == [f"node-{number}" for number in order]
    assert states() == dict.fromkeys(("rack-1", "rack-2", "rack-3"), ("FREE", None))
    assert most_at_once() == 3


def most_at_once() -> int:
    """Return how many environments were locked at once at most; check that each was let go before its next lock."""
    locked: set[str | None] = set()
    most = 0
    for row in Event.select().where(Event.environment.is_null(False)).order_by(Event.id):
        if row.to_state == "LOCKED":
            assert row.environment not in locked
            locked.add(row.environment)
        elif row.from_state == "LOCKED":
            locked.remove(row.environment)
        most = max(most, len(locked))
    return most


# Resets


def resetting(folder: Path, command: str) -> None:
    load(folder, "rack-1", reset=command)
    vmdatabase.move(taken(), "USED", "DELETE")
    assert states() == {"rack-1": ("RESETTING", None)}


def test_a_reset_that_succeeds_makes_the_environment_free_and_knows_which_it_is(folder: Path) -> None:
    resetting(folder, 'printf "%s %s" "$TEST_ENVIRONMENT" "$TEST_ENVIRONMENT_FILE" > told')

    assert environments.run_resets() == 0

    assert states() == {"rack-1": ("FREE", None)}
    assert (folder / "told").read_text() == f"rack-1 {folder}/data.json"


@pytest.mark.parametrize(("command", "why"), [
    ("echo no power; exit 3", "reset: exit status 3: no power"),
    ("exec sleep 30", "reset: not done after 1 s"),
    ("trap '' TERM; while :; do sleep 1; done", "reset: not done after 1 s"),
], ids=["fails", "hangs", "does not end"])
def test_a_reset_that_does_not_succeed_makes_it_broken_until_a_person_releases_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, why: str
) -> None:
    monkeypatch.setattr(environments, "RESET_SECONDS", 1)
    monkeypatch.setattr(environments, "KILL_SECONDS", 1)
    resetting(folder, command)

    assert environments.run_resets() == 1

    assert states() == {"rack-1": ("BROKEN", None)}
    assert moves("rack-1")[-1] == ("RESETTING", "BROKEN", None, why)
    load(folder, "rack-1", reset="true")
    assert environments.release(environments.named("rack-1")) == 0
    assert states() == {"rack-1": ("FREE", None)}


def test_a_reset_is_run_by_one_process_and_again_if_that_was_killed(folder: Path) -> None:
    resetting(folder, "echo >> runs; sleep 0.3; [ ! -e hang ] || sleep 300")
    first, second = environments.Resets(), environments.Resets()
    first.step()
    second.step()
    assert second.finish() == 0
    assert states() == {"rack-1": ("RESETTING", None)}
    assert first.finish() == 0
    assert states() == {"rack-1": ("FREE", None)}
    assert (folder / "runs").read_text() == "\n"

    vmdatabase.database.execute_sql("UPDATE test_environment SET state = 'RESETTING'")
    (folder / "hang").touch()
    killed = environments.Resets()
    killed.step()
    running = killed._running.popitem()[1]
    running.lock.close()  # as the kernel does for a process that is killed
    second.step()
    assert second._running == {}  # timeout(1) still has the lock
    (folder / "hang").unlink()
    running.process.terminate()
    running.process.wait()
    await_that("the lock", lambda: environments.run_resets() == 0 and states() == {"rack-1": ("FREE", None)})


def test_what_a_reset_leaves_running_does_not_hold_its_lock(folder: Path) -> None:
    resetting(folder, "sleep 30 > /dev/null 2>&1 & echo $! > pid")
    assert environments.run_resets() == 0

    lock, descriptor = environments._reset_lock(environments.named("rack-1"))
    lock.close()
    assert descriptor


# The providers file


def test_load_tells_each_change_and_one_that_is_locked_goes_when_it_is_free(folder: Path) -> None:
    assert load(folder, "rack-1", "rack-2") == ["add test-environment rack-1: images noble",
                                                "add test-environment rack-2: images noble"]
    assert load(folder, "rack-1", "rack-2") == []
    row = taken()
    assert load(folder, "rack-2", reset="true") == [
        "change test-environment rack-2: reset None -> true",
        "drain test-environment rack-1: it is LOCKED, and goes when it is free"]
    assert load(folder, "rack-1", reset="true") == [
        "change test-environment rack-1: reset None -> true", "change test-environment rack-1: back in the file",
        "delete test-environment rack-2"]
    load(folder)
    assert states() == {"rack-1": ("LOCKED", row.id)}

    vmdatabase.move(row, "USED", "DELETE")
    assert states() == {"rack-1": ("RESETTING", None)}
    environments.run_resets()

    assert states() == {}
    environments.tidy_notes()
    assert moves("rack-1")[-2:] == [("RESETTING", "FREE", None, "its reset has succeeded"),
                                    ("FREE", None, None, "it left the providers file")]
    load(folder, "rack-1")
    next_one = taken()
    assert states() == {"rack-1": ("LOCKED", next_one.id)}


# People


def test_the_table_says_who_has_which_since_when(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(folder, "rack-1", "rack-2")
    row = taken()

    assert environments.show(as_json=True) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert told["rack-1"] == {
        "name": "rack-1", "state": "LOCKED", "since": environments.named("rack-1").state_time, "reason": "gate #7",
        "node": row.name, "images": ["noble"], "providers": [], "active": True}
    assert (told["rack-2"]["state"], told["rack-2"]["node"]) == ("FREE", None)


@pytest.mark.parametrize(("state", "words"), [
    ("builds", "gate #7 runs with it on node-1; it is free when that has ended"),
    ("held", r"node-1 has it, which is held \(a look\); release it with: vmdatabase.py unhold node-1"),
    ("free", "is FREE"),
])
def test_what_is_in_use_is_not_released(folder: Path, state: str, words: str) -> None:
    load(folder, "rack-1")
    if state != "free":
        row = taken()
    if state == "held":
        vmdatabase.hold(row, "a look", None)
    before = states()

    with pytest.raises(ConfigError, match=f"rack-1: {words}"):
        environments.release(environments.named("rack-1"))

    assert states() == before


@pytest.mark.parametrize("environ", [BUILD, {}], ids=["kept", "a person's"])
def test_what_is_kept_or_a_person_s_is_released_with_its_machine(folder: Path, environ: dict[str, str]) -> None:
    load(folder, "rack-1")
    row = taken(environ)
    if environ:
        vmdatabase.record_end(row, {}, "FAILURE")

    assert environments.release(environments.named("rack-1")) == 0

    assert states() == {"rack-1": ("FREE", None)}
    assert vmdatabase.state_of(row) == "DELETE"


@pytest.mark.parametrize("name", ["rack-l", "\n"])
def test_an_unknown_name_is_told_with_the_nearest(folder: Path, name: str) -> None:
    load(folder, "rack-1")
    with pytest.raises(ConfigError, match="NAME: unknown test environment"):
        environments.named(name)


# A vm.db of an older version


@pytest.mark.file
def test_a_vm_db_of_schema_6_goes_on_with_its_counts_and_lets_environments_go(tmp_path: Path) -> None:
    path = tmp_path / "vm.db"
    with vmdatabase.opened(path, MIGRATIONS[:6]):
        run = vmdatabase.database.execute_sql
        run("INSERT INTO provider (name, cloud, max_servers, boot_timeout, max_concurrency, networks, floating_ips, "
            "address, ssh_port, security_groups, availability_zones) "
            "VALUES ('one', 'c', 9, 9, 9, '', '', '', 22, '', '')")
        run("INSERT INTO base_image (provider_id, name, external_id, min_ready, min_ram) "
            "VALUES (1, 'noble', 'x', 1, 1)")
        run("INSERT INTO machine (base_image_id, state, state_time) VALUES (1, 'USED', 1)")
    with vmdatabase.opened(path):
        load(tmp_path, "rack-1")
        run("UPDATE test_environment SET state = 'LOCKED', machine_id = 1")
        run("UPDATE machine SET state = 'DELETE'")
        counts = {(what, key): count for what, key, count in run("SELECT what, key, count FROM tally").fetchall()}
        assert states() == {"rack-1": ("FREE", None)}
        assert not BaseImage.get_by_id(1).test_environment

    assert counts == {("move", ">USED"): 1, ("move", "USED>DELETE"): 1, ("environment", ">FREE"): 1,
                      ("environment", "FREE>LOCKED"): 1, ("environment", "LOCKED>FREE"): 1}


# A restored vm.db


def restored(statements: Sequence[str]) -> None:
    """Set vm.db back to before something happened that a file beside it knows of."""
    for statement in statements:
        vmdatabase.database.execute_sql(statement)



def gone(server: str) -> bool:
    """Answer like a cloud that says 404 for every server."""
    return bool(server)


FORGET = ("UPDATE test_environment SET state = 'FREE', machine_id = NULL, locks = 0",)


def test_what_a_restored_vm_db_takes_for_free_is_given_to_nobody_and_reap_remembers_who_has_it(folder: Path) -> None:
    load(folder, "rack-1")
    row = taken()
    restored(FORGET)
    other = machine()
    with environments.standing_in_line(other):
        take(other)
        assert environments._turn(other) is None

    assert environments.remember("one", gone) == [
        f"rack-1: vm.db did not know that {row.name} has it; now it does"]
    assert states() == {"rack-1": ("LOCKED", row.id)}
    assert environments.remember("one", gone) == []


@pytest.mark.parametrize(("provider", "answer", "now", "state"), [
    ("one", True, None, "RESETTING"), ("one", False, None, "FREE"), ("two", True, None, "FREE"),
    ("one", True, "READY", "FREE"), ("one", True, "BUILDING", "FREE"), ("one", False, "DELETE", "RESETTING"),
    ("two", False, "ERROR", "RESETTING")])
def test_one_whose_last_machine_is_over_is_reset_once_the_cloud_or_its_row_says_so(
    folder: Path, provider: str, answer: bool, now: str | None, state: str
) -> None:
    """The cloud's list may leave a server out, so a machine without a row may still be in use."""
    load(folder, "rack-1")
    row = machine()
    vmdatabase.set_columns(row, external_id="server-7")
    with environments.standing_in_line(row):
        take(row)
    restored([*FORGET, "DELETE FROM result", f"UPDATE machine SET state = '{now}'" if now else
              "DELETE FROM machine"])
    asked: list[str] = []

    def is_gone(server: str) -> bool:
        asked.append(server)
        return answer

    changed = environments.remember(provider, is_gone)

    assert bool(changed) == (state == "RESETTING")
    assert asked == ["server-7"] * (now is None and provider == "one")

    assert states() == {"rack-1": (state, None)}
    later = machine()
    environments.run_resets()
    with environments.standing_in_line(later):
        take(later)
    assert states() == {"rack-1": ("LOCKED", later.id) if state == "RESETTING" else ("FREE", None)}


def test_one_that_went_on_to_another_machine_since_the_backup_is_that_one_s(folder: Path) -> None:
    load(folder, "rack-1")
    before, after = taken(), machine()
    vmdatabase.move(before, "USED", "DELETE")
    with environments.standing_in_line(after):
        take(after)
    restored(["UPDATE test_environment SET state = 'FREE', machine_id = NULL",
              "UPDATE machine SET state = 'USED'",
              f"UPDATE test_environment SET state = 'LOCKED', machine_id = {before.id}, locks = 1"])

    environments.remember("one", gone)

    assert states() == {"rack-1": ("LOCKED", after.id)}
    vmdatabase.move(vmdatabase.refreshed(before), "USED", "DELETE")
    assert states() == {"rack-1": ("LOCKED", after.id)}


def killed_before_its_transaction_ended(row: vmdatabase.Machine) -> None:
    """Take a machine, lock an environment for it, and die before the commit: only the notes of that are left."""
    with pytest.raises(KeyboardInterrupt), environments.standing_in_line(row), vmdatabase.database.atomic("IMMEDIATE"):
        take(row)
        raise KeyboardInterrupt


def test_what_one_was_about_to_get_takes_away_nothing_that_it_got_later(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder, "rack-1", "rack-2")
    row = machine()
    killed_before_its_transaction_ended(row)
    assert states() == {"rack-1": ("FREE", None), "rack-2": ("FREE", None)}
    set_back = time.time() - 60
    monkeypatch.setattr(time, "time", lambda: set_back)

    row = vmdatabase.refreshed(row)
    with environments.standing_in_line(row):
        take(row)
    assert states() == {"rack-1": ("FREE", None), "rack-2": ("LOCKED", row.id)}

    assert environments.remember("one", gone) == []
    assert states() == {"rack-1": ("FREE", None), "rack-2": ("LOCKED", row.id)}
    assert taken(), "rack-1 is free for others"


@pytest.mark.parametrize("unused", [True, False])
def test_what_one_was_about_to_get_is_free_again_once_its_node_shows_that_nobody_has_taken_it(
        folder: Path, unused: bool) -> None:
    load(folder, "rack-1")
    killed_before_its_transaction_ended(machine())

    changed = environments.remember("one", gone, lambda _: unused)

    assert bool(changed) == unused
    assert states() == {"rack-1": ("RESETTING" if unused else "FREE", None)}


def test_a_reset_waits_until_it_is_known_who_has_the_environment(folder: Path) -> None:
    load(folder, "rack-1", reset="touch ran")
    row = taken()
    restored(["UPDATE test_environment SET state = 'RESETTING', machine_id = NULL, locks = 0"])

    assert environments.run_resets() == 0
    assert not (folder / "ran").exists()
    environments.remember("one", gone)
    assert states() == {"rack-1": ("LOCKED", row.id)}
