"""The providers file: what each key takes, and one line for whatever is wrong with it."""

import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateprocess import ConfigError
from pool.providersfile import (
    IMAGE_KEYS,
    PROVIDER_KEYS,
    read,
    warnings_of,
    warnings_of_environments,
)

PROVIDER = {"name": "one", "cloud": "pocket", "max-servers": 10}
IMAGE = {"name": "noble", "image": "Ubuntu 24.04", "min-ready": 2}
NAME = "a name of at most 100 letters, digits, ., _ and -, with a letter or digit at both ends"
PROVIDER_NAME = f"{NAME}, other than all"
PROVIDER_DEFAULTS: dict[str, Any] = {
    "region": None, "boot-timeout": 900, "max-concurrency": 8, "calls-per-second": None, "networks": [],
    "floating-ips": "auto", "floating-ip-network": None, "address": "public-v4", "ssh-port": 22, "security-groups": [],
    "availability-zones": [], "images": [], "priority": 0, "paused": False,
}
IMAGE_DEFAULTS: dict[str, Any] = {
    "min-ram": 0, "flavor": None, "username": None, "user-data": None, "max-ready-age": None, "config-drive": False,
    "boot-from-volume": False, "volume-size": None, "template": None, "ready-script": None,
    "subnodes": 0,
    "test-environment": False,
}


def load(folder: Path, text: str) -> list[dict[str, Any]]:
    file = folder / "providers.yaml"
    file.write_text(text)
    return read(file).providers


