"""Provides a cache folder for libraries where the user has no home directory, or cannot write to it.

Without one, wandb prints pages of its log, and matplotlib and torch warn or fail.
"""

import os
import pwd
import tempfile
from contextlib import suppress
from pathlib import Path

_DOWNLOADS = {"TORCH_HOME": "torch", "HF_HOME": "huggingface"}  # existing downloads are still read


def cache_folder() -> Path:
    """Return the folder for this user's caches, which may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME') or '/'}/.cache")


def provide_caches() -> None:
    """Set HOME where it is missing, and XDG_CACHE_HOME to a temporary folder where the caches cannot be written."""
    if "HOME" not in os.environ:
        with suppress(KeyError):  # a user in a container without an entry
            os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    home = os.environ.get("HOME")
    usual = cache_folder()
    if home is not None and _is_writable(usual):
        return
    with suppress(OSError):  # nothing is writable: the libraries have no cache
        caches = Path(tempfile.gettempdir(), f"distrain-caches-{os.getuid()}")
        with suppress(FileExistsError):
            caches.mkdir(mode=0o700)
        if caches.is_symlink() or caches.stat().st_uid != os.getuid():  # created by another user, who could read it
            caches = Path(tempfile.mkdtemp(prefix="distrain-caches-"))
        for name, folder in _DOWNLOADS.items():
            if (usual / folder).is_dir():
                os.environ.setdefault(name, str(usual / folder))
        os.environ["XDG_CACHE_HOME"] = str(caches)
        os.environ.setdefault("MPLCONFIGDIR", str(caches / "matplotlib"))
        if home is None:
            os.environ["HOME"] = str(caches)


def _is_writable(caches: Path) -> bool:
    """Create the folder, as any library would, and return whether it is writable."""
    try:
        caches.mkdir(exist_ok=True, parents="XDG_CACHE_HOME" in os.environ)
    except OSError:
        return False
    return os.access(caches, os.W_OK | os.X_OK)
