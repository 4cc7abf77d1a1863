"""Checks for values that a person wrote into the database by hand and with which the scripts could not work.

SQLite accepts any value in any column, and its prompt does not protect rows that others refer to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import vmdatabase
from gateprocess import ConfigError, plain
from pool.providersfile import ENVIRONMENT_KEYS, IMAGE_KEYS, LABEL_KEYS, LIST_COLUMNS, PROVIDER_KEYS, Key
from vmdatabase import BaseImage, LabelRow, Provider, TestEnvironment

# What a column of each type holds: by SQLite's typeof(), and in words.
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "INTEGER": (("integer",), "a whole number"),
    "REAL": (("real", "integer"), "a number"),
    "TEXT": (("text",), "text"),
}
TABLES = ("provider", "base_image", "snapshot_image", "machine", "label", "test_environment")
LONG_TABLES = ("result", "event")  # checked only after something has failed
NUMBERS = ("moved", "made", "history-days", "environment-wait")  # settings
PARENTS = {"machine": "base_image", "snapshot_image": "base_image", "base_image": "provider"}
COLUMNS = {"image": "external_id"}  # of keys whose column has another name
ROWS = "images"  # the key of a provider that is stored as rows of another table
JSON_COLUMNS = (*LIST_COLUMNS, "schedule", "images", "providers")


def check() -> None:
    """Raise ConfigError for the first value that `load` or a script would not have written."""
    check_kinds()
    _refuse(_nameless())
    _refuse(_wrong_keys())


def check_kinds() -> None:
    """Raise ConfigError for the first value of a wrong type, or the first row that refers to a missing row."""
    if not vmdatabase.database.shared:
        _refuse(_wrong_kinds(TABLES))
        _refuse(_orphans())
    _refuse(_wrong_settings())


def problem() -> str:
    """Return in one line the first value of a wrong type in all tables; empty if there is none."""
    found = () if vmdatabase.database.shared else _wrong_kinds((*TABLES, *LONG_TABLES))
    return next((f"{vmdatabase.database.database}: {text}" for text in found), "")


def _refuse(problems: Iterator[str]) -> None:
    for problem in problems:
        raise ConfigError(f"{vmdatabase.database.database}: {problem}")


def _wrong_kinds(tables: Iterable[str]) -> Iterator[str]:
    """Yield values of another type than their column's, such as text instead of a number, and text that is no UTF-8.

    Python cannot fetch such text as text, so all text is fetched as bytes.
    """
    for table in tables:
        columns = [(row[1], row[2]) for row in vmdatabase.database.execute_sql(f"PRAGMA table_info({table})")]
        values = [f"typeof({column}), CASE typeof({column}) WHEN 'text' THEN CAST({column} AS BLOB) ELSE {column} END"
                  for column, _ in columns]
        doubts = [f"typeof({column}) NOT IN {('null', *KINDS[kind][0])} "
                  f"OR typeof({column}) = 'text' AND {column} GLOB '*[^ -~]*'" for column, kind in columns]
        query = f"SELECT {', '.join(values)} FROM {table} WHERE {' OR '.join(doubts)}"
        for row in vmdatabase.database.execute_sql(query):
            told = [_fetched(*pair) for pair in zip(row[::2], row[1::2], strict=True)]
            for (column, kind), found, value in zip(columns, row[::2], told, strict=True):
                allowed, words = KINDS[kind]
                if found not in ("null", *allowed):
                    yield f"table {table}, {columns[0][0]} {told[0]}: {column}: expected {words}, got {_shown(value)}"
                elif found == "text" and isinstance(value, bytes):
                    yield f"table {table}, {columns[0][0]} {told[0]}: {column}: expected text in UTF-8, got {value!r}"


def _fetched(kind: str, value: Any) -> Any:
    """Return a value, given its kind by SQLite's typeof(); text is given as bytes, and stays so if it is no UTF-8."""
    try:
        return value.decode() if kind == "text" else value
    except UnicodeDecodeError:
        return value


def _orphans() -> Iterator[str]:
    """Yield rows whose provider or image type is gone: their servers and images would be taken for leaks."""
    for table, parent in PARENTS.items():
        lost = vmdatabase.database.execute_sql(
            f"SELECT name, {parent}_id FROM {table} WHERE {parent}_id NOT IN (SELECT id FROM {parent}) ORDER BY id")
        for name, number in lost:
            yield f"table {table}: {plain(str(name))} belongs to {parent} {number}, whose row is gone, as after a " \
                  "DELETE at a prompt of sqlite3; put that row back, or delete those that belong to it, too"


def _nameless() -> Iterator[str]:
    """Yield machines without a name: the transaction that makes a machine names it."""
    for (number,) in vmdatabase.database.execute_sql("SELECT id FROM machine WHERE name IS NULL ORDER BY id LIMIT 1"):
        yield f"table machine, id {number}: name: expected that of its server and node, got nothing"


def _wrong_settings() -> Iterator[str]:
    for name in NUMBERS:
        value = vmdatabase.setting(name)
        if value is not None and not re.fullmatch("[0-9]{1,18}", value):
            yield f"table setting: {name}: expected a whole number, got {_shown(value)}"


def _wrong_keys() -> Iterator[str]:
    """Yield values that `load` would have refused."""
    for provider in Provider.select():
        yield from _wrong_of(provider, PROVIDER_KEYS, f"provider {_shown(provider.name)}")
    for image in BaseImage.select(BaseImage, Provider).join(Provider):
        yield from _wrong_of(image, IMAGE_KEYS, f"provider {image.provider.name}: image {_shown(image.name)}")
    for label in LabelRow.select():
        yield from _wrong_of(label, LABEL_KEYS, f"label {_shown(label.name)}")
    for environment in TestEnvironment.select():
        yield from _wrong_of(environment, ENVIRONMENT_KEYS, f"test-environment {_shown(environment.name)}")


def _wrong_of(row: Any, keys: Mapping[str, Key], what: str) -> Iterator[str]:
    for key, rule in keys.items():
        if key == ROWS and isinstance(row, Provider):
            continue
        column = COLUMNS.get(key, key.replace("-", "_"))
        value = getattr(row, column)
        try:
            told = json.loads(value) if column in JSON_COLUMNS else value
        except ValueError:
            told = value
        if not (rule.valid(told) or (told is None and not rule.required and rule.default is None)):
            yield f"{what}: {column}: expected {rule.expected}, got {_shown(value)}"


def _shown(value: object) -> str:
    return plain(value if isinstance(value, str) else repr(value)) or "nothing"
