"""Plans the processes of a machine with torchrun."""

import sys
from pathlib import Path

from distrain.config.profile import Profile
from distrain.launchers.plan import Plan

_CONNECT_S = 60  # the machines have met already: who is not here after this cannot reach that port


def plan(profile: Profile, run: Path) -> Plan:
    """Plan `torchrun` for `profile.processes` workers.

    One machine takes a free port of the loopback interface; several meet at that of the first.
    """
    arguments = (
        *(_meet_at_the_first(profile) if profile.nodes > 1 else _meet_here()),
        f"--nproc-per-node={profile.processes}",
        "--max-restarts=0",  # the launcher starts the plan again
        "-m",
        "distrain.worker",
        str(run),
    )
    env = {
        **profile.variables,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # a store of the ranks' own: it is gone when they are
    }
    argv = (sys.executable, "-m", "torch.distributed.run", *arguments)
    return Plan(argv, cwd=Path.cwd(), env=env, torchrun=arguments if profile.may_fork else None)


def _meet_here() -> tuple[str, ...]:
    return "--standalone", "--local-addr=127.0.0.1"  # a rendezvous of its own: two runs at once never meet


def _meet_at_the_first(profile: Profile) -> tuple[str, ...]:
    host, port = profile.endpoint
    return (
        f"--nnodes={profile.nodes}",
        f"--node-rank={profile.node_rank}",
        f"--master-addr={host}",
        f"--master-port={port}",
        f"--rdzv-conf=timeout={_CONNECT_S}",
    )
