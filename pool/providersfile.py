"""The providers file: the YAML from which `vmdatabase.py load` fills provider, base_image, label, test_environment.

Keys are written as in nodepool. Errors are reported with file, line, key, what was expected and the nearest known key.
Providers, images and test environments that are no longer in the file are drained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import jenkinsnodes
from gateprocess import ConfigError, nearest, one_line
from pool import demand, environments
from vmdatabase import (
    FREE,
    BaseImage,
    LabelRow,
    Provider,
    TestEnvironment,
    drain_image,
    drain_provider,
    now,
)

LIST_COLUMNS = ("networks", "security_groups", "availability_zones")  # kept as JSON
NAME_PATTERN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")  # files and servers have 255 for all parts
NAME_EXPECTED = "a name of at most 100 letters, digits, ., _ and -, with a letter or digit at both ends"
FILE_KEYS = ("user-data", "ready-script", "data")
MOST_SUBNODES = 50  # of one machine: the lead logs in to each of them before any is READY
MOST_MINUTES = 24 * 60  # of environment-wait: after a day reap takes a used machine for forgotten


@dataclass(frozen=True)
class Key:
    """What a key of the providers file accepts; default None means that it may be left out or null."""

    expected: str
    valid: Callable[[Any], bool]
    default: Any = None
    required: bool = False


def _whole(minimum: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and minimum <= value < 2**31


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _name(value: object) -> bool:
    return isinstance(value, str) and bool(NAME_PATTERN.fullmatch(value))


def _one_of(*words: str) -> Key:
    return Key(f"one of {', '.join(words)}", lambda value: value in words, words[0])


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _rate(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < 2**31  # type: ignore[operator]


def _shown(key: str) -> str:
    return key if key.isprintable() else repr(key)


TOP_KEYS = {
    "providers": Key("a list of providers", lambda value: True, required=True),
    "labels": Key("a list of labels", lambda value: True),
    "history-days": Key("days, a whole number, 1 or more", _whole(1), 90),
    "test-environments": Key("a list of test environments", lambda value: True),
    "environment-wait": Key(f"minutes, a whole number from 1 to {MOST_MINUTES}",
                            lambda value: _whole(1)(value) and value <= MOST_MINUTES, environments.DEFAULT_WAIT),
}
PROVIDER_KEYS = {
    "name": Key(f"{NAME_EXPECTED}, other than all", lambda value: _name(value) and value != "all", required=True),
    "cloud": Key("the name of an entry of clouds.yaml", _text, required=True),
    "region": Key("a region's name", _text),
    "max-servers": Key("a whole number, 0 or more", _whole(0), required=True),
    "boot-timeout": Key("seconds, a whole number, 1 or more", _whole(1), 900),
    "max-concurrency": Key("a whole number, 1 or more", _whole(1), 8),
    "calls-per-second": Key("a number above 0", _rate),
    "networks": Key("a list of network names or ids", _texts, []),
    "floating-ips": _one_of("auto", "always", "never"),
    "floating-ip-network": Key("a network's name or id", _text),
    "address": _one_of("public-v4", "private-v4", "public-v6"),
    "ssh-port": Key("a port, 1 to 65535", lambda value: _whole(1)(value) and value <= 65535, 22),  # noqa: PLR2004
    "security-groups": Key("a list of names", _texts, []),
    "availability-zones": Key("a list of names", _texts, []),
    "images": Key("a list of images", lambda value: isinstance(value, list), []),
    "priority": Key("a whole number", lambda value: type(value) is int and abs(value) < 2**31, 0),
    "paused": Key("true or false", _flag, False),
}
IMAGE_KEYS = {
    "name": Key(NAME_EXPECTED, _name, required=True),
    "image": Key("name or id of a base image of the provider", _text),
    "min-ready": Key("a whole number, 0 or more", _whole(0), required=True),
    "min-ram": Key("MB, a whole number, 0 or more", _whole(0), 0),
    "flavor": Key("a flavor's name", _text),
    "username": Key("an account name", _text),
    "user-data": Key("a file", _text),
    "max-ready-age": Key("hours, a whole number, 1 or more", _whole(1)),
    "config-drive": Key("true or false", _flag, False),
    "boot-from-volume": Key("true or false", _flag, False),
    "volume-size": Key("GB, a whole number, 1 or more", _whole(1)),
    "template": Key("the name of another image of this provider", _name),
    "ready-script": Key("a file", _text),
    "subnodes": Key(f"a whole number from 0 to {MOST_SUBNODES}",
                    lambda value: _whole(0)(value) and value <= MOST_SUBNODES, 0),
    "test-environment": Key("true or false", _flag, False),
}
LABEL_KEYS = {
    "name": Key("the name of an image", _name, required=True),
    "min-ready": Key("a whole number, 0 or more", _whole(0), required=True),
    "max-ready": Key("a whole number, 0 or more", _whole(0)),
    "demand": _one_of(demand.NONE, demand.QUEUE),
    "spread": _one_of(demand.EVEN, demand.PACK),
    "schedule": Key("a list of entries such as {days: mon-fri, hours: '08:00-18:00', zone: Europe/Berlin, "
                    "min-ready: 30}, each with all four keys", demand.is_schedule, []),
}
ENVIRONMENT_KEYS = {
    "name": Key(NAME_EXPECTED, _name, required=True),
    "images": Key("a list of names of images, one or more", lambda value: _texts(value) and bool(value), required=True),
    "providers": Key("a list of names of providers", _texts, []),
    "data": Key("a JSON file", _text, required=True),
    "reset": Key("a command", _text),
}


@dataclass(frozen=True)
class Content:
    """A providers file: dicts with every key set."""

    providers: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    history_days: int
    environments: list[dict[str, Any]]
    environment_wait: int  # minutes


def read(path: Path) -> Content:
    """Return the contents of a file, with the images of a provider under "images".

    Raises ConfigError with file, line, key, what was expected and the nearest known key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from err
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        reader = _ProvidersReader(path, loader)
        top = reader.mapping(root, TOP_KEYS, "")
        if "providers" not in top:
            raise reader.fail(root, "top level: providers is missing; expected a list of providers")
        days, wait = [reader.value(top[key], TOP_KEYS[key], key) if key in top else TOP_KEYS[key].default
                      for key in ("history-days", "environment-wait")]
        providers = reader.items(top["providers"], PROVIDER_KEYS, "provider")
        return Content(
            providers, reader.labels(top["labels"], providers) if "labels" in top else [], days,
            reader.environments(top["test-environments"], providers) if "test-environments" in top else [], wait)
    except RecursionError as err:
        raise ConfigError(f"{path}: not YAML: nested too deep") from err
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {err.problem or err.context}") from err
    except yaml.reader.ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        raise ConfigError(f"{path}:{line}: not YAML: character {text[err.position]!a}: {err.reason}") from err
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not YAML: {one_line(err)}") from err


