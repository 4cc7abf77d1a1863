"""Pools on real services whose machines need no image build."""

from typing import Any

from tests.realcloud.client import RealCloud
from tests.realcloud.configuration import MEMBER
from tests.support.gatenode import ACCOUNT
from tests.support.pool import Pool, client, provider

BOOT_SECONDS = 110


def load(pool: Pool, real: RealCloud, *images: dict[str, Any], **keys: Any) -> None:
    """Load provider one with these image types, which boot from the base image; user data makes the account."""
    script = pool.folder / "account.sh"
    script.write_text(ACCOUNT.format(key=pool.key.with_suffix(".pub").read_text().strip(), name="plain"))
    types = [{**one, "user-data": str(script)} for one in images]
    pool.load(provider(cloud=MEMBER, images=types, **{"boot_timeout": BOOT_SECONDS, "networks": ["private"], **keys}))
    found = client(real.clouds_yaml, MEMBER).image.find_image("Debian 12").id
    pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, external_id, state, state_time) "
             "SELECT id, 'seeded', 1, ?, 'READY', 1 FROM base_image", found)
