"""What holds for any file that people or other projects write: providers, secure configuration, devstack's lists.

The examples are the same in every run.
"""

import logging
import re
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gateconfig
import vmdatabase
from gateprocess import ConfigError
from image import devstackfiles, pipneeds
from pool import providersfile
from tests.rules.test_providersfile import PROVIDERS
from tests.support.repos import write
from tests.test_devstackfiles import DISTRIBUTIONS
from tests.test_devstackfiles import LINES as PACKAGE_LINES

repeatable = settings(derandomize=True, database=None, max_examples=100,
                      suppress_health_check=[HealthCheck.too_slow])


def is_one_line(message: str) -> bool:
    return len(message.splitlines()) == 1


# Providers files

VALID = """\
providers:
  - &first
    name: rax-ord
    cloud: rax
    region: ORD
    max-servers: 40
    boot-timeout: 900
    calls-per-second: 2.5
    networks: [private, 'second one']
    floating-ips: auto
    address: public-v4
    ssh-port: 22
    security-groups: [default]
    images: &images
      - &noble
        name: noble
        image: Ubuntu 24.04
        min-ready: 5
        min-ram: 8192
        user-data: data.sh
        max-ready-age: 24
      - {<<: *noble, name: jammy, image: Ubuntu 22.04}
  - <<: *first
    name: ovh-gra
    images: *images
"""
ODD_SCALARS = (  # fewer than the examples of a test
    "''", "null", "-1", "1.5", "true", "[]", "{}", "[[a]]", "*first", "*noble", "*nowhere", "!!int ''", "!!int '-'",
    "!!float ''", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a}", "!!python/name:os.system ''", "!odd x",
    "2001-13-45", "2001-01-01t00:00:00+99:99", ".inf", ".nan", "1e999", "9" * 400, "9" * 5000, f"0x{'f' * 4000}",
    '"a\\nb"', '"\\ud800"', '"\\u2028"', '"\\0"', "|\n  text", "'", '"', "? x", "<<", "=", "&first again", "~/data",
    "~nobody-of-that-name", "/", "x" * 300, "\x00", "\x85", "\u2028", "\ufeff", "all")
ODD_LINES = (
    "---", "...", "%YAML 9.9", "\t", "providers: []", "  - one", "    <<: [*first, *noble]", "    <<: {? [a] : b}",
    "    <<: {name: a, name: b}", '    "a\\nb": 1\n    "a\\nb": 2', "    ? [a]\n    : b", "    networks: &n [*n]",
    "    images: [*noble]", "    [", "    }", "# comment", "")


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """Draw the valid file with some slips of the hand."""
    lines = VALID.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        kind = draw(st.sampled_from(["drop", "double", "swap", "shift", "cut", "value", "key", "insert", "letter"]))
        match kind:
            case "drop":
                lines[at:at + 1] = [] if len(lines) > 1 else [""]
            case "double":
                lines.insert(at, line)
            case "swap":
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], line
            case "shift":
                lines[at] = f"{' ' * draw(st.integers(0, 9))}{line.lstrip()}"
            case "cut":
                lines[at] = line[:draw(st.integers(0, len(line)))]
            case "value":
                lines[at] = f"{line.partition(':')[0]}: {draw(st.sampled_from(ODD_SCALARS))}"
            case "key":
                lines[at] = line.replace("-", draw(st.sampled_from(["_", "", "--", "\\n"])))
            case "insert":
                lines.insert(at, draw(st.sampled_from(ODD_LINES)))
            case "letter":
                place = draw(st.integers(0, len(line)))
                lines[at] = line[:place] + draw(st.characters(codec="utf-8")) + line[place + 1:]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield write(Path(name), {"data.sh": "#!/bin/sh\n"})


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[None]:
    """Open a new vm.db in this process."""
    with vmdatabase.opened(folder / "vm.db"):
        yield


def loaded(folder: Path, text: str) -> list[dict[str, Any]]:
    file = folder / "providers.yaml"
    file.write_text(text, encoding="utf-8")
    return providersfile.read(file).providers


