"""Plans a run in a SLURM allocation: one srun task a node, each of which starts torchrun with the others' address."""

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
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0  # SLURM's numbers for the steps of batch scripts, of interactive shells and the like
_FIRST_PORT, _NUM_PORTS = 20000, 10000  # below the ports that Linux hands out by itself


@dataclass(frozen=True)
class Allocation:
    """What SLURM has given to this job, as its environment variables tell."""

    job_id: int
    nodes: int
    node_list: str  # in SLURM's short form, such as n[1-2]
    cpus: int  # of this node
    gpus: int  # of this node

    @property
    def port(self) -> int:
        """The port of the rendezvous: two jobs on one host have different numbers, and so different ports."""
        return _FIRST_PORT + self.job_id % _NUM_PORTS


def plan(profile: Profile, run: Path) -> Plan:
    """Plan one task for each node of the allocation; a task finds out by itself which node it is.

    srun takes the counts from the allocation's own variables.
    """
    argv = (
        "srun",
        "--export=ALL",  # whatever SLURM_EXPORT_ENV says: the tasks need the environment that the batch script made
        *(["--overlap"] if own_step(os.environ) is not None else []),  # share what the step around this process holds
        f"--nodes={profile.nodes}",
        f"--ntasks={profile.nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",  # a node whose ranks are lost takes the others with it: the launcher starts all again
        sys.executable,
        "-m",
        "distrain.launchers.slurm.node_task",
        str(run),
    )
    env = {"OMP_NUM_THREADS": str(profile.threads), "PYTHONUNBUFFERED": "1"}  # srun's own way makes a terminal of it
    if (cpus := os.environ.get("SLURM_CPUS_PER_TASK")) is not None:
        env["SRUN_CPUS_PER_TASK"] = cpus  # srun no longer inherits it from sbatch, since SLURM 22.05
    memory = _MEMORY & os.environ.keys()
    return Plan(
        argv,
        cwd=Path.cwd(),
        env=env,
        unset=tuple(sorted(memory)) if len(memory) > 1 else (),  # one is another job's: srun would refuse both
        cleanup=(sys.executable, "-m", "distrain.launchers.slurm.node_task", "--end"),
    )


def own_step(environment: Mapping[str, str]) -> str | None:
    """Return the step of a job that this process is a task of, such as 12.0; None in a batch script or outside of jobs.

    The step of an interactive `salloc` is none: it holds no resources.
    """
    step = environment.get("SLURM_STEP_ID", "")
    if "SLURM_JOB_ID" not in environment or not step.isdecimal() or int(step) >= _FIRST_SPECIAL_STEP:
        return None
    return f"{environment['SLURM_JOB_ID']}.{step}"


def check_started_once(environment: Mapping[str, str], *, command: str) -> None:
    """Raise `LaunchError` where srun has started several tasks of a command that is meant to be started once."""
    step, tasks = own_step(environment), int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if step is None or tasks == 1 or not slurm.has_step(step):  # a job's variables may be those of another job
        return
    raise LaunchError(
        f"srun has started {tasks} tasks of `distrain {command}`, and each of them would do the whole of it; "
        f"start it once, with srun --ntasks=1 or without srun: `distrain fit --launcher slurm` starts one task a node "
        "itself, and `distrain submit --array` several trainings"
    )


def read_allocation(environment: Mapping[str, str]) -> Allocation:
    """Read what SLURM has allocated; raises `LaunchError` outside of an allocation."""
    if "SLURM_JOB_ID" not in environment:
        raise LaunchError("--launcher slurm works inside a SLURM allocation; from outside, take `distrain submit`")
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
    """Return the profile of a run in this allocation: as many machines and GPUs as SLURM has given.

    On CPUs SLURM does not say how many processes a node is for: `options` does, else the run's own `stored` profile,
    which also says what the run bears.
    Raises `LaunchError` where other counts are asked for than were given.
    """
    device, processes = options.device, options.processes
    if options.nodes is not None and str(options.nodes) != str(allocation.nodes):
        raise LaunchError(
            f"SLURM has given {counted(allocation.nodes, 'node')}, and {options.nodes} were asked for; say how many "
            "to sbatch"
        )
    if stored is not None and stored.launcher == "slurm" and processes is None:
        device = device or stored.device
    is_cuda = device == "cuda" or (device is None and processes is None and allocation.gpus > 0)
    if is_cuda and (allocation.gpus == 0 or processes not in {None, allocation.gpus}):
        raise LaunchError(
            f"SLURM has given {counted(allocation.gpus, 'GPU')} on each node, and {processes or 'some'} were asked "
            "for; say how many to sbatch, with --gpus-per-node"
        )
    own = stored.processes if stored is not None and stored.device != "cuda" else 1
    count = allocation.gpus if is_cuda else processes or own
    return Profile(
        launcher="slurm",
        device="cuda" if is_cuda else "cpu",
        nodes=allocation.nodes,
        processes=count,
        threads=threads or max(1, allocation.cpus // count),
        **{**(stored.as_options().fault_tolerance if stored is not None else {}), **options.fault_tolerance},
    )


def address_of_first_node(node_list: str) -> str:
    """Return the network address of the first node, as SLURM knows it; a node's name need not be one."""
    return slurm.read_node_address(first_node(node_list))


def first_node(node_list: str) -> str:
    """Return the first of the nodes in SLURM's short form: n1 of n[1-2], rack2-n07 of rack[2,4]-n[07-09,12],login1."""
    depth, name = 0, ""
    for character in node_list:
        if character == "," and depth == 0:
            break
        depth += (character == "[") - (character == "]")
        name += character
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", name)
