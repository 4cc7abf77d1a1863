"""Neutron's side of the machines: binds ports at once, and notes for Nova's side where floating IPs lead."""

from pathlib import Path
from typing import Any

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.callbacks import events, registry, resources
from neutron_lib.plugins.ml2 import api

FLOATING = Path("floating")  # has a file for each bound one, with the fixed address; in the state's folder
NEW = ".new"


class BindAtOnce(api.MechanismDriver):  # type: ignore[misc]  # its library has no types
    """Binds a port to its network without an agent: the port is ACTIVE as soon as it has a host."""

    def initialize(self) -> None:
        for event in (events.AFTER_CREATE, events.AFTER_UPDATE, events.AFTER_DELETE):
            registry.subscribe(note_floating_ip, resources.FLOATING_IP, event)

    def bind_port(self, context: Any) -> None:
        segment = context.segments_to_bind[0]
        context.set_binding(
            segment[api.ID],
            portbindings.VIF_TYPE_OTHER,
            {portbindings.CAP_PORT_FILTER: False},
            status=constants.PORT_STATUS_ACTIVE,
        )


def note_floating_ip(_resource: str, event: str, _trigger: Any, payload: Any) -> None:
    """Note where a floating IP leads from now on."""
    floating = payload.latest_state or {}
    if not floating.get("floating_ip_address"):
        return
    path = FLOATING / floating["floating_ip_address"]
    if floating.get("fixed_ip_address") and event != events.AFTER_DELETE:
        new = path.with_name(path.name + NEW)
        new.write_text(floating["fixed_ip_address"])
        new.rename(path)
    else:
        path.unlink(missing_ok=True)
