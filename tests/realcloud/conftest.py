"""The control plane that the tests of a run share."""

from collections.abc import Iterator

import pytest

from tests.realcloud.client import RealCloud


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    """A running control plane; tests clear away what they make there."""
    with RealCloud(tmp_path_factory.mktemp("realcloud"), "--clouds", "north", "--volumes") as running:
        yield running
