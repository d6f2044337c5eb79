"""Walks folders of images: skips what is not data, and reads each real folder once.

Hidden files and folders (AppleDouble's `._x.jpg`, `.ipynb_checkpoints`, `.git`) and those of operating systems
(`__MACOSX`, `Thumbs.db`, `lost+found`, `@eaDir`) are skipped at every depth below the folder that the user names.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distrain.errors import DataError
from distrain.messages import counted
from distrain.system.encoding import printable_name

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Suffixes of images that are not read, in lower case.
UNREAD_SUFFIXES = frozenset({".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".psd", ".svg", ".tga"})
SYSTEM_FOLDERS = frozenset(  # in lower case
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "__macosx",
        "__pycache__",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
    }
)
SYSTEM_FILES = frozenset({"desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"})  # in lower case


class Folder(NamedTuple):
    """One folder of a walk: its path, the files directly in it, and whether it has subfolders."""

    path: str
    images: "list[os.DirEntry[str]]"
    others: list[str]  # paths
    has_folders: bool


class Walk:
    """A walk over a data folder, which records the paths that it skips: files, folders, links to folders.

    `begin` names the folders to walk. A link to one of them, to a folder inside one, or to a parent of one is not
    followed; any other folder is entered only through the first link to it.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = str(root)
        self._roots: list[str] = []  # real paths
        self._entered: set[tuple[int, int]] = set()  # device and inode of folders behind links
        self._inodes = array("Q")  # of all images
        self.files: list[str] = []
        self.folders: list[str] = []
        self.links: list[str] = []
        self.unread: list[str] = []  # images by their suffix, in formats that are not read

    def list_folder(self, folder: str | Path) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the other files in a folder, sorted, without what is skipped.

        A link to the folder itself, or to a parent of it, is skipped too.
        """
        folders, images, others = self._scan(str(folder))
        real_path = os.path.realpath(folder)
        names = []
        for entry in folders:
            if entry.is_symlink() and _is_below(real_path, os.path.realpath(entry.path)):
                self.links.append(entry.path)
            else:
                names.append(entry.name)
        return sorted(names), sorted([*(entry.name for entry in images), *map(os.path.basename, others)])

    def begin(self, roots: Sequence[str | Path]) -> None:
        """Set the folders to walk, such as the classes of a split; each is walked even where it is a link."""
        self._roots = [os.path.realpath(root) for root in roots]
        self._entered = set()

    def below(self, root: str | Path) -> Iterator[Folder]:
        """Yield a folder and those below it, parents first, in the order of their names.

        Raises `DataError` for a folder that cannot be read.
        """
        pending = [(str(root), False)]
        while pending:
            path, is_behind_link = pending.pop()
            if is_behind_link and not self._is_new(path):
                self.links.append(path)
                continue
            folders, images, others = self._scan(path)
            self._inodes.extend([_inode(entry) for entry in images])
            yield Folder(path, images, others, bool(folders))
            for entry in sorted(folders, key=lambda entry: entry.name, reverse=True):
                if entry.is_symlink() and self._is_read_anyway(os.path.realpath(entry.path)):
                    self.links.append(entry.path)
                else:
                    pending.append((entry.path, is_behind_link or entry.is_symlink()))

    def may_repeat(self) -> bool:
        """Whether two images may be the same file: a link and its target, or two names of one file."""
        return len(set(self._inodes)) < len(self._inodes)

    def notes(self) -> list[str]:
        """Return what was skipped, one sentence each."""
        found = []
        if self.files or self.folders:
            parts = [
                f"{counted(len(paths), one)} ({self._name_first(paths)})"
                for paths, one in ((self.files, "file"), (self.folders, "folder"))
                if paths
            ]
            found.append(f"{self._root}: skipped hidden and system files: {' and '.join(parts)}")
        if self.links:
            which = counted(len(self.links), "link to a folder that is", "links to folders that are")
            found.append(f"{self._root}: did not follow {which} read anyway ({self._name_first(self.links)})")
        if self.unread:
            which = counted(len(self.unread), "image whose suffix is", "images whose suffix is")
            advice = "convert to .jpg or .png"
            found.append(f"{self._root}: skipped {which} not supported ({self._name_first(self.unread)}); {advice}")
        return list(map(printable_name, found))

    def _scan(self, path: str) -> "tuple[list[os.DirEntry[str]], list[os.DirEntry[str]], list[str]]":
        """Return the folders, the images and the paths of the other files in a folder."""
        folders, images, others = list["os.DirEntry[str]"](), list["os.DirEntry[str]"](), list[str]()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    try:
                        is_folder = entry.is_dir()
                    except OSError:  # a link to itself, or into a folder that may not be read
                        is_folder = False
                    if is_folder:
                        if name[0] == "." or name.lower() in SYSTEM_FOLDERS:
                            self.folders.append(entry.path)
                        else:
                            folders.append(entry)
                    elif name[0] == ".":
                        self.files.append(entry.path)
                    elif (suffix := name[name.rfind(".") :].lower()) in IMAGE_SUFFIXES and not _is_device(entry):
                        images.append(entry)
                    elif name.lower() in SYSTEM_FILES:
                        self.files.append(entry.path)
                    else:
                        others.append(entry.path)
                        if suffix in UNREAD_SUFFIXES:
                            self.unread.append(entry.path)
        except OSError as error:
            raise DataError(f"folder {path} cannot be read ({error.strerror}); change its permissions") from None
        return folders, images, others

    def _is_read_anyway(self, target: str) -> bool:
        """Whether the folder at this real path contains a walked folder, or is below one and not hidden."""
        for root in self._roots:
            if _is_below(root, target):
                return True
            if _is_below(target, root) and not any(map(_is_skipped, Path(target[len(root) :]).parts)):
                return True
        return False

    def _is_new(self, path: str) -> bool:
        """Whether no link has led to this folder before; raises `DataError` where it cannot be read."""
        try:
            found = os.stat(path)  # noqa: PTH116 - paths are text in this module
        except OSError as error:
            raise DataError(f"folder {path} cannot be read ({error.strerror}); change its permissions") from None
        identity = (found.st_dev, found.st_ino)
        is_new = identity not in self._entered
        self._entered.add(identity)
        return is_new

    def _name_first(self, paths: list[str]) -> str:
        name = os.path.relpath(min(paths), self._root)
        return name + (", ..." if len(paths) > 1 else "")


def images_below(folder: str | Path, walk: Walk | None = None) -> list[str]:
    """Return the paths of all images below a folder, at any depth, sorted; `walk` records what is skipped."""
    if walk is None:
        walk = Walk(folder)
        walk.begin([folder])
    return sorted(entry.path for found in walk.below(folder) for entry in found.images)


def _inode(entry: "os.DirEntry[str]") -> int:
    """Return the inode of a file, without a system call where the folder's listing has it."""
    if not entry.is_symlink():
        return entry.inode()
    try:
        return entry.stat().st_ino
    except OSError:  # a dangling link
        return entry.inode()


def _is_device(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a device, a socket or a pipe, which would block its reader, and not a folder or a file."""
    try:
        return not (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)))  # noqa: PTH110
    except OSError:  # a link to itself
        return False


def _is_below(path: str, folder: str) -> bool:
    """Whether a real path is `folder` or below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
