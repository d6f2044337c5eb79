"""Walks folders of images: skips what is not data, and reads each real folder once.

Hidden files and folders (AppleDouble's `._x.jpg`, `.ipynb_checkpoints`, `.git`) and those that systems leave behind
(`__MACOSX`, `Thumbs.db`, `lost+found`, `@eaDir`) are skipped at every depth below the folder that is named.
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
# What pictures end in that are not read, in lower case: their formats, or their suffixes.
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
    """One folder as a walk meets it: its path, what is right in it, and whether folders are."""

    path: str
    images: "list[os.DirEntry[str]]"
    others: list[str]  # paths
    has_folders: bool


class Walk:
    """A walk over a data folder, which remembers the paths that it has passed over: files, folders, links to folders.

    The folders that are walked are named beforehand, with `begin`; a link in them that leads to one of them, into one,
    or to a folder around one is not followed, and any other folder is entered through the first link to it alone.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = str(root)
        self._tops: list[str] = []  # real paths
        self._entered: set[tuple[int, int]] = set()  # device and inode of folders behind links
        self._inodes = array("Q")  # of all images
        self.files: list[str] = []
        self.folders: list[str] = []
        self.links: list[str] = []
        self.unread: list[str] = []  # pictures, by their suffix

    def look_in(self, folder: str | Path) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the other files in a folder, sorted, without what is passed over.

        A link to the folder itself, or to one around it, is passed over too.
        """
        folders, images, others = self._scan(str(folder))
        around = os.path.realpath(folder)
        names = []
        for entry in folders:
            if entry.is_symlink() and _is_below(around, os.path.realpath(entry.path)):
                self.links.append(entry.path)
            else:
                names.append(entry.name)
        return sorted(names), sorted([*(entry.name for entry in images), *map(os.path.basename, others)])

    def begin(self, tops: Sequence[str | Path]) -> None:
        """Begin with these folders, such as the classes of a split; each is to be walked, whatever it links to."""
        self._tops = [os.path.realpath(top) for top in tops]
        self._entered = set()

    def below(self, top: str | Path) -> Iterator[Folder]:
        """Yield a folder and those below it, each before what is in it, in the order of their names.

        Raises `DataError` for a folder that cannot be read.
        """
        pending = [(str(top), False)]
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
        """Return what was passed over, in a sentence each."""
        found = []
        if self.files or self.folders:
            parts = [
                f"{counted(len(paths), one)} ({self._name_first(paths)})"
                for paths, one in ((self.files, "file"), (self.folders, "folder"))
                if paths
            ]
            found.append(f"{self._root}: skipped as hidden or the system's: {' and '.join(parts)}")
        if self.links:
            which = counted(len(self.links), "link to a folder that is", "links to folders that are")
            found.append(f"{self._root}: did not follow {which} read anyway ({self._name_first(self.links)})")
        if self.unread:
            which = counted(len(self.unread), "picture whose suffix is", "pictures whose suffix is")
            advice = "save as .jpg or .png"
            found.append(f"{self._root}: skipped {which} not read ({self._name_first(self.unread)}); {advice}")
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
        """Whether the folder at this real path is around, or visibly below, one that is walked."""
        for top in self._tops:
            if _is_below(top, target):
                return True
            if _is_below(target, top) and not any(map(_is_passed_over, Path(target[len(top) :]).parts)):
                return True
        return False

    def _is_new(self, path: str) -> bool:
        """Whether no link has led to a folder yet; raises `DataError` where that cannot be determined."""
        try:
            found = os.stat(path)  # noqa: PTH116 - as everywhere here, for text
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
    """Return the paths of all images below a folder, at any depth, sorted; `walk` remembers what is passed over."""
    if walk is None:
        walk = Walk(folder)
        walk.begin([folder])
    return sorted(entry.path for found in walk.below(folder) for entry in found.images)


def _inode(entry: "os.DirEntry[str]") -> int:
    """Return the number of a file on its disk, without asking the disk again."""
    if not entry.is_symlink():
        return entry.inode()
    try:
        return entry.stat().st_ino
    except OSError:  # a dangling link
        return entry.inode()


def _is_device(entry: "os.DirEntry[str]") -> bool:
    """Whether something is neither a folder nor a file: a pipe, for which a reader would wait, a socket, a device."""
    try:
        return not (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)))  # noqa: PTH110
    except OSError:  # a link to itself
        return False


def _is_below(path: str, folder: str) -> bool:
    """Whether a real path is a folder, or lies in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
