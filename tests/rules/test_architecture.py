"""docs/architecture.md describes the code as it is: states, moves, files, imports."""

import ast
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import vmdatabase
from tests.support.pool import PROJECT

PAGE = (PROJECT / "docs/architecture.md").read_text()
FILES = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split()
MOST_AT_THE_TOP = 30


def section(title: str) -> str:
    """Return the text below a heading of the page, up to the next heading."""
    return re.split(r"^## ", PAGE.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str, columns: int) -> list[tuple[str, ...]]:
    """Return the rows of the table that has this many columns, without its head."""
    found = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.splitlines()
             if line.startswith("| ")]
    return [row for row in found if len(row) == columns and not row[0].startswith("---")][1:]


@pytest.mark.parametrize(("title", "states", "moves"), [
    ("The life of a machine", vmdatabase.MACHINE_STATES, vmdatabase.MACHINE_MOVES),
    ("The life of a snapshot", vmdatabase.SNAPSHOT_STATES, vmdatabase.SNAPSHOT_MOVES),
    ("The life of a test environment", vmdatabase.ENVIRONMENT_STATES, vmdatabase.ENVIRONMENT_MOVES)])
def test_states_and_moves_are_those_of_vmdatabase(
    title: str, states: Mapping[str, str], moves: Sequence[vmdatabase.Move]
) -> None:
    text = section(title)
    assert rows(text, 2) == list(states.items())
    assert rows(text, 4) == [(move.source or "-", move.target or "row gone", move.by, move.when) for move in moves]


def test_every_state_begins_ends_and_moves_once() -> None:
    for states, moves in ((vmdatabase.MACHINE_STATES, vmdatabase.MACHINE_MOVES),
                          (vmdatabase.SNAPSHOT_STATES, vmdatabase.SNAPSHOT_MOVES),
                          (vmdatabase.ENVIRONMENT_STATES, vmdatabase.ENVIRONMENT_MOVES)):
        pairs = [(move.source, move.target) for move in moves]
        assert len(pairs) == len(set(pairs))
        assert {state for pair in pairs for state in pair} == {*states, None}
        for state in states:  # there is a way in, and a way out
            assert any(target == state != source for source, target in pairs), state
            assert any(source == state != target for source, target in pairs), state


@pytest.mark.parametrize(("model", "source", "target"), [
    (vmdatabase.Machine, "USED", "READY"), (vmdatabase.Machine, "DELETE", "USED"),
    (vmdatabase.Machine, "HOLD", "READY"), (vmdatabase.SnapshotImage, "ERROR", "READY"),
    (vmdatabase.SnapshotImage, "READY", "HOLD"), (vmdatabase.TestEnvironment, "LOCKED", "DELETE"),
    (vmdatabase.TestEnvironment, "BROKEN", "LOCKED")])
def test_no_other_move_is_made(
    model: type[vmdatabase.Machine | vmdatabase.SnapshotImage | vmdatabase.TestEnvironment], source: str, target: str
) -> None:
    with pytest.raises(ValueError, match=f"a {model.__name__} does not go from {source} to {target}"):
        vmdatabase.move(model(id=1, state=source), source, target)


def test_every_file_has_its_place_on_the_map() -> None:
    names = [name for cell, _ in rows(section("Where things are"), 2) for name in cell.split(", ")]
    places = {Path(file).parts[0] + "/" * ("/" in file) for file in FILES if not file.startswith(".")}
    product = {place for place in places if place.endswith(("/", ".py", ".sh")) and not place.startswith("run-")}
    unknown = {place for place in product if not any(Path(place).match(name) for name in names)}
    assert unknown == set()
    assert [name for name in names if not list(PROJECT.glob(name))] == []


def test_few_files_lie_at_the_top_and_only_what_is_typed_can_be_executed() -> None:
    assert len([file for file in FILES if "/" not in file and not file.startswith(".")]) <= MOST_AT_THE_TOP
    listed = subprocess.run(["git", "ls-files", "-s", "--", "*.py"], cwd=PROJECT, capture_output=True, text=True,
                            check=True).stdout.splitlines()
    executable = {line.split("\t")[1] for line in listed if line.startswith("100755")}
    assert {file for file in executable if "/" not in file} == {
        file for file in FILES if "/" not in file and file.startswith(("devstack-vm-", "vmdatabase")) and
        file.endswith(".py")}
    assert {Path(file).parts[0] for file in executable if "/" in file} <= {"jobs"}


def layers() -> dict[str, int]:
    """Return the number of each module's line in the page's list."""
    lines = re.findall(r"^([0-9])\. (.*)$", section("Who may import whom"), re.MULTILINE)
    return {name: int(number) for number, names in lines for name in names.split(", ")}


def imported(file: str) -> set[str]:
    """Return the modules of the project that a file imports, by the first part of their names."""
    found = set()
    for node in ast.walk(ast.parse((PROJECT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found & layers().keys()


def test_a_module_imports_only_from_the_lines_above_its_own() -> None:
    places = layers()
    wrong = []
    for file in FILES:
        own = Path(file).parts[0].removesuffix(".py")
        if not file.endswith(".py") or own not in places or file == "vmdatabase.py":
            continue
        wrong += [(file, name) for name in imported(file) if name != own and places[name] >= places[own]]
    assert wrong == []
    assert imported("vmdatabase.py") <= {"gateprocess", "gateconfig", "jenkinsnodes", "pool"}  # types, command line
    assert not imported("devstack-vm-delete.py") & {"cloud", "nodessh"}  # a build waits for it
