"""A region of a control plane, reached through its own ports: closing them is how a provider goes down."""

import select
import socket
import socketserver
import threading
from contextlib import ExitStack, suppress
from typing import Self
from urllib.parse import urlsplit

import yaml

from tests.realcloud.client import RealCloud
from tests.realcloud.seed import connect

LOOK_SECONDS = 0.2
DOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Door(socketserver.ThreadingTCPServer):
    """A free port of 127.0.0.1 that forwards connections to a service; while `down`, it answers 503 itself."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, service_port: int) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.service_port = service_port
        self.down = False
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": LOOK_SECONDS}, daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self.down = True
        self.shutdown()
        self.server_close()


class Visit(socketserver.BaseRequestHandler):
    """One connection."""

    server: Door

    def handle(self) -> None:
        with suppress(OSError):  # one of the two ends is gone
            if self.server.down:
                self.request.recv(65536)
                self.request.sendall(DOWN)
            else:
                self._pass_on()

    def _pass_on(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.service_port)) as service:
            other = {self.request: service, service: self.request}
            while not self.server.down:
                for end in select.select(list(other), [], [], LOOK_SECONDS)[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    other[end].sendall(data)


class Region:
    """A region named after a cloud, to which the cloud's entry in clouds.yaml leads; ends with the `with` block."""

    def __init__(self, real: RealCloud, cloud: str) -> None:
        self._running = ExitStack()
        self._doors: list[Door] = []
        admin = connect(real.clouds_yaml)
        admin.identity.create_region(id=cloud)
        for endpoint in list(admin.identity.endpoints(interface="public")):
            if endpoint.region_id == admin.config.region_name:
                url = self._open(endpoint.url)
                admin.identity.create_endpoint(
                    service_id=endpoint.service_id, interface="public", region_id=cloud, url=url)
        text = real.clouds_yaml.read_text()
        self._running.callback(real.clouds_yaml.write_text, text)
        config = yaml.safe_load(text)
        entry = config["clouds"][cloud]
        entry["region_name"] = cloud
        entry["auth"]["auth_url"] = self._open(entry["auth"]["auth_url"])
        real.clouds_yaml.write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def turn(self, *, down: bool) -> None:
        """Make the whole region answer only 503, or work again."""
        for door in self._doors:
            door.down = down

    def _open(self, url: str) -> str:
        port = urlsplit(url).port
        assert port
        self._doors.append(self._running.enter_context(Door(port)))
        return url.replace(f":{port}", f":{self._doors[-1].port}")
