"""The script console: what is posted really runs, with groovy, on stubs of Jenkins' classes (tests/groovy/console).

The stubs know what the stand-in knows, from a JSON file. They have just what a script of this project asks for, with
names and types of the real ones, and nothing by which it could change something.
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
# A Java that runs for a second: what it would optimise and collect side by side costs more than the script.
BRIEF_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def run_script(script: str, model: Model, users: list[str], url: str) -> str:
    """What the console prints: the script's output, or a stack trace."""
    classes = f"{STUBS}:{OF_CREDENTIALS}" if "credentials" in model.installed() else str(STUBS)
    return _run(script, json.dumps(truth(model, users, url), sort_keys=True), classes)


def truth(model: Model, users: list[str], url: str) -> dict[str, Any]:
    """What the stubs know. `departed` users have an account in Jenkins only, not where its users come from."""
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


@lru_cache(maxsize=32)  # the same script on the same truth prints the same, and a start of Java takes a while
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
