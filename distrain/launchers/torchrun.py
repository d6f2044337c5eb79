"""Plans the processes of a node with torchrun."""

import sys
from pathlib import Path

from distrain.config.profile import Profile
from distrain.launchers.plan import Plan

_CONNECT_TIMEOUT_S = 60  # the launchers are already connected: a node that takes longer cannot reach the port


def plan(profile: Profile, run: Path) -> Plan:
    """Plan `torchrun` for `profile.processes` workers.

    A single node uses a free port of the loopback interface; several nodes use that of the first.
    """
    arguments = (
        *(_multinode_rendezvous(profile) if profile.nodes > 1 else _local_rendezvous()),
        f"--nproc-per-node={profile.processes}",
        "--max-restarts=0",  # the launcher starts the plan again
        "-m",
        "distrain.worker",
        str(run),
    )
    env = {
        **profile.variables,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # the ranks get a separate store, which ends with them
    }
    argv = (sys.executable, "-m", "torch.distributed.run", *arguments)
    return Plan(argv, cwd=Path.cwd(), env=env, torchrun=arguments if profile.may_fork else None)


def _local_rendezvous() -> tuple[str, ...]:
    return "--standalone", "--local-addr=127.0.0.1"  # a private rendezvous: two concurrent runs never connect


def _multinode_rendezvous(profile: Profile) -> tuple[str, ...]:
    host, port = profile.endpoint
    return (
        f"--nnodes={profile.nodes}",
        f"--node-rank={profile.node_rank}",
        f"--master-addr={host}",
        f"--master-port={port}",
        f"--rdzv-conf=timeout={_CONNECT_TIMEOUT_S}",
    )
