"""What srun starts once a node, `python -m distrain.launchers.node RUN_DIR`: it becomes torchrun's agent there."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from distrain import cluster
from distrain.errors import ExitCode, LaunchError
from distrain.launchers.profile import Profile, read_profile
from distrain.launchers.slurm import address_of_first_node, read_allocation
from distrain.messages import print_error
from distrain.process import hold_signals
from distrain.rundir import RunDirectory


def torchrun(profile: Profile, run: Path, environment: Mapping[str, str], *, address: str) -> tuple[str, ...]:
    """Return the arguments of torchrun for this node's ranks; node 0 holds the rendezvous of all of them at `address`.

    Raises `LaunchError` where SLURM has started another number of tasks than one a node.
    """
    allocation = read_allocation(environment)
    if (tasks := int(environment["SLURM_NTASKS"])) != allocation.nodes or allocation.nodes != profile.nodes:
        raise LaunchError(
            f"SLURM has started {tasks} tasks on {allocation.nodes} nodes for a run on {profile.nodes}; "
            "it takes one task a node: --ntasks-per-node=1"
        )
    return (
        f"--nnodes={allocation.nodes}",
        f"--node-rank={environment['SLURM_NODEID']}",
        f"--nproc-per-node={profile.processes}",
        f"--master-addr={address}",
        f"--master-port={allocation.port}",
        "--max-restarts=0",  # the launcher starts all nodes anew
        "-m",
        "distrain.worker",
        str(run),
    )


def end_steps(environment: Mapping[str, str], *, srun_pid: int) -> None:
    """Kill what one srun of this host has started on all nodes: an srun that is killed leaves it running.

    Other steps are left alone. The job may have some of its own, the shell in which this run was started among them,
    and the id of the last task of an array stands for all of its tasks.
    """
    steps = cluster.find_steps(
        environment["SLURM_JOB_ID"], host=socket.gethostname().partition(".")[0], srun_pid=srun_pid
    )
    cluster.kill_steps(steps)


def main() -> None:
    """Become torchrun, with the stop signals held: its agent would end the ranks before they have saved."""
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
    module = "distrain.launchers.agent" if profile.may_fork else "torch.distributed.run"
    os.execv(sys.executable, (sys.executable, "-u", "-m", module, *arguments))


if __name__ == "__main__":
    main()
