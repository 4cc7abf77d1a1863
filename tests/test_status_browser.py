"""The status page in a real browser, as Jenkins serves it: nothing is blocked, cut off or hard to read."""

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import pasthistory
from tests.support.browser import BOXES, Chromium
from tests.support.pool import Pool, provider
from tests.test_status import EVIL, build, made

# Jenkins' own headers for archived files: the defaults of jenkins-core's DirectoryBrowserSupport, before and since it
# lets a page know where it comes from.
POLICIES = ("sandbox; default-src 'none'; img-src 'self'; style-src 'self';",
            "sandbox allow-same-origin; default-src 'none'; img-src 'self'; style-src 'self';")
WIDTHS = (390, 1280, 2560)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with the policy whose number is the first part of the path."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix("/0").removeprefix("/1"))

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICIES[int(self.path[1])])
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def serve(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page of a pool of 14 providers that has run for eight days, with all that may need a person."""
    pool = Pool(tmp_path_factory.mktemp("busy"))
    pasthistory.write(pool.database, pasthistory.Past(8, 800, 14, fails=(("cloud-01", 0.3),)))
    now = int(time.time())
    pool.sql("UPDATE machine SET state = 'HOLD', hold_until = ?, hold_reason = 'a look at bug 5' "
             "WHERE id = (SELECT min(id) FROM machine)", now + 60)
    pool.sql("UPDATE snapshot_image SET version = 1 WHERE id < 5")
    pool.sql("UPDATE base_image SET deaths = 3, death = 'gone ChannelTermination' WHERE id = 2")
    folder, _ = made(pool)
    yield from serve(folder)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a page whose names and reasons are long, without blanks, and would be markup."""
    pool = Pool(tmp_path_factory.mktemp("evil"))
    pool.load(provider())
    now = int(time.time())
    for column, table in (("name", "provider"), ("name", "base_image")):
        pool.sql(f"UPDATE {table} SET {column} = ?", EVIL + "x" * 200)
    for _ in range(3):
        pool.sql("INSERT INTO machine (base_image_id, state, state_time) VALUES (1, 'BUILDING', 1)")
    pool.sql("UPDATE machine SET state = 'ERROR', error = ?", EVIL + "y" * 500)
    for number, result in enumerate(("FAILURE", "SUCCESS")):
        build(pool, now - 60 + number, result, provider=EVIL * 5, image=EVIL * 5, jenkins_job_name="z" * 300,
              phase=EVIL * 9)
    folder, _ = made(pool)
    yield from serve(folder)


@pytest.mark.parametrize("policy", range(len(POLICIES)))
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["busy", "evil"])
def test_nothing_is_blocked_cut_off_or_hard_to_read(
        browser: Chromium, request: pytest.FixtureRequest, page: str, width: int, dark: bool, policy: int) -> None:
    url = f"{request.getfixturevalue(page)}/{policy}/index.html"
    browser.show(url, width, dark)
    browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = browser.evaluate(BOXES)

    assert browser.console == []
    assert found["width"] == width
    assert found["scroll"] <= width
    assert (found["outside"], found["cut"], found["faint"]) == ([], [], [])
    assert found["texts"] > 100
    assert len(found["images"]) == {"busy": 8, "evil": 7}[page]
    kind = f"-{'narrow' if width < 640 else 'wide'}-{'dark' if dark else 'light'}-"
    for image in found["images"]:
        assert image["loaded"], image
        assert kind in image["source"]
        assert 0 <= image["left"] < image["right"] <= width
        assert image["height"] > 100


def test_the_boxes_that_are_looked_at_do_tell_of_faults(browser: Chromium, tmp_path: Path) -> None:
    """The test above relies on this: a script, a style, a wide box and pale text are all seen."""
    (tmp_path / "index.html").write_text(
        "<!DOCTYPE html><link rel=stylesheet href=style.css><p id=pale>pale</p><div id=wide>wide</div>"
        "<img src=none.svg><div id=narrow><span>" + "n" * 90 + "</span></div><script>1</script>"
        "<p style='color: red'>red</p>")
    (tmp_path / "style.css").write_text(
        "#pale { color: #bbb; background: #fff } #wide { width: 3000px; text-align: right } "
        "#narrow { width: 50px; overflow: hidden }")
    serving = serve(tmp_path)
    found = browser.show(f"{next(serving)}/0/index.html", 390, False)
    next(serving, None)

    assert found["scroll"] > 390
    assert found["outside"] == ["wide", "n" * 90]
    assert found["cut"] == ["n" * 90]
    assert [text for text, _ in found["faint"]] == ["pale"]
    assert [image["loaded"] for image in found["images"]] == [False]
    told = " ".join(browser.console)
    assert "inline style" in told
    assert "net::ERR_" in told
