"""A web server on loopback that host and machines reach: package mirrors, pip index, git, test images."""

import posixpath
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileHost:
    """Serves a folder's files, and accepts more by PUT; can fail the first requests for a path, or stop half-way."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.failures: Counter[str] = Counter()  # the next N requests for a path are answered with 503
        self.broken: set[str] = set()  # only the first half of these is sent
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def is_to_fail(self, path: str) -> bool:
        """Count a request and return whether it fails."""
        with self.lock:
            self.asked[path] += 1
            self.failures[path] -= 1
            return self.failures[path] >= 0


class Handler(SimpleHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.0"

    def __init__(self, *arguments: object, site: FileHost) -> None:
        self.site = site
        super().__init__(*arguments, directory=str(site.folder))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = posixpath.normpath(self.path.partition("?")[0])
        if self.site.is_to_fail(path):
            self.send_error(503)
        elif path in self.site.broken:
            content = Path(self.translate_path(path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:len(content) // 2])
        else:
            super().do_GET()

    def do_PUT(self) -> None:
        path = Path(self.translate_path(self.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(201)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """Log nothing."""


@contextmanager
def file_host(folder: Path) -> Iterator[FileHost]:
    """Serve a folder for the length of the context."""
    folder.mkdir(parents=True, exist_ok=True)
    site = FileHost(folder, "")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site=site)) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def proxy_free(url: str) -> str:
    """Return shell lines that keep a machine's programs from using a proxy for a URL on loopback."""
    host = url.split("/")[2].partition(":")[0]
    return (f"echo 'Acquire::http::Proxy::{host} \"DIRECT\";' > /etc/apt/apt.conf.d/99loopback\n"
            f"if grep -q _proxy /etc/environment; then echo 'no_proxy={host},localhost' >> /etc/environment; fi\n")
