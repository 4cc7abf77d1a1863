"""The pictures of the status page: SVG, each for wide and narrow screens and for light and dark ones.

Colours are those of Okabe and Ito, which colour-blind people can tell apart, and nothing is told by colour alone: areas
are stacked in the order of their legend. The files have attributes instead of styles, which the page's
Content-Security-Policy forbids. Text stays text.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import os
import re
import tempfile
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from status.sections import HOUR, RESULTS, STATES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID, MARK = "#1b1b1b", "#c9c9c9", "#b34e00"  # text, lines, what is flagged
DARK = {INK: "#ececec", GRID: "#4d4d4d", MARK: "#ff9a52", "#737373": "#a0a0a0"}
COLOURS = {
    "READY": "#009e73", "BUILDING": "#56b4e9", "USED": "#0072b2", "HOLD": "#cc79a7", "ERROR": "#d55e00",
    "DELETE": "#737373", "SUCCESS": "#009e73", "FAILURE": "#d55e00", "UNSTABLE": "#e69f00", "TIMEOUT": "#cc79a7",
    "ABORTED": "#56b4e9", "UNKNOWN": "#737373",
}
HATCHES = {"HOLD": "///", "ERROR": "xxx", "FAILURE": "xxx", "UNSTABLE": "///", "TIMEOUT": "\\\\\\"}
WIDE, NARROW = (10.0, 4.6), (5.0, 4.6)  # inches of 72 pixels
SIZE = 12  # of text, pixels
MOST_ROWS = 30  # of names, one below the other
NAME_LENGTH = 24
SVG = "http://www.w3.org/2000/svg"
Draw = Callable[["Axes", bool], None]  # takes the axes, and whether the screen is narrow


class Picture(NamedTuple):
    """A picture: the names of its files by (width, theme), and its size in pixels by width."""

    name: str
    title: str
    files: dict[str, str]
    sizes: dict[str, tuple[int, int]]


def draw_all(sections: Mapping[str, Any]) -> tuple[dict[str, Picture], dict[str, bytes]]:
    """Return the pictures that have something to show, by name, and the contents of their files."""
    _prepare()
    pictures, files = {}, {}
    for name, title, draw, rows in _plan(sections):
        made, sizes = {}, {}
        for width, size in (("wide", WIDE), ("narrow", NARROW)):
            height = max(size[1], 1.4 + 0.36 * rows) if rows else size[1]
            light = _svg(draw, title, (size[0], height), width == "narrow")
            sizes[width] = (round(size[0] * 72), round(height * 72))
            for theme, text in (("light", light), ("dark", _dark(light))):
                content = text.encode()
                file = f"{name}-{width}-{theme}-{hashlib.sha256(content).hexdigest()[:8]}.svg"
                made[f"{width}_{theme}"] = file
                files[file] = content
        pictures[name] = Picture(name, title, made, sizes)
    return pictures, files


def _plan(sections: Mapping[str, Any]) -> Iterator[tuple[str, str, Draw, int]]:
    """Yield name, title, drawing function and number of rows of names, for each picture with something to show."""
    for name, hours in (("states", sections["hours"]), ("states_long", sections["long_hours"])):
        if any(any(sections[name][state]) for state in STATES):
            yield name, f"Machines by state, {_span(hours)}", partial(_states, sections[name]), 0
    for name, hours in (("builds", sections["hours"]), ("builds_long", sections["long_hours"])):
        over = sections[name]
        if any(any(over[result]) for result in RESULTS):
            each = f"{over['step'] // HOUR} hours" if over["step"] > HOUR else "hour"
            yield name, f"Builds per {each} by result, {_span(hours)}", partial(_builds, over), 0
    timed = [row for row in sections["boots"] if row["median"] is not None][:MOST_ROWS]
    span = _span(sections["long_hours"])
    if timed:
        yield "boots", f"Time from asked for to READY, {span}", partial(_times, timed), len(timed)
    if reasons := sections["boot_failures"]:
        yield "boot_failures", f"Failed boots by reason, {span}", partial(_reasons, reasons), 2 * len(reasons)
    for kind in ("providers", "images"):
        if rates := sorted(sections["blame"][kind], key=lambda rate: -rate["rate"])[:MOST_ROWS]:
            yield f"blame_{kind}", f"Builds that fail, by {kind[:-1]}, {span}", partial(_rates, rates), len(rates)


def _span(hours: int) -> str:
    return f"{hours} hours" if hours < 48 else f"{round(hours / 24)} days"  # noqa: PLR2004


def _prepare() -> None:
    """Have matplotlib keep its cache where it can write, and draw text as text."""
    if "MPLCONFIGDIR" not in os.environ and not os.access(Path("~").expanduser(), os.W_OK):
        os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp()
    import matplotlib as mpl

    mpl.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "devstack-gate", "text.parse_math": False, "font.size": SIZE,
        "axes.titlesize": SIZE + 2, "axes.titleweight": "bold", "axes.titlelocation": "left", "text.color": INK,
        "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": GRID,
        "grid.color": GRID, "grid.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
        "axes.axisbelow": True, "hatch.linewidth": 0.6, "legend.frameon": False, "hatch.color": "#ffffff"})


def _svg(draw: Draw, title: str, size: tuple[float, float], narrow: bool) -> str:
    """Draw one picture and return its text, with attributes instead of styles."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.set_title(_wrapped(title, 44) if narrow else title)
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters that the font for measuring lacks: the browser's has them
        draw(axes, narrow)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _without_styles(stream.getvalue(), title)


