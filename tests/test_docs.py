"""docs/migrating.md agrees with the gate's data."""

import os
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
FORMER = PROJECT / "gate" / "former-variables.txt"
MIGRATING = PROJECT / "docs" / "migrating.md"
NAME = re.compile(r"[A-Z][A-Z0-9_]*[A-Z0-9]")


def former_variables() -> dict[str, str]:
    """Return names that have no effect any more, with what to do instead, in the order of the file."""
    former: dict[str, str] = {}
    for number, line in enumerate(FORMER.read_text().splitlines(), 1):
        if not line.startswith("#"):
            name, separator, words = line.partition(" | ")
            assert separator and words == words.strip() and NAME.fullmatch(name), f"line {number}: {line}"
            assert name not in former, f"line {number}: {name} stands there twice"
            former[name] = words
    return former


def section(title: str) -> str:
    """Return the text below a heading, up to the next heading of its level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", MIGRATING.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"docs/migrating.md has no section {title}"
    return found[1]


def rows(title: str) -> list[list[str]]:
    """Return the cells of a section's tables, without their heads."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for position, row in enumerate(cells) if row[0] != "---" and not is_head(cells, position)]


def is_head(cells: list[list[str]], position: int) -> bool:
    """Return whether a line of dashes follows."""
    return position + 1 < len(cells) and cells[position + 1][0] == "---"


def shell_blocks() -> list[str]:
    """Return the scripts of the page."""
    return re.findall(r"^```bash\n(.*?)^```", MIGRATING.read_text(), re.MULTILINE | re.DOTALL)


def test_the_file_of_former_variables_is_sorted_by_name() -> None:
    """Readers find a name where they look for it."""
    names = list(former_variables())
    assert names == sorted(names)


def test_each_former_variable_stands_on_the_page_with_the_words_of_the_console_and_no_other_does() -> None:
    """The page says what a run says."""
    told: dict[str, str] = {}
    for names, words in rows("Names that have no effect"):
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in told, f"{name} stands on the page twice"
            told[name] = words.replace("`", "")
    assert told == former_variables()


def test_no_name_both_works_and_has_no_effect() -> None:
    """A job cannot be told both."""
    same, _, _ = section("Names that still work").partition("These work, with a difference")
    different = "".join(names for names, _, _ in rows("Names that still work"))
    working = set(re.findall(rf"`({NAME.pattern})`", same + different))
    assert working & set(former_variables()) == set()
    assert working >= {"ZUUL_REF", "ENABLED_SERVICES", "KEEP_LOCALRC", "DEVSTACK_GATE_SETTINGS"}


def settings() -> set[str]:
    """Return the variables that have an effect on a run."""
    lines = (PROJECT / "gate" / "variables.txt").read_text().splitlines()
    return {line.partition(" | ")[0] for line in lines if not line.startswith("#")}


def test_no_former_variable_is_a_setting_of_the_gate() -> None:
    """A name that gets an effect leaves the file."""
    assert "DEVSTACK_GATE_TEMPEST" in settings()
    assert settings() & set(former_variables()) == set()


def test_each_name_that_still_works_is_a_setting_of_the_gate() -> None:
    """RE_EXEC is on the page because jobs no longer need it."""
    names = section("Names that still work").partition("Some further differences")[0]
    working = set(re.findall(r"`([A-Z][A-Z0-9_]*)`", names)) - {"RE_EXEC", "BUILD_TIMEOUT", "TEMPEST_PLUGINS"}
    assert len(working) > 40
    assert working - settings() == set()


def test_the_page_names_no_variable_that_a_run_refuses() -> None:
    """Readers type what they read; <PROJECT> in a pattern stands for any project."""
    text = MIGRATING.read_text()
    mentioned = set(re.findall(r"(?<!_)\b(?:DEVSTACK_GATE|OVERRIDE)_(?:[A-Z0-9_]|<PROJECT>)*[A-Z0-9]", text))
    patterns = r"OVERRIDE_(\w+|<PROJECT>)_(PROJECT_BRANCH|GIT_BASE)"
    left = {name for name in mentioned - settings() - set(former_variables()) if not re.fullmatch(patterns, name)}
    assert left == {
        "DEVSTACK_GATE_CUSTOM_SCRIPT", "DEVSTACK_GATE_PREFIX", "DEVSTACK_GATE_SECURE_CONFIG",  # the pool's
        "DEVSTACK_GATE_REPO",  # an example of a job's own variable
    }  # fmt: skip


def test_the_job_before_the_move_uses_former_variables_and_the_one_after_it_none() -> None:
    """The example shows a complete move."""
    before, after = shell_blocks()
    assert len(exported(before) & set(former_variables())) >= 3
    assert exported(after) & set(former_variables()) == set()
    assert exported(after) >= {"DEVSTACK_GATE_TEMPEST", "DEVSTACK_LOCAL_CONFIG", "DEVSTACK_GATE_PASS"}


def check_settings(exports: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the settings that a job exports, as the gate does before it touches anything; return the run."""
    check = '. "$HERE/functions.sh"; for part in "$HERE"/gate/*.sh; do . "$part"; done; check_settings'
    script = f"{exports}\nexec bash -c 'set -euo pipefail; {check}'"
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "WORKSPACE": str(folder), "HERE": str(PROJECT)}
    return subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("number", [0, 1])
def test_the_settings_of_the_jobs_on_the_page_are_accepted(number: int, tmp_path: Path) -> None:
    """Each setting that has no effect any more gets a line, unless its value is 0, which asked for nothing."""
    job = re.sub(r"^(#!|git clone|cp |\./).*", "", shell_blocks()[number], flags=re.MULTILINE)
    run = check_settings(job, tmp_path)
    assert run.returncode == 0, run.stderr
    told = re.findall(r"(\w+) has no effect here: ", run.stderr)
    asked = re.findall(r"^export (\w+)=(?!0)", job, re.MULTILINE)
    assert sorted(told) == sorted(set(asked) & set(former_variables()))


@pytest.mark.parametrize(
    "exports",
    [
        "KEEP_LOCALRC=true",
        "BRANCH_OVERRIDE=default OVERRIDE_ZUUL_BRANCH=stable/2026.1",
        "DEVSTACK_GATE_TEMPEST=1 DEVSTACK_GATE_TEMPEST_FULL=1 DEVSTACK_GATE_TEMPEST_REGEX=network",
        "DEVSTACK_GATE_GRENADE=pullup GRENADE_OLD_BRANCH=stable/2026.1",
        "DEVSTACK_GATE_GRENADE=forward GRENADE_NEW_BRANCH=master",
        "DEVSTACK_GATE_PROJECTS_OVERRIDE='openstack-infra/devstack-gate openstack-dev/devstack'",
        "PROJECTS='openstack-dev/devstack stackforge/nova'",
        "OVERRIDE_OSLOCONFIG_PROJECT_BRANCH=stable/2026.1",
        "BUILD_TIMEOUT=7200000",
    ],
)
def test_what_the_page_says_of_older_values_is_so(exports: str, tmp_path: Path) -> None:
    """A job that still has older values is not refused."""
    run = check_settings(f"export {exports}", tmp_path)
    assert run.returncode == 0, run.stderr


def exported(script: str) -> set[str]:
    """Return the variables that a job exports."""
    return set(re.findall(r"^ *export ([A-Z_]+)=", script, re.MULTILINE))


