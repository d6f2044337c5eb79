"""Measures one recipe on 1, 2, 4, ... processes and reports the results."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from distrain.benchmark.diagnosis import DiagnosisInput, diagnose
from distrain.benchmark.launch import run_benchmark
from distrain.benchmark.results import BenchmarkResult
from distrain.config import Recipe
from distrain.config.batching import solve_batching
from distrain.config.profile import LaunchOptions, Profile, resolve_profile
from distrain.errors import LaunchError, RecipeError
from distrain.launchers.prepare import check_data
from distrain.messages import counted
from distrain.runs.environment import describe_environment
from distrain.runs.task import BenchmarkRequest
from distrain.system.gpus import count_gpus


class Point(BaseModel):
    """One number of processes of the scaling curve."""

    processes: int
    global_batch_size: int
    images_per_s: float
    step_ms: float
    efficiency: float | None  # the share of `processes` times the speed of one; None where one was not measured


class Report(BaseModel):
    """A benchmark as printed; `figures` are those of the largest number of processes."""

    recipe: str
    model: str
    source: str
    data: str | None
    precision: str
    is_weak: bool  # the batch grows with the processes
    environment: dict[str, Any]
    scaling: list[Point]
    left_out: list[str]  # numbers of processes that the batch does not divide over
    start_up_s: float
    figures: BenchmarkResult
    verdict: list[str]


@dataclass(frozen=True)
class ScalingRequest:
    """The resolved and checked request: a profile and a recipe for each number of processes."""

    recipe: Recipe
    ways: tuple[tuple[Profile, Recipe], ...]  # the largest last
    left_out: tuple[str, ...]
    request: BenchmarkRequest
    is_weak: bool


def resolve(
    recipe: Recipe, options: LaunchOptions, *, reference: str, steps: int | None, is_weak: bool
) -> ScalingRequest:
    """Return the request to measure; raises a `UserError` where that is not possible.

    Without a requested number of processes, uses all GPUs or one CPU process, as for `distrain fit`.
    """
    if options.processes is None and options.device != "cpu" and (gpus := count_gpus()):
        options = options.model_copy(update={"device": "cuda", "processes": gpus})
    largest = _profile(recipe, options, reference=reference)
    largest_count = largest.processes * largest.devices
    check_data(recipe)
    ways: list[tuple[Profile, Recipe]] = []
    left_out: list[str] = []
    for count in sizes(largest_count):
        profile = _profile(recipe, options.model_copy(update={"processes": count}), reference=reference)
        profile = profile.model_copy(update={"threads": largest.threads})  # a process is the same among any number
        scaled = with_batch(recipe, recipe.data.batch_size * count) if is_weak else recipe
        try:
            _check_batch(scaled, profile)
        except RecipeError as error:
            if count == largest_count:
                raise
            left_out.append(f"{counted(count, 'process', 'processes')}: {error}")
            continue
        ways.append((profile, scaled))
    return ScalingRequest(recipe, tuple(ways), tuple(left_out), BenchmarkRequest(steps=steps), is_weak)


def run(scaling_request: ScalingRequest, *, place: Path, console: Console) -> Report:
    """Measure all numbers of processes, the largest one in detail. Raises what `run_benchmark` raises."""
    points: list[tuple[int, BenchmarkResult]] = []
    start_up_s = 0.0
    for profile, recipe in scaling_request.ways:
        is_largest = profile is scaling_request.ways[-1][0]
        request = scaling_request.request.model_copy(update={"has_parts": is_largest, "has_checkpoint": is_largest})
        done = run_benchmark(recipe, profile, request, place=place, title=_title(profile), console=console)
        points.append((profile.processes * profile.devices, done.figures))
        start_up_s = done.start_up_s
    figures = points[-1][1]
    recipe = scaling_request.recipe
    scaling = curve(points)
    return Report(
        recipe=recipe.name,
        model=recipe.model.name,
        source=recipe.data.source,
        data=recipe.data.path,
        precision=recipe.precision,
        is_weak=scaling_request.is_weak,
        environment={key: value for key, value in describe_environment().items() if key != "git"},
        scaling=scaling,
        left_out=list(scaling_request.left_out),
        start_up_s=start_up_s,
        figures=figures,
        verdict=diagnose(figures, diagnosis_input(recipe, scaling_request.ways[-1][0]), speedups(scaling)),
    )


def sizes(largest_count: int) -> list[int]:
    """Return 1, 2, 4, ... and `largest_count` itself."""
    powers = [1 << exponent for exponent in range(largest_count.bit_length()) if 1 << exponent < largest_count]
    return [*powers, largest_count]


def curve(points: list[tuple[int, BenchmarkResult]]) -> list[Point]:
    """Return the scaling curve of (processes, figures)."""
    alone = points[0][1].images_per_s if points[0][0] == 1 else None
    return [
        Point(
            processes=count,
            global_batch_size=figures.global_batch_size,
            images_per_s=figures.images_per_s,
            step_ms=figures.step_s.median * 1e3,
            efficiency=None if alone is None else figures.images_per_s / (count * alone),
        )
        for count, figures in points
    ]


def speedups(scaling: list[Point]) -> list[tuple[int, float]]:
    """Return (processes, efficiency) of every point beyond one process."""
    return [(p.processes, p.efficiency) for p in scaling if p.processes > 1 and p.efficiency is not None]


def with_batch(recipe: Recipe, batch_size: int) -> Recipe:
    """Return the recipe with another global batch."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"batch_size": batch_size})})


def diagnosis_input(recipe: Recipe, profile: Profile) -> DiagnosisInput:
    """Return the input of a diagnosis besides the results."""
    checkpoint = recipe.checkpoint
    return DiagnosisInput(
        cpus=len(os.sched_getaffinity(0)),
        device=profile.resolved_device,
        precision=recipe.precision,
        source=recipe.data.source,
        path=recipe.data.path,
        checkpoint_every_steps=checkpoint.every_steps,
        checkpoint_every_epochs=checkpoint.every_epochs,
    )


def _profile(recipe: Recipe, options: LaunchOptions, *, reference: str) -> Profile:
    threads = recipe.train.threads or (1 if recipe.train.exact else None)
    in_one_process = recipe.parallel.strategy == "dp"
    profile = resolve_profile(options, threads=threads, in_one_process=in_one_process, recipe=reference)
    if profile.nodes > 1:
        raise LaunchError("a measurement runs on one node; leave --nodes out")
    return profile.model_copy(update={"restarts": 0})


def _check_batch(recipe: Recipe, profile: Profile) -> None:
    solve_batching(
        recipe.data.batch_size, recipe.train.micro_batch_size, profile.world_size, is_exact=recipe.train.exact
    )


def _title(profile: Profile) -> str:
    count = profile.processes * profile.devices
    return counted(count, *(("GPU",) if profile.device == "cuda" else ("CPU process", "CPU processes")))
