"""devstack-vm-status.py: the page, its files, and what happens when something is wrong."""

import html
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench import pasthistory
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import PROJECT, SCRIPT_SECONDS, Pool, await_that, image, on_postgresql, provider

STATUS = "devstack-vm-status.py"
FIXED = {"index.html", "style.css", "icon.svg", "status.json", "metrics.prom"}
EVIL = '<img src=x onerror=alert(1)>&amp;"\' \N{PILE OF POO} \u202eabc \u05d0\u05d1'


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Return a pool with neither cloud nor Jenkins; vm.db has one provider with one image."""
    pool = Pool(tmp_path)
    pool.load(provider())
    return pool


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Return a pool of four providers that has run for eight days; builds fail more often at one of them."""
    file = Pool(tmp_path_factory.mktemp("past"), address="-")
    pasthistory.write(file.database, pasthistory.Past(8, 1200, 4, fails=(("cloud-01", 0.12),)))
    if not on_postgresql():
        return file
    pool = Pool(file.folder)
    file.run("vmdatabase.py", "copy", pool.address, expect=0)
    return pool


def made(pool: Pool, *arguments: str) -> tuple[Path, str]:
    """Make the page; return its folder and its text."""
    folder = pool.folder / "status"
    done = pool.run(STATUS, "--output", str(folder), *arguments, expect=0)
    assert done.stdout == f"{folder / 'index.html'}\n"
    return folder, (folder / "index.html").read_text()


def told(pool: Pool, *arguments: str) -> Any:
    folder, _ = made(pool, *arguments)
    return json.loads((folder / "status.json").read_text())


