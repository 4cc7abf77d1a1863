"""The build of a matrix: a build for each combination of its axes; its result is the worst of theirs.

From the sources of the matrix project plugin 1.18: the parent needs no executor of a node, a cell's builds have the
parent's number and parameters, label axes choose nodes instead of the parent's label, publishers run for each cell, and
the parent triggers other jobs. Not modelled: combination filters, touchstone builds, aggregation.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Protocol

from tests.pocketjenkins import steps
from tests.pocketjenkins.builds import Build, Item
from tests.pocketjenkins.jobxml import JobConfig
from tests.pocketjenkins.parameters import worse
from tests.pocketjenkins.workplace import NowherePlace


class Jenkins(steps.Jenkins, Protocol):
    """What the build of a matrix needs from Jenkins."""

    def add_cell(self, build: Build, name: str, label: str, axes: Mapping[str, str]) -> Item:
        """Queue the build of a cell."""

    def cancel(self, item: Item) -> None:
        """Remove an item from the queue."""

    def stop_build(self, build: Build) -> None:
        """Abort a build."""


class MatrixRun:
    """One build of a matrix."""

    def __init__(self, build: Build, config: JobConfig, jenkins: Jenkins) -> None:
        self.build = build
        self.config = config
        self.jenkins = jenkins
        self.last = steps.Run(build, config, NowherePlace(0.0), jenkins)

    def run(self) -> None:
        """Run the build, from the first cell to the end."""
        items: list[Item] = []
        for name, label, axes in self._cells():
            if self.build.stop.is_set():
                break
            self.build.say(f"Triggering {name}")
            items.append(self.jenkins.add_cell(self.build, name, label, axes))
            if self.config.sequential:
                self._await(items[-1])
        for item in items:
            self._await(item)
        if self.build.crashed:
            return
        self.last.result = worse(self.last.result, self.build.forced or "SUCCESS")
        self.jenkins.end_build(self.build, self.last.result, self.last.trigger_others)

    def _cells(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Yield name, label and axes of each combination; the name has the axes in alphabetical order."""
        names = [axis.name for axis in self.config.axes]
        for values in itertools.product(*(axis.values for axis in self.config.axes)):
            axes = dict(zip(names, values, strict=True))
            labels = [f"({axes[axis.name]})" for axis in self.config.axes if axis.by_label]
            name = ",".join(f"{axis}={value}" for axis, value in sorted(axes.items()))
            yield name, "&&".join(labels) or self.config.label, axes

    def _await(self, item: Item) -> None:
        """Wait for a cell; if the matrix is aborted, abort the cell, too."""
        while not item.done.wait(steps.POLL_SECONDS):
            if self.build.stop.is_set():
                self.jenkins.cancel(item)
                if item.build and not item.build.stop.is_set():
                    self.jenkins.stop_build(item.build)
        build = item.build
        if build and build.result and build not in self.build.runs:
            self.build.say(f"{build.full_name} completed with result {build.result}")
            self.build.runs.append(build)
            self.last.result = worse(self.last.result, build.result)
