"""The contract of tests/test_contract.py against the real services: the same tests, another cloud."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import contract
from tests.support.contract import RealSide, Side
from tests.test_contract import *  # noqa: F403

del test_a_rate_limit_of_pocketcloud_alone_says_retry_after  # noqa: F821


@pytest.fixture(scope="module")  # type: ignore[no-redef]  # instead of the imported one
def side(real: Any) -> Iterator[Side]:
    """The cloud that the contract is checked against; here, each look at a server costs 80 ms of CPU time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "LOOK_SECONDS", 0.5)
        yield RealSide(real.clouds_yaml)
