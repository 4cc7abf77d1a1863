"""All pages: links lead somewhere; scripts take the commands and settings, and print the output, that pages show."""

import os
import re
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import yaml

import gateconfig
import gateprocess
from pool import providersfile
from tests.support.pool import PROJECT, Pool

LISTED = subprocess.run(["git", "-C", str(PROJECT), "ls-files", "--cached", "--others", "--exclude-standard"],
                        check=True, capture_output=True, text=True).stdout.split()
FILES = {name for name in LISTED if (PROJECT / name).exists()}
PAGES = sorted(name for name in FILES if name.endswith(".md"))
OURS = re.compile(r"(?<![\w/.-])(?:\./)?(devstack-vm-[\w-]+\.(?:py|sh)|vmdatabase\.py|run-\w+\.sh|jobs/[\w-]+\.py|"
                  r"(?:tests/chaos|bench|\.ci)/run|requirements/renew)(?=\s|$)(.*)")
PASSES_ON = {"devstack-vm-update-image.sh": "devstack-vm-update-image.py"}  # arguments
FORMER = re.compile(r"devstack-vm-(fetch|give|check|result|threshold)\.py")  # scripts of the original
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
PYTESTS = {"-k", "-n"}
EVERYWHERE = {"-h", "--help", "-v", "--verbose", "-q", "--quiet", "--version"}


def text(page: str) -> str:
    return (PROJECT / page).read_text()


def section(page: str, title: str) -> str:
    """Return the text below a heading, up to the next heading of its level or above."""
    found = re.search(rf"^(##+) {re.escape(title)}\n(.*?)(?=^\1 |^## |\Z)", text(page), re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {title}"
    return found[2]


def blocks(page: str) -> list[list[str]]:
    """Return the indented blocks of a page, without the indent; a block ends at an empty line."""
    return [[line.strip(" ") if not line.startswith("    ") else line[4:] for line in block.splitlines()]
            for block in re.findall(r"(?:^ {4,}\S.*\n)+", text(page), re.MULTILINE)]


# Links


def anchors(page: str) -> set[str]:
    """Return the names by which one can link to the headings of a page, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_file_and_a_heading(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text(page)) if not link.startswith("https://")]
    lost = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = os.path.relpath((PROJECT / page).parent / path, PROJECT) if path else page
        if not (PROJECT / target).exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def test_each_page_of_docs_is_linked_from_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)", text("README.md")))
    assert sorted(linked) == sorted(page for page in PAGES if page.startswith("docs/"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_s_list_of_contents_has_its_sections_in_order(page: str) -> None:
    contents = re.findall(r"^- \[[^]]+\]\(#([^)]+)\)$", text(page), re.MULTILINE)
    titles = re.findall(r"^## (.+)$", text(page), re.MULTILINE)
    if contents:
        assert contents == [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


# Commands


@cache
def options_of(script: str, *subcommand: str) -> frozenset[str]:
    """Return the options that a script's help names, and those that each script has."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shown = subprocess.run([str(PROJECT / script), *subcommand, "--help"], check=True, capture_output=True, text=True,
                           env=environment).stdout
    told = re.findall(r"^ +(-.*?)(?:  .*)?$", shown, re.MULTILINE)
    return frozenset(option for line in told for option in OPTION.findall(line)) | EVERYWHERE


