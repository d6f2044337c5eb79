"""`distrain data pack`: packs many small image files into a few large ones, which training maps into memory."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distrain.cli import complete
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson
from distrain.cli.progress import progress
from distrain.errors import DataError, ExitCode
from distrain.messages import MEBIBYTE, counted, joined

if TYPE_CHECKING:
    from distrain.data.packing.format import Pack
    from distrain.data.packing.pack import Outcome

SKIPPED_SHOWN = 3
TARGETS = ("class", "labels", "values")
FILE_SOURCES = {"imagefolder", "labelfolders", "manifest"}
RECIPES = {"imagefolder": "imagefolder-resnet18", "labelfolders": "imagefolder-resnet18", "cifar10": "cifar10"}

PACK_EPILOG = """
**Examples**

`distrain data pack photos --size 256` - photos.packed, with JPEGs whose shorter side has at most 256 pixels

`distrain data pack photos --format pixels --size 256 --square` - raw pixels of one size: large, but never decoded

`distrain data pack table.csv fruit --target labels` - a manifest with several labels for each image, to folder fruit

`distrain fit imagefolder-resnet18 --data photos.packed` - train from the pack with the recipe for the folder
"""


def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data, as for --data of `distrain fit`.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The folder to write.", show_default="DIR.packed")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="The kind of DIR, as data.source: labelfolders, torchvision.NAME, ...",
            show_default="a manifest where it looks like one, else an image folder",
            autocompletion=complete.sources,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option("--target", metavar="KIND", help="What each sample has, as data.target: class, labels or values."),
    ] = "class",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="How DIR is read, by a key of the recipe's data section; repeatable."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="jpeg|pixels",
            help="jpeg: small on disk, decoded in training. pixels: uint8 RGB, large, but never decoded.",
            show_default="jpeg for images in files, pixels for others",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PIXELS",
            min=1,
            help="Maximum length of the shorter side; larger images are resized with antialias.",
        ),
    ] = None,
    square: Annotated[
        bool,
        typer.Option("--square", help="Make all images --size x --size: resize the shorter side, and crop the centre."),
    ] = False,
    quality: Annotated[
        int,
        typer.Option(
            "--quality",
            metavar="N",
            min=1,
            max=100,
            help="Quality of re-encoded JPEGs, as for Pillow: 75 has visible blocks, above 95 only the size grows.",
        ),
    ] = 90,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="Processes that decode.", show_default="one for each CPU"),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip images that cannot be decoded, and list them.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start again; a finished pack is kept until the new one is complete.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the finished pack again, and compare it with its digests.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a packed dataset, from which training reads images without opening a file for each one.

    Many small files are slow to open, above all on a network disk. A pack has their images in files of about 1 GiB
    that are mapped into memory, and works with the same recipes: `--data DIR.packed` instead of `--data DIR`. With
    --format jpeg a JPEG that needs no change is copied byte by byte; an image that is larger than --size, rotated by
    its EXIF orientation or not a JPEG is re-encoded. Without --size, copied JPEGs and --format pixels give the same
    training as the folder, bit for bit.

    If it is killed or stopped, the same command continues, and the result has the same bytes. An image that cannot be
    read ends it with exit code 2; it continues once that is fixed or --skip-bad is given. On a finished pack it only
    reports whether DIR has changed since.
    """
    from distrain.config import load_data
    from distrain.data.packing import pack as packing
    from distrain.data.packing.format import read_pack

    origin = folder.expanduser().absolute()
    destination = out.expanduser() if out is not None else origin.with_name(f"{origin.name}.packed")
    source = source or _guess_source(origin)
    if target not in TARGETS:
        raise DataError(f"--target {target}: must be {joined(TARGETS)}")
    config = load_data(origin, source=source, overrides=[f"data.target={target}", *(changes or [])])
    options = {"format": form or ("jpeg" if source in FILE_SOURCES else "pixels"), "size": size, "square": square}
    outcome = packing.pack_dataset(
        config,
        destination.absolute(),
        _form({**options, "quality": quality}),
        jobs=jobs or len(os.sched_getaffinity(0)),
        skips=skip_bad,
        starts_over=force,
        progress=progress,
    )
    damages = verify_pack(destination, read_pack(destination)) if verify else None
    if as_json:
        print_json(_as_json(outcome, source, damages))
    else:
        _print(outcome, source, is_verified=verify)
        for damage in damages or ():
            typer.echo(f"damaged  {damage}")
    raise typer.Exit(ExitCode.FAILED if damages else ExitCode.FINISHED)


