"""Finds the sbatch scripts; `python -m distrain.launchers.slurm.scripts train.sbatch` prints the path of one."""

import sys
from importlib import resources
from pathlib import Path


def find_script(name: str) -> Path:
    """Return the path of a script in the folder `slurm`, which ships with the package."""
    return Path(str(resources.files("distrain") / "slurm" / name)).resolve()


if __name__ == "__main__":
    print(find_script(sys.argv[1]))
