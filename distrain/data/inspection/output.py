"""Formats findings and statistics for a terminal and for --json."""

import shlex
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from distrain.data.inspection.captions import printable
from distrain.data.inspection.contact_sheet import Gallery, preview
from distrain.data.inspection.rules import SEVERITIES, Finding, Item
from distrain.data.inspection.scan import WHOLE, Listing
from distrain.data.inspection.statistics import QUANTILES, ChannelStatistics, ImageStatistics
from distrain.messages import MEBIBYTE, counted
from distrain.system.display import Heading, print_table
from distrain.system.encoding import printable_name

ITEMS_SHOWN = 3  # of a finding
PATHS_SHOWN = 3  # of an item
CLASSES_SHOWN = 40
BAR = 24  # characters
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def findings_as_json(listing: Listing, findings: list[Finding], *, seconds: float) -> dict[str, Any]:
    """Return all findings of `data check`, with every path."""
    counts = _severities(findings)
    return {
        "folder": str(listing.source or listing.root),
        "images": len(listing.paths),
        "seconds": round(seconds, 3),
        "errors": counts["error"],
        "warnings": counts["warning"],
        "notes": counts["note"],
        "splits": listing.counts(),
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "message": finding.message,
                "advice": finding.advice,
                "items": [{"paths": item.paths, "detail": item.text} for item in finding.items],
            }
            for finding in findings
        ],
    }


def print_findings(console: Console, listing: Listing, findings: list[Finding], *, seconds: float) -> None:
    """Print the findings, the worst first, a summary, and what to do next."""
    for finding in findings:
        colour = COLOURS[finding.severity]
        console.print(
            Text.assemble((f"{finding.severity:<8}", f"bold {colour}"), f" {printable(finding.message)}"),
            soft_wrap=True,
        )
        for item in islice(finding.items, ITEMS_SHOWN):
            _print_line(console, f"           {_format_item(item)}")
        if (rest := len(finding.items) - ITEMS_SHOWN) > 0:
            _print_line(console, f"           and {rest:,} more; --json lists all")
        console.print(Text.assemble(("         do: ", "dim"), finding.advice), soft_wrap=True)
    counts = _severities(findings)
    parts = [counted(counts[severity], severity) for severity in SEVERITIES]
    worst = next((severity for severity in SEVERITIES if counts[severity]), "none")
    console.print(
        Text.assemble(
            ("checked  ", f"bold {COLOURS.get(worst, 'green')}"),
            f"{counted(len(listing.paths), 'image')} {_count_classes(listing)} in {seconds:.1f} s: {', '.join(parts)}",
        ),
        soft_wrap=True,
    )
    _print_line(console, f"next     {_next_step(listing, counts)}")


def statistics_as_json(
    listing: Listing, statistics: ImageStatistics, channels: ChannelStatistics | None, sheet: Path | None
) -> dict[str, Any]:
    """Return all statistics of `data info`."""
    quantiles = statistics.quantiles().tolist() if statistics.sizes else [None, None]
    return {
        "folder": str(listing.source or listing.root),
        "images": len(listing.paths),
        "unreadable": statistics.num_unreadable,
        "bytes": statistics.num_bytes,
        "splits": listing.counts(),
        "formats": dict(statistics.formats.most_common()),
        "sizes": {
            "quantiles": list(QUANTILES),
            "width": quantiles[0],
            "height": quantiles[1],
            "most_common": dict(statistics.most_common(10)) if statistics.sizes else {},
        },
        "mean": None if channels is None else [round(value, 4) for value in channels.mean],
        "std": None if channels is None else [round(value, 4) for value in channels.std],
        "sampled": 0 if channels is None else channels.num_images,
        "skipped": listing.skipped,
        "links_not_followed": listing.links,
        "contact_sheet": None if sheet is None else str(sheet),
    }


def print_statistics(
    console: Console, listing: Listing, statistics: ImageStatistics, channels: ChannelStatistics | None
) -> None:
    """Print the numbers of images by class and split, their sizes, and the channels' mean and standard deviation."""
    _print_classes(console, listing)
    formats = ", ".join(f"{name} {count:,}" for name, count in statistics.formats.most_common())
    noun = "packed images" if listing.packed else "files"
    console.print()
    _print_line(
        console, f"on disk     {statistics.num_bytes / MEBIBYTE:,.1f} MiB in {len(listing.paths):,} {noun}: {formats}"
    )
    if statistics.num_unreadable:
        _print_line(console, f"unreadable  {statistics.num_unreadable:,}; distrain data check lists them")
    if listing.skipped:
        _print_line(console, f"skipped     {len(listing.skipped):,} hidden or system files: {_few(listing.skipped)}")
    if listing.links:
        links = counted(len(listing.links), "link")
        _print_line(console, f"not read    {links} to folders read anyway: {_few(listing.links)}")
    if statistics.sizes:
        _print_sizes(console, statistics)
        common = ", ".join(f"{size} ({count:,})" for size, count in statistics.most_common(5))
        _print_line(console, f"most common {common}")
    if channels is not None:
        images = counted(channels.num_images, "training image")
        _print_line(console, f"\nchannels in [0, 1], over {images}, for a recipe:")
        _print_line(console, f"augment:\n  mean: {_numbers(channels.mean)}\n  std: {_numbers(channels.std)}")