def verify_pack(folder: Path, pack: "Pack") -> list[str]:
    """Compare a whole pack with its digests, with a progress bar; returns a message for each damaged shard."""
    from distrain.data.packing.format import PackedImages, in_mebibytes, verify_shards

    num_bytes = sum(part.bytes for part in pack.splits.values())
    for split in pack.splits:
        PackedImages(folder, pack, split)  # raises for a damaged array
    with progress("verifying", num_bytes // MEBIBYTE, unit="MiB") as advance:
        damages = verify_shards(folder, pack, advance=in_mebibytes(advance))
    return [f"{d.file}, bytes {d.offset:,} to {d.offset + d.bytes:,}: {d.reason}" for d in damages]


def _guess_source(origin: Path) -> str:
    from distrain.data.layout.manifest import is_manifest

    return "manifest" if is_manifest(origin) else "imagefolder"


def _form(options: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from distrain.data.packing.format import Form

    if options["square"] and options["size"] is None:
        raise DataError("--square makes all images the same size, but no size is given; add --size PIXELS")
    try:
        return Form.model_validate(options)
    except ValidationError:
        raise DataError(f"--format {options['format']}: must be jpeg or pixels") from None


def _as_json(outcome: "Outcome", source: str, damages: list[str] | None) -> dict[str, Any]:
    splits = outcome.pack.splits
    return {
        "folder": str(outcome.folder),
        "was_complete": outcome.was_complete,
        **outcome.pack.form.model_dump(),
        "classes": len(outcome.pack.classes),
        "images": {split: part.images for split, part in splits.items()},
        "packed_now": outcome.num_packed,
        "seconds": round(outcome.seconds, 3),
        "source_bytes": sum(part.source_bytes for part in splits.values()),
        "bytes": sum(part.bytes for part in splits.values()),
        "changed": sum(part.num_changed for part in splits.values()),
        "skipped": [skipped.model_dump() for part in splits.values() for skipped in part.skipped],
        "fingerprint": {split: part.fingerprint for split, part in splits.items()},
        "damaged": damages,
        "notes": outcome.notes,
        "command": _command(outcome, source),
    }


def _print(outcome: "Outcome", source: str, *, is_verified: bool) -> None:
    splits = outcome.pack.splits
    images = sum(part.images for part in splits.values())
    changed = sum(part.num_changed for part in splits.values())
    before, after = (sum(getattr(part, key) for part in splits.values()) for key in ("source_bytes", "bytes"))
    counts = " and ".join(f"{part.images:,} {split}" for split, part in splits.items())
    rate = outcome.num_packed / max(outcome.seconds, 1e-9)
    result = "already complete, and the data has not changed since"
    if not outcome.was_complete:
        result = f"{counted(outcome.num_packed, 'image')} in {outcome.seconds:.1f} s, {rate:,.0f} images/s"
    lines = [
        f"packed   {outcome.folder}: {result}",
        f"images   {counts}, of {counted(len(outcome.pack.classes), 'class', 'classes')}; {images - changed:,} as "
        f"they were, {changed:,} resized or re-encoded",
        f"bytes    {f'{before / MEBIBYTE:,.1f} MiB before, ' if before else ''}{after / MEBIBYTE:,.1f} MiB packed",
    ]
    skipped = [skipped for part in splits.values() for skipped in part.skipped]
    if skipped:
        lines.append(f"skipped  {counted(len(skipped), 'image')}; pack.json lists them all")
    lines += [f"         {one.reason.partition(';')[0]}" for one in skipped[:SKIPPED_SHOWN]]
    lines += [f"note     {note}" for note in outcome.notes]
    if is_verified:
        lines.append("verified all files have their digests")
    for line in [*lines, f"next     {_command(outcome, source)}"]:
        typer.echo(line)


def _command(outcome: "Outcome", source: str) -> str:
    """Return the command that trains from the pack."""
    target = "" if outcome.pack.target == "class" else f" --set data.target={outcome.pack.target}"
    data = shlex.quote(min(str(outcome.folder), os.path.relpath(outcome.folder), key=len))
    return f"distrain fit {RECIPES.get(source, 'RECIPE --set data.source=packed')} --data {data}{target}"
