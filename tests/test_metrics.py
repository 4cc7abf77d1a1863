"""metrics.prom, the alert rules and the dashboard, checked with Prometheus' own promtool."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench import pasthistory
from tests.support.pool import PROJECT, Pool, provider
from tests.test_status import EVIL, made

RULES = PROJECT / "docs/prometheus-rules.yaml"
DASHBOARD = PROJECT / "docs/grafana-dashboard.json"


def promtool(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, check=False)


def metrics(pool: Pool) -> dict[tuple[str, ...], float]:
    """Return {(name, label values in order of their names): value} of the file."""
    folder, _ = made(pool)
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families((folder / "metrics.prom").read_text())
            for sample in family.samples}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Return a pool with neither cloud nor Jenkins; vm.db has one provider with one image."""
    pool = Pool(tmp_path)
    pool.load(provider())
    return pool


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the metrics.prom of a pool that has run for two days."""
    pool = Pool(tmp_path_factory.mktemp("past"))
    pasthistory.write(pool.database, pasthistory.Past(2, 300, 3))
    return made(pool)[0] / "metrics.prom"


def test_promtool_has_no_complaint_about_the_metrics(past: Path) -> None:
    checked = promtool("check", "metrics", stdin=past.read_bytes())

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_promtool_has_no_complaint_about_names_with_quotes_and_line_breaks(pool: Pool) -> None:
    for table in ("provider", "base_image"):
        pool.sql(f"UPDATE {table} SET name = ?", EVIL + '\n\\"}')
    folder, _ = made(pool)

    checked = promtool("check", "metrics", stdin=(folder / "metrics.prom").read_bytes())
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    assert metrics(pool)["devstack_gate_max_servers", EVIL + '\n\\"}'] == 10


def test_every_metric_has_our_name_a_help_and_a_type(past: Path) -> None:
    text = past.read_text()
    names = set(re.findall(r"^([a-z_]+)[{ ]", text, re.MULTILINE))
    families = set(re.findall(r"^# TYPE (\S+) (?:gauge|counter|histogram)$", text, re.MULTILINE))

    assert families == set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
    assert all(name.startswith("devstack_gate_") for name in names)
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in names} <= families


def test_the_numbers_are_those_of_vm_db_and_counters_go_on_when_events_are_pruned(pool: Pool) -> None:
    pool.add_machine("BUILDING", server=False, node=False, age=75)
    pool.sql("UPDATE machine SET state = 'READY'")
    pool.sql("INSERT INTO machine (base_image_id, state, state_time) VALUES (1, 'BUILDING', 1)")
    pool.sql("UPDATE machine SET state = 'ERROR' WHERE state = 'BUILDING'")
    pool.sql("INSERT INTO result (machine_id, provider, image, start_time) VALUES (1, 'one', 'noble', 100)")
    pool.sql("UPDATE result SET end_time = 1300, result = 'FAILURE'")
    pool.sql("DELETE FROM event")
    found = metrics(pool)

    where = ("noble", "one")
    assert {key: found[key] for key in (
        ("devstack_gate_machines", *where, "READY"), ("devstack_gate_machines", *where, "USED"),
        ("devstack_gate_min_ready", *where), ("devstack_gate_servers", "one"),
        ("devstack_gate_moves_total", "BUILDING", *where, "READY"), ("devstack_gate_moves_total", "none", *where,
                                                                     "BUILDING"),
        ("devstack_gate_boots_total", *where, "ready"), ("devstack_gate_boots_total", *where, "failed"),
        ("devstack_gate_builds_total", *where, "FAILURE"), ("devstack_gate_ready_seconds_count", *where),
        ("devstack_gate_ready_seconds_bucket", *where[:1], "60.0", "one"),
        ("devstack_gate_ready_seconds_bucket", *where[:1], "90.0", "one"),
        ("devstack_gate_build_duration_seconds_sum", *where),
        ("devstack_gate_build_duration_seconds_bucket", *where[:1], "900.0", "one"),
        ("devstack_gate_build_duration_seconds_bucket", *where[:1], "1200.0", "one"),
        ("devstack_gate_attention", "pool short"))} == {
        ("devstack_gate_machines", *where, "READY"): 1, ("devstack_gate_machines", *where, "USED"): 0,
        ("devstack_gate_min_ready", *where): 2, ("devstack_gate_servers", "one"): 2,
        ("devstack_gate_moves_total", "BUILDING", *where, "READY"): 1,
        ("devstack_gate_moves_total", "none", *where, "BUILDING"): 2,
        ("devstack_gate_boots_total", *where, "ready"): 1, ("devstack_gate_boots_total", *where, "failed"): 1,
        ("devstack_gate_builds_total", *where, "FAILURE"): 1, ("devstack_gate_ready_seconds_count", *where): 1,
        ("devstack_gate_ready_seconds_bucket", *where[:1], "60.0", "one"): 0,
        ("devstack_gate_ready_seconds_bucket", *where[:1], "90.0", "one"): 1,
        ("devstack_gate_build_duration_seconds_sum", *where): 1200,
        ("devstack_gate_build_duration_seconds_bucket", *where[:1], "900.0", "one"): 0,
        ("devstack_gate_build_duration_seconds_bucket", *where[:1], "1200.0", "one"): 1,
        ("devstack_gate_attention", "pool short"): 1}


def known_names(past: Path) -> set[str]:
    families = re.findall(r"^# TYPE (\S+) (\S+)$", past.read_text(), re.MULTILINE)
    return {name for name, _ in families} | {f"{name}_bucket" for name, kind in families if kind == "histogram"}


def test_the_alert_rules_are_good_and_name_only_metrics_that_there_are(past: Path) -> None:
    checked = promtool("check", "rules", str(RULES))

    assert checked.returncode == 0, checked.stderr
    named = set(re.findall(r"devstack_gate_[a-z_]+", RULES.read_text()))
    assert named - known_names(past) == {"devstack_gate_waiting_builds"}  # only there with a Jenkins


def test_the_dashboard_asks_only_for_metrics_that_there_are(past: Path) -> None:
    board = json.loads(DASHBOARD.read_text())

    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) >= 10
    named = set(re.findall(r"devstack_gate_[a-z_]+", " ".join(queries)))
    assert named - known_names(past) == {"devstack_gate_waiting_builds"}


def test_promtool_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    queries = [target["expr"].replace("$provider", ".*")
               for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    rules = [{"record": f"query{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

    checked = promtool("check", "rules", str(file))

    assert checked.returncode == 0, checked.stderr


def test_the_alert_for_a_short_pool_fires_and_only_then(tmp_path: Path) -> None:
    def series(ready: int) -> list[dict[str, str]]:
        return [{"series": 'devstack_gate_machines{provider="a",image="i",state="READY"}', "values": f"{ready}+0x60"},
                {"series": 'devstack_gate_min_ready{provider="a",image="i"}', "values": "5+0x60"}]

    def alerts(ready: int) -> bool:
        labels = {"severity": "page", "provider": "a", "image": "i", "state": "READY"}
        told = {"summary": "Less than half of the wanted machines of i are ready at a."}
        file = tmp_path / "test.yaml"
        file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [{
            "interval": "1m", "input_series": series(ready), "alert_rule_test": [{
                "eval_time": "45m", "alertname": "DevstackGatePoolShort",
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": told}]}]}]}))
        return promtool("test", "rules", str(file)).returncode == 0

    assert (alerts(2), alerts(3)) == (True, False)
