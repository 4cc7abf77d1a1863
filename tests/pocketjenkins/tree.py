"""The part of an object that the API shows: by depth (`depth=1`) or by `tree=computer[displayName,offline]`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Fields = dict[str, Any]


def nothing() -> Fields:
    return {}


@dataclass(frozen=True)
class Export:
    """An object as the API shows it.

    `fields` are shown even if another object refers to it; `more` only if it is requested itself or by depth; `hidden`
    only if a tree names them. `more` and `hidden` are made when needed, since objects refer to one another.
    """

    fields: Fields
    more: Callable[[], Fields] = nothing
    hidden: Callable[[], Fields] = nothing


@dataclass(frozen=True)
class Inline:
    """Members that are shown as fully as their container, such as the computers of the computer set."""

    members: list[Export]


@dataclass
class Selection:
    """One level of a tree parameter; `first` and `last` are the range in braces."""

    names: dict[str, "Selection"] = field(default_factory=dict)
    first: int = 0
    last: int | None = None


def by_depth(value: Any, level: int) -> Any:
    """Return the JSON value of an object for depth=level; objects that it refers to are one level lower."""
    if isinstance(value, Export):
        shown = {**value.fields, **value.more()} if level >= 0 else value.fields
        return {name: by_depth(member, level if isinstance(member, Inline) else level - 1)
                for name, member in shown.items()}
    if isinstance(value, Inline):
        return [by_depth(member, level) for member in value.members]
    if isinstance(value, list):
        return [by_depth(member, level) for member in value]
    if isinstance(value, dict):
        return {name: by_depth(member, level) for name, member in value.items()}
    return value


def by_tree(value: Any, selection: Selection) -> Any:
    """Return the JSON value of what a tree parameter selects; `_class` is always shown."""
    if isinstance(value, Inline):
        value = value.members
    if isinstance(value, list):
        return [by_tree(member, selection) for member in value[selection.first : selection.last]]
    if isinstance(value, Export):
        return _selected(value, selection)
    if isinstance(value, dict):
        return _selected(Export(value), selection)
    return value


def _selected(export: Export, selection: Selection) -> Fields:
    wanted = selection.names
    shown = export.fields
    if not wanted.keys() <= shown.keys():
        shown = {**shown, **export.more()}
    if not wanted.keys() <= shown.keys():
        shown = {**shown, **export.hidden()}
    kept = {"_class": shown["_class"]} if "_class" in shown else {}
    star = wanted.get("*")
    for name, member in shown.items():
        below = wanted.get(name, star)
        if below is not None:
            kept[name] = by_tree(member, below)
    return kept


def parse_tree(text: str) -> Selection:
    """Read a tree parameter; raises ValueError if it is malformed."""
    tokens = re.findall(r"[\w*$]+|[\[\],{}]", text)
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise ValueError(f"Malformed tree expression: {text}")
    tokens.reverse()
    selection = _members(tokens)
    if tokens:
        raise ValueError(f"Malformed tree expression: {text}")
    return selection


def _members(tokens: list[str]) -> Selection:
    selection = Selection()
    while tokens and tokens[-1] not in "]":
        name = tokens.pop()
        if name in "[],{}":
            raise ValueError(f"Malformed tree expression at {name}")
        selection.names[name] = _member(tokens)
        if tokens and tokens[-1] == ",":
            tokens.pop()
    return selection


def _member(tokens: list[str]) -> Selection:
    below = Selection()
    if tokens and tokens[-1] == "[":
        tokens.pop()
        below = _members(tokens)
        if not tokens or tokens.pop() != "]":
            raise ValueError("Malformed tree expression: ] is missing")
    if tokens and tokens[-1] == "{":
        tokens.pop()
        inside = []
        while tokens and tokens[-1] != "}":
            inside.append(tokens.pop())
        if not tokens:
            raise ValueError("Malformed tree expression: } is missing")
        tokens.pop()
        first, comma, last = "".join(inside).partition(",")
        below.first = int(first or 0)
        below.last = int(last) if last else None if comma else below.first + 1
    return below
