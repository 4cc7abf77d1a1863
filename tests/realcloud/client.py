"""Start a real control plane as a process of its own: what the tests and the demo use."""

import json
from pathlib import Path

from tests.pocketcloud.client import CloudProcess

# As in driver.py.
KNOBS = ("boot_seconds", "boot_failure", "delete_seconds", "snapshot_seconds", "snapshot_failure")


class RealCloud(CloudProcess):
    """A running control plane with its state under `folder`/realcloud; its logs end up in `folder`/realcloud-logs.

    `options` are those of `python -m tests.realcloud`. The clouds are real, real-small and real-admin, and those that
    the option --clouds names. `url` is Keystone's. Raises PocketError when it does not start.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        logs = ("--logs", str(folder / "realcloud-logs"))
        super().__init__("tests.realcloud", folder / "realcloud", folder / "realcloud.log", *logs, *options)

    def knobs(self, **values: float | str) -> None:
        """Have these knobs for all servers from now on, and no others; metadata real.KNOB is for one server."""
        assert set(values) <= set(KNOBS), f"there are {', '.join(KNOBS)}"
        new = self.root / "state/knobs.json.new"
        new.write_text(json.dumps(values))
        new.rename(self.root / "state/knobs.json")

