"""A headless Chromium, driven through its remote debugging port: reports its console and the layout of pages."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import websocket

START_SECONDS, CALL_SECONDS, LOAD_SECONDS = 60.0, 60.0, 60.0
BOXES = """
(() => {
  const luminance = colour => {
    const linear = part => part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parts = text => (text.match(/[0-9.]+/g) || []).map(Number);
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const found = {width: innerWidth, scroll: document.documentElement.scrollWidth, outside: [], cut: [], faint: [],
                 images: [], texts: 0};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement, text = node.textContent.trim();
    if (!text || parent.closest('thead') && getComputedStyle(parent.closest('thead')).position === 'absolute') continue;
    if (!parent.checkVisibility()) continue;
    const range = document.createRange(); range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.left < -0.5 || box.right > innerWidth + 0.5) found.outside.push(text);
      for (let at = parent; at !== document.body; at = at.parentElement) {
        const around = at.getBoundingClientRect();
        if (around.width && (box.right > around.right + 1 || box.left < around.left - 1)) found.cut.push(text);
      }
    }
    const ink = luminance(parts(getComputedStyle(parent).color)), paper = luminance(ground(parent));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) found.faint.push([text, contrast]);
    found.texts += 1;
  }
  for (const image of document.images) {
    const box = image.getBoundingClientRect();
    found.images.push({source: image.currentSrc, loaded: image.complete && image.naturalWidth > 0, left: box.left,
                       right: box.right, width: box.width, height: box.height});
  }
  return found;
})()
"""


class Chromium:
    """A browser with an empty profile in `folder`, which runs for the length of the `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console: list[str] = []
        self._number = 0

    def __enter__(self) -> Self:
        program = shutil.which("chromium")
        assert program, "Debian's package chromium is missing; run-tests.sh installs it"
        self._process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
             "--remote-allow-origins=*", f"--user-data-dir={self.folder}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port, path = self._address()
        self._socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=CALL_SECONDS)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Log", "Runtime", "Page", "Network"):
            self._call(f"{domain}.enable", self._session)
        return self

    def _address(self) -> tuple[str, str]:
        file, deadline = self.folder / "DevToolsActivePort", time.monotonic() + START_SECONDS
        while not (file.exists() and len(lines := file.read_text().split()) == 2):
            assert self._process.poll() is None, "chromium has ended"
            assert time.monotonic() < deadline, "chromium does not start"
            time.sleep(0.05)
        return lines[0], lines[1]

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        """Return the next message; console output and errors are added to `console`."""
        answer: dict[str, Any] = json.loads(self._socket.recv())
        if answer.get("method") == "Log.entryAdded":
            entry = answer["params"]["entry"]
            self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
        elif answer.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed") \
                and not answer["params"].get("canceled"):  # cancelled by the next page
            self.console.append(json.dumps(answer["params"])[:500])
        return answer

    def show(self, url: str, width: int, dark: bool) -> dict[str, Any]:
        """Load a page in a window of that width; returns the positions of its texts and pictures, see BOXES."""
        self.console.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setDeviceMetricsOverride", self._session, width=width, height=1200, deviceScaleFactor=1,
                   mobile=False)
        self._call("Emulation.setEmulatedMedia", self._session, features=[scheme])
        self._call("Page.navigate", self._session, url=url)
        deadline = time.monotonic() + LOAD_SECONDS
        while self._receive().get("method") != "Page.loadEventFired":
            assert time.monotonic() < deadline, f"{url} does not load"
        found: dict[str, Any] = self.evaluate(BOXES)
        return found

    def evaluate(self, expression: str) -> Any:
        """Evaluate an expression in the page and return its value."""
        answer = self._call("Runtime.evaluate", self._session, expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")