def refusal(folder: Path, text: str) -> str:
    """Return the error about a file, without the file's own path."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return str(caught.value).removeprefix(f"{folder}/providers.yaml")


def lines_of(values: dict[str, Any], keys: dict[str, str], indent: str) -> str:
    """Return an item of a list, a line for each key: first values that `keys` does not have, then `keys` (_ for -)."""
    own = {key.replace("_", "-"): value for key, value in keys.items()}
    rest = {key: value for key, value in values.items() if key not in own}
    return f"{indent}- " + f"\n{indent}  ".join(f"{key}: {value}" for key, value in (rest | own).items()) + "\n"


def provider_with(**keys: str) -> str:
    """Return a file with one provider, whose last lines have these keys; a single optional key is in line 5."""
    return "providers:\n" + lines_of(PROVIDER, keys, "  ")


def image_with(**keys: str) -> str:
    """Return the same for the one image of a provider; a single optional key is in line 9."""
    return provider_with(images="") + lines_of(IMAGE, keys, "      ")


# What is right


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    text = yaml.safe_dump({"providers": [PROVIDER | {"images": [IMAGE]}]})
    assert load(tmp_path, text) == [PROVIDER_DEFAULTS | PROVIDER | {"images": [IMAGE_DEFAULTS | IMAGE]}]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "a", "a"),
        ("name", "rax-ord-2", "rax-ord-2"),
        ("name", "Local_01.eu", "Local_01.eu"),
        ("cloud", "'123'", "123"),
        ("region", "ORD", "ORD"),
        ("region", "null", None),
        ("max-servers", "0", 0),
        ("max-servers", "0x10", 16),
        ("boot-timeout", "1", 1),
        ("max-concurrency", "1", 1),
        ("calls-per-second", "0.5", 0.5),
        ("calls-per-second", "10", 10),
        ("calls-per-second", "null", None),
        ("networks", "[private, 'second one']", ["private", "second one"]),
        ("networks", "null", []),
        ("floating-ips", "auto", "auto"),
        ("floating-ips", "always", "always"),
        ("floating-ips", "never", "never"),
        ("floating-ips", "null", "auto"),
        ("floating-ip-network", "public", "public"),
        ("address", "public-v4", "public-v4"),
        ("address", "private-v4", "private-v4"),
        ("address", "public-v6", "public-v6"),
        ("ssh-port", "65535", 65535),
        ("security-groups", "[default]", ["default"]),
        ("availability-zones", "[]", []),
        ("images", "[]", []),
    ],
)
def test_a_key_of_a_provider_takes(tmp_path: Path, key: str, text: str, value: object) -> None:
    assert load(tmp_path, provider_with(**{key: text})) == [PROVIDER_DEFAULTS | PROVIDER | {key: value}]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "noble", "noble"),
        ("image", "Ubuntu 24.04", "Ubuntu 24.04"),
        ("min-ready", "0", 0),
        ("min-ram", "8192", 8192),
        ("name", "ubuntu-noble-32GB", "ubuntu-noble-32GB"),
        ("config-drive", "true", True),
        ("boot-from-volume", "true", True),
        ("flavor", "m1.large", "m1.large"),
        ("flavor", "null", None),
        ("username", "ubuntu", "ubuntu"),
        ("user-data", "null", None),
        ("max-ready-age", "24", 24),
    ],
)
def test_a_key_of_an_image_takes(tmp_path: Path, key: str, text: str, value: object) -> None:
    loaded = load(tmp_path, image_with(**{key: text}))
    assert loaded == [PROVIDER_DEFAULTS | PROVIDER | {"images": [IMAGE_DEFAULTS | IMAGE | {key: value}]}]


@pytest.mark.parametrize("name", ["data.sh", "./sub/../data.sh", "{folder}/data.sh", "~/data.sh"])
def test_user_data_is_looked_for_beside_the_providers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "data.sh").write_text("#!/bin/sh\n")
    found = load(tmp_path, image_with(user_data=name.format(folder=tmp_path)))[0]["images"][0]["user-data"]
    assert Path(found).is_absolute()
    assert Path(found).resolve() == tmp_path / "data.sh"


def test_user_data_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.sh").write_text("#!/bin/sh\n")
    (tmp_path / "providers.yaml").write_text(image_with(user_data="data.sh"))
    monkeypatch.chdir(tmp_path)
    assert read(Path("providers.yaml")).providers[0]["images"][0]["user-data"] == str(tmp_path / "data.sh")


def test_several_providers_keep_their_order_and_may_have_images_of_one_name(tmp_path: Path) -> None:
    wanted = [PROVIDER | {"name": name, "images": [IMAGE]} for name in ("two", "one")]
    images = [IMAGE_DEFAULTS | IMAGE]
    assert load(tmp_path, yaml.safe_dump({"providers": wanted})) == [
        PROVIDER_DEFAULTS | PROVIDER | {"name": name, "images": images} for name in ("two", "one")]


MERGED = """
providers:
  - &first
    name: one
    cloud: pocket
    max-servers: 10
    images: &images
      - &base {name: noble, image: Ubuntu 24.04, min-ready: 2}
      - {<<: *base, name: jammy, image: Ubuntu 22.04}
  - <<: *first
    name: two
    max-servers: 5
    images: *images
"""


def test_merge_keys_and_aliases_save_repetition(tmp_path: Path) -> None:
    images = [IMAGE_DEFAULTS | IMAGE, IMAGE_DEFAULTS | IMAGE | {"name": "jammy", "image": "Ubuntu 22.04"}]
    one = PROVIDER_DEFAULTS | PROVIDER | {"images": images}
    assert load(tmp_path, MERGED) == [one, one | {"name": "two", "max-servers": 5}]


def two_images(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Return a file with two images, noble in line 5 and large below it."""
    images = [{"name": "noble", "min-ready": 1, **first}, {"name": "large", "min-ready": 1, **second}]
    return yaml.safe_dump({"providers": [{"cloud": "pocket", "images": images, "max-servers": 10, "name": "one"}]})


