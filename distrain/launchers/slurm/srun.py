"""Plans a run in a SLURM allocation: one srun task on each node, which starts torchrun there."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distrain.config.profile import LaunchOptions, Profile
from distrain.errors import LaunchError
from distrain.launchers.plan import Plan
from distrain.messages import counted
from distrain.runs import slurm

_MEMORY = {"SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU", "SLURM_MEM_PER_NODE"}
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0  # SLURM's numbers for the steps of batch scripts, interactive shells and others
_FIRST_PORT, _NUM_PORTS = 20000, 10000  # below Linux's ephemeral ports


@dataclass(frozen=True)
class Allocation:
    """The resources of this job, from SLURM's environment variables."""

    job_id: int
    nodes: int
    node_list: str  # in SLURM's short form, such as n[1-2]
    cpus: int  # of this node
    gpus: int  # of this node

    @property
    def port(self) -> int:
        """The port of the rendezvous: two jobs on one host have different ids, and so different ports."""
        return _FIRST_PORT + self.job_id % _NUM_PORTS


def plan(profile: Profile, run: Path) -> Plan:
    """Plan one task for each node of the allocation; a task determines by itself which node it is on."""
    argv = (
        "srun",
        "--export=ALL",  # whatever SLURM_EXPORT_ENV says: the tasks need the environment of the batch script
        *(["--overlap"] if current_step(os.environ) is not None else []),  # share the resources of this process's step
        f"--nodes={profile.nodes}",
        f"--ntasks={profile.nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",  # if one node fails, all are ended: the launcher starts all of them again
        sys.executable,
        "-m",
        "distrain.launchers.slurm.node_task",
        str(run),
    )
    env = {"OMP_NUM_THREADS": str(profile.threads), "PYTHONUNBUFFERED": "1"}  # srun's own --unbuffered uses a terminal
    if (cpus := os.environ.get("SLURM_CPUS_PER_TASK")) is not None:
        env["SRUN_CPUS_PER_TASK"] = cpus  # since SLURM 22.05, srun does not inherit it from sbatch
    memory = _MEMORY & os.environ.keys()
    return Plan(
        argv,
        cwd=Path.cwd(),
        env=env,
        unset=tuple(sorted(memory)) if len(memory) > 1 else (),  # one is of another job: srun refuses both together
        cleanup=(sys.executable, "-m", "distrain.launchers.slurm.node_task", "--end"),
    )


def current_step(environment: Mapping[str, str]) -> str | None:
    """Return the job step of this process, such as 12.0; None in a batch script or outside jobs.

    The step of an interactive `salloc` does not count: it holds no resources.
    """
    step = environment.get("SLURM_STEP_ID", "")
    if "SLURM_JOB_ID" not in environment or not step.isdecimal() or int(step) >= _FIRST_SPECIAL_STEP:
        return None
    return f"{environment['SLURM_JOB_ID']}.{step}"


def check_started_once(environment: Mapping[str, str], *, command: str) -> None:
    """Raise `LaunchError` where srun has started several tasks of a command that must be started only once."""
    step, tasks = current_step(environment), int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if step is None or tasks == 1 or not slurm.has_step(step):  # the variables may be inherited from another job
        return
    raise LaunchError(
        f"srun has started {tasks} tasks of `distrain {command}`, and each of them would do all of the work; "
        f"start it once, with srun --ntasks=1 or without srun: `distrain fit --launcher slurm` itself starts one task "
        "on each node, and `distrain submit --array` several trainings"
    )


def read_allocation(environment: Mapping[str, str]) -> Allocation:
    """Read the resources that SLURM has allocated; raises `LaunchError` outside an allocation."""
    if "SLURM_JOB_ID" not in environment:
        raise LaunchError("--launcher slurm works inside a SLURM allocation; elsewhere, use `distrain submit`")
    return Allocation(
        job_id=int(environment["SLURM_JOB_ID"]),
        nodes=int(environment["SLURM_JOB_NUM_NODES"]),
        node_list=environment["SLURM_JOB_NODELIST"],
        cpus=int(environment.get("SLURM_CPUS_ON_NODE", "1")),
        gpus=int(environment.get("SLURM_GPUS_ON_NODE", "0")),
    )


def resolve_allocated(
    options: LaunchOptions, allocation: Allocation, *, stored: Profile | None, threads: int | None
) -> Profile:
    """Return the profile of a run in this allocation: with as many nodes and GPUs as SLURM has allocated.

    On CPUs the number of processes on a node comes from `options`, else from the `stored` profile of the run, as do the
    options for restarts and stalls.
    Raises `LaunchError` where other counts are requested than allocated.
    """
    device, processes = options.device, options.processes
    if options.nodes is not None and str(options.nodes) != str(allocation.nodes):
        raise LaunchError(
            f"SLURM has allocated {counted(allocation.nodes, 'node')}, but {options.nodes} were requested; "
            "give the number to sbatch, with --nodes"
        )
    if stored is not None and stored.launcher == "slurm" and processes is None:
        device = device or stored.device
    is_cuda = device == "cuda" or (device is None and processes is None and allocation.gpus > 0)
    if is_cuda and (allocation.gpus == 0 or processes not in {None, allocation.gpus}):
        raise LaunchError(
            f"SLURM has allocated {counted(allocation.gpus, 'GPU')} on each node, but {processes or 'some'} were "
            "requested; give the number to sbatch, with --gpus-per-node"
        )
    default = stored.processes if stored is not None and stored.device != "cuda" else 1
    count = allocation.gpus if is_cuda else processes or default
    return Profile(
        launcher="slurm",
        device="cuda" if is_cuda else "cpu",
        nodes=allocation.nodes,
        processes=count,
        threads=threads or max(1, allocation.cpus // count),
        **{**(stored.as_options().fault_tolerance if stored is not None else {}), **options.fault_tolerance},
    )


def address_of_first_node(node_list: str) -> str:
    """Return the network address of the first node according to SLURM; the name of a node need not be an address."""
    return slurm.read_node_address(first_node(node_list))


def first_node(node_list: str) -> str:
    """Return the first node of a list in SLURM's short form: n1 of n[1-2], rack2-n07 of rack[2,4]-n[07-09,12],login."""
    depth, name = 0, ""
    for character in node_list:
        if character == "," and depth == 0:
            break
        depth += (character == "[") - (character == "]")
        name += character
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", name)
