"""`distrain data`: checks, describes and packs data before training."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson
from distrain.cli.pack import PACK_EPILOG, pack, verify_pack
from distrain.cli.progress import progress
from distrain.errors import DataError, ExitCode, PreflightError
from distrain.messages import counted
from distrain.system.files import whole_file
from distrain.system.filesystem import check_writable

if TYPE_CHECKING:
    from distrain.data.inspection.scan import Listing

MAX_ROWS = 20  # bad rows of a manifest that are printed
CHECK_EPILOG = """
**Examples**

`distrain data check photos` - photos contains train/ and val/, each with a folder for each class

`distrain data check photos --strict && distrain fit imagefolder-resnet18 --data photos` - train only on clean data

`distrain data check photos.packed` - a packed dataset, including its digests

`distrain data check photos.csv --set data.target=labels` - a manifest, with several labels for each image

`distrain data check photos --json > findings.json` - every path of every finding
"""
INFO_EPILOG = """
**Examples**

`distrain data info photos` - statistics, and images in photos-contact-sheet.png here

`distrain data info photos --per-class 10 --out sheet.png` - more images, in another file
"""

app = typer.Typer(
    help="Check, describe and pack images before training.\n\nExample: `distrain data check photos`",
    no_args_is_help=True,
)

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="train/ and val/ with class folders, only class folders, a packed dataset, or a manifest."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="How DIR is read, by a key of the recipe's data section; repeatable."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Processes that read images.", show_default="one for each CPU"),
]


@app.command("check", epilog=CHECK_EPILOG.replace("\n\n", "\n\n\n"))
def check(
    folder: Folder,
    as_json: AsJson = False,
    workers: Workers = None,
    changes: Changes = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 on warnings too.")] = False,
) -> None:
    """Read every image completely and report what would stop or spoil a run; exit code 1 if there is an error.

    An error stops a run or makes its metrics wrong: files that cannot be decoded, the same image in train/ and
    val/ or in two classes, classes that are missing in train/. Warnings and notes are less severe. Nothing is changed.
    Images are compared pixel by pixel, so a copy saved as PNG counts as the same. In a packed dataset, every byte is
    first compared with its digest, and damaged shards are named.
    """
    from rich.console import Console

    from distrain.data.inspection import output
    from distrain.data.inspection.image_table import probe_all
    from distrain.data.inspection.rules import report_damage, run_checks
    from distrain.data.inspection.worker_pool import open_decode_pool
    from distrain.data.packing.format import is_packed, read_pack

    begin = time.monotonic()
    damages = verify_pack(folder, read_pack(folder)) if is_packed(folder) else []
    listing = _list_data(folder, changes or [])
    with (
        open_decode_pool(workers or len(os.sched_getaffinity(0)), has_pngs=listing.paths.has(".png")) as readers,
        progress("checking", len(listing.paths)) as advance,
    ):
        images, others = probe_all(readers, listing, advance=advance)
    findings = report_damage(damages) + run_checks(listing, images, others)
    seconds = time.monotonic() - begin
    if as_json:
        print_json(output.findings_as_json(listing, findings, seconds=seconds))
    else:
        output.print_findings(Console(highlight=False, soft_wrap=True), listing, findings, seconds=seconds)
    fatal = {"error", "warning"} if strict else {"error"}
    raise typer.Exit(ExitCode.FAILED if any(finding.severity in fatal for finding in findings) else ExitCode.FINISHED)


@app.command("info", epilog=INFO_EPILOG.replace("\n\n", "\n\n\n"))
def info(
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.png", help="The contact sheet.", show_default="NAME-contact-sheet.png here"
        ),
    ] = None,
    per_class: Annotated[
        int, typer.Option("--per-class", metavar="N", min=1, max=100, help="Images of each class.")
    ] = 6,
    as_json: AsJson = False,
    workers: Workers = None,
    changes: Changes = None,
) -> None:
    """Describe an image folder, a packed dataset or a manifest: classes, sizes, channels, and sample images.

    Images of the training classes are written to a PNG, which is replaced each time, and some are shown on the
    terminal. Mean and standard deviation are of up to 5,000 training images with equal weights, for augment.mean and
    augment.std of a recipe.
    """
    from rich.console import Console

    from distrain.data.inspection import contact_sheet, output, statistics
    from distrain.data.inspection.worker_pool import open_decode_pool

    listing = _list_data(folder, changes or [])
    sheet = _sheet_path(folder, out)
    if not listing.paths:
        raise DataError(f"data folder {folder} has no image in its class folders; `distrain data check` shows details")
    with (
        open_decode_pool(workers or len(os.sched_getaffinity(0)), has_pngs=listing.paths.has(".png")) as readers,
        progress("measuring", len(listing.paths) + len(statistics.sample_indices(listing))) as advance,
    ):
        figures = statistics.read_statistics(readers, listing, advance=advance)
        channels = statistics.channel_statistics(readers, listing, advance=advance)
        gallery = contact_sheet.collect_images(readers, listing, per_class=per_class)
    written = sheet if gallery else None
    if written is not None:
        with whole_file(written) as draft:
            contact_sheet.draw_sheet(gallery).save(draft, "PNG")
    if as_json:
        print_json(output.statistics_as_json(listing, figures, channels, written))
        return
    console = Console(highlight=False, soft_wrap=True)
    output.print_statistics(console, listing, figures, channels)
    if written is not None:
        output.print_preview(console, gallery)
        console.print(f"\nimages      {written}", markup=False, soft_wrap=True)


app.command("pack", epilog=PACK_EPILOG.replace("\n\n", "\n\n\n"))(pack)


def _list_data(folder: Path, changes: list[str]) -> "Listing":
    """List the images of a folder or file: as a manifest if it looks like one, or as `changes` says."""
    from distrain.config import load_data
    from distrain.data.inspection.folders import list_data
    from distrain.data.layout.bad_rows import BadRowsError
    from distrain.data.layout.manifest import is_manifest

    source = "manifest" if is_manifest(folder) else "imagefolder"
    try:
        listing = list_data(load_data(folder, source=source, overrides=changes))
    except BadRowsError as error:
        shown, rest = error.sentences[:MAX_ROWS], len(error.sentences) - MAX_ROWS
        more = [f"and {counted(rest, 'more row is', 'more rows are')} wrong"] if rest > 0 else []
        raise PreflightError([*shown, *more]) from None
    listing.changes = tuple(changes)
    return listing


def _sheet_path(folder: Path, out: Path | None) -> Path:
    """Return the file for the contact sheet, never one inside the data folder."""
    path = out or Path(
        f"{folder.resolve().stem if folder.is_file() else folder.resolve().name or 'data'}-contact-sheet.png"
    )
    if path.suffix.lower() != ".png":
        raise DataError(f"--out {path} does not end in .png")
    check_writable(path.absolute().parent, otherwise="name a file elsewhere with --out")
    if path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"the contact sheet {path} would be in the data folder; name a file elsewhere with --out")
    return path
