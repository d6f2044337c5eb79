"""Applies torch.compile: which parts of the network are compiled, and which of its passes run compiled."""

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

MAX_VERSIONS = 64  # of one forward function: it has one for each kind of block and each size of the images
MAX_THREADS = 32

log = logging.getLogger(__name__)


class Compilation:
    """The compiled parts of a network.

    Training's passes of whole micro-batches run compiled. Evaluation, and the smaller micro-batches at the end of an
    epoch, run as they would without: the shapes that are compiled are few, which of them comes first has no influence
    on any bit, and an evaluation is the same in a run, in `distrain eval` and in a bundle.
    """

    def __init__(self, network: nn.Module, parts: list[nn.Module], *, micro_batch_size: int, mode: str | None) -> None:
        self._is_on = False
        self._clock = _Clock()
        for part in parts:
            self._dispatch(part, mode)
        self._watch(network, micro_batch_size, has_graphs=mode is not None)

    def report(self) -> None:
        """Say how long torch has compiled since this was last called, if it has."""
        if (seconds := self._clock.take_seconds()) > 0:
            log.info("torch.compile took %.1f s; a restart finds most of it in %s", seconds, cache_folder())

    def _dispatch(self, part: nn.Module, mode: str | None) -> None:
        """Let a part run compiled while a pass does; its `forward` is an attribute of its own, so its names stay."""
        eager = part.forward
        compiled = torch.compile(eager, dynamic=False, mode=mode)

        def forward(*args: Any, **kwargs: Any) -> Any:  # a block's arguments are its network's own affair
            return compiled(*args, **kwargs) if self._is_on else eager(*args, **kwargs)

        part.forward = forward  # hooks, such as FSDP's, stay outside of what is compiled

    def _watch(self, network: nn.Module, micro_batch_size: int, *, has_graphs: bool) -> None:
        """Decide at each pass of the network whether its parts run compiled."""
        inner = network.forward

        def forward(images: torch.Tensor) -> Any:
            self._is_on = network.training and len(images) == micro_batch_size
            if self._is_on and has_graphs:
                # The outputs of the last pass are not needed any more.
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return inner(images)

        network.forward = forward


def compile_network(
    recipe: Recipe, network: nn.Module, world: World, *, micro_batch_size: int, num_micro_batches: int, processes: int
) -> Compilation | None:
    """Compile in place what the recipe says, when it is first called; None where it says nothing.

    `num_micro_batches` is the largest number of micro-batches of a rank in a step, `processes` the ranks on this node.
    Raises a `UserError` where that cannot be done here, or not together with the rest of the recipe.
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
    if device.type == "cuda":  # Triton compiles what launches its kernels
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
    """Return where compiled code is kept: the user's cache, unless the environment names a place."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(caches / "distrain" / "compiled"))


def _check(recipe: Recipe, world: World, *, num_micro_batches: int) -> None:
    config = recipe.compute
    if world.num_devices > 1:
        raise RecipeError(
            f"compute.compile={config.compile} is for one process a GPU, and one has {world.num_devices}; give --gpus "
            f"without parallel.strategy=dp"
        )
    if config.compile == "whole" and recipe.parallel.strategy == "fsdp" and world.size > 1:
        raise RecipeError(
            "compute.compile=whole does not go with parallel.strategy=fsdp, which gathers weights between the blocks; "
            "use regional"
        )
    if config.cuda_graphs and (world.device.type != "cuda" or world.size > 1 or num_micro_batches > 1):
        fault = f"trains {num_micro_batches} in a step" if num_micro_batches > 1 else f"has {world.size} processes"
        if world.device.type != "cuda":
            fault = f"trains on the {world.device.type.upper()}"
        raise RecipeError(
            f"compute.cuda_graphs is for one process with a GPU and one micro-batch a step, and this one {fault}; "
            f"remove it"
        )


def _prepare(processes: int, *, is_deterministic: bool) -> None:
    """Set up torch's compiler: where it keeps its work, how many helpers it has, how many versions it makes."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache_folder()  # before the imports, which would choose a place below /tmp
    import torch._dynamo.config as dynamo_config  # takes a second to import: only where it is used
    import torch._inductor.config as inductor_config

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        inductor_config.compile_threads = max(1, min(MAX_THREADS, cpus // processes))
    inductor_config.deterministic = is_deterministic  # no choice between kernels by their time
    dynamo_config.recompile_limit = MAX_VERSIONS  # beyond it torch continues without compiling, and says so


class _Clock:
    """The time that torch spends compiling, forward and backward passes alike."""

    def __init__(self) -> None:
        from torch._dynamo.callback import on_compile_end, on_compile_start

        self._seconds = 0.0
        self._started = 0.0
        _register(on_compile_start, self._start)
        _register(on_compile_end, self._stop)

    def take_seconds(self) -> float:
        """Return the seconds since this was last called."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _start(self, _: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, _: Any) -> None:
        self._seconds += time.perf_counter() - self._started


def _register(decorator: Callable[[Callable[[Any], None]], Any], callback: Callable[[Any], None]) -> None:
    decorator(callback)