def commands(page: str) -> list[tuple[str, str]]:
    """Return each of our scripts that a page shows, with its arguments, in blocks and in running text."""
    shown = [line for block in blocks(page) for line in block]
    shown += [line for fence in re.findall(r"^```bash\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
              for line in fence.splitlines()]
    shown += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text(page))]
    found = []
    for line in shown:
        if match := OURS.search(re.split(r"\s#\s|\s{4,}(?=\S)", line)[0]):
            found.append((match[1], match[2]))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_each_command_that_is_shown_exists_and_has_the_options_that_are_shown(page: str) -> None:
    wrong = []
    for script, arguments in commands(page):
        if FORMER.fullmatch(script):
            continue
        if not (PROJECT / script).is_file():
            wrong.append(f"{script}: no such file")
        elif asked := set(OPTION.findall(arguments)) - (PYTESTS if script == "run-tests.sh" else set()):
            subcommand = re.match(r"\s+([a-z]+)(?=\s)", arguments) if script == "vmdatabase.py" else None
            known = options_of(PASSES_ON.get(script, script), *([subcommand[1]] if subcommand else []))
            wrong += [f"{script}{arguments}: no option {option}" for option in sorted(asked - known)]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_project_that_are_named_exist(page: str) -> None:
    folders = "|".join(sorted({name.partition("/")[0] for name in FILES if "/" in name}))
    named = set(re.findall(rf"(?<![\w/$.-])((?:{folders})/(?:[\w-]+/)*[\w-]+\.[a-z]+)\b", text(page)))
    named |= set(re.findall(r" -r (\S+\.txt)", text(page)))
    assert sorted(named - FILES) == []


@pytest.mark.parametrize("module", sorted({found for page in PAGES for found in re.findall(r"python -m\s+([\w.]+)",
                                                                                         text(page))} - {"pytest"}))
def test_modules_that_are_shown_to_be_run_have_help(module: str) -> None:
    subprocess.run([sys.executable, "-m", module, "--help"], check=True, cwd=PROJECT, capture_output=True)


def synopsis() -> dict[tuple[str, ...], set[str]]:
    """Return the options that the reference shows for each script, and for each command of vmdatabase.py."""
    shown: dict[tuple[str, ...], set[str]] = {}
    key: tuple[str, ...] = ()
    for line in re.findall(r"^ {4,40}(\S.*)", section("docs/reference.md", "Commands"), re.MULTILINE):
        words = re.split(r" {3,}", line)[0].split()
        if words[0].endswith((".py", ".sh")):
            key = tuple(words[:2] if words[0] == "vmdatabase.py" and words[1].isalpha() else words[:1])
        shown.setdefault(key, set()).update(OPTION.findall(" ".join(words)))
    return shown


@pytest.mark.parametrize("key", sorted(synopsis()))
def test_the_reference_shows_all_options(key: tuple[str, ...]) -> None:
    assert synopsis()[key] - EVERYWHERE == options_of(*key) - EVERYWHERE


def test_the_reference_shows_all_scripts() -> None:
    listed = {key[0] for key in synopsis()} - {"jobs/check.py"}
    assert listed == {path.name for path in PROJECT.glob("devstack-vm-*")} | {"vmdatabase.py"}


# Settings