def tables() -> list[Any]:
    """Return what is in the tables of providers and images, in the words of the file."""
    found = []
    for row in vmdatabase.Provider.select().order_by(vmdatabase.Provider.id):
        values = in_words(row, providersfile.PROVIDER_KEYS)
        images = [in_words(image, providersfile.IMAGE_KEYS) | {"image": image.external_id}
                  for image in vmdatabase.BaseImage.select().where(vmdatabase.BaseImage.provider == row)
                  .order_by(vmdatabase.BaseImage.id)]
        found.append(values | {key: row.listed(key.replace("-", "_")) for key in
                               ("networks", "security-groups", "availability-zones")} | {"images": images})
    return found


def in_words(row: Any, keys: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(row, key.replace("-", "_")) for key in keys if key not in ("images", "image")}


def assert_loads_for_good(folder: Path, providers: list[dict[str, Any]]) -> None:
    """Check that vm.db has what the file says, a second load changes nothing, and a file made of it is equal."""
    with vmdatabase.database.atomic() as transaction:
        providersfile.load(providers)
        assert tables() == providers
        assert providersfile.load(providers) == []
        assert loaded(folder, yaml.safe_dump({"providers": tables()}, allow_unicode=True)) == providers
        transaction.rollback()


@given(mutations())
@settings(repeatable, max_examples=250)
def test_a_providers_file_with_slips_is_loaded_for_good_or_refused_in_one_line_that_names_the_line(
        folder: Path, pool: None, text: str) -> None:
    try:
        providers = loaded(folder, text)
    except ConfigError as err:
        assert re.match(rf"{folder}/providers\.yaml:[0-9]+: .", str(err))
        assert is_one_line(str(err))
        assert "Node(" not in str(err)
        line = int(str(err).removeprefix(f"{folder}/providers.yaml:").partition(":")[0])
        assert 1 <= line <= len(text.splitlines()) + 1
    else:
        assert_loads_for_good(folder, providers)


SHORT = """\
providers:
  - &first
    name: one
    cloud: rax
    max-servers: 4
    images:
      - &noble
        name: noble
        image: Ubuntu 24.04
        min-ready: 2
"""


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in (
    ("provider", providersfile.PROVIDER_KEYS), ("image", providersfile.IMAGE_KEYS)) for key in keys])
@given(value=st.sampled_from(ODD_SCALARS))
@repeatable
def test_an_odd_value_of_any_key_is_loaded_for_good_or_refused_in_one_line_that_names_a_line(
        folder: Path, pool: None, kind: str, key: str, value: str) -> None:
    anchor, indent = ("&first", 4) if kind == "provider" else ("&noble", 8)
    rest = "".join(f"{line}\n" for line in SHORT.splitlines() if not line.startswith(f"{' ' * indent}{key}:"))
    if (kind, key) == ("provider", "images"):
        rest = rest.partition("      - &noble")[0]
    text = rest.replace(f"{anchor}\n", f"{anchor}\n{' ' * indent}{key}: {value}\n")
    try:
        providers = loaded(folder, text)
    except ConfigError as err:
        assert re.match(rf"{folder}/providers\.yaml:[0-9]+: .", str(err))
        assert is_one_line(str(err))
    else:
        assert_loads_for_good(folder, providers)


