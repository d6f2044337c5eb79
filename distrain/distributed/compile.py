"""Applies torch.compile to the network or its blocks, for training passes with full micro-batches."""

import logging
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distrain.config import Recipe
from distrain.distributed.world import World
from distrain.errors import LaunchError, ModelError, RecipeError
from distrain.messages import counted
from distrain.models.blocks import find_blocks

MAX_VERSIONS = 64  # of one forward function: one per kind of block and image size
MAX_THREADS = 32

log = logging.getLogger(__name__)


class Compilation:
    """The compiled parts of a network.

    Only training passes with full micro-batches run compiled. Evaluation and the smaller micro-batches at the end of an
    epoch, run uncompiled: so few shapes are compiled, their order does not influence any bit, and an evaluation gives
    the same result in a run, in `distrain eval` and in a bundle.
    """

    def __init__(self, network: nn.Module, parts: list[nn.Module], *, micro_batch_size: int, mode: str | None) -> None:
        self._is_on = False
        self._clock = _Clock()
        for part in parts:
            self._dispatch(part, mode)
        self._watch(network, micro_batch_size, has_graphs=mode is not None)

    def report(self) -> None:
        """Log the time that torch has spent compiling since the last call, if any."""
        if (seconds := self._clock.pop_seconds()) > 0:
            log.info("torch.compile took %.1f s; a restart reuses most of it from %s", seconds, cache_folder())

    def _dispatch(self, part: nn.Module, mode: str | None) -> None:
        """Run a part compiled while `_is_on`; only its `forward` is replaced, so the names of its weights stay."""
        eager = part.forward
        compiled = torch.compile(eager, dynamic=False, mode=mode)

        def forward(*args: Any, **kwargs: Any) -> Any:  # blocks may have any signature
            return compiled(*args, **kwargs) if self._is_on else eager(*args, **kwargs)

        part.forward = forward  # hooks, such as FSDP's, are not compiled

    def _watch(self, network: nn.Module, micro_batch_size: int, *, has_graphs: bool) -> None:
        """Decide in each pass of the network whether its parts run compiled."""
        inner = network.forward

        def forward(images: torch.Tensor) -> Any:
            self._is_on = network.training and len(images) == micro_batch_size
            if self._is_on and has_graphs:
                # The outputs of the previous pass are no longer needed.
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return inner(images)

        network.forward = forward


def compile_network(
    recipe: Recipe, network: nn.Module, world: World, *, micro_batch_size: int, num_micro_batches: int, processes: int
) -> Compilation | None:
    """Set up the compilation that the recipe requests, in place; it runs at the first call. None if none is requested.

    `num_micro_batches` is the largest number of micro-batches of a rank in a step, `processes` the ranks on this node.
    Raises a `UserError` if this machine cannot compile, or if the rest of the recipe does not allow it.
    """
    config = recipe.compute
    if config.compile == "none":
        return None
    _check(recipe, world, num_micro_batches=num_micro_batches)
    check_compiler(world.device, key=f"compute.compile={config.compile}")
    parts = [network]
    if config.compile == "regional":
        parts = find_blocks(network)
        if not parts:
            raise ModelError(
                f"compute.compile=regional finds no repeated blocks in model.name={recipe.model.name}; use whole"
            )
        kinds = sorted({type(part).__name__ for part in parts})
        blocks = counted(len(parts), "block is", "blocks are")
        log.info("compute.compile=regional: %s compiled (%s)", blocks, ", ".join(kinds))
    _prepare(processes, is_deterministic=recipe.train.deterministic)
    mode = "reduce-overhead" if config.cuda_graphs else None
    return Compilation(network, parts, micro_batch_size=micro_batch_size, mode=mode)


def check_compiler(device: torch.device, *, key: str) -> None:
    """Raise `LaunchError`, naming the recipe's key, if a program that torch.compile needs is not installed."""
    if device.type == "cuda":  # Triton compiles its kernel launchers in C
        candidates, name, package = [os.environ.get("CC")] if "CC" in os.environ else ["gcc", "clang"], "C", "gcc"
        variable = "CC"
    else:
        default = "clang++" if sys.platform == "darwin" else "g++"
        candidates, name, package, variable = [os.environ.get("CXX", default)], "C++", "g++", "CXX"
    alternative = "or train without: --set compute.compile=none"
    if not any(shutil.which(program) for program in candidates if program):
        raise LaunchError(
            f"{key} needs a {name} compiler, and {' or '.join(map(str, candidates))} is not installed; install one "
            f"(apt-get install {package}), name yours in the environment variable {variable}, {alternative}"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise LaunchError(
            f"{key} needs Python's header files, and {headers} has no Python.h; install them "
            f"(apt-get install python3-dev), {alternative}"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise LaunchError(f"{key} needs triton on GPUs, which is not installed; pip install triton, {alternative}")


def cache_folder() -> str:
    """Return the folder for compiled code: in the user's cache, unless the environment names another one."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(caches / "distrain" / "compiled"))


def _check(recipe: Recipe, world: World, *, num_micro_batches: int) -> None:
    config = recipe.compute
    if world.num_devices > 1:
        raise RecipeError(
            f"compute.compile={config.compile} needs one process per GPU, and one has {world.num_devices}; give --gpus "
            f"without parallel.strategy=dp"
        )
    if config.compile == "whole" and recipe.parallel.strategy == "fsdp" and world.size > 1:
        raise RecipeError(
            "compute.compile=whole cannot be used with parallel.strategy=fsdp, which gathers weights between blocks; "
            "use regional"
        )
    if config.cuda_graphs and (world.device.type != "cuda" or world.size > 1 or num_micro_batches > 1):
        fault = f"has {num_micro_batches} per step" if num_micro_batches > 1 else f"has {world.size} processes"
        if world.device.type != "cuda":
            fault = f"trains on the {world.device.type.upper()}"
        raise RecipeError(
            f"compute.cuda_graphs needs one process with a GPU and one micro-batch per step, and this run {fault}; "
            f"remove it"
        )


def _prepare(processes: int, *, is_deterministic: bool) -> None:
    """Configure torch's compiler: its cache folder, its number of processes, and the number of versions it compiles."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache_folder()  # before the imports, which would choose a folder in /tmp
    import torch._dynamo.config as dynamo_config  # takes a second to import: only when needed
    import torch._inductor.config as inductor_config

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        inductor_config.compile_threads = max(1, min(MAX_THREADS, cpus // processes))
    inductor_config.deterministic = is_deterministic  # does not choose kernels by timing
    dynamo_config.recompile_limit = MAX_VERSIONS  # beyond it torch continues uncompiled, with a warning


class _Clock:
    """Measures the time that torch spends compiling, for forward and backward passes."""

    def __init__(self) -> None:
        from torch._dynamo.callback import on_compile_end, on_compile_start

        self._seconds = 0.0
        self._started = 0.0
        _register(on_compile_start, self._start)
        _register(on_compile_end, self._stop)

    def pop_seconds(self) -> float:
        """Return the seconds spent since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _start(self, _: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, _: Any) -> None:
        self._seconds += time.perf_counter() - self._started


def _register(decorator: Callable[[Callable[[Any], None]], Any], callback: Callable[[Any], None]) -> None:
    decorator(callback)
