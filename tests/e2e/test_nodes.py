"""A run on two nodes: two connected network namespaces, with their own addresses and a shared folder."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_runner import checkpoint_steps, comparable, end_of, fit, heartbeat, status, wait_for_step, wait_until
from tests.hosts import Host, two_hosts

RECIPE = [
    "--set=data.batch_size=96",
    "--set=train.micro_batch_size=24",
    "--set=train.exact=true",
    "--set=train.epochs=2",
    "--set=checkpoint={every_steps: 10, every_epochs: null}",
    "--set=eval.every_epochs=2",
    "--run=run",
    "--device=cpu",
]
PORT = 29400


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    fit(*RECIPE, "--procs=2", cwd=folder)
    return folder / "run"


def meet(hosts: tuple[Host, Host], rank: int, *, nodes: str = "2") -> list[str]:
    return [*RECIPE, f"--nodes={nodes}", f"--node-rank={rank}", f"--rendezvous={hosts[0].address}:{PORT}"]


def line_with(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if words in line)


def assert_same(run: Path, undisturbed: Path) -> None:
    assert status(run)["weights_digest"] == status(undisturbed)["weights_digest"]
    assert comparable(run) == comparable(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_hosts_end_in_the_bits_of_one(
    hosts: tuple[Host, Host], tmp_path: Path, undisturbed: Path, launcher: str
) -> None:
    words = [f"--launcher={launcher}"]
    both = [host.start(*meet(hosts, rank), *words, cwd=tmp_path) for rank, host in enumerate(hosts)]
    wait_for_step(tmp_path / "run", 1)
    for rank, host in enumerate(hosts):
        environment = Path(f"/proc/{heartbeat(tmp_path / 'run', rank)['pid']}/environ").read_text()
        assert f"GLOO_SOCKET_IFNAME={host.interface}\0" in environment
    first, second = (end_of(process) for process in both)
    assert first.code == 0, first.out
    assert second.code == 0, second.out
    assert "starting on nodes 0 (" in first.out
    assert "starting as node 1 of 2" in second.out
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_cable_that_is_cut_and_repaired_changes_no_bit(
    hosts: tuple[Host, Host], tmp_path: Path, undisturbed: Path
) -> None:
    both = [host.start(*meet(hosts, rank), cwd=tmp_path) for rank, host in enumerate(hosts)]
    run = tmp_path / "run"
    wait_until(lambda: checkpoint_steps(run)[-1:] >= [10], "a checkpoint")
    hosts[1].plug("down")
    wait_until(lambda: (run / "logs" / "launcher-1.log").exists(), "the second host's log")
    time.sleep(25)  # longer than the 15 s of silence after which a node is lost
    hosts[1].plug("up")
    first, second = (end_of(process) for process in both)
    assert first.code == 0, first.out + second.out
    assert second.code == 0, second.out
    assert "has sent no heartbeat for" in first.out
    assert "node 0 has sent no heartbeat for" in second.out
    assert "restart 1 of 3, from checkpoint step-" in first.out
    assert_same(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_host_that_dies_and_comes_back_changes_no_bit(
    hosts: tuple[Host, Host], tmp_path: Path, undisturbed: Path, lost: int
) -> None:
    both = [host.start(*meet(hosts, rank), cwd=tmp_path) for rank, host in enumerate(hosts)]
    run = tmp_path / "run"
    wait_until(lambda: checkpoint_steps(run)[-1:] >= [10], "a checkpoint")
    hosts[lost].kill_all()
    both[lost].communicate()
    both[lost] = hosts[lost].start(*meet(hosts, lost), cwd=tmp_path)
    first, second = (end_of(process) for process in both)
    assert first.code == 0, first.out + second.out
    assert second.code == 0, second.out
    assert status(run)["attempts"][-1]["first_step"] >= 10
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_rank_that_dies_on_the_other_host_is_named(hosts: tuple[Host, Host], tmp_path: Path, undisturbed: Path) -> None:
    both = [host.start(*meet(hosts, rank), cwd=tmp_path) for rank, host in enumerate(hosts)]
    run = tmp_path / "run"
    wait_until(lambda: checkpoint_steps(run)[-1:] >= [10], "a checkpoint")
    os.kill(heartbeat(run, 1)["pid"], signal.SIGKILL)
    first, second = (end_of(process) for process in both)
    assert first.code == second.code == 0, first.out + second.out
    assert "rank 1 failed at step" in first.out
    assert "(Killed, " in first.out
    assert "restart 1 of 3, from checkpoint step-" in first.out
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_nodes_that_were_started_for_other_trainings_do_not_start(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    first = hosts[0].start(*meet(hosts, 0), cwd=tmp_path)
    wait_until(lambda: (tmp_path / "run" / "plan.json").exists(), "the run directory")
    other = hosts[1].start(*meet(hosts, 1), "--procs=2", cwd=tmp_path)
    ended = end_of(other)
    assert ended.code == 2
    assert "node 1 was started for another training than node 0: processes 2, not 1" in ended.out
    (tmp_path / "elsewhere").mkdir()
    apart = hosts[1].start(*meet(hosts, 1), cwd=tmp_path / "elsewhere")
    ended = end_of(apart)
    assert ended.code == 2
    assert "is not the one of node 0: all nodes need the same folder" in ended.out
    first.send_signal(signal.SIGTERM)
    assert end_of(first).code == 75


@pytest.mark.slow
def test_node_that_is_not_reachable_is_named_by_both(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    first = hosts[0].start(*meet(hosts, 0), cwd=tmp_path)
    other = [*RECIPE, "--nodes=2", "--node-rank=1", f"--rendezvous={hosts[0].address}:{PORT + 7}"]
    second = hosts[1].start(*other, cwd=tmp_path)
    missing = f"node 1 of 2 has not connected to {hosts[0].address}:{PORT} (interface {hosts[0].interface})"
    assert f"{missing}; joined so far: node 0 (" in line_with(first, "has not connected")
    there = f"node 0 is not reachable at {hosts[0].address}:{PORT + 7} from {hosts[1].address}"
    refused = f"{there} (interface {hosts[1].interface}): Connection refused; this is node 1 ("
    assert refused in line_with(second, "is not reachable")
    for process in (first, second):  # the first one answers, and deletes the request: the second does not need one
        process.send_signal(signal.SIGINT)
        ended = end_of(process)
        assert ended.code == 75, ended.out


@pytest.mark.slow
def test_stop_on_one_host_stops_both(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    endless = ["--set=train.epochs=2000"]
    both = [host.start(*meet(hosts, rank), *endless, cwd=tmp_path) for rank, host in enumerate(hosts)]
    wait_for_step(tmp_path / "run", 5)
    both[1].send_signal(signal.SIGTERM)
    for process in both:
        done = end_of(process)
        assert done.code == 75, done.out
        assert "stopped at step" in done.out


@pytest.mark.slow
def test_elastic_run_continues_alone_and_lets_the_other_host_rejoin(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    longer = ["--set=train.epochs=20", "--set=eval.every_epochs=null"]
    both = [host.start(*meet(hosts, rank, nodes="1:2"), *longer, cwd=tmp_path) for rank, host in enumerate(hosts)]
    run = tmp_path / "run"

    def sizes() -> list[int]:
        return [attempt["world_size"] for attempt in status(run)["attempts"]]

    wait_until(lambda: checkpoint_steps(run)[-1:] >= [10], "a checkpoint")
    hosts[1].kill_all()
    both[1].communicate()
    wait_until(lambda: sizes() == [2, 1] and status(run)["state"] == "running", "the first host alone")
    both[1] = hosts[1].start(*meet(hosts, 1, nodes="1:2"), *longer, cwd=tmp_path)
    wait_until(lambda: sizes() == [2, 1, 2], "both again")
    first, second = (end_of(process) for process in both)
    assert first.code == 0, first.out + second.out
    assert second.code == 0, second.out
    assert "another node has joined" in first.out
    (tmp_path / "undisturbed").mkdir()
    fit(*RECIPE, *longer, "--procs=1", cwd=tmp_path / "undisturbed")
    assert_same(run, tmp_path / "undisturbed" / "run")
