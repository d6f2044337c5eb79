"""Defines what a sweep does: `sweep.yaml`, as a user writes it, and as it is kept in the folder of the sweep."""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distrain.config.validation import describe
from distrain.config.yaml_text import YamlError, read_yaml_text
from distrain.errors import RunError
from distrain.messages import shown
from distrain.runs.pause import Unit
from distrain.service.sweeps.rungs import PruneName
from distrain.system.files import read_regular

MIN_LAG = 4
_NAME = re.compile(r"\w[\w.-]*")
_CHANGEABLE = {"trials", "parallel", "top", "seeds", "cohorts"}  # when a sweep is continued


class Places(BaseModel):
    """Where the trials of a sweep run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queue: Literal["local", "slurm"] = Field("local", description="that of this machine, or SLURM's")
    launch: str | None = Field(None, description="a launch profile")
    device: str | None = Field(None, description="cpu or cuda")
    gpus: int | None = Field(None, gt=0, description="GPUs of each trial")
    procs: int | None = Field(None, gt=0, description="CPU processes of each trial")
    nodes: int | None = Field(None, gt=0, description="SLURM: nodes of each trial")
    sbatch: tuple[str, ...] = Field((), description="SLURM: options of sbatch, KEY=VALUE")


class SweepSpec(BaseModel):
    """A sweep. What is null is chosen when it begins, and then kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = Field(description="a built-in recipe or a YAML file")
    name: str | None = Field(None, description="of the sweep and its runs, NAME-0007")
    set: tuple[str, ...] = Field((), description="changes to the recipe for all trials, KEY=VALUE")
    data: str | None = Field(None, description="the data; sets data.path")
    params: dict[str, Any] = Field({}, description="ranges or choices by key of the recipe")
    metric: str | None = Field(None, description="what is compared; null: the metric of the best evaluation")
    trials: int | None = Field(None, gt=0, le=100_000, description="how many; null: 20, or the whole grid")
    parallel: int = Field(1, gt=0, le=10_000, description="trials at a time")
    sampler: str = Field("tpe", description="tpe, random, grid, or package.module:function")
    prune: PruneName = Field("none", description="none, asha or median")
    rungs: tuple[int, ...] | None = Field(None, description="epochs or steps after which trials are compared")
    rung_unit: Unit = Field("epochs", description="of the rungs")
    seed: int = Field(0, ge=0, lt=2**31, description="of the suggestions")
    lag: int | None = Field(
        None, gt=0, description=f"trial n is suggested from trials up to n - lag; null: parallel, {MIN_LAG} or more"
    )
    reproducible: bool = Field(default=True, description="false: suggest and prune from whatever is known")
    top: int = Field(0, ge=0, le=1000, description="how many of the best trials are repeated")
    seeds: int = Field(0, ge=0, le=1000, description="with how many other seeds")
    cohorts: tuple[int, ...] = Field((), description="asha: sizes of the groups of trials that are compared")
    places: Places = Places()

    def to_yaml(self) -> str:
        """Return it as YAML, which `read_spec` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def check_continues(self, earlier: Self) -> None:
        """Raise `RunError` where it is not the sweep `earlier` with more trials, or more or fewer at a time."""
        mine, theirs = self.model_dump(mode="json"), earlier.model_dump(mode="json")
        for key, before in theirs.items():
            if key not in _CHANGEABLE and mine[key] != before:
                raise RunError(
                    f"sweep {earlier.name} exists with another {key} ({shown(before)}, not {shown(mine[key])}); "
                    f"continue it with its own, or choose another --name"
                )


def read_spec(path: Path) -> SweepSpec:
    """Read a sweep from a YAML file; raises `RunError` with one sentence where it is not one."""
    try:
        tree = read_yaml_text(read_regular(path))
    except FileNotFoundError:
        raise RunError(f"there is no file {path}") from None
    except ValueError as error:  # not a file, not UTF-8, or not YAML
        raise RunError(f"sweep {path} cannot be read as YAML: {error}") from None
    return as_spec(tree, noun=f"sweep {path}")


def as_spec(tree: Any, *, noun: str) -> SweepSpec:
    """Return a sweep from a mapping; raises `RunError` with one sentence where it is not one."""
    try:
        return SweepSpec.model_validate(tree)
    except ValidationError as error:
        raise RunError(f"{noun}: {describe(error, SweepSpec, tree, noun='it')}") from None


def is_sweep_text(text: str) -> bool:
    """Return whether the text of a YAML file is that of a sweep, not of a recipe."""
    try:
        tree = read_yaml_text(text)
    except YamlError:
        return False
    return isinstance(tree, dict) and "params" in tree


def check_name(name: str) -> None:
    """Raise `RunError` where a name of a sweep cannot be one of a folder."""
    if not _NAME.fullmatch(name) or len(name) > 100:
        raise RunError(f"--name {shown(name)} is not a name of letters, digits, dots, dashes and underscores")
