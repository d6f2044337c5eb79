"""Measures how fast training images come from an image folder and from the packs of it, on one thread.

    python -m tests.benchmarks.packed_data --data photos

Each way reads the same images in the same shuffled order and makes 224-pixel training crops of them: torchvision's
ImageFolder with Pillow, as most trainings read photographs, distrain's folder, and its packs. They take turns in one
process, after one turn that fills the caches: a disk that is slow to open files makes more of a difference than this.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from distrain.data.packfile import Form
from distrain.data.packing import pack_dataset
from distrain.data.sources import open_sources
from distrain.recipe import Data

Read = Callable[[int], torch.Tensor]

FORMS = {
    "jpeg": Form(),
    "jpeg, --size 256": Form(size=256),
    "pixels, --size 256": Form(format="pixels", size=256),
    "pixels, --size 256 --square": Form(format="pixels", size=256, square=True),
}
PEER = "torchvision ImageFolder, Pillow"
CROP = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])


@contextmanager
def quiet(words: str, total: int, *, unit: str) -> Iterator[Callable[[], None]]:
    """Show no progress."""
    yield lambda: None


def distrain_reader(path: Path) -> Read:
    """Return what reads and crops a training image as a distrain training does."""
    source = open_sources(Data(source="imagefolder", path=str(path), batch_size=1))["train"]
    return lambda index: CROP(source.read(index)[0])


def pillow_reader(path: Path) -> Read:
    """Return what reads and crops a training image as torchvision's examples do."""
    dataset = ImageFolder(str(path / "train"), v2.Compose([CROP, v2.PILToTensor()]))
    return lambda index: dataset[index][0]


def images_a_second(read: Read, indices: list[int]) -> float:
    """Read all images once."""
    started = time.perf_counter()
    for index in indices:
        read(index)
    return len(indices) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="an image folder of photographs with train/")
    parser.add_argument("--turns", type=int, default=5, help="turns of each, after one that fills the caches")
    parser.add_argument("--images", type=int, default=1000, help="training images of a turn")
    parser.add_argument("--folder", type=Path, help="where to write the packs; a temporary folder if left out")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {}
    mebibytes: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        readers = {PEER: pillow_reader(arguments.data), "folder": distrain_reader(arguments.data)}
        data = Data(source="imagefolder", path=str(arguments.data), batch_size=1)
        for number, (name, form) in enumerate(FORMS.items()):
            out = Path(folder) / str(number)
            done = pack_dataset(data, out, form, jobs=2, skips=False, anew=False, progress=quiet)
            mebibytes[name] = round(sum(part.bytes for part in done.pack.splits.values()) / 2**20, 1)
            readers[name] = distrain_reader(out)
        count = len(open_sources(data)["train"])
        indices = np.random.default_rng(0).permutation(count)[: arguments.images].tolist()
        for turn in range(arguments.turns + 1):
            for name, read in readers.items():
                rate = images_a_second(read, indices)
                if turn > 0:
                    rates.setdefault(name, []).append(rate)

    medians = {name: statistics.median(found) for name, found in rates.items()}
    result = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": f"{platform.machine()}, 1 thread",
        "images": len(indices),
        "turns": arguments.turns,
        "images_per_s": {name: round(value, 1) for name, value in medians.items()},
        "ratio_to_folder": {name: round(value / medians["folder"], 2) for name, value in medians.items()},
        "mebibytes": mebibytes,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{len(indices)} images on {result['machine']}, torch {torch.__version__}, {arguments.turns} turns each")
    for name, value in medians.items():
        spread = f"({min(rates[name]):,.0f} to {max(rates[name]):,.0f})"
        size = f"{mebibytes[name]:,.1f} MiB" if name in mebibytes else ""
        print(f"{name:<32} {value:7,.0f} images/s {spread:<18} {value / medians['folder']:5.2f} of the folder  {size}")


if __name__ == "__main__":
    main()
