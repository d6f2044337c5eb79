"""Holds what the page of one `distrain serve` shows, and finds the runs in it."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from distrain.errors import RunError
from distrain.runs.comparison import MAX_RUNS, MIN_RUNS
from distrain.runs.directory import RunDirectory
from distrain.runs.query import NoSuchRunError
from distrain.service.queue import find_owner_fault
from distrain.service.sweeps.folder import SweepFolder
from distrain.service.web.problems import BadRequestError, NotFoundError
from distrain.system.leases import user_name


@dataclass(frozen=True, kw_only=True)
class Site:
    """The folder of the runs, and what requests may do with it."""

    root: Path  # absolute
    slots: int  # CPU slots of the queue
    data_roots: tuple[Path, ...] = ()  # paths in a request must be in one of these
    allow_code: bool = False  # whether a recipe in a request may name code as `module:name`

    def find_run(self, name: str) -> RunDirectory:
        """Return the run with exactly this name directly in the folder; raises `NoSuchRunError` where there is none.

        A link to a folder elsewhere is not a run of this folder.
        """
        run = RunDirectory(self.root / name)
        if not (_is_plain(name) and _is_own_folder(run)):
            raise NoSuchRunError(f"there is no run {name!r} in {self.root}")
        run.check_format()
        return run

    def find_sweep(self, name: str) -> SweepFolder:
        """Return the sweep with exactly this name in the folder; raises `NotFoundError` where there is none."""
        folder = SweepFolder(self.root / name)
        with suppress(OSError, ValueError):
            if _is_plain(name) and not folder.path.is_symlink() and folder.exists:
                return folder
        raise NotFoundError(f"there is no sweep {name!r} in {self.root}")

    def find_compared(self, names: Iterable[str]) -> list[RunDirectory]:
        """Return the different runs of these names; raises `BadRequestError` where they are too few or too many."""
        names = list(dict.fromkeys(names))
        if not MIN_RUNS <= len(names) <= MAX_RUNS:
            raise BadRequestError(f"a comparison takes {MIN_RUNS} to {MAX_RUNS} different runs, not {len(names)}")
        return [self.find_run(name) for name in names]


def _is_plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and not name.startswith(".")


def _is_own_folder(run: RunDirectory) -> bool:
    with suppress(OSError, ValueError):  # a name that is too long, or has characters that no file name has
        return not run.path.is_symlink() and run.exists
    return False


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


def _run(name: str, site: "TheSite") -> RunDirectory:
    return site.find_run(name)


def _sweep(name: str, site: "TheSite") -> SweepFolder:
    return site.find_sweep(name)


def _own_run(run: "TheRun") -> RunDirectory:
    owner = run.path.lstat().st_uid
    if owner != os.geteuid():
        raise RunError(f"run {run.path.name} cannot be changed from here: {run.path} belongs to {user_name(owner)}")
    return run


def _startable_run(run: "TheRun") -> RunDirectory:
    if (fault := find_owner_fault(run)) is not None:
        raise RunError(f"run {run.path.name} cannot be started from here: {fault}")
    return run


TheSite = Annotated[Site, Depends(_site)]
TheRun = Annotated[RunDirectory, Depends(_run)]  # of the path parameter `name`
TheSweep = Annotated[SweepFolder, Depends(_sweep)]  # of the path parameter `name`
TheOwnRun = Annotated[RunDirectory, Depends(_own_run)]  # the same, of this user
TheStartableRun = Annotated[RunDirectory, Depends(_startable_run)]  # the same, and others cannot write to it