@given(first=PROVIDERS, second=PROVIDERS)
@settings(repeatable, max_examples=50)
def test_what_a_file_says_is_in_vm_db_whatever_was_there_before_and_a_second_load_changes_nothing(
        folder: Path, pool: None, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    before, wanted = (loaded(folder, yaml.safe_dump({"providers": one})) for one in (first, second))
    with vmdatabase.database.atomic() as transaction:
        providersfile.load(before)
        providersfile.load(wanted)
        assert by_name(tables()) == by_name(wanted)
        assert providersfile.load(wanted) == []
        transaction.rollback()


def by_name(providers: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["name"]: one | {"images": {image["name"]: image for image in one["images"]}} for one in providers}


# The secure configuration

SECURE_LINES = st.sampled_from([
    "[jenkins]", "[jenkins west]", "[node]", "[image]", "[DEFAULT]", "[jenkin]", "[]", "[a\x1b]", "server = https://jenkins.example.org/",
    "server = http://[::1", "server = http://a:99999/", "server = //a", "user = jenkins", "user = a b", "user =",
    "apikey = 100%", "credentials_id = nodes", "node_user = x", "node_apikey = y", "ssh_key = ~/.ssh/key",
    "ssh_key = ~nobody-of-that-name/key", "ssh_key = ~a\0", "remote_fs = /home/jenkins", "remote_fs = relative",
    "packages = git curl", "packages = git;reboot", "branches = master", "puppet_repo = https://example.org/p",
    "puppet_manifest = site.pp", " continued", "\tcontinued = too", "no value", "= no key", ": x", "# comment",
    "; comment", "", "unknown = 1", "SERVER = https://upper.example.org", "\ufeff", "\x85", "%(x)s = %(y)s"])
# Most files keep these lines, so that some are loaded.
WHOLE = ["[jenkins]", "server = https://jenkins.example.org/", "user = jenkins", "apikey = 100%",
         "credentials_id = nodes", "[node]", "user = jenkins", "remote_fs = /home/jenkins", "[image]",
         "packages = git curl"]


@st.composite
def secure_files(draw: st.DrawFn) -> str:
    lines = list(WHOLE) if draw(st.booleans()) else []
    for line in draw(st.lists(SECURE_LINES, max_size=4 if lines else 12)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def secure(folder: Path) -> Iterator[Path]:
    file = folder / "secure.conf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEVSTACK_GATE_SECURE_CONFIG", str(file))
        logging.disable(logging.WARNING)  # the mode of the file does not matter here
        yield file
        logging.disable(logging.NOTSET)


@given(secure_files())
@settings(repeatable, max_examples=250)
def test_a_secure_configuration_is_words_of_one_line_each_or_refused_in_one_line_that_names_the_file(
        secure: Path, text: str) -> None:
    secure.write_text(text, encoding="utf-8")
    try:
        config = gateconfig.load_secure_config()
    except ConfigError as err:
        assert str(err).startswith(f"{secure}: ")
        assert not set("\n\r") & set(str(err))
        assert "100%" not in str(err)  # which is the key
        return
    words = [config.node.user, str(config.node.ssh_key), config.node.remote_fs, *config.image.packages]
    for jenkins in config.jenkinses:
        words += [jenkins.server, jenkins.user, jenkins.apikey, jenkins.credentials_id]
    assert all(word and word.isprintable() for word in words)
    assert bool(config.jenkinses) == ("[jenkins" in text)
    assert config.node.remote_fs.startswith("/")
    assert gateconfig.load_secure_config() == config


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
@settings(repeatable, max_examples=100)
def test_any_bytes_as_a_secure_configuration_are_loaded_or_refused_in_one_line(secure: Path, content: bytes) -> None:
    secure.write_bytes(content)
    try:
        gateconfig.load_secure_config()
    except ConfigError as err:
        assert str(err).startswith(f"{secure}: ")
        assert not set("\n\r") & set(str(err))


# devstack's package files

FILES = st.dictionaries(
    st.tuples(st.sampled_from(["files/debs", "files/apts", "files/rpms", "files/debs/deep", "files"]),
              st.sampled_from(["general", "nova", "n-api"])).map("/".join),
    st.lists(PACKAGE_LINES, max_size=5).map("\n".join), max_size=5)


def packages(files: dict[str, str], distribution: str) -> list[devstackfiles.Package]:
    with tempfile.TemporaryDirectory() as tree:
        return devstackfiles.packages_of(write(Path(tree), files), distribution)


def lines_for(files: dict[str, str], distribution: str) -> list[tuple[str, str]]:
    """Return the (file, line) that count for a distribution: no mark names only others, and none keeps it out."""
    family = ("files/rpms",) if distribution.startswith(("rhel", "f4")) else ("files/debs", "files/apts")
    counting = []
    for file, text in files.items():
        for line in text.splitlines() if file.rpartition("/")[0] in family else ():
            only, never = (re.findall(f"{mark}:([^ ]*)", line.partition("#")[2])[-1:] for mark in ("dist", "not"))
            name = distribution.lower()
            if all(name in one.lower() for one in only) and not any(name in one.lower() for one in never):
                counting.append((file, line))
    return counting


@given(files=FILES, distribution=DISTRIBUTIONS)
@repeatable
def test_packages_are_in_order_of_name_each_once_and_from_lines_for_the_distribution_only(
        files: dict[str, str], distribution: str) -> None:
    found = packages(files, distribution)

    names = [package.name for package in found]
    assert names == sorted(set(names))
    lines = lines_for(files, distribution)
    for package in found:
        assert [line for file, line in lines if file == package.file and package.name in line.partition("#")[0].split()]
    words = {word for _, line in lines for word in line.partition("#")[0].split()}
    assert set(names) == {word for word in words if gateconfig.PACKAGE_NAME.fullmatch(word)}


@given(files=FILES, distribution=DISTRIBUTIONS)
@repeatable
def test_a_package_is_installed_at_once_if_any_line_without_noprime_names_it(
        files: dict[str, str], distribution: str) -> None:
    at_once = {word for _, line in lines_for(files, distribution) if "NOPRIME" not in line
               for word in line.partition("#")[0].split()}

    for package in packages(files, distribution):
        assert package.install == (package.name in at_once)


@given(files=FILES, distribution=DISTRIBUTIONS, more=st.sampled_from(["# nothing", "", "   ", "  # NOPRIME testonly"]))
@settings(repeatable, max_examples=50)
def test_comments_and_empty_lines_change_nothing(files: dict[str, str], distribution: str, more: str) -> None:
    with_more = {file: f"{more}\n{text}\n{more}" for file, text in files.items()}

    assert packages(with_more, distribution) == packages(files, distribution)


@given(files=FILES, distribution=DISTRIBUTIONS)
@settings(repeatable, max_examples=50)
def test_testonly_and_case_of_distributions_change_nothing(files: dict[str, str], distribution: str) -> None:
    marked = {file: "\n".join(f"{line} {'' if '#' in line else '#'} testonly" for line in text.splitlines())
              for file, text in files.items()}

    assert packages(marked, distribution) == packages(files, distribution)
    assert packages(files, distribution.upper()) == packages(files, distribution)


# Requirements

REQUIREMENT_LINES = st.sampled_from([
    "six", "Six", "SIX==1.0", "six>=1.0 # why", "six # NOPRIME", "oslo.config", "oslo-config", "oslo_config>2", "# all",
    "-r other.txt", "-e git+https://example.org/x#egg=x", "git+https://example.org/y#egg=y", "--index-url=https://e/",
    "x @ https://example.org/x.whl", "nova;python_version<'3'", "nova ; python_version >= '3'", "", "  ", "\tglance ",
    "wsgi[all]>=1", "#six", "ü", "a#b", "https://example.org/z.tar.gz"])
CONSTRAINT_LINES = st.sampled_from([
    "six===1.17.0", "Six===1.17.0", "oslo.config===9.9", "oslo-config===9.8;python_version=='3.9'",
    "nova===30;python_version>='3'", "nova===2;python_version<'3'", "glance===28.0 # pinned", "", "# constraints"])
REQUIREMENTS = st.lists(REQUIREMENT_LINES, max_size=8).map("\n".join)
CONSTRAINTS = st.lists(CONSTRAINT_LINES, max_size=8).map("\n".join)


def in_order(requirements: list[str]) -> list[str]:
    return sorted(set(requirements), key=lambda text: (text.lower(), text))


@given(REQUIREMENTS | st.text() | st.text(string.printable))
@settings(repeatable, max_examples=200)
def test_requirements_are_lines_of_the_file_without_comments_options_and_links(text: str) -> None:
    found = pipneeds.parse_requirements(text)

    for requirement in found:
        assert any(line.strip().startswith(requirement) for line in text.splitlines())
        assert requirement == requirement.strip()
        assert requirement[0] not in "-#./"
        assert " #" not in requirement
        assert "://" not in requirement.partition(";")[0]
    assert pipneeds.parse_requirements("\n".join(found)) == found


@given(REQUIREMENTS, CONSTRAINTS)
@settings(repeatable, max_examples=200)
def test_pinned_requirements_are_in_order_each_once_and_whatever_has_a_constraint_has_its_version(
        requirements: str, constraints: str) -> None:
    found = pipneeds.pinned(pipneeds.parse_requirements(requirements), constraints)

    assert found == in_order(found)
    pins: dict[str, list[str]] = {}
    for pin in pipneeds.parse_requirements(constraints):
        pins.setdefault(project_of(pin), []).append(pin.partition(";")[0].strip())
    for requirement in found:
        versions = pins.get(project_of(requirement))
        assert versions is None or requirement.partition(";")[0] in versions
    wanted = pipneeds.parse_requirements(requirements) if pins else []
    assert {project_of(one) for one in found} == {project_of(one) for one in wanted}


def project_of(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name
    return re.sub("[-_.]+", "-", name[0]).lower()


@given(st.dictionaries(st.sampled_from(["files/pips/general", "files/pips/nova", "files/pips/more/inner"]),
                       REQUIREMENTS, max_size=3))
@settings(repeatable, max_examples=50)
def test_pips_are_in_order_each_once_and_none_where_devstack_has_no_such_folder(files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as tree:
        found = devstackfiles.pips_of(write(Path(tree), files))

    listed = [one for file, text in files.items() if "more" not in file
              for one in pipneeds.parse_requirements(text)]
    assert found == (in_order(listed) if files else None)


# Test images

URLS = st.sampled_from(["http://example.org/b.img", "https://example.org/a.tar.gz", "ftp://example.org/c"])
PRINTED = st.lists(
    st.tuples(st.sampled_from(["", "image: ", "x,", " ", "://", "\x00", "ö "]), URLS | st.just("nothing"),
              st.sampled_from(["", ",", " ", "\n", "\t# ", "\r\n"])).map("".join), max_size=5)


@given(PRINTED.map("".join), st.sampled_from(["noble", "sid", "f40", ""]))
@settings(repeatable, max_examples=20)
def test_images_are_the_urls_that_devstack_prints_in_order_each_once(text: str, distribution: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        tree = write(Path(name), {"tools/image_list.sh": "cat list\n", "list": text, "stackrc": ""})
        found = devstackfiles.image_urls(devstackfiles.Checkout(tree).archive("master"), distribution)

    assert found == sorted(set(found))
    assert all(re.fullmatch(r"(http|https|ftp)://[^\s,]+", url) for url in found)
    assert len(found) <= text.count("://")


# Projects

PROJECT_WORDS = st.sampled_from(["openstack/nova", "nova", "a/b/c", "openstack/oslo.config", "-x", "../x", "a//b", "/a",
                                 "a b", "$HOME", "nova\n", "#nova", "x.git", ""])


@given(st.lists(PROJECT_WORDS, max_size=4).map(" ".join), st.lists(PROJECT_WORDS, max_size=4).map(" ".join))
@repeatable
def test_projects_are_each_named_once_in_order_with_those_of_the_job_first_or_a_wrong_name_is_told(
        first: str, then: str) -> None:
    try:
        found = devstackfiles.projects_of({"PROJECTS": first, "DEVSTACK_GATE_PROJECTS": then})
    except ConfigError as err:
        assert is_one_line(str(err))
        assert {"-x", "../x", "a//b", "/a", "$HOME", "#nova"} & set(f"{first} {then}".split())
        return
    assert found[:len(set(first.split()))] == list(dict.fromkeys(first.split()))
    if then.split():
        assert found == list(dict.fromkeys(f"{first} {then}".split()))
