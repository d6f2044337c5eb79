"""The profile of a run in a SLURM allocation, and when its job is requeued."""

from pathlib import Path

import pytest

from distrain.config.profile import LaunchOptions, Profile
from distrain.errors import LaunchError
from distrain.launchers.slurm.requeue import decide
from distrain.launchers.slurm.srun import Allocation, first_node, read_allocation, resolve_allocated
from distrain.runs.liveness import state_on_cluster
from distrain.runs.slurm import JobInfo, read_own_job
from distrain.runs.status import State

VARIABLES = {"SLURM_JOB_ID": "30017", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
RUNNING = JobInfo("RUNNING")


@pytest.mark.parametrize(
    ("code", "signal", "made_progress", "facts", "verdict"),
    [
        (75, "USR1", True, RUNNING, "requeue"),  # the time limit
        (75, "USR1", False, RUNNING, "over"),
        (1, "USR1", True, RUNNING, "over"),  # it failed on its own account
        (0, "USR1", True, RUNNING, "over"),
        (75, "none", True, RUNNING, "over"),  # `distrain stop`
        (75, "TERM", True, RUNNING, "over"),
        (75, "TERM", True, JobInfo("RUNNING", is_preempted=True), "requeue"),  # a preemption with a grace time
        (75, "TERM", True, JobInfo("COMPLETING"), "over"),  # scancel
        (75, "TERM", True, JobInfo("COMPLETING", restarts=1), "requeued"),  # a preemption
        (1, "TERM", False, JobInfo("PENDING", restarts=1), "requeued"),  # a node failed
        (75, "USR1", True, None, "over"),
    ],
)
def test_job_is_requeued_only_if_it_was_stopped_from_outside_and_made_progress(
    code: int, signal: str, made_progress: bool, facts: JobInfo | None, verdict: str
) -> None:
    assert decide(code, signal=signal, made_progress=made_progress, info=facts, earlier_restarts=0) == verdict


@pytest.mark.parametrize(
    ("state", "facts", "shown"),
    [
        ("queued", JobInfo("PENDING"), "queued"),
        ("queued", JobInfo("RUNNING"), "starting"),
        ("running", JobInfo("RUNNING"), "running"),
        ("preempted", JobInfo("PENDING", restarts=1), "requeued"),
        ("running", JobInfo("PENDING", restarts=1), "requeued"),  # killed before it could say so
        ("preempted", JobInfo("SPECIAL_EXIT", restarts=1), "requeued"),  # queued again, and held
        ("running", JobInfo("TIMEOUT"), "timed out"),
        ("running", JobInfo("NODE_FAIL"), "died"),
        ("queued", JobInfo("CANCELLED"), "cancelled"),
        ("stopped", JobInfo("FAILED"), "stopped"),
        ("finished", JobInfo("COMPLETED"), "finished"),
    ],
)
def test_state_combines_the_status_and_the_slurm_job(state: State, facts: JobInfo, shown: str) -> None:
    assert state_on_cluster(state, facts) == shown


def test_allocation_is_read_from_its_variables_and_gives_each_job_a_port() -> None:
    allocation = read_allocation({**VARIABLES, "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_ON_NODE": "8"})
    assert allocation == Allocation(job_id=30017, nodes=2, node_list="n[1-2]", cpus=8, gpus=4)
    assert allocation.port == 20017
    with pytest.raises(LaunchError, match="use `distrain submit`"):
        read_allocation({})


def test_profile_is_what_slurm_allocated_and_not_what_was_stored() -> None:
    stored = Profile(launcher="slurm", device="cuda", nodes=4, processes=8, threads=1)
    given = resolve(Allocation(1, nodes=2, node_list="", cpus=8, gpus=4), stored=stored)
    assert (given.device, given.nodes, given.processes, given.threads) == ("cuda", 2, 4, 2)
    stored = Profile(launcher="slurm", device="cpu", nodes=4, processes=8, threads=1, restarts=7, stall_timeout_s=9)
    given = resolve(Allocation(1, nodes=2, node_list="", cpus=8, gpus=4), stored=stored)
    assert (given.device, given.nodes, given.processes, given.threads) == ("cpu", 2, 8, 1)
    assert (given.restarts, given.stall_timeout_s) == (7, 9)
    with pytest.raises(LaunchError, match="2 nodes, but 3 were requested"):
        resolve_allocated(LaunchOptions(nodes=3), Allocation(1, 2, "", 8, 4), stored=None, threads=None)
    with pytest.raises(LaunchError, match="SLURM has allocated 4 GPUs on each node, but 8 were requested"):
        resolve(Allocation(1, nodes=2, node_list="", cpus=8, gpus=4), gpus=8)


def resolve(allocation: Allocation, *, stored: Profile | None = None, gpus: int | None = None) -> Profile:
    wanted = LaunchOptions(device="cuda" if gpus else None, processes=gpus)
    return resolve_allocated(wanted, allocation, stored=stored, threads=None)


def test_submitted_run_without_a_device_uses_the_allocated_gpus() -> None:
    stored = Profile(launcher="slurm", device=None, nodes=1, processes=1, threads=1)
    given = resolve(Allocation(1, nodes=1, node_list="", cpus=8, gpus=4), stored=stored)
    assert (given.device, given.processes, given.threads) == ("cuda", 4, 2)
    given = resolve(Allocation(1, nodes=1, node_list="", cpus=8, gpus=0), stored=stored)
    assert (given.device, given.processes) == ("cpu", 1)
    elsewhere = Profile(launcher="torchrun", device="cpu", processes=2, threads=1)  # a run that began on a laptop
    assert resolve(Allocation(1, nodes=1, node_list="", cpus=8, gpus=4), stored=elsewhere).device == "cuda"
    assert resolve(Allocation(1, nodes=1, node_list="", cpus=8, gpus=0), stored=elsewhere).processes == 2


def test_first_node_of_slurms_short_form() -> None:
    lists = ["n1", "n[1-2]", "n[07-09,12],login1", "rack[2,4]-n[07-09]-ib", "a,b"]
    assert [first_node(node_list) for node_list in lists] == ["n1", "n1", "n07", "rack2-n07-ib", "a"]


def test_task_of_an_array_is_named_with_its_number_where_slurm_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_own_job({"SLURM_JOB_ID": "7"}) == ("7", 0)
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "3"}
    assert read_own_job(array) == ("7_2", 3)