def test_an_image_with_a_template_is_made_of_the_same_base_image(tmp_path: Path) -> None:
    (provider,) = load(tmp_path, two_images({"image": "Ubuntu 24.04"}, {"template": "noble", "min-ram": 8192}))
    assert [(image["image"], image["template"]) for image in provider["images"]] == [
        ("Ubuntu 24.04", None), ("Ubuntu 24.04", "noble")]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"image": "x"}, {}, "image is missing; expected name or id of a base image of the provider"),
        ({"image": "x"}, {"template": "nobel"},
         "template: expected the name of another image of this provider, got nobel; did you mean noble?"),
        ({"image": "x"}, {"image": "x", "template": "large"},
         "template: expected the name of another image of this provider, got large; known are noble"),
        ({"image": "x"}, {"image": "x", "volume-size": 20},
         "volume-size: has no effect without boot-from-volume: true"),
        ({"image": "x", "boot-from-volume": True}, {"template": "noble"},
         "boot-from-volume: expected true, as for its template noble"),
    ],
)
def test_keys_of_images_that_do_not_go_together_are_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    said = refusal(tmp_path, two_images(first, second))
    assert said.split(": ", 1)[1] == f"provider one: image large: {message}"


@pytest.mark.parametrize("prefix", ["", "ci-"])
def test_the_label_of_nodes_that_are_out_of_service_is_no_image_types(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv("DEVSTACK_GATE_PREFIX", prefix)
    assert refusal(tmp_path, image_with(name="used")).endswith(
        ": provider one: image used: name: expected another one: devstack-used is the label of nodes that are out of "
        "service")
    assert load(tmp_path, image_with(name="Used"))


def test_a_template_of_a_template_is_refused(tmp_path: Path) -> None:
    images = [{"name": "a", "image": "x", "min-ready": 1}, {"name": "b", "template": "a", "min-ready": 1},
              {"name": "c", "template": "b", "min-ready": 1}]
    said = refusal(tmp_path, yaml.safe_dump({"providers": [PROVIDER | {"images": images}]}))
    assert said.endswith("image c: template: b has a template itself; name a")


def test_a_ready_script_is_looked_for_beside_the_providers_file(tmp_path: Path) -> None:
    assert refusal(tmp_path, image_with(ready_script="none.sh")).endswith(
        f"ready-script: there is no file {tmp_path}/none.sh")
    assert refusal(tmp_path, image_with(ready_script=".")).endswith(f"ready-script: {tmp_path} is no file")
    (tmp_path / "ready.sh").write_text("#!/bin/sh\n")
    (provider,) = load(tmp_path, image_with(ready_script="ready.sh"))
    assert provider["images"][0]["ready-script"] == str(tmp_path / "ready.sh")


def test_a_byte_order_mark_plays_no_part(tmp_path: Path) -> None:
    file = tmp_path / "providers.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + provider_with().encode())
    content = read(file)
    assert (content.providers, content.labels) == ([PROVIDER_DEFAULTS | PROVIDER], [])


@pytest.mark.parametrize(
    ("provider", "image", "warning"),
    [
        ({"max-servers": 1}, {}, "min-ready adds up to 2, but max-servers is 1: the pool can never be full"),
        ({"max-servers": 2}, {}, "min-ready adds up to max-servers (2): while the pool is full there is no room for a "
                                 "template server, and no image can be built; expected max-servers of 3 or more"),
        ({"max-servers": 3}, {}, None),
        ({"floating-ips": "always", "address": "public-v6"}, {},
         "address: public-v6 with floating-ips: always can never work: floating IPs are IPv4 addresses"),
        ({"floating-ips": "always", "address": "private-v4"}, {},
         "address: private-v4 has no effect with floating-ips: always"),
        ({"floating-ips": "never", "floating-ip-network": "public"}, {},
         "floating-ip-network has no effect with floating-ips: never"),
        ({}, {"flavor": "m1.large", "min-ram": 512}, "image noble: min-ram has no effect beside flavor"),
        ({}, {"boot-from-volume": True}, "image noble: boot-from-volume without volume-size: volumes are as large as "
                                         "the image asks for (min_disk), which may be 1 GB"),
        ({}, {"boot-from-volume": True, "volume-size": 20}, None),
    ],
)
def test_what_cannot_work_or_has_no_effect_is_warned_of(
    tmp_path: Path, provider: dict[str, Any], image: dict[str, Any], warning: str | None
) -> None:
    text = yaml.safe_dump({"providers": [PROVIDER | provider | {"images": [IMAGE | image]}]})
    assert warnings_of(load(tmp_path, text)[0]) == ([warning] if warning else [])


# What is wrong


@pytest.mark.parametrize(
    ("key", "text", "expected", "got"),
    [
        ("name", "all", PROVIDER_NAME, "'all'"),
        ("name", "-rax", PROVIDER_NAME, "'-rax'"),
        ("name", "rax_", PROVIDER_NAME, "'rax_'"),
        ("name", "a b", PROVIDER_NAME, "'a b'"),
        ("name", "../a", PROVIDER_NAME, "'../a'"),
        ("name", "é", PROVIDER_NAME, "'é'"),
        ("name", "''", PROVIDER_NAME, "''"),
        ("name", '"a\\n"', PROVIDER_NAME, "'a\\n'"),
        ("name", "12", PROVIDER_NAME, "12"),
        ("name", "a" * 101, PROVIDER_NAME, f"'{'a' * 101}'"),
        ("name", "null", PROVIDER_NAME, "None"),
        ("cloud", "7", "the name of an entry of clouds.yaml", "7"),
        ("cloud", "' '", "the name of an entry of clouds.yaml", "' '"),
        ("cloud", "null", "the name of an entry of clouds.yaml", "None"),
        ("region", "[ORD]", "a region's name", "['ORD']"),
        ("max-servers", "-1", "a whole number, 0 or more", "-1"),
        ("max-servers", "1.5", "a whole number, 0 or more", "1.5"),
        ("max-servers", "true", "a whole number, 0 or more", "True"),
        ("max-servers", "'10'", "a whole number, 0 or more", "'10'"),
        ("max-servers", "null", "a whole number, 0 or more", "None"),
        ("boot-timeout", "0", "seconds, a whole number, 1 or more", "0"),
        ("boot-timeout", "15 min", "seconds, a whole number, 1 or more", "'15 min'"),
        ("max-concurrency", "0", "a whole number, 1 or more", "0"),
        ("calls-per-second", "0", "a number above 0", "0"),
        ("calls-per-second", "-0.5", "a number above 0", "-0.5"),
        ("calls-per-second", ".nan", "a number above 0", "nan"),
        ("calls-per-second", "true", "a number above 0", "True"),
        ("calls-per-second", ".inf", "a number above 0", "inf"),
        ("calls-per-second", "9" * 400, "a number above 0", "9" * 400),  # more than SQLite can hold
        ("networks", "private", "a list of network names or ids", "'private'"),
        ("networks", "[1]", "a list of network names or ids", "[1]"),
        ("networks", "['']", "a list of network names or ids", "['']"),
        ("networks", "[a, 1, b]", "a list of network names or ids", "1 in the list"),
        ("networks", "{a: b}", "a list of network names or ids", "{'a': 'b'}"),
        ("floating-ips", "yes", "one of auto, always, never", "True"),
        ("floating-ips", "[auto]", "one of auto, always, never", "['auto']"),
        ("floating-ip-network", "1", "a network's name or id", "1"),
        ("address", "public", "one of public-v4, private-v4, public-v6", "'public'"),
        ("ssh-port", "0", "a port, 1 to 65535", "0"),
        ("ssh-port", "65536", "a port, 1 to 65535", "65536"),
        ("ssh-port", "ssh", "a port, 1 to 65535", "'ssh'"),
        ("security-groups", "default", "a list of names", "'default'"),
        ("availability-zones", "nova", "a list of names", "'nova'"),
    ],
)
def test_a_key_of_a_provider_refuses(tmp_path: Path, key: str, text: str, expected: str, got: str) -> None:
    line = 4 if key in PROVIDER else 5
    said = refusal(tmp_path, provider_with(**{key: text}))
    assert said.startswith(f":{line}: provider " + "one: " * (key != "name"))
    assert said.endswith(f": {key}: expected {expected}, got {got}")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("key", "text", "expected", "got"),
    [
        ("image", "[a]", "name or id of a base image of the provider", "['a']"),
        ("min-ready", "-1", "a whole number, 0 or more", "-1"),
        ("min-ram", "8G", "MB, a whole number, 0 or more", "'8G'"),
        ("flavor", "4", "a flavor's name", "4"),
        ("username", "{}", "an account name", "{}"),
        ("user-data", "[]", "a file", "[]"),
        ("max-ready-age", "0", "hours, a whole number, 1 or more", "0"),
    ],
)
def test_a_key_of_an_image_refuses(tmp_path: Path, key: str, text: str, expected: str, got: str) -> None:
    line = 8 if key in IMAGE else 9
    said = refusal(tmp_path, image_with(**{key: text}))
    assert said == f":{line}: provider one: image noble: {key}: expected {expected}, got {got}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: top level: expected a mapping with providers"),
        ("# nothing\n", ":1: top level: expected a mapping with providers"),
        ("- name: one\n", ":1: top level: expected a mapping with providers"),
        ("{}\n", ":1: top level: providers is missing; expected a list of providers"),
        ("providers: one\n", ":1: providers: expected a list"),
        ("providers:\n", ":1: providers: expected a list"),
        ("provider: []\n", ":1: unknown key provider; did you mean providers?"),
        ("providers: []\nproviders: []\n", ":2: key providers is given twice"),
        ("providers:\n  - one\n", f":2: provider: expected a mapping with {', '.join(PROVIDER_KEYS)}"),
        ("providers:\n  - cloud: a\n",
         f":2: provider ?: name is missing; expected {PROVIDER_NAME}"),
        (provider_with(max_server="1"), ":5: provider: unknown key max-server; did you mean max-servers?"),
        (provider_with(max_servers="1", xyzzy="1"),
         f":5: provider: unknown key xyzzy; known are {', '.join(PROVIDER_KEYS)}"),
        (provider_with(images="noble"), ":5: provider one: images: expected a list"),
        (provider_with(images="[noble]"),
         f":5: provider one: image: expected a mapping with {', '.join(IMAGE_KEYS)}"),
        (provider_with(images="[{name: a, image: b}]"),
         ":5: provider one: image a: min-ready is missing; expected a whole number, 0 or more"),
        (image_with(minready="2"), ":9: provider one: image: unknown key minready; did you mean min-ready?"),
        ("providers:\n  - {name: a, cloud: b, name: c}\n", ":2: provider: key name is given twice"),
        ("providers:\n  - {name: a, cloud: b, max-servers: 1}\n  - {name: a, cloud: c, max-servers: 1}\n",
         ":3: provider a is given twice"),
        ("providers: [\n", ":2: not YAML: expected the node content, but found '<stream end>'"),
        ("providers:\n\t- a\n", ":2: not YAML: found character '\\t' that cannot start any token"),
        ("providers: [*nowhere]\n", ":1: not YAML: found undefined alias 'nowhere'"),
        ("providers: []\n---\nproviders: []\n", ":2: not YAML: but found another document"),
        ("# one\nproviders: \x00\n", ":2: not YAML: character '\\x00': special characters are not allowed"),
        ('"a\\nb": 1\n"a\\nb": 2\n', ":2: key 'a\\nb' is given twice"),
        ("providers:\n  - <<: {? [a] : b}\n", ":2: provider: expected a key, got a sequence"),
        ("providers: [!!python/name:os.system ]\n",
         f":1: provider: expected a mapping with {', '.join(PROVIDER_KEYS)}"),
    ],
    ids=["empty", "comment", "list", "nothing in it", "text", "null", "top key", "twice", "no mapping", "no name",
         "key", "far key", "images", "image", "missing", "image key", "key twice", "provider twice", "cut off", "tab",
         "alias", "two documents", "NUL", "line break twice", "list as merged key", "python"],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


