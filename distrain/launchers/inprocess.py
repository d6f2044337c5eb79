"""Plans a run in the launching process itself: one device, and all of its code accessible to a debugger."""

import sys
from pathlib import Path

from distrain.config.profile import Profile
from distrain.launchers.plan import Plan


def plan(profile: Profile, run: Path) -> Plan:
    """Plan the worker in this process; the printed command does the same in a new one."""
    assert profile.world_size == 1
    return Plan((sys.executable, "-m", "distrain.worker", str(run)), cwd=Path.cwd(), in_process=True)
