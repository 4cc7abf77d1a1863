"""Labels: how many machines of an image type all providers have, by min-ready and by what waits in Jenkins."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from tests.conftest import MakePool
from tests.support.pool import Pool, await_that, image, provider

LAUNCH, REAP = "devstack-vm-launch.py", "devstack-vm-reap.py"


@pytest.fixture
def pool(make_pool: MakePool) -> Iterator[Pool]:
    """Yield a pool that has a cloud for each of two providers."""
    yield make_pool()


def label(**keys: Any) -> dict[str, Any]:
    return {"name": "noble", "min-ready": 4, **{key.replace("_", "-"): value for key, value in keys.items()}}


def load(pool: Pool, *labels: dict[str, Any], one: dict[str, Any] | None = None, two: dict[str, Any] | None = None
         ) -> None:
    """Load two providers that have the image type, and the labels."""
    images = [image(min_ready=0)]
    pool.load(provider("one", "pocket-a", images=images, **(one or {})),
              provider("two", "pocket-b", images=images, **(two or {})), labels=labels)
    if not pool.sql("SELECT 1 FROM snapshot_image"):
        pool.seed_snapshots()


def counts(pool: Pool) -> dict[str, int]:
    """Return how many machines each provider has READY."""
    return {name: sum(f"-{name}-" in machine and state == "READY" for machine, state in pool.machines().items())
            for name in ("one", "two")}


def test_min_ready_of_a_label_is_shared_by_the_providers(pool: Pool) -> None:
    load(pool, label())
    told = pool.run(LAUNCH, "one", "--dry-run", expect=0).stdout
    assert told == ("would launch a machine of one noble\n" * 2
                    + "label noble: 4 wanted (min-ready); one 0 + 2, two 0 + 2\n")
    pool.run(LAUNCH, "one", expect=0)
    pool.run(LAUNCH, "two", expect=0)
    assert counts(pool) == {"one": 2, "two": 2}


def test_launches_side_by_side_never_make_too_many(pool: Pool) -> None:
    load(pool, label(min_ready=5))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: pool.run(LAUNCH, name, expect=0), ("one", "two")))
    assert sum(counts(pool).values()) == 5


def test_the_provider_of_the_highest_priority_gives_first(pool: Pool) -> None:
    load(pool, label(min_ready=3), one={"max-servers": 2}, two={"priority": -1})
    pool.run(LAUNCH, "two", expect=0)
    assert counts(pool) == {"one": 0, "two": 1}
    pool.run(LAUNCH, "one", expect=0)
    assert counts(pool) == {"one": 2, "two": 1}


def test_a_paused_provider_gives_nothing_and_keeps_what_it_has(pool: Pool) -> None:
    load(pool, label(min_ready=2))
    pool.run(LAUNCH, "all", expect=0)
    load(pool, label(), one={"paused": True})
    pool.run(LAUNCH, "all", expect=0)
    assert counts(pool) == {"one": 1, "two": 3}
    told = pool.run(LAUNCH, "one", "--dry-run", expect=0).stdout
    assert told == "label noble: 4 wanted (min-ready); one 1 (paused), two 3\n"


def test_a_paused_provider_with_a_min_ready_of_its_own_is_not_short(pool: Pool) -> None:
    pool.load(provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    pool.run(LAUNCH, "one", expect=0)
    pool.load(provider(images=[image(min_ready=5)], paused=True))
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 1 of 5 ready, paused\n"
    pool.sql("UPDATE event SET time = time - 7200")
    pool.run("devstack-vm-status.py", "--output", "told", expect=0)
    told = json.loads((pool.folder / "told/status.json").read_text())["attention"]
    assert [one["kind"] for one in told] == ["old image"], "not: pool short"


def test_builds_count_that_wait_for_the_only_node_of_their_label_but_not_those_about_to_start(pool: Pool) -> None:
    assert pool.jenkins
    load(pool, label(min_ready=1, max_ready=9, demand="queue"))
    only = pool.add_machine(node=True)
    queue = [("Waiting for next available executor on \u2018{}\u2019", False), ("\u2018{}\u2019 is offline", False),
             ("Waiting for next available executor on \u2018{}\u2019", True)]
    items = [{"buildable": True, "pending": pending, "why": why.format(only), "inQueueSince": 1000}
             for why, pending in queue]
    pool.jenkins.knobs(answers=[{"match": "GET /queue/api/json", "body": json.dumps({"items": items})}])
    told = pool.run(LAUNCH, "one", "--dry-run", expect=0).stdout
    pool.run("devstack-vm-status.py", "--output", "told", expect=0)
    pool.jenkins.knobs(answers=[])
    assert "3 wanted (min-ready 1 and 2 waiting in the queue, max-ready 9)" in told
    page = json.loads((pool.folder / "told/status.json").read_text())
    assert [(row["label"], row["waiting"]) for row in page["labels"]] == [("devstack-noble", 2)]
    asked = [one for one in pool.jenkins.look()["requests"] if "/queue" in one["path"]]
    assert ["pending" in one["query"]["tree"] for one in asked] == [True, True]


def test_what_a_provider_that_is_down_cannot_give_the_others_make_up(pool: Pool) -> None:
    load(pool, label())
    pool.knobs("pocket-a", answers=[{"match": ".*", "kind": "status", "status": 500}])
    pool.run(LAUNCH, "one", expect=1)
    pool.run(LAUNCH, "two", expect=0)
    assert counts(pool) == {"one": 0, "two": 4}
    assert "one 0 (down for 0 min)" in pool.run(LAUNCH, "two", "--dry-run", expect=0).stdout

    pool.knobs("pocket-a", answers=[])
    load(pool, label(min_ready=8))
    pool.run(LAUNCH, "one", "--no-wait", expect=0)
    assert sum("-one-" in name for name in pool.machines()) == 1, "one at a time until one is ready"
    pool.run(LAUNCH, "one", expect=0)
    pool.run(LAUNCH, "two", expect=0)
    assert counts(pool) == {"one": 4, "two": 4}


def test_what_a_provider_that_nobody_reaches_has_lost_is_made_up_within_max_ready_and_then_given_up(pool: Pool) -> None:
    assert pool.jenkins
    load(pool, label(min_ready=2))
    pool.jenkins.knobs(connect="never")
    lost = pool.add_machine("READY")
    pool.jenkins.knobs(connect="instant")
    dead = pool.folder / "dead.yaml"
    assert pool.pocket
    dead.write_text(pool.pocket.clouds_yaml.read_text().replace(pool.pocket.url, "http://127.0.0.1:1"))

    pool.run(LAUNCH, "one", expect=1, OS_CLIENT_CONFIG_FILE=str(dead))
    told = pool.run(LAUNCH, "two", "--dry-run", expect=0).stdout
    pool.sql("UPDATE machine SET absent_time = absent_time - 1800")
    pool.run(LAUNCH, "one", expect=1, OS_CLIENT_CONFIG_FILE=str(dead))
    pool.run(LAUNCH, "two", expect=0)

    assert told == ("would launch a machine of two noble\n"
                    "label noble: 2 wanted (min-ready); one 0 (down for 0 min), two 0 + 1\n")
    assert pool.machines()[lost] == "ERROR"
    assert pool.column(lost, "error").endswith(" s, and its provider does not answer")
    assert counts(pool) == {"one": 0, "two": 2}


def test_what_a_full_cloud_refuses_the_others_make_up(pool: Pool) -> None:
    load(pool, label())
    pool.knobs("pocket-a", quota_instances=1)
    short = pool.run(LAUNCH, "one", expect=1)
    assert short.stdout == "one noble: 1 of 1 ready, there was room for 1 more: instances\n"
    told = pool.run(LAUNCH, "two", "--dry-run", expect=0).stdout
    assert told.endswith("label noble: 4 wanted (min-ready); one 1 (full), two 0 + 3\n")
    pool.run(LAUNCH, "two", expect=0)
    assert counts(pool) == {"one": 1, "two": 3}
    pool.run(LAUNCH, "one", expect=0)


def test_what_a_provider_whose_machines_fail_cannot_give_the_others_make_up_until_one_comes_up(pool: Pool) -> None:
    load(pool, label(min_ready=2, spread="pack"), one={"priority": 9})
    pool.knobs("pocket-a", boot_failure_rate=1.0, boot_fault="the image is unacceptable")
    pool.run(LAUNCH, "one", expect=1)
    told = pool.run(LAUNCH, "two", "--dry-run", expect=0).stdout
    assert told.endswith("label noble: 2 wanted (min-ready); one 0 (failing), two 0 + 2\n")
    pool.run(LAUNCH, "one", expect=0)
    assert set(pool.machines().values()) == {"ERROR"}, "one leaves it to two"
    pool.run(LAUNCH, "two", expect=0)
    assert counts(pool) == {"one": 0, "two": 2}

    pool.run(REAP, "one")
    pool.knobs("pocket-a", boot_failure_rate=0)
    load(pool, label(min_ready=6, spread="pack"), one={"priority": 9}, two={"max-servers": 3})
    told = pool.run(LAUNCH, "one", "--dry-run", expect=0).stdout
    assert told.splitlines()[0] == "would launch a machine of one noble"
    assert told.endswith("one 0 + 1 (failing), two 2 + 1: no provider can give 2 of them now\n")
    pool.run(LAUNCH, "one", expect=0)
    assert counts(pool) == {"one": 4, "two": 2}, "the first one that comes up brings the others"
    assert pool.sql("SELECT * FROM setting WHERE name LIKE 'failing%'") == []


def test_a_provider_whose_machine_cannot_even_be_asked_for_is_made_up_for_and_a_dry_run_notes_nothing(
        pool: Pool) -> None:
    images = [image(min_ready=0, flavor="no such")]
    pool.load(provider("one", images=images), provider("two", "pocket-b", images=[image(min_ready=0)]),
              labels=[label()])
    pool.seed_snapshots()
    pool.run(LAUNCH, "one", "--dry-run", expect=0)
    assert pool.sql("SELECT * FROM setting WHERE name LIKE 'failing%'") == []
    assert "flavor" in pool.run(LAUNCH, "one", expect=2).stderr
    pool.run(LAUNCH, "two", expect=0)
    assert counts(pool) == {"one": 0, "two": 4}


def test_a_provider_without_a_snapshot_says_so_and_leaves_all_to_the_others(pool: Pool) -> None:
    load(pool, label())
    pool.sql("DELETE FROM snapshot_image WHERE base_image_id = (SELECT min(id) FROM base_image)")
    told = pool.run(LAUNCH, "one", "--dry-run", expect=0)
    assert told.stdout == "label noble: 4 wanted (min-ready); one 0 (drained, or without a snapshot), two 0 + 4\n"
    assert "there is no snapshot yet" in pool.run(LAUNCH, "one", expect=1).stderr
    pool.run(LAUNCH, "two", expect=0)
    assert counts(pool) == {"one": 0, "two": 4}


def test_a_label_for_which_nobody_has_room_is_told(pool: Pool) -> None:
    load(pool, label(), one={"max-servers": 1}, two={"max-servers": 2})
    pool.run(LAUNCH, "two", expect=1)
    run = pool.run(LAUNCH, "one", expect=1)
    assert run.stdout == "one noble: 1 of 1 ready\n"
    assert pool.run(LAUNCH, "one", "--dry-run", expect=0).stdout == (
        "label noble: 4 wanted (min-ready); one 1, two 2: no provider can give 1 of them now\n")
    assert ("ERROR provider=one image=noble label noble: 4 wanted (min-ready); one 1, two 2: no provider can give "
            "1 of them now\n") in run.stderr

    assert pool.jenkins
    load(pool, label(min_ready=3, max_ready=9, demand="queue"), one={"max-servers": 1}, two={"max-servers": 2})
    why = "There are no nodes with the label \u2018devstack-noble||devstack-other\u2019"
    items = [{"buildable": True, "pending": False, "why": why, "inQueueSince": 1000}]
    pool.jenkins.knobs(answers=[{"match": "GET /queue/api/json", "body": json.dumps({"items": items * 3})}])
    run = pool.run(LAUNCH, "one", expect=0)
    pool.jenkins.knobs(answers=[])
    assert "WARNING provider=one image=noble label noble: 6 wanted" in run.stderr, "a queue may be longer"


def test_machines_of_failed_builds_make_room_for_a_label_where_no_provider_has_any_left(pool: Pool) -> None:
    load(pool, label(min_ready=1), one={"max-servers": 2}, two={"max-servers": 1})
    names = [pool.add_machine("USED", node=False, age=age) for age in (300, 200)]
    other = pool.add_machine("USED", node=False, provider="two", cloud="pocket-b", age=100)
    for name in (*names, other):
        pool.sql("INSERT INTO result (machine_id, node_name, start_time, end_time, result) VALUES (?, ?, 1, 2, "
                 "'FAILURE')", pool.column(name, "id"), name)
    assert "would move" not in pool.run(REAP, "two", "--dry-run", expect=0).stdout, "one has it first"
    pool.run(REAP, "one", expect=0)
    assert pool.machines() == {names[1]: "USED", other: "USED"}
    pool.run(LAUNCH, "one", expect=0)
    assert counts(pool) == {"one": 1, "two": 0}
    pool.run(REAP, "two", expect=0)
    assert other in pool.machines()


def test_load_warns_of_labels_that_cannot_be_full_or_whose_demand_has_no_effect(pool: Pool) -> None:
    file = pool.folder / "providers.yaml"
    file.write_text(yaml.safe_dump({
        "providers": [provider("one", max_servers=4, images=[image(min_ready=50, subnodes=4)]),
                      provider("two", "pocket-b", max_servers=9, images=[image("jammy", min_ready=2)])],
        "labels": [{"name": "noble", "min-ready": 0, "demand": "queue"}, {"name": "jammy", "min-ready": 30}]}))
    said = pool.run("vmdatabase.py", "load", str(file), expect=0).stderr
    assert [line.split(" WARNING ")[1] for line in said.splitlines()] == [
        "label noble: demand: queue has no effect, since max-ready is 0 like min-ready: builds that wait get no "
        "machines of their own",
        "label jammy: min-ready is 30, but the providers that have it can give 9 (max-servers): the pool can never be "
        "full",
        "provider=one image noble: a machine takes 5 servers with its subnodes, but max-servers is 4: there can never "
        "be one"]


def test_a_schedule_that_a_person_wrote_amiss_is_named_by_the_status_page(pool: Pool) -> None:
    load(pool, label())
    pool.sql("UPDATE label SET schedule = 'work'")
    said = pool.run("devstack-vm-status.py", "--output", "told", expect=2).stderr
    assert "label noble: schedule: expected a list of entries with days, hours, min-ready, and a zone" in said


def test_builds_that_wait_get_machines_up_to_max_ready_and_the_pool_sinks_again(pool: Pool) -> None:
    load(pool, label(min_ready=0, max_ready=3, demand="queue"))
    assert pool.jenkins
    pool.run(LAUNCH, "one", expect=0)
    assert pool.machines() == {}
    pool.jenkins.add_job("gate", "devstack-noble", seconds=0.1)
    pool.jenkins.add_job("other", "elsewhere", seconds=0.1)
    for number in range(5):
        pool.jenkins.build("gate", NUMBER=str(number))
    pool.jenkins.build("other")

    told = pool.run(LAUNCH, "one", "--dry-run", expect=0).stdout
    pool.run(LAUNCH, "one", expect=0)
    pool.run(LAUNCH, "two", expect=0)

    assert "label noble: 3 wanted (min-ready 0 and 5 waiting in the queue, max-ready 3); one 0 + 2, two 0 + 1" in told
    assert len(pool.machines()) <= 3
    deadline = time.monotonic() + 30
    while pool.jenkins.look()["queue"] and time.monotonic() < deadline:
        time.sleep(0.2)
    before = set(pool.machines())
    pool.run(LAUNCH, "all", expect=0)
    assert set(pool.machines()) == before, "nobody waits any more"


@pytest.mark.parametrize("answer", [
    {"status": 403}, {"status": 503, "body": "<html>Proxy</html>"}, {"status": 200, "body": "<html>Log in</html>"}],
    ids=lambda answer: str(answer["status"]))
def test_a_queue_that_is_not_shown_is_a_failure_and_not_an_empty_one(pool: Pool, answer: dict[str, Any]) -> None:
    """Otherwise a label with min-ready 0 would have no machines for ever, and the job would be green."""
    load(pool, label(min_ready=0, max_ready=3, demand="queue"), two={"paused": True})
    assert pool.jenkins
    pool.jenkins.add_job("gate", "devstack-noble", seconds=0.1)
    pool.jenkins.build("gate")
    pool.jenkins.knobs(answers=[{"match": "GET /queue/api/json", **answer}])

    refused = pool.run(LAUNCH, "one", expect=1)
    pool.jenkins.knobs(answers=[])
    pool.run(LAUNCH, "one", expect=0)

    (told,) = refused.stderr.splitlines()
    assert told.endswith("; builds that wait there are not counted")
    assert counts(pool)["one"] == 1


def test_builds_that_come_while_a_launch_waits_for_a_boot_do_not_wait_for_its_end(pool: Pool) -> None:
    assert pool.jenkins
    load(pool, label(min_ready=1, max_ready=3, demand="queue"), two={"paused": True})
    pool.knobs(boot_seconds=14)
    run = pool.start(LAUNCH, "one")
    await_that("the first machine", pool.machines)
    pool.jenkins.add_job("gate", "devstack-noble", seconds=600)
    pool.jenkins.build("gate", NUMBER="1")
    pool.jenkins.build("gate", NUMBER="2")

    await_that("three machines on their way", lambda: list(pool.machines().values()) == ["BUILDING"] * 3)

    pool.knobs(boot_seconds=0)
    run.kill()
    run.communicate()


@pytest.mark.parametrize(("labels", "message"), [
    ([label(name="nobel")], "label nobel: no provider has an image of that name; did you mean noble?"),
    ([label(max_ready=3)], "label noble: max-ready: expected 4 or more, as min-ready is, got 3"),
    ([label(demand="builds")], "label noble: demand: expected one of none, queue, got 'builds'"),
    ([label(), label()], "label noble is given twice"),
    ([label(maxready=3)], "label: unknown key maxready; did you mean max-ready?"),
    ([label(schedule=[{"days": "mon", "hours": "8-18", "zone": "UTC", "min-ready": 1}])],
     "label noble: schedule: expected a list of entries such as {days: mon-fri, hours: '08:00-18:00', "
     "zone: Europe/Berlin, min-ready: 30}, each with all four keys, got "),
    ([label(schedule=[{"days": "mon", "hours": "08:00-18:00", "zone": "Europe/Berlon", "min-ready": 1}])],
     "label noble: schedule: expected a list of entries")])
def test_a_label_that_cannot_be_is_refused_in_one_line(pool: Pool, labels: list[dict[str, Any]], message: str) -> None:
    load(pool)
    with pytest.raises(AssertionError, match=r"vmdatabase.py: 2\n\nvmdatabase.py: .*providers.yaml:[0-9]+: ") as failed:
        load(pool, *labels)
    assert message in str(failed.value)


def test_a_label_that_leaves_the_file_is_gone_and_each_change_is_told(pool: Pool) -> None:
    load(pool, label())
    load(pool, label(min_ready=5))
    assert pool.sql("SELECT name, min_ready, max_ready, demand, spread, schedule FROM label") == [
        ("noble", 5, 5, "none", "even", "[]")]
    load(pool)
    assert pool.sql("SELECT * FROM label") == []
