"""Run one service of the control plane: python -m tests.realcloud.serve NAME FD, where FD is its listening socket.

Runs in the services' own virtual environment. The API is a WSGI application that waitress serves; the other parts of
Nova (conductor, scheduler, compute) and of Cinder (scheduler, volume) are threads of the same process, so that messages
need no broker.
"""

import collections
import contextlib
import importlib
import os
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

import waitress

from tests.realcloud.configuration import BACKEND, HOST

APPLICATIONS = {
    "keystone": "keystone.wsgi.api",
    "glance": "glance.wsgi.api",
    "placement": "placement.wsgi.api",
    "neutron": "neutron.wsgi.api",
    "nova": "nova.wsgi.osapi_compute",
    "cinder": "cinder.wsgi.api",
}
THREADS = 16
UPLOAD_LIMIT = 1 << 40


def main() -> int:
    """Serve until killed."""
    name, handle = sys.argv[1], int(sys.argv[2])
    sys.argv = [name]  # the services read sys.argv themselves
    if name == "cinder":  # the only one that does not read OS_NAME_CONFIG_DIR
        sys.argv += ["--config-file", "etc/cinder/cinder.conf"]
    queue_writers()
    keep_connections()
    if name == "cinder":
        importlib.import_module("cinder.monkey_patch").patch("threading")
    application = importlib.import_module(APPLICATIONS[name]).application
    if name == "neutron":
        know_all_models()
    if name in WORKERS:
        # The API answers meanwhile: the start needs services that are perhaps not up yet.
        threading.Thread(target=start_workers_or_end, args=(WORKERS[name],), daemon=True).start()
    waitress.serve(
        application,
        sockets=[socket.socket(fileno=handle)],
        threads=THREADS,
        ident=name,
        connection_limit=1000,
        channel_timeout=300,
        max_request_body_size=UPLOAD_LIMIT,
    )
    return 0


def queue_writers() -> None:
    """Let a database's writers take turns: SQLite allows one at a time, and finally refuses those that wait.

    Each database belongs to one process, so a lock in it is enough; it does not stop readers.
    """
    from oslo_db.sqlalchemy import enginefacade

    guard = threading.Lock()
    locks: dict[str, threading.RLock] = collections.defaultdict(threading.RLock)
    manager = enginefacade._TransactionContextManager
    scope = manager._transaction_scope

    @contextlib.contextmanager
    def queued(self: Any, context: Any) -> Iterator[Any]:
        lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._mode is enginefacade._WRITER:
            with guard:
                lock = locks[str(self.writer.get_engine().url)]
        with lock, scope(self, context) as resource:
            yield resource

    manager._transaction_scope = queued


def keep_connections() -> None:
    """Keep connections open for later queries: oslo.db opens one per transaction, and each reads the whole schema."""
    from oslo_db.sqlalchemy import engines
    from sqlalchemy import event, pool

    class Kept(pool.QueuePool):  # type: ignore[misc]  # typed only where it is installed
        def __init__(self, creator: Any, **more: Any) -> None:
            super().__init__(creator, pool_size=2 * THREADS, max_overflow=-1, **more)

    def forget_transaction(_connection: Any, record: Any, _state: Any) -> None:
        record.info.pop("in_transaction", None)  # oslo.db's note, which otherwise ends with the connection

    event.listen(Kept, "reset", forget_transaction)
    engines.pool = types.SimpleNamespace(**{**vars(pool), "NullPool": Kept})


def know_all_models() -> None:
    """Load all of Neutron's models: else a list of ports that comes before other queries is answered with 500."""
    importlib.import_module("neutron.db.models.port_forwarding")
    importlib.import_module("sqlalchemy.orm").configure_mappers()


def start_workers_or_end(start_workers: Callable[[], None]) -> None:
    """Start the workers; a failure ends the process, since what is left would look as if it worked."""
    started = False
    try:
        start_workers()
        started = True
    finally:
        if not started:
            traceback.print_exc()
            os._exit(1)


def start_nova() -> None:
    """Start Nova's conductor, scheduler and compute in this process."""
    import nova.conf
    import os_brick
    import os_vif
    from nova import objects, service
    from nova.compute import rpcapi as compute
    from nova.conductor import rpcapi as conductor
    from nova.scheduler import rpcapi as scheduler
    from nova.scheduler.client import report

    # Nova loads drivers from nova.virt only.
    sys.modules["nova.virt.loopback"] = importlib.import_module("tests.realcloud.driver")
    # At each boot and delete, Nova reads the allocations of all servers, one request each; only drivers with PCI
    # devices need that.
    report.SchedulerReportClient.get_allocations_for_provider_tree = lambda *_: {}
    os_brick.setup(nova.conf.CONF)
    os_vif.initialize()
    objects.Service.enable_min_version_cache()
    for binary, more in (
        ("nova-conductor", {"topic": conductor.RPC_TOPIC}),
        ("nova-scheduler", {"topic": scheduler.RPC_TOPIC}),
        ("nova-compute", {"topic": compute.RPC_TOPIC, "topic_alt": compute.RPC_TOPIC_ALT}),
    ):
        service.Service.create(binary=binary, **more).start()


def start_cinder() -> None:
    """Start Cinder's scheduler and volume service in this process."""
    from cinder import service
    from cinder.common import constants

    service.Service.create(host=f"{HOST}@{BACKEND}", service_name=BACKEND, binary=constants.VOLUME_BINARY).start()
    service.Service.create(binary=constants.SCHEDULER_BINARY).start()


WORKERS = {"nova": start_nova, "cinder": start_cinder}


if __name__ == "__main__":
    sys.exit(main())
