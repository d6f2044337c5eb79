"""Estimates a whole run on its target nodes from a few steps measured here."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from distrain.benchmark import scaling_model
from distrain.benchmark.capacity_results import Disk, Limit, Plan, Step, Times
from distrain.benchmark.launch import run_benchmark
from distrain.benchmark.results import BenchmarkResult
from distrain.benchmark.scaling_run import with_batch
from distrain.benchmark.schedule_estimate import RunSchedule, cut_into_jobs, kept_checkpoints, plan_schedule
from distrain.benchmark.unknown import find_unknown
from distrain.config import Recipe, change_recipe
from distrain.config.batching import Batching, solve_batching
from distrain.config.profile import LaunchOptions, Profile, resolve_profile
from distrain.errors import LaunchError
from distrain.launchers.prepare import check_data
from distrain.launchers.slurm.scripts import find_script
from distrain.runs.task import BenchmarkRequest
from distrain.system.gpus import count_gpus

# Without a GPU, a few steps on the CPU give everything that does not depend on the device: sizes, but not speed.
_SUBSTITUTE_STEPS = 2
_SUBSTITUTE = [
    *("data.batch_size=2", "data.drop_last=false", "train.micro_batch_size=null", "train.exact=false"),
    *("precision=fp32", "parallel={}", "compute={}"),
    "optimizer.lr=1.0e-9",  # with such a small batch training may diverge, and then no checkpoint is written
]


@dataclass(frozen=True)
class Target:
    """The target of a run: its nodes and processes, the split of the batch, and the links if known."""

    device: str
    nodes: int
    per_node: int
    batching: Batching
    link: scaling_model.Link | None
    network: scaling_model.Link | None

    @property
    def processes(self) -> int:
        """All training processes."""
        return self.nodes * self.per_node

    @property
    def share(self) -> int:
        """The largest number of images per step of a process."""
        return self.batching.micro_batch_size * self.batching.accumulation


@dataclass(frozen=True)
class CapacityRequest:
    """The request for a plan: the target, and the measurement that the plan is based on."""

    recipe: Recipe
    target: Target
    profile: Profile
    measured: Recipe
    benchmark: BenchmarkRequest
    is_substitute: bool  # measured on the CPU, since there is no GPU
    unknown: tuple[str, ...]  # what the plan cannot know, one sentence each


def resolve(
    recipe: Recipe, options: LaunchOptions, *, reference: str, link: str | None, network: str | None, steps: int | None
) -> CapacityRequest:
    """Return what to measure for a plan; raises a `UserError` where recipe and target are incompatible."""
    target = _target(recipe, options, link=link, network=network)
    check_data(recipe)
    available = count_gpus() if target.device == "cuda" else len(os.sched_getaffinity(0))
    is_substitute = available == 0
    count = 1 if is_substitute else min(target.per_node, available)
    least = recipe.data.batch_size if recipe.data.drop_last else None
    if is_substitute:
        measured = change_recipe(recipe, _SUBSTITUTE)
        benchmark = BenchmarkRequest(steps=_SUBSTITUTE_STEPS, stretch_s=0.0, has_checkpoint=True, least_samples=least)
    else:
        measured = with_batch(recipe, target.share * (1 if recipe.parallel.strategy == "dp" else count))
        benchmark = BenchmarkRequest(
            steps=steps,
            has_parts=True,
            has_checkpoint=True,
            has_evaluation=True,
            largest_micro_batch=target.share,
            least_samples=least,
        )
    local = LaunchOptions(device="cpu" if is_substitute else target.device, processes=count)
    profile = resolve_profile(
        local,
        threads=measured.train.threads or (1 if measured.train.exact else None),
        in_one_process=measured.parallel.strategy == "dp",
        recipe=reference,
    )
    profile = profile.model_copy(update={"restarts": 0})
    unknown = find_unknown(
        recipe,
        profile,
        device=target.device,
        nodes=target.nodes,
        per_node=target.per_node,
        link=target.link,
        network=target.network,
    )
    return CapacityRequest(recipe, target, profile, measured, benchmark, is_substitute, tuple(unknown))


def make(request: CapacityRequest, *, place: Path, limit_s: float | None, console: Console) -> Plan:
    """Measure a few steps and make the plan. Raises what `run_benchmark` raises."""
    title = f"{request.profile.world_size * request.profile.devices} of {request.target.processes} processes"
    done = run_benchmark(
        request.measured, request.profile, request.benchmark, place=place, title=title, console=console
    )
    return conclude(request, done.figures, done.start_up_s, place=place, limit_s=limit_s)


def conclude(
    request: CapacityRequest, figures: BenchmarkResult, start_up_s: float, *, place: Path, limit_s: float | None
) -> Plan:
    """Return the plan that follows from the measurement."""
    recipe, target = request.recipe, request.target
    schedule = plan_schedule(recipe, num_samples=figures.num_train_samples)
    assumed: list[str] = []
    step = times = None
    if not request.is_substitute:
        step = _step(request, figures, assumed)
        times = _times(schedule, step, figures, target, start_up_s)
        assumed.append(
            f"evaluations: {schedule.num_evaluations}, validation samples in each: {figures.num_val_samples:,}; "
            f"checkpoints: {schedule.num_checkpoints}, if each evaluation is better than all before it"
        )
        if recipe.train.max_time is not None and times.total > recipe.train.max_time * 60:
            assumed.append(
                f"train.max_time ends the training after {recipe.train.max_time:g} minutes, before its last step"
            )
    return Plan(
        recipe=recipe.name,
        device=target.device,
        nodes=target.nodes,
        processes=target.processes,
        batch=str(target.batching),
        measured_processes=figures.processes,
        measured_device=figures.device,
        measured_images_per_s=None if request.is_substitute else figures.images_per_s,
        measured_step_s=None if request.is_substitute else figures.step_s.median,
        memory=figures.memory,
        largest_micro_batch=figures.largest_micro_batch,
        step=step,
        epochs=schedule.total_steps / schedule.steps_per_epoch,
        total_steps=schedule.total_steps,
        num_evaluations=schedule.num_evaluations,
        num_checkpoints=schedule.num_checkpoints,
        times=times,
        disk=_disk(recipe, schedule, figures, place),
        limit=None if limit_s is None or times is None or step is None else _limit(limit_s, times, step),
        figures=figures,
        unknown=[*figures.notes, *figures.unforeseen, *request.unknown],
        assumptions=assumed,
    )


def read_link(text: str | None, known: dict[str, scaling_model.Link], *, option: str) -> scaling_model.Link | None:
    """Return the link that an option gives by name or by GB/s; raises `LaunchError` for other text."""
    if text is None or text in known:
        return None if text is None else known[text]
    try:
        bandwidth = float(text)
    except ValueError:
        bandwidth = 0.0
    if not bandwidth > 0:
        raise LaunchError(f"{option} {text} is not a link; use GB/s in one direction, or {', '.join(known)}")
    latency_s = min(link.latency_s for link in known.values())
    return scaling_model.Link(bandwidth * 1e9, latency_s)


def cost_of(figures: BenchmarkResult, *, device: str) -> scaling_model.Cost:
    """Return the cost of a process's work from a measurement of every phase."""
    parts, compute_s = figures.parts_s, figures.compute_step_s
    assert parts is not None and compute_s is not None
    alone_s = figures.lone_step_s or compute_s
    update_s = min(parts.get("update", 0.0) + parts.get("other", 0.0), alone_s)
    passes_s = max(alone_s - update_s, 1e-9)
    forward_s = parts.get("forward", 0.0) + parts.get("prepare", 0.0)
    backward_share = min(1.0, max(0.0, 1 - forward_s / passes_s))
    images = figures.global_batch_size // figures.processes
    reduction = figures.communication
    overlap = 0.0 if device == "cpu" else 1.0  # GPUs copy while they compute; the cores of a CPU do one or the other
    if reduction is not None and reduction.exposed_s is not None and backward_share:
        hidden_s = reduction.all_reduce_s - reduction.exposed_s
        overlap = min(1.0, max(0.0, hidden_s / (backward_share * passes_s)))
    image_s = passes_s / images
    if figures.num_workers == 0 and figures.loader_images_per_s:  # the training process reads between steps
        image_s += figures.processes / figures.loader_images_per_s
    return scaling_model.Cost(
        image_s=image_s,
        backward_share=backward_share,
        update_s=update_s,
        gradient_bytes=figures.memory.gradients,
        deviation_s=figures.step_s.deviation,
        images=images,
        overlap=overlap,
    )


