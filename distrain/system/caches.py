"""Gives libraries a folder for their caches where the user has no home, or may not write to it.

wandb prints pages of its log there, and matplotlib and torch warn or fail.
"""

import os
import pwd
import tempfile
from contextlib import suppress
from pathlib import Path

_KEPT = {"TORCH_HOME": "torch", "HF_HOME": "huggingface"}  # what was downloaded before is still read


def provide_caches() -> None:
    """Set HOME where it is missing, and XDG_CACHE_HOME to a temporary folder where the caches cannot be written."""
    if "HOME" not in os.environ:
        with suppress(KeyError):  # a user of a container without an entry
            os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    home = os.environ.get("HOME")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or f"{home or '/'}/.cache")
    if home is not None and _can_be_written(usual):
        return
    with suppress(OSError):  # nothing can be written anywhere: the libraries do without
        caches = Path(tempfile.gettempdir(), f"distrain-caches-{os.getuid()}")
        with suppress(FileExistsError):
            caches.mkdir(mode=0o700)
        if caches.is_symlink() or caches.stat().st_uid != os.getuid():  # made by another user, who could read it
            caches = Path(tempfile.mkdtemp(prefix="distrain-caches-"))
        for name, below in _KEPT.items():
            if (usual / below).is_dir():
                os.environ.setdefault(name, str(usual / below))
        os.environ["XDG_CACHE_HOME"] = str(caches)
        os.environ.setdefault("MPLCONFIGDIR", str(caches / "matplotlib"))
        if home is None:
            os.environ["HOME"] = str(caches)


def _can_be_written(caches: Path) -> bool:
    """Make the folder, as any library would, and return whether it can be written to."""
    try:
        caches.mkdir(exist_ok=True, parents="XDG_CACHE_HOME" in os.environ)
    except OSError:
        return False
    return os.access(caches, os.W_OK | os.X_OK)
