"""Runs torchrun on one node: srun starts `python -m distrain.launchers.slurm.node_task RUN_DIR` on each node."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from distrain.config.profile import Profile, read_profile
from distrain.errors import ExitCode, LaunchError
from distrain.launchers.slurm.srun import address_of_first_node, read_allocation
from distrain.messages import counted, print_error
from distrain.runs import slurm
from distrain.runs.directory import RunDirectory
from distrain.system.process import hold_signals


def torchrun(profile: Profile, run: Path, environment: Mapping[str, str], *, address: str) -> tuple[str, ...]:
    """Return the arguments of torchrun for this node's ranks; the rendezvous is on node 0, at `address`.

    Raises `LaunchError` where SLURM has not started exactly one task on each node.
    """
    allocation = read_allocation(environment)
    if (tasks := int(environment["SLURM_NTASKS"])) != allocation.nodes or allocation.nodes != profile.nodes:
        raise LaunchError(
            f"SLURM has started {counted(tasks, 'task')} on {counted(allocation.nodes, 'node')} for a run on "
            f"{profile.nodes}; it needs one task on each node: --ntasks-per-node=1"
        )
    return (
        f"--nnodes={allocation.nodes}",
        f"--node-rank={environment['SLURM_NODEID']}",
        f"--nproc-per-node={profile.processes}",
        f"--master-addr={address}",
        f"--master-port={allocation.port}",
        "--max-restarts=0",  # the launcher starts all nodes again
        "-m",
        "distrain.worker",
        str(run),
    )


def end_steps(environment: Mapping[str, str], *, srun_pid: int) -> None:
    """Kill the steps that one srun of this host has started, on all nodes: they survive when srun itself is killed.

    Other steps are not touched. The job may have others, such as the shell in which this run was started, and the id
    of the last task of an array means all of its tasks.
    """
    steps = slurm.find_steps(
        environment["SLURM_JOB_ID"], host=socket.gethostname().partition(".")[0], srun_pid=srun_pid
    )
    slurm.kill_steps(steps)


def main() -> None:
    """Become torchrun, with the stop signals blocked: its agent would end the ranks before they have saved."""
    if sys.argv[1] == "--end":
        end_steps(os.environ, srun_pid=int(sys.argv[2]))
        return
    hold_signals()
    run = RunDirectory(Path(sys.argv[1]))
    try:
        address = address_of_first_node(os.environ["SLURM_JOB_NODELIST"])
        profile = read_profile(run.profile)
        arguments = torchrun(profile, run.path, os.environ, address=address)
    except LaunchError as error:
        print_error(str(error))
        sys.exit(ExitCode.BAD_INPUT)
    module = "distrain.fork_server" if profile.may_fork else "torch.distributed.run"
    os.execv(sys.executable, (sys.executable, "-u", "-m", module, *arguments))


if __name__ == "__main__":
    main()
