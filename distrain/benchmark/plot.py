"""Plots a benchmark: the scaling curve, and the phases of a step."""

from pathlib import Path

from distrain.benchmark.scaling_run import Report
from distrain.benchmark.step_phases import PARTS
from distrain.messages import counted
from distrain.system.files import whole_file

_COLOURS = ("#b04a3a", "#d9a441", "#2f6f9f", "#174a70", "#c9b7de", "#7a5aa6", "#4f8f4f", "#9a9a9a")


def draw(report: Report, file: Path) -> None:
    """Draw the report in the format of the suffix of `file`: png, svg, pdf."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(plot)  # needs no display
    left, right = plot.subplots(1, 2)
    counts = [point.processes for point in report.scaling]
    rates = [point.images_per_s for point in report.scaling]
    left.plot(counts, [rates[0] * count / counts[0] for count in counts], color="#9a9a9a", ls="--", label="linear")
    left.plot(counts, rates, color="#2f6f9f", marker="o", label="measured")
    left.set_xscale("log", base=2)
    left.set_yscale("log", base=2)
    left.set_xticks(counts, [str(count) for count in counts])
    left.set_yticks(rates, [f"{rate:,.0f}" for rate in rates])
    left.minorticks_off()
    left.set_xlabel("processes")
    left.set_ylabel("images per second")
    left.set_title("batch grows with the processes" if report.is_weak else "fixed global batch")
    left.legend(frameon=False)
    start = 0.0
    for (name, label), colour in zip(PARTS.items(), _COLOURS, strict=True):
        milliseconds = (report.figures.parts_s or {}).get(name, 0.0) * 1e3
        right.barh([0], [milliseconds], left=start, color=colour, label=f"{label} {milliseconds:.2f}")
        start += milliseconds
    right.set_yticks([])
    right.set_ylim(-1.6, 0.6)
    right.set_xlabel("milliseconds per step, synchronised between phases")
    right.set_title(f"a step on {counted(report.figures.processes, 'process', 'processes')}")
    right.legend(loc="lower center", ncols=3, frameon=False, fontsize=8)
    plot.suptitle(f"{report.recipe}: {report.model} on {report.source}, {report.precision}, {report.figures.device}")
    with whole_file(file) as draft:
        plot.savefig(draft, dpi=110, bbox_inches="tight", pad_inches=0.1)  # a title may be wider than the axes
