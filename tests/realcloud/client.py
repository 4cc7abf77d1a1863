"""The client of tests and demo for a real control plane: starts it as a process and turns its knobs."""

import json
from pathlib import Path

from tests.pocketcloud.client import CloudProcess

# Those of driver.py.
KNOBS = ("boot_seconds", "boot_failure", "delete_seconds", "snapshot_seconds", "snapshot_failure")


class RealCloud(CloudProcess):
    """A running control plane with its state under `folder`/realcloud; its logs end up in `folder`/realcloud-logs.

    `options` are those of `python -m tests.realcloud`. The clouds are real, real-small, real-admin, and those that the
    option --clouds names. `url` is Keystone's. Raises PocketError if it does not start.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        logs = ("--logs", str(folder / "realcloud-logs"))
        super().__init__("tests.realcloud", folder / "realcloud", folder / "realcloud.log", *logs, *options)

    def knobs(self, **values: float | str) -> None:
        """Set the knobs for all servers to exactly these; metadata real.KNOB is for one server."""
        assert set(values) <= set(KNOBS), f"there are {', '.join(KNOBS)}"
        new = self.root / "state/knobs.json.new"
        new.write_text(json.dumps(values))
        new.rename(self.root / "state/knobs.json")