def test_an_image_of_one_name_twice_in_a_provider_is_refused(tmp_path: Path) -> None:
    text = yaml.safe_dump({"providers": [PROVIDER | {"images": [IMAGE, IMAGE]}]})
    assert refusal(tmp_path, text).endswith(": provider one: image noble is given twice")


def test_a_provider_cannot_be_called_all_which_stands_for_each_of_them(tmp_path: Path) -> None:
    assert refusal(tmp_path, provider_with(name="all")).startswith(":4: provider all: name: expected")


@pytest.mark.parametrize("name", ["missing", "sub", "~nobody-of-that-name/data", "x" * 300], ids=lambda name: name[:20])
def test_user_data_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    said = refusal(tmp_path, image_with(user_data=name))
    wrong = f"{tmp_path}/sub is no file" if name == "sub" else "there is no file "
    assert said.startswith(f":9: provider one: image noble: user-data: {wrong}")


@pytest.mark.parametrize(
    "text",
    [
        "2001-13-45", "9" * 30, "9" * 5000, "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary x",
        "!!null {}", "!!int ''", "!!int '-'", "!!float ''", f"0x{'f' * 4000}",
    ],
    ids=lambda text: f"{text[:12]} {len(text)}",
)
def test_a_value_that_cannot_be_made_or_kept_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, provider_with(max_servers=text)).startswith(":4: ")


