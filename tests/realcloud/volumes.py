"""Cinder's side: a driver whose volumes hold only the id of the image that they were made from.

Runs inside Cinder. The id reaches Nova's driver with the connection; the driver puts the image's layers over the base
tree.
"""

from typing import Any

from cinder.volume import driver


class ImageVolumes(driver.VolumeDriver):  # type: ignore[misc]  # Cinder has no types
    """Volumes of any size that cost nothing."""

    VERSION = "1"

    def check_for_setup_error(self) -> None:
        pass

    def _update_volume_stats(self) -> None:
        self._stats = {"volume_backend_name": "loopback", "vendor_name": "loopback", "driver_version": self.VERSION,
                       "storage_protocol": "loopback", "total_capacity_gb": "infinite", "free_capacity_gb": "infinite",
                       "reserved_percentage": 0, "QoS_support": False}

    def create_volume(self, volume: Any) -> None:
        pass

    def clone_image(self, _context: Any, _volume: Any, _location: Any, image_meta: Any, _images: Any
                    ) -> tuple[dict[str, str], bool]:
        return {"provider_location": image_meta["id"]}, True

    def delete_volume(self, volume: Any) -> None:
        pass

    def create_snapshot(self, snapshot: Any) -> dict[str, str]:
        return {"provider_location": snapshot.volume.provider_location}

    def create_volume_from_snapshot(self, _volume: Any, snapshot: Any) -> dict[str, str]:
        return {"provider_location": snapshot.provider_location}

    def delete_snapshot(self, snapshot: Any) -> None:
        pass

    def ensure_export(self, context: Any, volume: Any) -> None:
        pass

    def create_export(self, context: Any, volume: Any, connector: Any) -> None:
        pass

    def remove_export(self, context: Any, volume: Any) -> None:
        pass

    def initialize_connection(self, volume: Any, _connector: Any) -> dict[str, Any]:
        return {"driver_volume_type": "loopback", "data": {"image": volume.provider_location}}

    def terminate_connection(self, volume: Any, connector: Any, **more: Any) -> None:
        pass
