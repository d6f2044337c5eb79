"""Says what bounds a training and what to do next, as pure functions of a benchmark's results."""

import math
from dataclasses import dataclass

from distrain.benchmark.results import BenchmarkResult
from distrain.messages import MEBIBYTE, counted

LOST_TO_INPUT = 0.08  # of the speed of compute alone: less is noise
LOST_TO_REDUCTION = 0.15  # of a step
LOST_TO_WAITING = 0.15  # of a step
COSTLY_CHECKPOINTS = 0.01  # of the time
POOR_SCALING = 0.8
FULL_MEMORY = 0.9
_PACKABLE = ("imagefolder", "labelfolders", "manifest")  # sources whose images are files, each read and decoded


@dataclass(frozen=True)
class DiagnosisInput:
    """What a verdict must know besides the figures."""

    cpus: int
    device: str  # cpu or cuda
    precision: str
    source: str
    path: str | None
    checkpoint_every_steps: int | None
    checkpoint_every_epochs: int | None


def diagnose(figures: BenchmarkResult, setting: DiagnosisInput, efficiencies: list[tuple[int, float]]) -> list[str]:
    """Return the verdict, what bounds the training first; `efficiencies` are (processes, efficiency), the last counts.

    A bound is only reported where loader and compute were measured alone.
    """
    words = [_bound(figures, setting, efficiencies[-1][1] if efficiencies else None)]
    words += [_scaling(efficiencies[-1], figures, setting)] if efficiencies else []
    words += [_checkpoints(figures, setting)]
    words += [_memory(figures)]
    return [sentence for sentence in words if sentence is not None]


def _bound(figures: BenchmarkResult, setting: DiagnosisInput, efficiency: float | None) -> str | None:
    loader, compute = figures.loader_images_per_s, figures.compute_images_per_s
    if loader is None or compute is None:
        return None
    if _is_input_bound(figures, setting, loader, compute):
        return (
            f"input-bound: the loader gives {_rate(loader)} images/s and the network takes {_rate(compute)}, together "
            f"they reach {_rate(figures.images_per_s)}; {_mend_input(figures, setting, loader, compute)}"
        )
    share, waiting = exposed_share(figures), waiting_share(figures)
    if waiting is not None and waiting > LOST_TO_WAITING:
        return _waiting(waiting, figures, setting)
    if share is not None and share > LOST_TO_REDUCTION and figures.communication is not None:
        gradients = figures.communication.gradient_bytes / MEBIBYTE
        bandwidth = figures.communication.bus_bandwidth(figures.processes) / 1e9
        return (
            f"communication-bound: {share:.0%} of a step is spent on the gradients of the other processes "
            f"({gradients:.1f} MiB at {bandwidth:.1f} GB/s); {_mend_communication(figures, setting)}"
        )
    reserve = loader / compute
    return (
        f"compute-bound: the network takes {_rate(compute)} images/s and the loader could give {_rate(loader)} "
        f"({reserve:.1f} times as many); {_mend_compute(setting, efficiency)}"
    )


def _waiting(share: float, figures: BenchmarkResult, setting: DiagnosisInput) -> str:
    """Return that ranks wait for each other: the gradients' transfer is not what takes the time."""
    transfer = ""
    if figures.communication is not None:
        transfer = f", whose reduction alone takes {_time(figures.communication.all_reduce_s)}"
    reason = _crowding(figures, setting, figures.processes)
    if reason is None:
        reason = "some are slower than others; look for other programs on their devices"
    return (
        f"held up by waiting: {share:.0%} of a step is spent until the last rank has its gradients{transfer}; {reason}"
    )


def _is_input_bound(figures: BenchmarkResult, setting: DiagnosisInput, loader: float, compute: float) -> bool:
    """Whether the loader is slower than the network, or takes away what the network computes with."""
    tolerable = (1 - LOST_TO_INPUT) * compute
    if loader < tolerable:
        return True
    is_shared = figures.num_workers == 0 or setting.device == "cpu"  # one after the other, at the worst
    return is_shared and 1 / (1 / loader + 1 / compute) < tolerable and figures.images_per_s < tolerable


def _mend_input(figures: BenchmarkResult, setting: DiagnosisInput, loader: float, compute: float) -> str:
    """Name the number of loader processes that would do, where there are CPUs for them, else what else there is."""
    ranks, workers = figures.processes, figures.num_workers
    spare = setting.cpus // ranks - (1 if setting.device == "cuda" else figures.threads)
    # The loader alone had a CPU for each of its processes, or the training process's own where it has none.
    options = math.ceil(compute / (loader / max(1, workers)) * 1.1)
    if options <= spare and options != workers:
        return f"--set data.num_workers={options}"
    if setting.source in _PACKABLE:
        return f"pack the data: distrain data pack {setting.path or 'DIR'}"
    if workers == 0 and spare >= 1:
        return f"--set data.num_workers={spare} reads beside the training"
    return (
        f"this machine's {counted(setting.cpus, 'CPU')} can do no more: make the images smaller, the augmentation "
        f"cheaper, or take more CPUs for each {'GPU' if setting.device == 'cuda' else 'process'}"
    )