@pytest.mark.parametrize(
    "text",
    ["? [a]\n: b\n", "{}: a\n", "&a {<<: *a}\n", "providers: &a [*a]\n", "[" * 3000, "{a: " * 3000,
     provider_with(cloud='"\\ud800"'), provider_with(name="{a: b}"), "providers: \x00\n", '"a\\nb": 1\n'],
    ids=["list as key", "mapping as key", "merged into itself", "in itself", "deep list", "deep mapping", "surrogate",
         "mapping as name", "NUL", "line break in key"],
)
def test_a_strange_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    said = refusal(tmp_path, text)
    assert "\n" not in said
    assert "Node(" not in said


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file or directory"), (b"\xff", "not UTF-8 text")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "providers.yaml"
    if content:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert str(caught.value) == f"{file}: cannot be read ({reason})"


# Whatever is written

NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda name: name != "all")
TEXTS = st.text(string.ascii_letters + string.digits + string.punctuation + " äß€", min_size=1).filter(str.strip)
TEXT_LISTS = st.lists(TEXTS, max_size=3)
COUNTS = st.integers(0, 10_000)
PROVIDER_VALUES = {
    "name": NAMES, "cloud": TEXTS, "region": TEXTS, "max-servers": COUNTS, "boot-timeout": st.integers(1, 86_400),
    "max-concurrency": st.integers(1, 1000), "networks": TEXT_LISTS, "floating-ip-network": TEXTS,
    "calls-per-second": st.floats(0.01, 1000) | st.integers(1, 1000), "ssh-port": st.integers(1, 65535),
    "floating-ips": st.sampled_from(["auto", "always", "never"]), "security-groups": TEXT_LISTS,
    "address": st.sampled_from(["public-v4", "private-v4", "public-v6"]), "availability-zones": TEXT_LISTS,
}
IMAGE_VALUES = {
    "name": NAMES, "image": TEXTS, "min-ready": COUNTS, "min-ram": COUNTS, "flavor": TEXTS, "username": TEXTS,
    "max-ready-age": st.integers(1, 10_000), "config-drive": st.booleans(), "boot-from-volume": st.booleans(),
}


