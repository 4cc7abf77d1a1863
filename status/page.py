"""index.html of the status page, from its template; every value is escaped there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from pool.history import lasted
from status.pictures import Picture

FOLDER = Path(__file__).parent / "templates"
STYLE = FOLDER / "style.css"
ICON = FOLDER / "icon.svg"


def render(sections: Mapping[str, Any], pictures: Mapping[str, Picture]) -> bytes:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True)
    environment.filters.update(when=when, lasted=lasted, percent=percent, shown=shown, since=lambda moment: lasted(
        max(0, sections["time"] - moment)))
    template = environment.get_template("index.html.j2")
    return template.render(**sections, pictures=pictures).encode("utf-8", "replace")


def when(moment: float) -> str:
    """Return a time in words, UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))


def percent(share: float) -> str:
    """Return a share as per cent with one decimal."""
    return f"{100 * share:.1f} %"


def shown(text: object) -> str:
    """Return a text with a sign in place of each unprintable character, such as one that turns the line round."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))