def _mend_communication(figures: BenchmarkResult, setting: DiagnosisInput) -> str:
    if setting.device == "cpu":
        return "more threads in fewer processes, or a larger data.batch_size, which is reduced as often as a small one"
    if figures.accumulation == 1:
        return "a larger data.batch_size, which is reduced as often as a small one, or fewer GPUs"
    return "fewer GPUs, or a faster link between them"


def _mend_compute(setting: DiagnosisInput, efficiency: float | None) -> str:
    """Name what makes a step shorter; more processes do not where they were seen to bring little here."""
    is_scaling = efficiency is None or efficiency >= POOR_SCALING
    if setting.precision == "fp32":
        more = "else more devices" if is_scaling else "more processes on this machine do not"
        return f"--set precision=bf16 makes a step shorter where the processor has it; {more}"
    return "more devices make it faster" if is_scaling else "more processes on this machine do not make it faster"


def _crowding(figures: BenchmarkResult, setting: DiagnosisInput, processes: int) -> str | None:
    """Return that there are fewer CPUs than `processes` keep busy; None where that is not so."""
    if setting.device != "cpu" or processes * (figures.threads + figures.num_workers) <= setting.cpus:
        return None
    loaders = (
        ""
        if figures.num_workers == 0
        else f" and {counted(figures.num_workers, 'loader process', 'loader processes')} each"
    )
    threads, cpus = counted(figures.threads, "thread"), counted(setting.cpus, "CPU")
    return f"{processes} processes of {threads}{loaders} share {cpus}"


def _scaling(last: tuple[int, float], figures: BenchmarkResult, setting: DiagnosisInput) -> str:
    count, efficiency = last
    words = f"{count} processes are {efficiency * count:.2f} times as fast as one ({efficiency:.0%} of {count})"
    reason = None if efficiency >= POOR_SCALING else _crowding(figures, setting, count)
    return words if reason is None else f"{words}: {reason}"


def _checkpoints(figures: BenchmarkResult, setting: DiagnosisInput) -> str | None:
    saving, step_s = figures.saving, figures.step_s.median
    interval = checkpoint_interval(figures, setting)
    if saving is None or interval is None:
        return None
    share = saving.blocked_s / (interval * step_s + saving.blocked_s)
    words = (
        f"a checkpoint ({saving.num_bytes / MEBIBYTE:.1f} MiB) every {counted(interval, 'step')} costs {share:.1%}: "
        f"training stands still for {_time(saving.blocked_s)}, and it is on disk after {_time(saving.commit_s)}"
    )
    if saving.commit_s > interval * step_s:
        words += "; the next one is due before that, and waits"
    if share > COSTLY_CHECKPOINTS:
        enough = math.ceil(saving.blocked_s * (1 - COSTLY_CHECKPOINTS) / (COSTLY_CHECKPOINTS * step_s))
        words += f"; every {counted(enough, 'step')} would cost {COSTLY_CHECKPOINTS:.0%}"
    return words


def _memory(figures: BenchmarkResult) -> str | None:
    memory = figures.memory
    if memory.total is None or memory.peak < FULL_MEMORY * memory.total:
        return None
    return (
        f"memory is nearly full: {memory.peak / MEBIBYTE:,.0f} MiB of {memory.total / MEBIBYTE:,.0f}; a smaller "
        f"train.micro_batch_size than {figures.micro_batch_size} makes room, at the same data.batch_size"
    )


def exposed_share(figures: BenchmarkResult) -> float | None:
    """Return the share of a step that is spent on the reduction alone; None where it is not known."""
    compute_s, communication = figures.compute_step_s, figures.communication
    if compute_s is None or communication is None or communication.exposed_s is None:
        return None
    return communication.exposed_s / compute_s


def waiting_share(figures: BenchmarkResult) -> float | None:
    """Return the share of a profiled step in which rank 0 waits for the others; None where that was not measured."""
    parts = figures.parts_s
    return None if parts is None or "wait" not in parts else parts["wait"] / sum(parts.values())


def checkpoint_interval(figures: BenchmarkResult, setting: DiagnosisInput) -> int | None:
    """Return the fewest steps between two checkpoints, None where they are due by the clock or at the end alone."""
    by_epochs = setting.checkpoint_every_epochs
    intervals = [] if by_epochs is None else [by_epochs * figures.steps_per_epoch]
    intervals += [] if setting.checkpoint_every_steps is None else [setting.checkpoint_every_steps]
    return min(intervals, default=None)


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"