def records(values: dict[str, st.SearchStrategy[Any]], required: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    optional = {key: value for key, value in values.items() if key not in required}
    return st.fixed_dictionaries({key: values[key] for key in required}, optional=optional)


IMAGES = st.lists(records(IMAGE_VALUES, IMAGE), max_size=3, unique_by=lambda image: image["name"])
PROVIDERS = st.lists(
    records(PROVIDER_VALUES | {"images": IMAGES}, PROVIDER), max_size=3, unique_by=lambda one: one["name"])
SCALARS = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
           | st.dates() | st.sampled_from(["one", "auto", "public-v4"]))
KEYS = st.sampled_from(["providers", "images", "<<", *PROVIDER_KEYS, *IMAGE_KEYS]) | st.text(max_size=5) | st.integers()
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6))
LINES = st.lists(st.sampled_from([
    "providers:", "  - name: one", "    cloud: a", "    max-servers: 1", "    images:", "      - &a", "        <<: *a",
    "      - *a", "        name: b", "        image: c", "        min-ready: 1", "    - ? [x]", "  {}", "  !!set {a}",
    "    networks: [*a]", "    region: !!int x", "    max-servers: 2001-13-45", "    <<: [*a, *a]", "---", "..."]))


def loads_or_refuses_in_one_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "providers.yaml"
        file.write_bytes(content)
        try:
            read(file)
        except ConfigError as err:
            assert str(err).startswith(f"{file}:")
            assert "\n" not in str(err)