def words(page: str) -> str:
    """Return the text of a page, without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


# The page and its files


def test_an_empty_pool_has_a_page_that_says_so_in_words(tmp_path: Path) -> None:
    folder, page = made(Pool(tmp_path))

    assert {file.name for file in folder.iterdir()} == FIXED
    for expected in ("vm.db has no providers yet", "No machine has been there in the last 24 hours.",
                     "No build has ended in the last 168 hours.", "No boot has failed", "No build has passed or failed",
                     "Does anything need a person? No."):
        assert expected in words(page)


def test_the_page_has_neither_scripts_nor_styles_and_names_only_files_beside_it(past: Pool) -> None:
    folder, page = made(past)

    tags = Tags(page).tags
    assert {"html", "table", "picture", "source", "img", "details"} <= {tag for tag, _ in tags}
    assert not {"script", "style", "iframe", "object", "base", "form"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
    named = {value for _, attributes in tags for name, value in attributes.items()
             if name in ("src", "srcset", "href")}
    assert {str(name) for name in named} | {"index.html"} == {file.name for file in folder.iterdir()}


def test_pictures_are_svg_without_styles_with_a_title_units_and_the_time_zone(past: Pool) -> None:
    folder, _ = made(past)

    pictures = list(folder.glob("*-*-*.svg"))
    assert {re.sub("-[0-9a-f]{8}", "", file.stem) for file in pictures} == {
        f"{name}-{width}-{theme}" for width in ("wide", "narrow") for theme in ("light", "dark") for name in (
            "states", "states_long", "builds", "builds_long", "boots", "boot_failures", "blame_providers",
            "blame_images")}
    for file in pictures:
        root = ET.parse(file).getroot()
        assert [element for element in root.iter() if "style" in element.attrib or element.tag.endswith("style")] == []
        shown = " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))
        title = "".join(root[0].itertext())
        assert title.split(",")[0] in shown
        units = {"states": "machines time (UTC)", "builds": "builds time (UTC)", "boots": "seconds",
                 "boot_failures": "boots", "blame_providers": "%", "blame_images": "%"}[
            file.name.partition("-")[0].removesuffix("_long")]
        assert all(unit in shown for unit in (units.split(" ", 1)[0], units.split(" ", 1)[-1])), (file.name, shown)


def test_the_numbers_of_the_page_are_those_of_vm_db(past: Pool) -> None:
    found = told(past)

    states = dict(past.sql("SELECT state, count(*) FROM machine GROUP BY 1"))
    assert {state: found["states"][state][-1] for state in states} == states
    week = found["time"] - 7 * 86400
    ((failed, builds),) = past.sql(
        "SELECT count(*) FILTER (WHERE result != 'SUCCESS'), count(*) FROM result WHERE end_time >= ? "
        "AND result != 'ABORTED' AND provider = 'cloud-01'", week)
    (rate,) = [one for one in found["blame"]["providers"] if one["name"] == "cloud-01"]
    assert (rate["failed"], rate["builds"], rate["flagged"]) == (failed, builds, True)
    assert [one["name"] for one in found["blame"]["providers"] + found["blame"]["images"] if one["flagged"]] == [
        "cloud-01"]
    (boots,) = [one for one in found["boots"] if one["provider"] == "cloud-02"]
    seconds = [row[0] for row in past.sql("SELECT seconds FROM event WHERE provider = 'cloud-02' AND time >= ? "
                                          "AND from_state = 'BUILDING' AND to_state = 'READY' ORDER BY 1", week)]
    assert (boots["ready"], abs(boots["median"] - seconds[len(seconds) // 2]) <= 1) == (len(seconds), True)
    assert sum(found["builds_long"]["SUCCESS"]) == past.sql(
        "SELECT count(*) FROM result WHERE end_time >= ? AND result = 'SUCCESS'", week - week % 21600)[0][0] - past.sql(
        "SELECT count(*) FROM result WHERE end_time >= ? AND end_time < ? AND result = 'SUCCESS'",
        week - week % 21600, week)[0][0]


def test_states_over_time_are_those_that_were(pool: Pool) -> None:
    now = int(time.time())
    name = pool.add_machine("READY", server=False, node=False)
    pool.sql("DELETE FROM event")
    pool.sql("INSERT INTO event (time, machine_id, node_name, provider, image, from_state, to_state, seconds) VALUES "
             "(?, 1, ?, 'one', 'noble', NULL, 'BUILDING', NULL), (?, 1, ?, 'one', 'noble', 'BUILDING', 'READY', 3600),"
             "(?, 9, 'n', 'one', 'noble', NULL, 'BUILDING', NULL), (?, 9, 'n', 'one', 'noble', 'BUILDING', 'ERROR', 9),"
             "(?, 9, 'n', 'one', 'noble', 'ERROR', NULL, 9)",
             now - 7200, name, now - 3600, name, now - 50000, now - 40000, now - 30000)
    found = told(pool)["states"]

    def at(ago: int) -> dict[str, int]:
        place = max(index for index, moment in enumerate(found["times"]) if moment <= now - ago)
        return {state: found[state][place] for state in ("BUILDING", "READY", "ERROR")}

    assert abs(found["times"][0] - (now - 50000)) < 600, "there was nothing before"
    assert at(45000) == {"BUILDING": 1, "READY": 0, "ERROR": 0}
    assert at(35000) == {"BUILDING": 0, "READY": 0, "ERROR": 1}
    assert at(5400) == {"BUILDING": 1, "READY": 0, "ERROR": 0}
    assert at(0) == {"BUILDING": 0, "READY": 1, "ERROR": 0}


def matters(pool: Pool) -> list[tuple[str, str, str]]:
    return [(one["kind"], one["about"], one["text"]) for one in told(pool)["attention"]]


def test_what_needs_a_person_is_told_first(pool: Pool) -> None:
    now = int(time.time())
    pool.load(provider(images=[image(min_ready=0), image("jammy", min_ready=3)]))
    rows: list[dict[str, Any]] = [
        {"state": "HOLD", "hold_until": now + 3600, "hold_reason": "bug 5"},
        {"state": "DELETE", "delete_time": now - 8000}, {"state": "DELETE", "age": 20000},
        {"state": "READY", "age": 2000, "jenkins_name": "n", "absent_time": now - 1000}]
    for columns in rows:
        pool.add_machine(**{"server": False, "node": False, **columns})
    for _ in range(3):
        name = pool.add_machine("BUILDING", server=False, node=False, image="jammy")
        pool.sql("UPDATE machine SET state = 'ERROR', error = 'no ssh' WHERE name = ?", name)
    pool.sql("UPDATE event SET time = time - 3000")
    pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, state, state_time) "
             "VALUES (1, 's', ?, 'READY', 1)", now - 3 * 86400 - 60)

    assert matters(pool) == [
        ("provider fails", "one", "3 boots in a row have failed, the last one: no ssh"),
        ("pool short", "one", "jammy 0 of 3 ready"),
        ("no image", "one jammy", "no snapshot is ready, so that no machine can boot"),
        ("old image", "one noble", "the newest snapshot is 3 days old"),
        ("stuck deletes", "one", "1 to be deleted for up to 6 h: devstack-vm-reap has not begun with them"),
        ("stuck deletes", "one", "1 to be deleted for up to 2 h: its cloud does not delete them"),
        ("hold ends", "devstack-noble-one-1", "the hold ends in 60 min: bug 5"),
        ("no agent", "one noble", "the agents of 1 ready machines do not come up")]


def test_a_boot_that_works_ends_the_row_of_those_that_failed(pool: Pool) -> None:
    for state in ("ERROR", "ERROR", "ERROR", "READY"):
        name = pool.add_machine("BUILDING", server=False, node=False)
        pool.sql("UPDATE machine SET state = ? WHERE name = ?", state, name)

    assert "provider fails" not in [kind for kind, _, _ in matters(pool)]


# False negatives


def build(pool: Pool, end: int, result: str, **columns: Any) -> None:
    values = {"machine_id": 1, "provider": "one", "image": "noble", "jenkins_job_name": "gate", "start_time": end - 60,
              "gerrit_change_number": 5, "gerrit_patchset_number": 1, "end_time": end, "result": result, **columns}
    pool.sql(f"INSERT INTO result ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", *values.values())


def test_a_change_that_failed_and_then_passed_untouched_is_a_false_negative(pool: Pool) -> None:
    now = int(time.time())
    build(pool, now - 900, "FAILURE", phase="tempest", known_failure="mirror away", provider="two")
    build(pool, now - 800, "TIMEOUT", phase="devstack", kind="timeout")
    build(pool, now - 700, "SUCCESS")
    build(pool, now - 690, "SUCCESS")  # passed once more
    build(pool, now - 600, "FAILURE", gerrit_patchset_number=2)  # a new patchset, which did not pass
    build(pool, now - 500, "SUCCESS", jenkins_job_name="other", gerrit_patchset_number=2)  # another job
    build(pool, now - 400, "ABORTED", gerrit_change_number=6)
    build(pool, now - 300, "SUCCESS", gerrit_change_number=6)  # aborted is no failure
    build(pool, now - 200, "FAILURE", gerrit_change_number=None)
    build(pool, now - 100, "SUCCESS", gerrit_change_number=None)  # no change at all
    found = told(pool)["false_negatives"]

    assert (found["count"], found["failures"], found["passes"]) == (2, 4, 5)
    assert [found[key] for key in ("provider", "image", "phase", "known_failure")] == [
        {"two": 1, "one": 1}, {"noble": 2}, {"tempest": 1, "devstack": 1}, {"mirror away": 1, "(none)": 1}]
    assert [(row["end"], row["passed"]) for row in found["last"]] == [(now - 800, now - 700), (now - 900, now - 700)]


# Jenkins


def test_builds_that_wait_in_jenkins_are_shown_by_label(site: tuple[Pocket, StandIn], tmp_path: Path) -> None:
    pool = Pool(tmp_path, *site)
    pool.load(provider())
    _, jenkins = site
    jenkins.add_job("waits", "devstack-noble")
    jenkins.build("waits")
    folder, _ = made(pool)
    (label,) = json.loads((folder / "status.json").read_text())["labels"]
    metrics = (folder / "metrics.prom").read_text()
    jenkins.knobs(answers=[{"match": "GET /queue", "status": 503}])
    silent = told(pool)
    jenkins.knobs(answers=[])

    assert (label["label"], label["waiting"]) == ("devstack-noble", 1)
    assert 'devstack_gate_waiting_builds{label="devstack-noble"} 1.0' in metrics
    assert silent["labels"][0]["waiting"] is None
    assert "does not tell which builds wait: Jenkins answered 503" in silent["attention"][-1]["text"]


# Names


def test_names_in_every_field_are_shown_as_text(pool: Pool) -> None:
    now = int(time.time())
    pool.add_machine("HOLD", server=False, node=False, hold_until=now + 60, hold_reason=EVIL)
    for _ in range(3):
        name = pool.add_machine("BUILDING", server=False, node=False)
        pool.sql("UPDATE machine SET state = 'ERROR', error = ? WHERE name = ?", EVIL, name)
    for table, columns in {"provider": ("name",), "base_image": ("name",), "machine": ("name",),
                           "event": ("provider", "image", "node_name", "reason")}.items():
        for column in columns:
            pool.sql(f"UPDATE {table} SET {column} = ? || id", EVIL)
    for number, result in enumerate(("FAILURE", "SUCCESS")):
        build(pool, now - 60 + number, result, provider=EVIL, image=EVIL, jenkins_job_name=EVIL, phase=EVIL, kind=EVIL,
              known_failure=EVIL)
    build(pool, now, EVIL, provider=EVIL, image=EVIL)
    folder, page = made(pool)

    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&amp;amp;&#34;&#39;") > 15
    assert "\u202e" not in page
    assert {tag for tag, attributes in Tags(page).tags if "onerror" in attributes} == set()
    for file in folder.glob("*.svg"):
        assert not [element for element in ET.parse(file).getroot().iter() if "onerror" in element.attrib]
    assert EVIL in json.loads((folder / "status.json").read_text())["blame"]["providers"][0]["name"]


# When something is wrong


@pytest.mark.parametrize(("arguments", "environment", "message"), [
    ([], {}, "--output: expected a folder, since WORKSPACE is not set"),
    (["--output", ""], {}, "--output: expected a folder, got ''"),
    (["--output", "/proc/nowhere/x"], {}, "--output: /proc/nowhere/x: cannot be made, or is no folder"),
    (["--hours", "0"], {}, "--hours: expected hours, a whole number from 1 to 744, got '0'"),
    (["--hours", "x"], {}, "--hours: expected hours, a whole number from 1 to 744, got 'x'"),
    (["--output", "out"], {"DEVSTACK_GATE_DB": "/nowhere/vm.db"}, "/nowhere/vm.db: there is no folder /nowhere"),
    (["--output", "out"], {"DEVSTACK_GATE_PREFIX": "a b"}, "DEVSTACK_GATE_PREFIX: 'a b' may hold letters"),
], ids=str)
def test_wrong_use_is_one_line(pool: Pool, arguments: list[str], environment: dict[str, str], message: str) -> None:
    done = pool.run(STATUS, *arguments, expect=2, **environment)

    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["jinja2", "matplotlib", "prometheus_client"])
def test_a_library_that_is_missing_is_one_line(pool: Pool, name: str) -> None:
    (pool.folder / "sitecustomize.py").write_text(f"import sys\nsys.modules[{name!r}] = None\n")

    done = pool.run(STATUS, "--output", "out", expect=2, PYTHONPATH=str(pool.folder))

    assert done.stderr == (f"devstack-vm-status.py: there is no Python package {name} here; install what the status "
                           "page needs: pip install -r requirements-status.txt\n")


@pytest.mark.parametrize("script", ["vmdatabase.py", "devstack-vm-inprogress.py", "devstack-vm-delete.py",
                                    "devstack-vm-launch.py", "devstack-vm-reap.py", "devstack-vm-update-image.py"])
def test_no_other_script_loads_the_libraries_of_the_page(pool: Pool, script: str) -> None:
    command = [sys.executable, "-X", "importtime", str(PROJECT / script), "--help"]
    done = subprocess.run(command, env=pool.environment, capture_output=True, text=True, timeout=60, check=True)

    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "peewee" in loaded
    assert loaded & {"matplotlib", "numpy", "jinja2", "prometheus_client", "status"} == set()


@pytest.mark.file
def test_a_newer_vm_db_is_one_line_and_leaves_the_page_as_it_was(pool: Pool) -> None:
    folder, page = made(pool)
    pool.sql("PRAGMA user_version = 999")

    done = pool.run(STATUS, "--output", str(folder), expect=2)

    assert re.fullmatch(r"devstack-vm-status\.py: \S+: has schema version 999, newer than the .*\n", done.stderr)
    assert (folder / "index.html").read_text() == page


@pytest.mark.file
def test_a_locked_vm_db_is_one_line(pool: Pool) -> None:
    made(pool)
    with closing(sqlite3.connect(pool.database, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        done = pool.run(STATUS, "--output", "out", expect=1)

    assert "another process has held it for more than 30 s; try again" in done.stderr.splitlines()[-1]


def test_others_may_read_the_page_and_nothing_else_is_left(past: Pool) -> None:
    folder, _ = made(past)

    assert {oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == {"0o644"}
    assert oct(folder.stat().st_mode & 0o777) == "0o755"
    assert list(folder.glob(".*")) == []


@pytest.mark.file
def test_nothing_is_written_through_what_others_put_into_the_folder(pool: Pool) -> None:
    folder = pool.folder / "out"
    folder.mkdir()
    folder.chmod(0o777)
    before = pool.database.read_bytes()
    # Somebody knows the process id before the process writes.
    command = ["bash", "-c", 'kill -STOP $$; exec "$@"', "bash", sys.executable, str(PROJECT / STATUS), "--output",
               "out"]
    with subprocess.Popen(command, env=pool.environment, cwd=pool.folder, stdout=subprocess.PIPE, text=True) as process:
        await_that("it to stand still", lambda: " T " in Path(f"/proc/{process.pid}/stat").read_text())
        for name in ("index.html", "status.json", "metrics.prom"):
            (folder / f".{name}.{process.pid}.new").symlink_to(pool.database)
            (folder / name).symlink_to(pool.database)
        process.send_signal(signal.SIGCONT)
        assert process.wait(SCRIPT_SECONDS) == 0
    assert pool.database.read_bytes() == before
    assert oct(pool.database.stat().st_mode & 0o777) == "0o600"
    assert "<!DOCTYPE html>" in (folder / "index.html").read_text()


def test_old_pictures_go_after_an_hour_and_what_is_not_ours_stays(past: Pool) -> None:
    folder, _ = made(past)
    old = {folder / name: age for name, age in {
        "states-wide-light-0123abcd.svg": 7200, "boots-wide-light-0123abcd.svg": 60, ".index.html.1.new": 7200,
        "mine.svg": 7200, "my-own-picture.svg": 7200}.items()}
    for file, age in old.items():
        file.touch()
        os.utime(file, (time.time() - age, time.time() - age))
    made(past)

    assert [file.name for file in old if file.exists()] == [
        "boots-wide-light-0123abcd.svg", "mine.svg", "my-own-picture.svg"]


def test_killed_at_any_point_the_page_is_the_old_one_or_the_new_one(past: Pool) -> None:
    """Each run is killed after it has written a few more files than the run before."""
    folder, _ = made(past)
    before = {file.name for file in folder.iterdir()}
    past.sql("UPDATE provider SET max_servers = max_servers + 1")
    seen = set()
    for writes in range(0, 40, 4):
        process = past.start(STATUS, "--output", str(folder))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            fresh = [file for file in folder.iterdir() if file.name not in before or file.name.endswith(".new")]
            if len(fresh) >= writes:
                process.send_signal(signal.SIGKILL)
            if not fresh:
                time.sleep(0.001)
        process.communicate()
        page = (folder / "index.html").read_text()
        seen.add(page)
        assert page.endswith("</html>\n") or page.endswith("</html>")
        for tag, attributes in Tags(page).tags:
            name = attributes.get("src") or attributes.get("srcset")
            assert name is None or ET.parse(folder / name).getroot().tag.endswith("svg"), (tag, name)
        json.loads((folder / "status.json").read_text())
    made(past)
    assert seen


def test_a_label_that_counts_for_all_providers_is_wanted_and_short_as_a_whole(pool: Pool) -> None:
    pool.sql("INSERT INTO label (name, min_ready, max_ready, demand, spread, schedule) "
             "VALUES ('noble', 4, 4, 'none', 'even', '[]')")
    pool.add_machine("READY", server=False, node=False)
    pool.sql("UPDATE event SET time = time - 3000")
    pool.sql("UPDATE provider SET paused = 1")
    paused = told(pool)
    pool.sql("UPDATE provider SET paused = 0")
    found = told(pool)

    assert [one for one in paused["attention"] if one["kind"] == "pool short"] == []
    (row,) = found["labels"]
    assert (row["label"], row["wanted"], row["ready"], row["because"]) == ("devstack-noble", 4, 1, "min-ready")
    assert row["given"] == [{"provider": "one", "has": 1, "adds": 0, "trouble": "drained, or without a snapshot"}]
    assert [row["wanted"] for row in found["pool"]] == [0]
    assert [one["text"] for one in found["attention"] if one["kind"] == "pool short"] == [
        "1 of 4 ready at all providers together"]


def test_test_environments_are_shown_and_one_that_is_broken_needs_a_person(pool: Pool) -> None:
    name = pool.add_machine("USED", server=False, node=False)
    for number, (state, machine) in enumerate([("LOCKED", 1), ("BROKEN", None), ("FREE", None)], 1):
        pool.sql("INSERT INTO test_environment (name, images, providers, data, state, state_time, state_reason, "
                 "machine_id) VALUES (?, '[\"noble\"]', '[]', '/x', ?, 1, ?, ?)", f"rack-{number}", state,
                 f"{EVIL} {state}", machine)
    pool.sql("INSERT INTO environment_waiter (machine_id, since) VALUES (1, ?)", int(time.time()) - 600)

    folder, page = made(pool)

    status = json.loads((folder / "status.json").read_text())
    assert [(one["name"], one["state"], one["node"]) for one in status["environments"]["all"]] == [
        ("rack-1", "LOCKED", name), ("rack-2", "BROKEN", None), ("rack-3", "FREE", None)]
    assert "Test environments; machines that wait for one: 1, up to 10 min" in words(page)
    assert [(one["kind"], one["about"]) for one in status["attention"] if "environment" in one["kind"]] == [
        ("environment broken", "rack-2")]
    metrics = (folder / "metrics.prom").read_text()
    assert 'devstack_gate_environments{environment="rack-2",state="BROKEN"} 1.0' in metrics
    assert 'devstack_gate_environments{environment="rack-2",state="FREE"} 0.0' in metrics
    assert "devstack_gate_environment_waiting 1.0" in metrics
    assert 'devstack_gate_environment_moves_total{from="none",image="noble",provider="one",to="LOCKED"} 1.0' in metrics