def _without_styles(text: str, title: str) -> str:
    """Return an SVG whose styles are attributes."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(text)  # trusted: matplotlib has just made it
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        style = element.attrib.pop("style", "")
        for name, value in re.findall(r"([a-z-]+): *([^;]+)", style):
            if name == "font":
                pixels = re.search(r"([0-9.]+)px", value)
                element.set("font-size", pixels[1] if pixels else str(SIZE))
                element.set("font-family", "system-ui, sans-serif")
                if "bold" in value or "700" in value:
                    element.set("font-weight", "bold")
            else:
                element.set(name, value)
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt", "role": "img"})
    for name in ("width", "height"):
        root.set(name, root.get(name, "").removesuffix("pt"))
    heading = ET.Element(f"{{{SVG}}}title")
    heading.text = title
    root.insert(0, heading)
    return ET.tostring(root, encoding="unicode")


def _dark(light: str) -> str:
    for colour, other in DARK.items():
        light = light.replace(colour, other)
    return light


def _time_axis(axes: Axes, times: Sequence[int]) -> None:
    """Make the x axis show times in UTC, and say so."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, DateFormatter

    short = times[-1] - times[0] < HOUR
    locator = AutoDateLocator(tz=datetime.UTC, minticks=2, maxticks=4 if short else 7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(
        DateFormatter("%H:%M:%S", datetime.UTC) if short
        else ConciseDateFormatter(locator, tz=datetime.UTC, show_offset=False))
    axes.set_xlim(_when(times[0]), _when(max(times[-1], times[0] + 1)))
    axes.set_xlabel("time (UTC)")
    axes.grid(axis="y")


def _when(moment: float) -> Any:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC)


def _states(over: Mapping[str, Any], axes: Axes, _narrow: bool) -> None:
    shown = [state for state in STATES if any(over[state])]
    _stack(axes, over["times"], shown, [over[state] for state in shown])
    axes.set_ylabel("machines")


def _builds(over: Mapping[str, Any], axes: Axes, _narrow: bool) -> None:
    shown = [result for result in RESULTS if any(over[result])]
    ends = [*over["times"], over["times"][-1] + over["step"]]
    _stack(axes, ends, shown, [[*over[result], over[result][-1]] for result in shown])
    axes.set_ylabel("builds")


def _stack(axes: Axes, times: Sequence[int], names: Sequence[str], columns: Sequence[Sequence[int]]) -> None:
    """Draw counts as stacked areas, each value from its time to the next."""
    areas = axes.stackplot([_when(moment) for moment in times], columns, labels=names, step="post",
                           colors=[COLOURS[name] for name in names], edgecolor="#ffffff", linewidth=0.3)
    for area, name in zip(areas, names, strict=True):
        area.set_hatch(HATCHES.get(name, ""))
    axes.set_ylim(bottom=0)
    _whole_numbers(axes)
    _time_axis(axes, times)
    _legend(axes)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _legend(axes: Axes) -> None:
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3)


def _times(rows: Sequence[Mapping[str, Any]], axes: Axes, _narrow: bool) -> None:
    places = range(len(rows), 0, -1)
    axes.hlines(places, [row["median"] for row in rows], [row["p95"] for row in rows], color=COLOURS["USED"],
                linewidth=2)
    axes.plot([row["median"] for row in rows], places, "o", color=COLOURS["USED"], label="median")
    axes.plot([row["p95"] for row in rows], places, "|", color=COLOURS["USED"], markersize=14, markeredgewidth=3,
              label="95 % are ready by then")
    _names(axes, [row["provider"] for row in rows])
    axes.set_xlabel("seconds")
    axes.set_xlim(left=0)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)


def _reasons(rows: Sequence[Mapping[str, Any]], axes: Axes, narrow: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    places = range(len(rows), 0, -1)
    axes.barh(places, [row["count"] for row in rows], height=0.35, color=COLOURS["ERROR"])
    most = max(row["count"] for row in rows)
    for place, row in zip(places, rows, strict=True):
        axes.text(0, place + 0.24, f"{row['count']}  {_cut(row['reason'], 44 if narrow else 95)}", va="bottom")
    axes.set_yticks([])
    axes.set_xlim(0, most * 1.05)
    axes.set_ylim(0.5, len(rows) + 0.9)
    axes.set_xlabel("boots")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _rates(rates: Sequence[Mapping[str, Any]], axes: Axes, _narrow: bool) -> None:
    places = range(len(rates), 0, -1)
    for place, rate in zip(places, rates, strict=True):
        colour = MARK if rate["flagged"] else COLOURS["USED"]
        axes.hlines(place, 100 * rate["low"], 100 * rate["high"], color=colour, linewidth=2)
        axes.plot(100 * rate["rate"], place, "D" if rate["flagged"] else "o", color=colour,
                  markersize=9 if rate["flagged"] else 6, clip_on=False)
    _names(axes, [("\N{BLACK DIAMOND} " if rate["flagged"] else "") + rate["name"] for rate in rates])
    axes.set_xlim(left=0)
    axes.set_xlabel("% of builds that failed, with 95 % interval")


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names), 0, -1), [_cut(name, NAME_LENGTH) for name in names])
    axes.set_ylim(0.4, len(names) + 0.6)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _cut(text: str, length: int) -> str:
    """Return a text in one line of at most `length` characters, with a sign in place of each unprintable one."""
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return line if len(line) <= length else f"{line[:length - 1]}\N{HORIZONTAL ELLIPSIS}"


def _wrapped(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    head, _, tail = text.rpartition(", ")
    return f"{head},\n{tail}"