def _target(recipe: Recipe, options: LaunchOptions, *, link: str | None, network: str | None) -> Target:
    text = "1" if options.nodes is None else str(options.nodes)
    if not text.isdecimal() or int(text) < 1:
        raise LaunchError(f"--nodes {text} is not a number of nodes to plan for; give 1 or more")
    nodes, per_node = int(text), options.processes or 1
    device = options.device or ("cuda" if count_gpus() else "cpu")
    world_size = nodes if recipe.parallel.strategy == "dp" else nodes * per_node  # dp: one process for all GPUs
    batching = solve_batching(
        recipe.data.batch_size, recipe.train.micro_batch_size, world_size, is_exact=recipe.train.exact
    )
    return Target(
        device=device,
        nodes=nodes,
        per_node=per_node,
        batching=batching,
        link=read_link(link, scaling_model.LINKS, option="--link"),
        network=read_link(network, scaling_model.NETWORKS, option="--network"),
    )


def _step(request: CapacityRequest, figures: BenchmarkResult, assumed: list[str]) -> Step:
    target = request.target
    if target.processes == figures.processes:
        return Step(is_measured=True, step_s=figures.step_s.median, images_per_s=figures.images_per_s, efficiency=None)
    cost = cost_of(figures, device=target.device)
    reduction = figures.communication
    inside = target.link
    if inside is None and reduction is not None:
        inside = scaling_model.fit_link(
            [(figures.processes, reduction.gradient_bytes, reduction.all_reduce_s, reduction.latency_s)]
        )
    machines = scaling_model.Machines(
        per_node=target.per_node,
        inside=inside,
        between=target.network,
        input_images_per_s=_node_input(figures, target.per_node),
    )
    assumed += scaling_model.assumptions(cost, machines)
    assumed.append("every node is like this one")
    found = scaling_model.predict(
        cost,
        machines,
        processes=target.processes,
        batch_size=request.recipe.data.batch_size,
        is_weak=True,
    )
    return Step(
        is_measured=False,
        step_s=found.step_s,
        images_per_s=request.recipe.data.batch_size / found.step_s,
        efficiency=found.efficiency,
        compute_s=found.compute_s,
        exposed_reduction_s=found.exposed_s,
        input_s=found.input_s,
        jitter_s=found.jitter_s,
        bottleneck=found.bottleneck,
    )


