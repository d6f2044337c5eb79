"""Finds the sbatch scripts; `python -m distrain.launchers.scripts train.sbatch` prints where one is."""

import sys
from pathlib import Path

from distrain.errors import LaunchError


def find_script(name: str) -> Path:
    """Return the path of a script of the folder `slurm`, which stands beside the package in a checkout.

    Raises `LaunchError` where it is not there.
    """
    path = Path(__file__).resolve().parents[2] / "slurm" / name
    if not path.is_file():
        raise LaunchError(f"{path} is missing; install distrain from its checkout with `pip install -e`")
    return path


if __name__ == "__main__":
    print(find_script(sys.argv[1]))
