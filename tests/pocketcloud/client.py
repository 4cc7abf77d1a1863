"""The tests' client for a cloud: starts it as a process and turns its knobs."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.waiting import pause

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 600.0  # the very first start makes the base tree, or the real services
STOP_SECONDS = 30.0


class PocketError(Exception):
    """The cloud did not start, ended by itself, or refused a control request."""


class CloudProcess:
    """A running cloud on loopback; leaves nothing behind after `stop`. Raises PocketError if it does not start."""

    def __init__(self, module: str, root: Path, log: Path, *options: str) -> None:
        self.root, self.log = root, log
        self._module = module
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", module, "--root", str(self.root), *options]
        with self.log.open("ab") as log_file:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=log_file)
        self.ready: dict[str, Any] = self._wait_until_ready()
        self.url: str = self.ready["url"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def clouds_yaml(self) -> Path:
        """The file for OS_CLIENT_CONFIG_FILE."""
        return self.root / "clouds.yaml"

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a client: this process's, with OS_CLIENT_CONFIG_FILE and without other OS_ variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        return kept | {"OS_CLIENT_CONFIG_FILE": str(self.clouds_yaml)}

    def kill(self) -> None:
        """Kill it as `kill -9` does, so that it cleans nothing up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End it and wait until everything it made is gone; harmless if it has ended already."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise PocketError(f"{self._module} did not stop within {STOP_SECONDS:.0f} s:\n{self._last_log()}") from None

    def _wait_until_ready(self) -> dict[str, Any]:
        began = time.monotonic()
        while (waited := time.monotonic() - began) < START_SECONDS:
            if self.process.poll() is not None:
                raise PocketError(f"{self._module} ended with {self.process.returncode}:\n{self._last_log()}")
            ready = self._read_ready()
            if ready:
                return ready
            time.sleep(pause(waited))
        self.kill()
        raise PocketError(f"{self._module} was not ready after {START_SECONDS:.0f} s:\n{self._last_log()}")

    def _read_ready(self) -> dict[str, Any]:
        try:
            ready: dict[str, Any] = json.loads((self.root / "ready").read_text())
        except FileNotFoundError:
            return {}
        return ready if ready["pid"] == self.process.pid else {}  # another pid: left by a killed run

    def _last_log(self) -> str:
        return self.log.read_text()[-3000:]


class Pocket(CloudProcess):
    """A running pocketcloud with its state under `folder`/pocket; leaves nothing behind after `stop`.

    `options` are those of `python -m tests.pocketcloud`, for example "--machines", "none", "--set", "boot_seconds=2".
    The clouds are pocket-a and pocket-b unless the options say otherwise. Raises PocketError if it does not start.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__("tests.pocketcloud", folder / "pocket", folder / "pocketcloud.log", *options)

    def look(self, cloud: str = "pocket-a") -> dict[str, Any]:
        """Return what one cloud knows: knobs, calls, requests, servers, images, volumes and so on, see README.md."""
        return self._control("GET", cloud)

    def knobs(self, cloud: str = "pocket-a", /, **values: Any) -> dict[str, Any]:
        """Turn knobs of one cloud and return all of them; raises PocketError for an unknown one."""
        knobs: dict[str, Any] = self._control("PATCH", cloud, values)
        return knobs

    def reset_calls(self, cloud: str = "pocket-a") -> None:
        """Reset the call counters and the list of requests of one cloud."""
        self._control("POST", f"{cloud}/reset-calls")

    def server(self, cloud: str, server_id: str, /, **change: Any) -> dict[str, Any]:
        """Change one server behind the clients' back: status, fault, ssh (see SSH_MODES), vanish=True.

        Raises PocketError if there is no such server; with vanish=True alone, that is no error.
        """
        return self._control("POST", f"{cloud}/servers/{server_id}", change)

    def age(self, cloud: str, seconds: float) -> None:
        """Make everything in one cloud older by some seconds."""
        self._control("POST", f"{cloud}/age", {"seconds": seconds})

    def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.ready['control']}/{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                answered: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as err:
            raise PocketError(f"{method} {path}: {err.code} {err.read().decode()}") from err
        return answered