def rows(page: str, title: str, head: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this head."""
    table = re.search(rf"^\| {re.escape(head)} \|.*\n\| ---.*\n((?:\|.*\n)+)", section(page, title), re.MULTILINE)
    assert table, head
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[1].splitlines()]


@pytest.mark.parametrize("name", sorted(gateconfig.SECURE_KEYS))
def test_the_reference_has_all_keys_of_the_secure_configuration(name: str) -> None:
    shown = [key for row in rows("docs/reference.md", "Secure configuration", f"key of `[{name}]`")
             for key in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(shown) == sorted(gateconfig.SECURE_KEYS[name])


def test_the_change_log_ends_with_the_version_that_the_scripts_tell() -> None:
    versions = re.findall(r"^## \[(\d[^]]*)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == gateprocess.VERSION


@pytest.mark.parametrize(("head", "known"), [("key of a provider", providersfile.PROVIDER_KEYS),
                                             ("key of an image", providersfile.IMAGE_KEYS),
                                             ("key of a label", providersfile.LABEL_KEYS),
                                             ("key of a test environment", providersfile.ENVIRONMENT_KEYS)])
def test_the_reference_has_all_keys_of_the_providers_file_with_their_defaults(
        head: str, known: dict[str, providersfile.Key]) -> None:
    shown = {name: row[1].strip("`") for row in rows("docs/reference.md", "Providers file", head)
             for name in re.findall(r"`([^`]+)`", row[0])}

    assert sorted(shown) == sorted(known)
    for name, key in known.items():
        if key.required:
            assert shown[name] == "required", name
        elif name not in ("image", "volume-size"):  # one is required without another key, the other needs one
            assert shown[name] == ("" if key.default in (None, []) else str(key.default).lower()), name


# Sessions


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Make the pool of the sessions: the example's providers, with machines in most states."""
    made = Pool(tmp_path_factory.mktemp("pages"))
    made.run("vmdatabase.py", "load", str(PROJECT / "providers.example.yaml"), expect=0)
    machines = [("ovh-gra", 3, "HOLD", 181, "looking at bug 1234"), ("ovh-gra", 7, "USED", 35, None),
                ("ovh-gra", 12, "READY", 40, None), ("ovh-gra", 15, "READY", 12, None),
                ("ovh-gra", 16, "BUILDING", 3, None), ("rax-ord", 1, "DELETE", 50, None)]
    machines += [("rax-ord", number, "USED", 20, None) for number in (2, 4, 5)]
    machines += [("rax-ord", number, "READY", 30, None) for number in (6, 8, 9, 10, 11)]
    for provider, number, state, minutes, reason in machines:
        made.sql("INSERT INTO machine (id, base_image_id, name, state, state_time, hold_reason) "
                 "SELECT ?, base_image.id, ?, ?, ?, ? FROM base_image JOIN provider ON provider_id = provider.id "
                 "WHERE provider.name = ?", number, f"devstack-noble-{provider}-{number}", state,
                 int(time.time()) - 60 * minutes - 5, reason, provider)
    return made


def sessions() -> list[tuple[str, str, list[str]]]:
    """Return each command that a page shows with its output: a block that begins with a prompt."""
    return [(page, block[0].removeprefix("$ "), block[1:])
            for page in PAGES for block in blocks(page) if block[0].startswith("$ ")]


@pytest.mark.parametrize(("page", "command", "output"), sessions(), ids=[page for page, _, _ in sessions()])
def test_a_session_is_shown_as_it_is(pool: Pool, page: str, command: str, output: list[str]) -> None:
    path = f"{PROJECT}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True,
                         env=pool.environment | {"PATH": path})
    assert [line.rstrip() for line in run.stdout.splitlines()] == output


def test_there_are_sessions() -> None:
    assert {page for page, _, _ in sessions()} >= {"README.md", "docs/operations.md"}


def statements() -> list[tuple[str, str]]:
    """Return the SQL that pages show."""
    return [(page, found[1] or found[2]) for page in PAGES
            for found in re.finditer(r"'(select [^']+)'|\"(select [^\"]+)\"", text(page))]


@pytest.mark.parametrize(("page", "statement"), statements())
def test_sql_that_is_shown_runs(pool: Pool, page: str, statement: str) -> None:
    subprocess.run(["sqlite3", "-readonly", str(pool.database), statement], check=True, capture_output=True)


def test_the_recipe_for_a_restore_restores(pool: Pool, tmp_path: Path) -> None:
    recipe = ("cp /backup/", "./vmdatabase.py backup /backup/", "./vmdatabase.py moved")
    shown = [line for block in blocks("docs/operations.md") for line in block if line.startswith(recipe)]
    assert [line.split()[0] for line in shown] == ["./vmdatabase.py", "cp", "./vmdatabase.py"]
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(pool.database, home / "vm.db")
    paths = {"/backup": str(tmp_path), "./vmdatabase.py": f"{sys.executable} {PROJECT / 'vmdatabase.py'}"}
    environment = pool.environment | {"HOME": str(home)}
    del environment["DEVSTACK_GATE_DB"]

    def do(line: str) -> str:
        for name, path in paths.items():
            line = line.replace(name, path)
        return subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True, cwd=home,
                              env=environment).stdout

    do("./vmdatabase.py moved")  # it was copied here
    before = do("./vmdatabase.py list --json")
    do(shown[0])
    (home / "vm.db").write_bytes(b"damaged")
    do(shown[1])
    assert "belongs to this host and path" in do(shown[2])
    assert do("./vmdatabase.py list --json") == before


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_are_shown_are_bash_and_settings_yaml(page: str) -> None:
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL):
        if language == "yaml":
            yaml.safe_load(content)
        else:
            assert language == "bash"
            subprocess.run(["bash", "-n"], input=content, check=True, text=True)
