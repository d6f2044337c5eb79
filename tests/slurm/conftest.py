"""The cluster that all tests of this folder use."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, found by every command that a test starts, and idle afterwards."""
    for name, value in running_cluster.env.items():
        monkeypatch.setenv(name, value)
    yield running_cluster
    running_cluster.call("scancel", "--signal=KILL", "--user=root")
    running_cluster.call("scancel", "--user=root")
    running_cluster.wait_until_idle()