def print_preview(console: Console, gallery: Gallery) -> None:
    """Print some images, where the terminal has enough colours."""
    if console.is_terminal and not console.no_color and console.color_system in {"256", "truecolor"}:
        console.print()
        console.print(preview(gallery, columns=console.width))


def _format_item(item: Item) -> str:
    paths = " = ".join(printable(path) for path in item.paths[:PATHS_SHOWN])
    more = f" and {len(item.paths) - PATHS_SHOWN:,} more" if len(item.paths) > PATHS_SHOWN else ""
    return f"{paths}{more}{f': {printable(item.text)}' if item.text else ''}"


def _few(paths: list[str]) -> str:
    shown = ", ".join(map(printable_name, paths[:PATHS_SHOWN]))
    return f"{shown}, ..." if len(paths) > PATHS_SHOWN else shown


def _next_step(listing: Listing, counts: Counter[str]) -> str:
    folder = shlex.quote(printable(str(listing.source or listing.root)))
    options = _options(listing.changes)
    if counts["error"]:
        return f"fix the errors, then: distrain data check {folder}{options}"
    if listing.is_single_split:
        return f"look at the images: distrain data info {folder}{options}"
    changes = dict.fromkeys(["data.source=manifest"] if listing.form == "manifest" else [])
    changes |= dict.fromkeys(listing.changes)
    if listing.validation is None:
        changes["data.val_fraction=0.2"] = None
    if listing.target != "class":
        loss = "bce" if listing.target == "labels" else "mse"
        changes |= dict.fromkeys([f"data.target={listing.target}", f"loss={{name: {loss}}}"])
    return f"distrain fit imagefolder-resnet18 --data {folder}{_options(changes)}"


def _options(changes: Iterable[str]) -> str:
    return "".join(f" --set {shlex.quote(change)}" for change in changes)


def _count_classes(listing: Listing) -> str:
    count = len(listing.classes)
    if listing.target == "values":
        return "with values"
    one, many = ("class", "classes") if listing.target == "class" else ("label", "labels")
    return f"of {count:,} {one if count == 1 else many}"


def _severities(findings: list[Finding]) -> Counter[str]:
    return Counter(finding.severity for finding in findings)


def _print_classes(console: Console, listing: Listing) -> None:
    """Print the classes with the number of images in each split; the middle of a long list is omitted."""
    counts = listing.counts()
    splits = [Heading("images" if split == WHOLE else split, is_right=True) for split in listing.splits]
    rows: list[list[str]] = []
    training = counts[listing.training]
    ranked = sorted(listing.classes, key=lambda name: -training.get(name, 0))
    is_abbreviated = len(ranked) > CLASSES_SHOWN
    shown = [*ranked[: CLASSES_SHOWN // 2], *ranked[-CLASSES_SHOWN // 2 :]] if is_abbreviated else list(listing.classes)
    largest = max([1, *training.values()])
    for row, name in enumerate(shown):
        if is_abbreviated and row == CLASSES_SHOWN // 2:
            hidden = counted(len(ranked) - CLASSES_SHOWN, "class", "classes")
            rows.append([f"... {hidden} between", *("" for _ in listing.splits), ""])
        bar = "█" * max(round(BAR * training.get(name, 0) / largest), bool(training.get(name)))
        numbers = (f"{counts[split][name]:,}" if name in counts[split] else "-" for split in listing.splits)
        rows.append([printable(name), *numbers, bar])
    totals = (f"{count:,}" for count in listing.num_images().values())
    is_class = listing.target == "class"
    rows.append([counted(len(listing.classes), "class", "classes") if is_class else "images", *totals, ""])
    print_table(console, [Heading(listing.target), *splits, Heading("", 1)], rows)


def _print_sizes(console: Console, statistics: ImageStatistics) -> None:
    columns = ["smallest" if q == 0 else "largest" if q == 1 else f"{q:.0%}" for q in QUANTILES]
    headings = [Heading("pixels    "), *(Heading(column, is_right=True) for column in columns)]
    sizes = zip(("width", "height"), statistics.quantiles().tolist(), strict=True)
    print_table(console, headings, [[name, *(f"{value:,}" for value in row)] for name, row in sizes])


def _numbers(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:.4f}' for value in values)}]"


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
