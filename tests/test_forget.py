"""vmdatabase.py forget drops a provider whose cloud is gone for good."""

import pytest
import yaml

from tests.support.pool import Pool, image, provider

ONE, TWO = provider(images=[image(min_ready=1)]), provider("two", "pocket-b", images=[image(min_ready=1)])
LAUNCH, REAP, FORGET = "devstack-vm-launch.py", "devstack-vm-reap.py", ("vmdatabase.py", "forget")


@pytest.fixture
def gone(pool: Pool) -> Pool:
    """Return a pool of providers one and two; two has left the providers file, and its cloud has left clouds.yaml."""
    assert pool.pocket
    pool.load(ONE, TWO)
    pool.seed_snapshots()
    pool.fill()
    pool.run(LAUNCH, "two", expect=0)
    clouds = yaml.safe_load(pool.pocket.clouds_yaml.read_text())
    del clouds["clouds"]["pocket-b"]
    (pool.folder / "left.yaml").write_text(yaml.safe_dump(clouds))
    pool.environment["OS_CLIENT_CONFIG_FILE"] = str(pool.folder / "left.yaml")
    pool.load(ONE)
    return pool


def test_a_provider_whose_cloud_is_gone_is_forgotten_with_its_nodes(gone: Pool) -> None:
    (one, two) = gone.machines()
    server, snapshot = gone.column(two, "external_id"), gone.sql(
        "SELECT external_id FROM snapshot_image WHERE base_image_id = 2")[0][0]
    said = gone.run(REAP, "two", expect=2).stderr
    assert said.rstrip().endswith("; if that cloud is gone for good: vmdatabase.py forget two")

    dry = gone.run(*FORGET, "two", "--dry-run", expect=0).stdout.splitlines()
    assert set(gone.nodes()) == {one, two}
    result = gone.run(*FORGET, "two", expect=0).stdout.splitlines()

    left = [f"server {two} {server}", f"image seeded {snapshot}"]
    assert dry == [f"would be left behind: {thing}" for thing in left]
    assert result[:-1] == [f"left behind: {thing}" for thing in left]
    assert result[-1].startswith(f"forgot provider two; anything else left there carries {gone.uuid}: ")
    assert (set(gone.machines()), set(gone.nodes())) == ({one}, {one})
    assert gone.sql("SELECT name FROM provider") == [("one",)]
    gone.run(REAP, "all", expect=0)
    gone.run(LAUNCH, "all", expect=0)


def test_a_provider_of_the_file_is_not_forgotten(gone: Pool) -> None:
    before = gone.dump()
    assert "one: is in the providers file; take it out there" in gone.run(*FORGET, "one", expect=2).stderr
    assert "unknown provider three; known are one, two" in gone.run(*FORGET, "three", expect=2).stderr
    assert gone.dump() == before


def test_what_a_person_holds_is_not_forgotten(gone: Pool) -> None:
    (_, two) = gone.machines()
    gone.run("vmdatabase.py", "hold", two, "--reason", "a look", expect=0)

    assert f"two: {two} is held; vmdatabase.py unhold it first" in gone.run(*FORGET, "two", expect=2).stderr

    assert gone.machines()[two] == "HOLD"
    gone.run("vmdatabase.py", "unhold", two, expect=0)
    gone.run(*FORGET, "two", expect=0)
    assert two not in gone.machines()


def test_a_provider_whose_nodes_build_stays_until_they_have_ended(gone: Pool) -> None:
    assert gone.jenkins
    (_, two) = gone.machines()
    gone.jenkins.wait_node(two, "online")
    gone.jenkins.add_job("gate", two, seconds=600)
    gone.jenkins.wait_started(gone.jenkins.build("gate"), 60)

    result = gone.run(*FORGET, "two", expect=1)

    assert f"two: builds run on {two}; forget it again when they have ended" in result.stderr
    assert two in gone.machines()
    assert two in gone.nodes()