@given(PROVIDERS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_written_right_is_loaded_as_it_is(wanted: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(Path(folder), yaml.safe_dump({"providers": wanted}, allow_unicode=True))
    assert loaded == [
        PROVIDER_DEFAULTS | one | {"images": [IMAGE_DEFAULTS | image for image in one.get("images", [])]}
        for one in wanted]


@given(st.text() | st.lists(st.text(string.printable)).map("\n".join))
@settings(max_examples=200)
def test_any_text_is_loaded_or_refused_in_one_line(text: str) -> None:
    loads_or_refuses_in_one_line(text.encode(errors="surrogatepass"))


@given(st.binary())
@settings(max_examples=100)
def test_any_bytes_are_loaded_or_refused_in_one_line(content: bytes) -> None:
    loads_or_refuses_in_one_line(content)


@given(TREES | st.fixed_dictionaries({"providers": st.lists(st.dictionaries(KEYS, TREES, max_size=6), max_size=3)}))
@settings(max_examples=100)
def test_any_tree_is_loaded_or_refused_in_one_line(tree: Any) -> None:
    loads_or_refuses_in_one_line(yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass"))


@given(LINES)
@settings(max_examples=300)
def test_any_order_of_lines_is_loaded_or_refused_in_one_line(lines: list[str]) -> None:
    loads_or_refuses_in_one_line("\n".join(lines).encode())


# Test environments

WITH_IMAGE = """providers:
  - name: one
    cloud: pocket
    max-servers: 10
    images:
      - {name: noble, image: Ubuntu 24.04, min-ready: 2, test-environment: true}
"""


def with_environment(folder: Path, **keys: str) -> str:
    """Return a file with one test environment, in line 8; keys are written as given (_ for -), empty ones left out."""
    (folder / "rack.json").write_text("{}")
    values = {"name": "rack-1", "images": "[noble]", "data": "rack.json"}
    values |= {key.replace("_", "-"): value for key, value in keys.items()}
    shown = ", ".join(f"{key}: {one}" for key, one in values.items() if one)
    return f"{WITH_IMAGE}test-environments:\n  - {{{shown}}}\n"


def test_a_test_environment_has_its_file_and_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "providers.yaml"
    file.write_text(f"environment-wait: 1440\n{with_environment(tmp_path)}")

    content = read(file)

    assert content.environments == [{"name": "rack-1", "images": ["noble"], "providers": [], "reset": None,
                                     "data": str(tmp_path / "rack.json")}]
    assert (content.environment_wait, content.providers[0]["images"][0]["test-environment"]) == (1440, True)
    assert warnings_of_environments(content) == []


@pytest.mark.parametrize(("keys", "said"), [
    ({"name": ""}, f"name is missing; expected {NAME}"),
    ({"name": "'rack 1'"}, f"name: expected {NAME}, got 'rack 1'"),
    ({"images": ""}, "images is missing; expected a list of names of images, one or more"),
    ({"images": "[]"}, "images: expected a list of names of images, one or more, got []"),
    ({"images": "noble"}, "images: expected a list of names of images, one or more, got 'noble'"),
    ({"images": "[nobel]"}, "images: there is no image nobel; did you mean noble?"),
    ({"providers": "[tow]"}, "providers: there is no provider tow; known are one"),
    ({"data": ""}, "data is missing; expected a JSON file"),
    ({"data": "none.json"}, "data: there is no file {folder}/none.json"),
    ({"data": "bad.json"}, "data: {folder}/bad.json: is not JSON: line 1: Expecting value"),
    ({"data": "bytes.json"}, "data: {folder}/bytes.json: is not UTF-8 text"),
    ({"data": "big.json"}, "data: {folder}/big.json: has more than 1 MB"),
    ({"data": "deep.json"}, "data: {folder}/deep.json: is not JSON: nested too deeply"),
    ({"reset": "''"}, "reset: expected a command, got ''"),
])
def test_what_is_wrong_with_a_test_environment_is_one_line(tmp_path: Path, keys: dict[str, str], said: str) -> None:
    for name, data in (("bad", b"nonsense"), ("bytes", b"\xff"), ("big", b" " * (1 << 20) + b"{}"),
                       ("deep", b"[" * 200_000)):
        (tmp_path / f"{name}.json").write_bytes(data)

    told = refusal(tmp_path, with_environment(tmp_path, **keys))

    name = {"": "?", "'rack 1'": "rack 1"}.get(keys.get("name", "x"), "rack-1")
    assert told == f":8: test-environment {name}: {said.format(folder=tmp_path)}"


@pytest.mark.parametrize(("text", "said"), [
    ("test-environments: {}", ":1: test-environments: expected a list"),
    ("test-environments: [7]", ":1: test-environment: expected a mapping with name, images, providers, data, reset"),
    ("test-environments: [{name: a, date: x}]", ":1: test-environment: unknown key date; did you mean data?"),
    ("test-enviroments: []", ":1: unknown key test-enviroments; did you mean test-environments?"),
    ("environment-wait: 0", ":1: environment-wait: expected minutes, a whole number from 1 to 1440, got 0"),
    ("environment-wait: 1441", ":1: environment-wait: expected minutes, a whole number from 1 to 1440, got 1441"),
    ("environment-wait: 1h", ":1: environment-wait: expected minutes, a whole number from 1 to 1440, got '1h'"),
])
def test_what_is_wrong_with_the_keys_around_them_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(tmp_path, f"{text}\n{WITH_IMAGE}") == said


def test_a_test_environment_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    text = with_environment(tmp_path)
    assert refusal(tmp_path, text + text.splitlines()[-1] + "\n") == ":9: test-environment rack-1 is given twice"


def test_an_image_without_an_environment_and_an_environment_without_an_image_are_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "providers.yaml"
    file.write_text(WITH_IMAGE)
    assert warnings_of_environments(read(file)) == [
        "provider one: image noble: test-environment: there is none for it: builds wait for 60 min and fail"]
    file.write_text(with_environment(tmp_path).replace("test-environment: true", "test-environment: false"))
    assert warnings_of_environments(read(file)) == [
        "test-environment rack-1 has no effect: none of its images has test-environment: true"]
