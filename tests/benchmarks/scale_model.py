"""Predicts steps on many GPUs from what is measured here, and holds the same model against what can be measured here.

    python -m tests.benchmarks.scale_model
    python -m tests.benchmarks.scale_model --compute-ms 160 --images 256 --gradient-mb 102 --link nvlink4 --network ndr

First a recipe is measured on 1, 2 and 4 gloo processes of one thread each, weak scaling: each has the same share of the
batch. The link is that of the all-reduce alone, the work that of one process alone; the steps of several processes are
predicted from both and printed beside those that were measured. Where the processes are more than the CPUs, these are
shared out, which the prediction takes into account.

Then 8, 64 and 512 GPUs are predicted, with links by name or in GB/s; `distrain.benchmark.scaling_model` says where the
names' numbers come from, and what the model leaves out. The step of one GPU is given with --compute-ms (forward,
backward and update of --images images) and --gradient-mb, all of which `distrain bench` prints on a machine with a GPU.
Without them the CPU's own step is taken: that shows the model at work, and tells nothing of a GPU.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from distrain.benchmark import scaling_model
from distrain.benchmark.capacity_plan import cost_of, read_link
from distrain.benchmark.launch import run_benchmark
from distrain.benchmark.results import BenchmarkResult
from distrain.benchmark.scaling_run import with_batch
from distrain.config import load_recipe
from distrain.config.profile import Profile
from distrain.runs.task import BenchmarkRequest

COUNTS = (1, 2, 4)
TARGETS = (8, 64, 512)


def measure_here(arguments: argparse.Namespace) -> dict[int, BenchmarkResult]:
    """Measure every number of processes, of one thread each."""
    recipe = load_recipe(arguments.recipe, overrides=arguments.overrides, data=arguments.data)
    found: dict[int, BenchmarkResult] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.procs:
            launcher = "inprocess" if count == 1 else "torchrun"
            profile = Profile(launcher=launcher, device="cpu", processes=count, threads=1, restarts=0)
            own = with_batch(recipe, recipe.data.batch_size * count)
            found[count] = run_benchmark(
                own,
                profile,
                BenchmarkRequest(steps=arguments.steps, has_parts=True, has_checkpoint=True),
                place=Path(folder),
                title=f"{count} processes",
                console=Console(stderr=True),
            ).figures
    return found


def validate(
    found: dict[int, BenchmarkResult],
) -> tuple[scaling_model.Cost, scaling_model.Link, list[dict[str, float]]]:
    """Predict the steps of several processes from that of one and the link; returns both, beside what was measured."""
    cost = cost_of(found[min(found)], device="cpu")
    reductions = [(count, figures.communication) for count, figures in found.items()]
    link = scaling_model.fit_link(
        [(n, r.gradient_bytes, r.all_reduce_s, r.latency_s) for n, r in reductions if r is not None]
    )
    rows = []
    for count, figures in found.items():
        shared = max(1.0, count / len(os.sched_getaffinity(0)))
        crowded = replace(cost, image_s=cost.image_s * shared, update_s=cost.update_s * shared)
        machines = scaling_model.Machines(per_node=count, inside=link, between=None)
        predicted = scaling_model.predict(
            crowded, machines, processes=count, batch_size=figures.global_batch_size, is_weak=True
        )
        measured_s = figures.step_s.median
        rows.append(
            {
                "processes": count,
                "predicted_ms": predicted.step_s * 1e3,
                "measured_ms": measured_s * 1e3,
                "lower_ms": figures.step_s.lower * 1e3,
                "upper_ms": figures.step_s.upper * 1e3,
                "predicted_over_measured": predicted.step_s / measured_s,
                "reduction_ms": predicted.reduction_s * 1e3,
            }
        )
    return cost, link, rows


def cost_of_target(arguments: argparse.Namespace, here: scaling_model.Cost) -> scaling_model.Cost:
    """Return the work of one GPU as given, else that of a process here with a GPU's overlap."""
    if arguments.compute_ms is None:
        return replace(here, overlap=arguments.overlap)
    update_s = arguments.update_ms / 1e3
    return scaling_model.Cost(
        image_s=(arguments.compute_ms / 1e3 - update_s) / arguments.images,
        backward_share=arguments.backward_share,
        update_s=update_s,
        gradient_bytes=int(arguments.gradient_mb * 1e6),
        deviation_s=arguments.deviation_ms / 1e3,
        images=arguments.images,
        overlap=arguments.overlap,
    )