class _ProvidersReader:
    """Walks the nodes of the YAML, which know their lines; plain values would not."""

    def __init__(self, path: Path, loader: Any) -> None:
        self.path = path
        self.loader = loader
        self.flat: set[int] = set()  # mappings whose merge keys are resolved; an alias leads here again

    def fail(self, node: Any, message: str) -> ConfigError:
        line = node.start_mark.line + 1 if node is not None else 1
        return ConfigError(f"{self.path}:{line}: {message}")

    def mapping(self, node: Any, keys: dict[str, Key], where: str) -> dict[str, Any]:
        """Return {key: YAML node} of a mapping; raises ConfigError for unknown and doubled keys."""
        if node is None or node.id != "mapping":
            needed = [key for key, rule in keys.items() if where or rule.required]
            raise self.fail(node, f"{where or 'top level: '}expected a mapping with {', '.join(needed)}")
        self.flatten(node, where)
        merged = {self.key(key_node, where): (key_node, value_node) for key_node, value_node in node.value}
        for key, (key_node, _) in merged.items():
            if key not in keys:
                raise self.fail(key_node, f"{where}unknown key {_shown(key)}{nearest(key, keys)}")
        return {key: value_node for key, (_, value_node) in merged.items()}

    def flatten(self, node: Any, where: str) -> None:
        """Raise ConfigError for keys that are given twice, then resolve YAML's merge key (<<)."""
        if id(node) in self.flat:
            return
        self.flat.add(id(node))
        found = set()
        for key_node, _ in node.value:
            key = self.key(key_node, where)
            if key in found:
                raise self.fail(key_node, f"{where}key {_shown(key)} is given twice")
            found.add(key)
        self.loader.flatten_mapping(node)

    def key(self, node: Any, where: str) -> str:
        """Return a key, which may come from a merge."""
        if node.id != "scalar":
            raise self.fail(node, f"{where}expected a key, got a {node.id}")
        return str(node.value)

    def items(self, node: Any, keys: dict[str, Key], kind: str, of: str = "") -> list[dict[str, Any]]:
        """Return the items of a list, such as providers or the images of one; raises ConfigError for a doubled name."""
        if node.id != "sequence":
            raise self.fail(node, f"{of}{kind}s: expected a list")
        found: dict[str, dict[str, Any]] = {}
        for item in node.value:
            value = self.item(item, keys, kind, of)
            if value["name"] in found:
                raise self.fail(item, f"{of}{kind} {value['name']} is given twice")
            found[value["name"]] = value
        return list(found.values())

    def labels(self, node: Any, providers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the labels; raises ConfigError for one whose image type no provider has."""
        found = self.items(node, LABEL_KEYS, "label")
        names = {image["name"] for provider in providers for image in provider["images"]}
        for item, label in zip(node.value, found, strict=True):
            if label["name"] not in names:
                hint = nearest(label["name"], sorted(names)) if names else ""
                raise self.fail(item, f"label {label['name']}: no provider has an image of that name{hint}")
            most = max([label["min-ready"], *(entry["min-ready"] for entry in label["schedule"])])
            if label["max-ready"] is None:
                label["max-ready"] = most
            elif label["max-ready"] < most:
                raise self.fail(item, f"label {label['name']}: max-ready: expected {most} or more, as min-ready is, "
                                      f"got {label['max-ready']}")
        return found

    def environments(self, node: Any, providers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the test environments; raises ConfigError if an image type, provider or JSON file does not exist."""
        found = self.items(node, ENVIRONMENT_KEYS, "test-environment")
        known = {"images": sorted({image["name"] for provider in providers for image in provider["images"]}),
                 "providers": sorted(provider["name"] for provider in providers)}
        for item, environment in zip(node.value, found, strict=True):
            where = f"test-environment {environment['name']}"
            for key, names in known.items():
                for name in environment[key]:
                    if name not in names:
                        hint = nearest(name, names) if names else ""
                        raise self.fail(item, f"{where}: {key}: there is no {key[:-1]} {name}{hint}")
            try:
                environments.read_data(Path(environment["data"]))
            except ValueError as err:
                raise self.fail(item, f"{where}: data: {err}") from err
        return found

    def item(self, node: Any, keys: dict[str, Key], kind: str, of: str) -> dict[str, Any]:
        """Return one item, such as a provider or image, with every key set."""
        nodes = self.mapping(node, keys, f"{of}{kind}: ")
        name = nodes["name"].value if "name" in nodes else "?"
        where = f"{of}{kind} {name if isinstance(name, str) and name.isprintable() else '?'}"
        values: dict[str, Any] = {}
        for key, rule in keys.items():
            if key not in nodes and rule.required:
                raise self.fail(node, f"{where}: {key} is missing; expected {rule.expected}")
            if kind == "provider" and key == "images" and key in nodes:
                values[key] = self.items(nodes[key], IMAGE_KEYS, "image", f"{where}: ")
                self.check_images(nodes[key], values[key], where)
                continue
            values[key] = self.value(nodes[key], rule, f"{where}: {key}") if key in nodes else rule.default
        for key in FILE_KEYS:
            if values.get(key):
                values[key] = self.file(nodes[key], where, key)
        return values

    def check_images(self, node: Any, images: list[dict[str, Any]], where: str) -> None:
        """Raise ConfigError for images whose keys do not fit together; give those with a template its base image."""
        by_name = {image["name"]: image for image in images}
        for item, image in zip(node.value, images, strict=True):
            wrong = _wrong_keys(image, by_name)
            if wrong:
                raise self.fail(item, f"{where}: image {image['name']}: {wrong}")
            if image["template"]:
                image["image"] = image["image"] or by_name[image["template"]]["image"]

    def value(self, node: Any, rule: Key, where: str) -> Any:
        try:
            value = self.loader.construct_object(node, deep=True)
            shown = repr(value)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as err:
            raise self.fail(node, f"{where}: expected {rule.expected}, got {str(node.value)[:40]!r}") from err
        if value is None and not rule.required:
            return rule.default
        if not rule.valid(value):
            wrong = [one for one in value if not rule.valid([one])] if isinstance(value, list) and value[1:] else []
            raise self.fail(node, f"{where}: expected {rule.expected}, got "
                                  f"{f'{wrong[0]!r} in the list' if wrong else shown}")
        return value

    def file(self, node: Any, where: str, key: str) -> str:
        """Return the path of a file; a relative one is relative to the folder of the providers file."""
        try:
            file = self.path.absolute().parent / Path(node.value).expanduser()
            found, exists = file.is_file(), file.exists()
        except (OSError, RuntimeError) as err:  # too long a name, or a missing home folder
            raise self.fail(node, f"{where}: {key}: there is no file {node.value}") from err
        if not found:
            raise self.fail(node, f"{where}: {key}: {file} is no file" if exists else
                            f"{where}: {key}: there is no file {file}")
        return str(file)


def _wrong_keys(image: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return what is wrong with the keys of an image taken together; None if nothing is."""
    name = image["template"]
    if f"devstack-{image['name']}" == jenkinsnodes.USED_LABEL:
        return f"name: expected another one: {jenkinsnodes.USED_LABEL} is the label of nodes that are out of service"
    if not image["image"] and not name:
        return f"image is missing; expected {IMAGE_KEYS['image'].expected}"
    if image["volume-size"] and not image["boot-from-volume"]:
        return "volume-size: has no effect without boot-from-volume: true"
    if not name:
        return None
    template = by_name.get(name)
    if template is None or template is image:
        others = [other for other in by_name if other != image["name"]]
        hint = nearest(name, others) if others else ""
        return f"template: expected {IMAGE_KEYS['template'].expected}, got {name}{hint}"
    if template["template"]:
        return f"template: {name} has a template itself; name {template['template']}"
    if template["boot-from-volume"] and not image["boot-from-volume"]:
        return f"boot-from-volume: expected true, as for its template {name}"
    return None


def warnings_of(provider: Mapping[str, Any], labels: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return what cannot work, or has no effect, in the loaded settings of a provider."""
    names = {label["name"] for label in labels}  # of image types for which a label's min-ready counts, not their own
    own = [image for image in provider["images"] if image["name"] not in names]
    wanted = sum(image["min-ready"] * (1 + image["subnodes"]) for image in own)
    room = provider["max-servers"]
    what = "min-ready with subnodes" if any(image["subnodes"] for image in own) else "min-ready"
    found = []
    if wanted > room:
        found.append(f"{what} adds up to {wanted}, but max-servers is {room}: the pool can never be full")
    elif wanted == room and own:
        found.append(f"{what} adds up to max-servers ({room}): while the pool is full there is no room for a "
                     f"template server, and no image can be built; expected max-servers of {room + 1} or more")
    found += _warnings_of_addresses(provider)
    for image in provider["images"]:
        if image["subnodes"] >= room > 0 and image["name"] in names:
            found.append(f"image {image['name']}: a machine takes {1 + image['subnodes']} servers with its subnodes, "
                         f"but max-servers is {room}: there can never be one")
        found += [f"image {image['name']}: {text}" for text in _warnings_of_image(image)]
    return found


def warnings_of_labels(content: Content) -> list[str]:
    """Return what cannot work, or has no effect, in the labels of a file."""
    found = []
    for label in content.labels:
        least = max([label["min-ready"], *(entry["min-ready"] for entry in label["schedule"])])
        room = sum(provider["max-servers"] // (1 + image["subnodes"]) for provider in content.providers
                   for image in provider["images"] if image["name"] == label["name"])
        if label["demand"] == demand.QUEUE and label["max-ready"] <= label["min-ready"]:
            found.append(f"label {label['name']}: demand: queue has no effect, since max-ready is {label['max-ready']} "
                         "like min-ready: builds that wait get no machines of their own")
        if least > room:
            found.append(f"label {label['name']}: min-ready is {least}, but the providers that have it can give {room} "
                         "(max-servers): the pool can never be full")
    return found


def warnings_of_environments(content: Content) -> list[str]:
    """Return what cannot work, or has no effect, in the test environments of a file."""
    types = {(image["name"], provider["name"]): image["test-environment"]
             for provider in content.providers for image in provider["images"]}
    pairs = {one["name"]: {(image, provider) for image in one["images"]
                           for provider in one["providers"] or [provider["name"] for provider in content.providers]}
             for one in content.environments}
    given = set().union(*pairs.values())
    found = [f"provider {provider}: image {image}: test-environment: there is none for it: builds wait for "
             f"{content.environment_wait} min and fail" for (image, provider), wanted in types.items()
             if wanted and (image, provider) not in given]
    owners: dict[str, str] = {}
    for one in content.environments:
        if (owner := owners.setdefault(one["data"], one["name"])) != one["name"]:
            found.append(f"test-environment {one['name']}: data: is that of test-environment {owner}, too: two builds "
                         "may have at once what it names")
    return found + [f"test-environment {name} has no effect: none of its images has test-environment: true"
                    for name, those in pairs.items() if not any(map(types.get, those))]


def _warnings_of_addresses(provider: Mapping[str, Any]) -> list[str]:
    mode, address = provider["floating-ips"], provider["address"]
    found = []
    if mode == "always" and address == "public-v6":
        found.append("address: public-v6 with floating-ips: always can never work: floating IPs are IPv4 addresses")
    if mode == "always" and address == "private-v4":
        found.append("address: private-v4 has no effect with floating-ips: always")
    if mode == "never" and provider["floating-ip-network"]:
        found.append("floating-ip-network has no effect with floating-ips: never")
    return found


def _warnings_of_image(image: Mapping[str, Any]) -> list[str]:
    found = []
    if image["flavor"] and image["min-ram"]:
        found.append("min-ram has no effect beside flavor")
    if image["template"] and image["username"]:
        found.append("username has no effect beside template, which is where somebody logs in first")
    if image["boot-from-volume"] and not image["volume-size"]:
        found.append("boot-from-volume without volume-size: volumes are as large as the image asks for (min_disk), "
                     "which may be 1 GB")
    return found


# --- into vm.db -----------------------------------------------------------------------------------------------------


def load(providers: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Make provider, base_image and label equal to what a file says; return one line for each change.

    A row that is no longer in the file is deleted if it has neither machines nor snapshots; otherwise it is drained:
    launch makes no more machines for it, and reap removes the rest. A provider at which scripts were at work is drained
    in any case: only reap sees whether its cloud still has anything of the pool.
    """
    changes: list[str] = []
    for wanted in providers:
        values = _columns(wanted, ("images",))
        provider = Provider.get_or_none(Provider.name == values["name"])
        provider = _make_equal(Provider, provider, values, f"provider {values['name']}", changes)
        for image in wanted["images"]:
            image_values = {**_columns(image, ("image",)), "external_id": image["image"], "provider": provider}
            row = BaseImage.get_or_none((BaseImage.provider == provider) & (BaseImage.name == image["name"]))
            _make_equal(BaseImage, row, image_values, f"image {provider.name}/{image['name']}", changes)
    images_wanted = {(wanted["name"], image["name"]) for wanted in providers for image in wanted["images"]}
    for image in list(BaseImage.select(BaseImage, Provider).join(Provider)):
        if (image.provider.name, image.name) not in images_wanted:
            drain_image(image, changes)
    names_wanted = {wanted["name"] for wanted in providers}
    for provider in list(Provider.select()):
        if provider.name not in names_wanted:
            drain_provider(provider, changes)
    for label in labels:
        label_values = {**_columns(label, ("schedule",)), "schedule": json.dumps(label["schedule"])}
        del label_values["active"]
        label_row = LabelRow.get_or_none(LabelRow.name == label["name"])
        _make_equal(LabelRow, label_row, label_values, f"label {label['name']}", changes)
    for gone in list(LabelRow.select().where(LabelRow.name.not_in([label["name"] for label in labels]))):
        changes.append(f"delete label {gone.name}")
        gone.delete_instance()
    return changes


def _columns(wanted: Mapping[str, Any], without: Sequence[str]) -> dict[str, Any]:
    values = {key.replace("-", "_"): value for key, value in wanted.items() if key not in without}
    values.update({key: json.dumps(values[key]) for key in LIST_COLUMNS if key in values})
    return {**values, "active": True}


def _make_equal(
    model: type[Provider | BaseImage | LabelRow | TestEnvironment], row: Any, values: Mapping[str, Any], what: str,
    changes: list[str],
) -> Any:
    if row is None:
        shown = [f"{key.replace('_', '-')} {value}" for key, value in values.items()
                 if key in ("max_servers", "min_ready")]
        changes.append(f"add {what}: {', '.join(shown)}")
        return model.create(**values)
    changed = {key: value for key, value in values.items() if getattr(row, key) != value}
    for key, value in changed.items():
        shown_key = "image" if key == "external_id" else key.replace("_", "-")
        text = "back in the file" if key == "active" else f"{shown_key} {getattr(row, key)} -> {value}"
        changes.append(f"change {what}: {text}")
    if changed:
        model.update(**changed).where(row._pk_expr()).execute()
    return row


def _renamed(environment: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]) -> TestEnvironment | None:
    """Return the row of a test environment whose name has changed in the file; None if there is none.

    It is recognised by its data file. A second row would go to a second machine while the first still has the first.
    """
    names = [one["name"] for one in wanted]
    found: TestEnvironment | None = TestEnvironment.select().where(
        (TestEnvironment.data == environment["data"]) & TestEnvironment.name.not_in(names)).order_by(
        TestEnvironment.machine_id.is_null(), TestEnvironment.id).first()
    return found


def load_environments(wanted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Make test_environment equal to what a file says; return one line for each change.

    One that has left the file goes when it is free or broken; a trigger deletes it.
    """
    changes: list[str] = []
    for environment in wanted:
        values = {**environment, "active": True}
        values |= {key: json.dumps(environment[key]) for key in ("images", "providers")}
        row = TestEnvironment.get_or_none(TestEnvironment.name == environment["name"])
        if row is None and (row := _renamed(environment, wanted)):
            changes.append(f"rename test-environment {row.name} -> {environment['name']}")
            row.name = environment["name"]
            TestEnvironment.update(name=row.name).where(TestEnvironment.id == row.id).execute()
        if row is None:
            changes.append(f"add test-environment {environment['name']}: images {', '.join(environment['images'])}")
            TestEnvironment.create(**values, state=FREE, state_time=now(), state_reason="new in the providers file")
        else:
            _make_equal(TestEnvironment, row, values, f"test-environment {row.name}", changes)
    names = [environment["name"] for environment in wanted]
    for row in list(TestEnvironment.select().where(
            (TestEnvironment.active == 1) & TestEnvironment.name.not_in(names))):
        TestEnvironment.update(active=False).where(TestEnvironment.id == row.id).execute()
        left = TestEnvironment.get_or_none(TestEnvironment.id == row.id)
        changes.append(f"drain test-environment {row.name}: it is {row.state}, and goes when it is free" if left else
                       f"delete test-environment {row.name}")
    return changes
