"""Plans the processes of one machine with torchrun."""

import sys
from pathlib import Path

from distrain.launchers.plan import Plan
from distrain.launchers.profile import Profile


def plan(profile: Profile, run: Path) -> Plan:
    """Plan `torchrun` for `profile.processes` workers, on a free port of the loopback interface."""
    argv = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",  # a rendezvous of its own on a free port: two runs at once never meet
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={profile.processes}",
        "--max-restarts=0",  # the launcher starts the plan anew
        "-m",
        "distrain.worker",
        str(run),
    )
    env = {
        "OMP_NUM_THREADS": str(profile.threads),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # a store of the ranks' own: it is gone when they are
    }
    return Plan(argv, cwd=Path.cwd(), env=env)