def main() -> None:
    arguments = read_arguments()
    found = measure_here(arguments)
    here, link, rows = validate(found)
    cost = cost_of_target(arguments, here)
    machines = scaling_model.Machines(
        per_node=arguments.per_node,
        inside=read_link(arguments.link, scaling_model.LINKS, option="--link"),
        between=read_link(arguments.network, scaling_model.NETWORKS, option="--network"),
        input_images_per_s=arguments.input_images_per_s,
    )
    weak, strong = (
        [
            scaling_model.predict(
                cost,
                machines,
                processes=count,
                batch_size=cost.images * count if is_weak else arguments.strong_batch or cost.images * TARGETS[0],
                is_weak=is_weak,
            )
            for count in TARGETS
        ]
        for is_weak in (True, False)
    )
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, gloo on the loopback interface",
        "link_here": asdict(link),
        "here": rows,
        "assumptions": scaling_model.assumptions(cost, machines),
        "weak": [describe(p) for p in weak],
        "strong": [describe(p) for p in strong],
    }
    if arguments.plot:
        draw(result, arguments.plot)
    print(json.dumps(result, indent=1) if arguments.json else in_words(result))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="cifar10-plain", help="what is measured here")
    parser.add_argument("--data", help="its data; generated pictures if left out")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--procs", type=lambda text: [int(n) for n in text.split(",")], default=list(COUNTS))
    parser.add_argument("--steps", type=int, help="steps of each stretch; as many as take 5 s if left out")
    parser.add_argument("--compute-ms", type=float, help="a step of one GPU: forward, backward and update")
    parser.add_argument("--images", type=int, default=256, help="images of that step")
    parser.add_argument("--update-ms", type=float, default=1.0, help="of the step, what does not grow with the images")
    parser.add_argument("--backward-share", type=float, default=2 / 3, help="of forward and backward")
    parser.add_argument("--deviation-ms", type=float, default=0.0, help="standard deviation of that step")
    parser.add_argument("--gradient-mb", type=float, default=102.2, help="ResNet-50 has 25.6 million weights")
    parser.add_argument("--overlap", type=float, default=1.0, help="share of the backward pass that hides a reduction")
    parser.add_argument("--per-node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--link", default="nvlink4", help=f"within a node: {', '.join(scaling_model.LINKS)}, or GB/s")
    parser.add_argument("--network", default="ndr", help=f"of a node: {', '.join(scaling_model.NETWORKS)}, or GB/s")
    parser.add_argument("--input-images-per-s", type=float, help="what the loaders of a node give; endless if left out")
    parser.add_argument("--strong-batch", type=int, help="the batch of strong scaling; that of 8 GPUs if left out")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    arguments = parser.parse_args()
    if arguments.data is None and arguments.recipe == "cifar10-plain":
        arguments.overrides = [*GENERATED, *arguments.overrides]
    return arguments


GENERATED = ["data.source=tests.benchmarks.scale_model:pictures", "data.num_workers=0", "augment.train=[]"]


class Pictures:
    """Pictures of 32x32 pixels that take no time to read."""

    classes = tuple(str(number) for number in range(10))

    def __init__(self) -> None:
        self.targets = [number % 10 for number in range(8192)]
        self._image = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._image, self.targets[index]


def pictures(split: str, path: str | None) -> Pictures:
    return Pictures()


def describe(prediction: scaling_model.Prediction) -> dict[str, Any]:
    return {
        **asdict(prediction),
        "step_s": prediction.step_s,
        "images_per_s": prediction.images_per_s,
        "bottleneck": prediction.bottleneck,
    }


def in_words(result: dict[str, Any]) -> str:
    link = result["link_here"]
    lines = [f"torch {result['torch']} on {result['machine']}"]
    lines.append(
        f"all-reduce here: {link['bandwidth'] / 1e9:.2f} GB/s each way, {link['latency_s'] * 1e6:.0f} us a message"
    )
    lines += [
        f"{row['processes']} processes: predicted {row['predicted_ms']:.1f} ms per step, measured "
        f"{row['measured_ms']:.1f} ({row['lower_ms']:.1f} to {row['upper_ms']:.1f}), ratio "
        f"{row['predicted_over_measured']:.2f}"
        for row in result["here"]
    ]
    lines += [f"assumed: {words}" for words in result["assumptions"]]
    for title, name in (("the batch grows with the GPUs", "weak"), ("the same batch", "strong")):
        lines += [
            f"{title}: {row['processes']:>4} GPUs, batch {row['batch_size']:>7,}: "
            f"{row['step_s'] * 1e3:.2f} ms per step, "
            f"{row['exposed_s'] * 1e3:.2f} of the reduction's {row['reduction_s'] * 1e3:.2f} exposed, "
            f"{row['images_per_s']:>11,.0f} images/s, {row['efficiency']:.0%}; {row['bottleneck']}"
            for row in result[name]
        ]
    return "\n".join(lines)


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw prediction against measurement here, and the efficiencies that are predicted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(plot)
    left, right = plot.subplots(1, 2)
    counts = [row["processes"] for row in result["here"]]
    measured = [row["measured_ms"] for row in result["here"]]
    errors = [
        [row["measured_ms"] - row["lower_ms"] for row in result["here"]],
        [row["upper_ms"] - row["measured_ms"] for row in result["here"]],
    ]
    left.errorbar(counts, measured, yerr=errors, marker="o", color="#2f6f9f", label="measured")
    left.plot(counts, [row["predicted_ms"] for row in result["here"]], "s--", color="#d9a441", label="predicted")
    left.set_xticks(counts)
    left.set_ylim(bottom=0)
    left.set_xlabel("processes here, each with the same share")
    left.set_ylabel("milliseconds a step")
    left.legend(frameon=False)
    for name, words, colour in (("weak", "batch grows", "#2f6f9f"), ("strong", "the same batch", "#b04a3a")):
        rows = result[name]
        right.plot([r["processes"] for r in rows], [r["efficiency"] for r in rows], "o-", color=colour, label=words)
    right.set_xscale("log", base=2)
    right.set_xticks(TARGETS, [str(count) for count in TARGETS])
    right.set_ylim(0, 1.05)
    right.set_xlabel("GPUs")
    right.set_ylabel("predicted efficiency")
    right.legend(frameon=False)
    plot.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
