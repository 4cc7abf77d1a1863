"""The script console: posted scripts really run, with groovy, on stubs of Jenkins' classes (tests/groovy/console).

The stubs know what the stand-in knows, from a JSON file. They have only what this project's scripts use, with the real
names and types, and nothing that could change anything.
"""

import json
import os
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.pocketjenkins.model import Model

STUBS = Path(__file__).resolve().parents[1] / "groovy" / "console"
OF_CREDENTIALS = STUBS.parent / "credentials"  # classes of the plugin
RUN_SECONDS = 60
# For a Java that runs for a second: full optimisation and parallel garbage collection cost more than the script.
BRIEF_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def run_script(script: str, model: Model, users: list[str], url: str) -> str:
    """Return what the console prints: the script's output, or a stack trace."""
    classes = f"{STUBS}:{OF_CREDENTIALS}" if "credentials" in model.installed() else str(STUBS)
    return _run(script, json.dumps(truth(model, users, url), sort_keys=True), classes)


def truth(model: Model, users: list[str], url: str) -> dict[str, Any]:
    """Return what the stubs know. `departed` users have an account in Jenkins, but not in its user directory."""
    with model.lock:
        knobs = model.knobs
        return {
            "location": url if knobs.has_address else None,
            "request_url": url,
            "users": [user for user in users if user not in knobs.departed],
            "departed": knobs.departed,
            "rights": model.rights(),
            "jobs": list(model.jobs),
            "keys": {name: credential.user for name, credential in model.keys.credentials.items()},
            "passwords": knobs.passwords,
        }


@lru_cache(maxsize=32)  # the same script prints the same for the same truth, and Java starts slowly
def _run(script: str, known: str, classes: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        script_file, truth_file = Path(folder, "script"), Path(folder, "truth.json")
        script_file.write_text(script, encoding="utf-8")
        truth_file.write_text(known, encoding="utf-8")
        argv = ["groovy", "-cp", classes, f"-Dtruth={truth_file}", str(STUBS / "run.groovy"), str(script_file)]
        environment = {**os.environ, "HOME": folder, "LC_ALL": "C.UTF-8", "JAVA_OPTS": BRIEF_JAVA}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"groovy: {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