def _node_input(figures: BenchmarkResult, per_node: int) -> float | None:
    """Return the images per second of a node's loaders, with as many more as it has CPUs for; None without any."""
    if figures.num_workers == 0 or figures.loader_images_per_s is None:
        return None
    cpus = len(os.sched_getaffinity(0))
    more = min(per_node / figures.processes, cpus / (figures.processes * figures.num_workers))
    return figures.loader_images_per_s * max(1.0, more)


def _times(schedule: RunSchedule, step: Step, figures: BenchmarkResult, target: Target, start_up_s: float) -> Times:
    steps_s = schedule.total_steps * step.step_s
    rate = figures.evaluation_images_per_s
    many = target.processes / figures.processes
    evaluations_s = 0.0 if not rate else schedule.num_evaluations * figures.num_val_samples / (rate * many)
    blocked_s = 0.0 if figures.saving is None else figures.saving.blocked_s
    checkpoints_s = schedule.num_checkpoints * blocked_s
    total = start_up_s + steps_s + evaluations_s + checkpoints_s
    return Times(steps=steps_s, evaluations=evaluations_s, checkpoints=checkpoints_s, start_up=start_up_s, total=total)


def _limit(limit_s: float, times: Times, step: Step) -> Limit:
    jobs = cut_into_jobs(
        times.total - times.start_up, limit_s=limit_s, start_up_s=times.start_up, warning_s=warning_s()
    )
    return Limit(
        limit_s=limit_s,
        fits=jobs.count == 1,
        jobs=jobs.count,
        requeues=None if jobs.count is None else jobs.count - 1,
        steps_per_job=int(jobs.usable_s / step.step_s),
    )


def warning_s() -> float:
    """Return how long before the time limit SLURM signals a job to save, as the batch script requests."""
    found = re.search(
        r"^#SBATCH --signal=B:USR1@(\d+)", find_script("train.sbatch").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return float(found.group(1))


def _disk(recipe: Recipe, schedule: RunSchedule, figures: BenchmarkResult, place: Path) -> Disk | None:
    if figures.saving is None:
        return None
    count = kept_checkpoints(recipe, schedule)
    needed, free = count * figures.saving.num_bytes, shutil.disk_usage(place).free
    return Disk(
        checkpoint_bytes=figures.saving.num_bytes,
        checkpoints=count,
        num_bytes=needed,
        free_bytes=free,
        has_room=free >= needed,
        folder=str(place),
    )
