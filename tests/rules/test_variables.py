"""docs/gate.md, the gate job and the scripts agree with gate/variables.txt, the one table of the gate's variables."""

import re
import subprocess
from typing import NamedTuple

import yaml

from tests.support.pool import PROJECT


class Variable(NamedTuple):
    name: str
    default: str
    who: str
    effect: str


def variables() -> list[Variable]:
    lines = (PROJECT / "gate/variables.txt").read_text().splitlines()
    return [Variable(*(cell.strip() for cell in line.split("|"))) for line in lines if not line.startswith("#")]


def test_each_variable_has_a_name_of_its_own_and_says_who_sets_it_and_what_it_does() -> None:
    names = [variable.name for variable in variables()]

    assert len(names) == len(set(names)) > 50
    assert {variable.who for variable in variables()} == {"caller", "site"}
    assert all(variable.effect for variable in variables())


def test_the_page_shows_the_table() -> None:
    shown = re.search(r"## Variables\n\n\|.*\n\| ---.*\n((?:\|.*\n)+)", (PROJECT / "docs/gate.md").read_text())

    assert shown
    assert shown[1].splitlines() == [
        f"| `{one.name}` | {one.default} | {one.effect} |".replace("|  |", "| |") for one in variables()]


def test_the_gate_job_has_a_parameter_for_each_variable_that_a_caller_may_set() -> None:
    class Loader(yaml.SafeLoader):
        """Reads jenkins-jobs' own tags as plain text."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: suffix)
    jobs = yaml.load((PROJECT / "jobs/gate.yaml").read_text(), Loader)  # a SafeLoader
    [group] = [one["parameter"] for one in jobs if one.get("parameter", {}).get("name") == "gate-parameters"]
    parameters = [next(iter(one.values())) for one in group["parameters"]]

    assert [(one["name"], one["description"]) for one in parameters] == [
        (one.name, one.effect.replace("`", "")) for one in variables() if one.who == "caller"]


def test_the_scripts_take_the_names_from_the_table() -> None:
    script = '. "$1/functions.sh"; HERE=$1; . "$1/gate/settings.sh"; read_variables; printf "%s\\n" "${SETTINGS[@]}"'

    found = subprocess.run(["bash", "-c", script, "bash", str(PROJECT)], capture_output=True, text=True, check=True)

    assert found.stdout.split() == [one.name for one in variables() if "<" not in one.name]


def test_each_variable_that_the_gate_reads_is_in_the_table() -> None:
    """A variable of ours that only the code knows would be refused as unknown."""
    files = [PROJECT / "devstack-vm-gate-wrap.sh", PROJECT / "devstack-vm-gate.sh", *(PROJECT / "gate").glob("*.sh")]
    text = "".join(file.read_text() for file in files)
    read = set(re.findall(r"\$\{?!?((?:DEVSTACK|TEMPEST|GRENADE)_[A-Z_]+[A-Z])\b", text))

    assert read - {one.name for one in variables()} == {
        "TEMPEST_ENVIRONMENT", "TEMPEST_ARGUMENTS", "TEMPEST_CONSTRAINTS"}  # of devstack-vm-gate.sh itself
