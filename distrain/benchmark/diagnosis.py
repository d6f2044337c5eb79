"""Finds the bottleneck of a run and what to do about it, as pure functions of a benchmark's results."""

import math
from dataclasses import dataclass

from distrain.benchmark.results import BenchmarkResult
from distrain.messages import MEBIBYTE, counted

LOST_TO_INPUT = 0.08  # relative to the speed of compute alone: less is noise
LOST_TO_REDUCTION = 0.15  # of a step
LOST_TO_WAITING = 0.15  # of a step
COSTLY_CHECKPOINTS = 0.01  # of the time
POOR_SCALING = 0.8
FULL_MEMORY = 0.9
_PACKABLE = ("imagefolder", "labelfolders", "manifest")  # sources whose images are single files


@dataclass(frozen=True)
class DiagnosisInput:
    """The input of a diagnosis besides the results."""

    cpus: int
    device: str  # cpu or cuda
    precision: str
    source: str
    path: str | None
    checkpoint_every_steps: int | None
    checkpoint_every_epochs: int | None


def diagnose(result: BenchmarkResult, setting: DiagnosisInput, efficiencies: list[tuple[int, float]]) -> list[str]:
    """Return the diagnosis, the bottleneck first; `efficiencies` are (processes, efficiency), of which the last counts.

    A bottleneck is reported only where loader and compute were measured separately.
    """
    sentences = [_bound(result, setting, efficiencies[-1][1] if efficiencies else None)]
    sentences += [_scaling(efficiencies[-1], result, setting)] if efficiencies else []
    sentences += [_checkpoints(result, setting)]
    sentences += [_memory(result)]
    return [sentence for sentence in sentences if sentence is not None]


def _bound(result: BenchmarkResult, setting: DiagnosisInput, efficiency: float | None) -> str | None:
    loader, compute = result.loader_images_per_s, result.compute_images_per_s
    if loader is None or compute is None:
        return None
    if _is_input_bound(result, setting, loader, compute):
        return (
            f"input-bound: the loader gives {_rate(loader)} images/s and the network takes {_rate(compute)}, together "
            f"they reach {_rate(result.images_per_s)}; {_advise_input(result, setting, loader, compute)}"
        )
    share, waiting = exposed_share(result), waiting_share(result)
    if waiting is not None and waiting > LOST_TO_WAITING:
        return _waiting(waiting, result, setting)
    if share is not None and share > LOST_TO_REDUCTION and result.communication is not None:
        gradients = result.communication.gradient_bytes / MEBIBYTE
        bandwidth = result.communication.bus_bandwidth(result.processes) / 1e9
        return (
            f"communication-bound: {share:.0%} of a step is spent on the gradients of the other processes "
            f"({gradients:.1f} MiB at {bandwidth:.1f} GB/s); {_advise_communication(result, setting)}"
        )
    reserve = loader / compute
    return (
        f"compute-bound: the network takes {_rate(compute)} images/s and the loader could give {_rate(loader)} "
        f"({reserve:.1f} times as many); {_advise_compute(setting, efficiency)}"
    )


def _waiting(share: float, result: BenchmarkResult, setting: DiagnosisInput) -> str:
    """Report that ranks wait for each other: the transfer of gradients is not the bottleneck."""
    transfer = ""
    if result.communication is not None:
        transfer = f", whose reduction alone takes {_time(result.communication.all_reduce_s)}"
    reason = _crowding(result, setting, result.processes)
    if reason is None:
        reason = "some are slower than others; look for other programs on their devices"
    return f"waiting-bound: {share:.0%} of a step is spent waiting for the last rank's gradients{transfer}; {reason}"


def _is_input_bound(result: BenchmarkResult, setting: DiagnosisInput, loader: float, compute: float) -> bool:
    """Whether the loader is slower than the network, or uses the CPUs that the network computes with."""
    tolerable = (1 - LOST_TO_INPUT) * compute
    if loader < tolerable:
        return True
    is_shared = result.num_workers == 0 or setting.device == "cpu"  # in the worst case one after the other
    return is_shared and 1 / (1 / loader + 1 / compute) < tolerable and result.images_per_s < tolerable


def _advise_input(result: BenchmarkResult, setting: DiagnosisInput, loader: float, compute: float) -> str:
    """Advise a sufficient number of loader processes where there are CPUs for them, else something else."""
    ranks, workers = result.processes, result.num_workers
    spare = setting.cpus // ranks - (1 if setting.device == "cuda" else result.threads)
    # Measured alone, the loader had a CPU for each of its processes, or without any that of the training process.
    options = math.ceil(compute / (loader / max(1, workers)) * 1.1)
    if options <= spare and options != workers:
        return f"--set data.num_workers={options}"
    if setting.source in _PACKABLE:
        return f"pack the data: distrain data pack {setting.path or 'DIR'}"
    if workers == 0 and spare >= 1:
        return f"--set data.num_workers={spare} reads while the network computes"
    return (
        f"this machine's {counted(setting.cpus, 'CPU')} cannot do more: make the images smaller, the augmentation "
        f"cheaper, or use more CPUs for each {'GPU' if setting.device == 'cuda' else 'process'}"
    )


def _advise_communication(result: BenchmarkResult, setting: DiagnosisInput) -> str:
    if setting.device == "cpu":
        return "more threads in fewer processes, or a larger data.batch_size, which is reduced as often as a small one"
    if result.accumulation == 1:
        return "a larger data.batch_size, which is reduced as often as a small one, or fewer GPUs"
    return "fewer GPUs, or a faster link between them"


def _advise_compute(setting: DiagnosisInput, efficiency: float | None) -> str:
    """Advise what makes a step shorter; not more processes where they scale badly on this node."""
    is_scaling = efficiency is None or efficiency >= POOR_SCALING
    if setting.precision == "fp32":
        more = "else more devices" if is_scaling else "more processes on this machine do not"
        return f"--set precision=bf16 makes a step shorter if the processor supports it; {more}"
    return "more devices make it faster" if is_scaling else "more processes on this machine do not make it faster"


def _crowding(result: BenchmarkResult, setting: DiagnosisInput, processes: int) -> str | None:
    """Report that there are fewer CPUs than `processes` need; None where there are enough."""
    if setting.device != "cpu" or processes * (result.threads + result.num_workers) <= setting.cpus:
        return None
    loaders = (
        ""
        if result.num_workers == 0
        else f" and {counted(result.num_workers, 'loader process', 'loader processes')} each"
    )
    threads, cpus = counted(result.threads, "thread"), counted(setting.cpus, "CPU")
    return f"{processes} processes of {threads}{loaders} share {cpus}"


def _scaling(last: tuple[int, float], result: BenchmarkResult, setting: DiagnosisInput) -> str:
    count, efficiency = last
    text = f"{count} processes are {efficiency * count:.2f} times as fast as one ({efficiency:.0%} of {count})"
    reason = None if efficiency >= POOR_SCALING else _crowding(result, setting, count)
    return text if reason is None else f"{text}: {reason}"


def _checkpoints(result: BenchmarkResult, setting: DiagnosisInput) -> str | None:
    saving, step_s = result.saving, result.step_s.median
    interval = checkpoint_interval(result, setting)
    if saving is None or interval is None:
        return None
    share = saving.blocked_s / (interval * step_s + saving.blocked_s)
    text = (
        f"a checkpoint ({saving.num_bytes / MEBIBYTE:.1f} MiB) every {counted(interval, 'step')} costs {share:.1%}: "
        f"training is blocked for {_time(saving.blocked_s)}, and it is on disk after {_time(saving.commit_s)}"
    )
    if saving.commit_s > interval * step_s:
        text += "; the next one is scheduled before that, and waits"
    if share > COSTLY_CHECKPOINTS:
        enough = math.ceil(saving.blocked_s * (1 - COSTLY_CHECKPOINTS) / (COSTLY_CHECKPOINTS * step_s))
        text += f"; every {counted(enough, 'step')} would cost {COSTLY_CHECKPOINTS:.0%}"
    return text


def _memory(result: BenchmarkResult) -> str | None:
    memory = result.memory
    if memory.total is None or memory.peak < FULL_MEMORY * memory.total:
        return None
    return (
        f"memory is nearly full: {memory.peak / MEBIBYTE:,.0f} MiB of {memory.total / MEBIBYTE:,.0f}; a smaller "
        f"train.micro_batch_size than {result.micro_batch_size} makes room, at the same data.batch_size"
    )


def exposed_share(result: BenchmarkResult) -> float | None:
    """Return the share of a step that is spent on the reduction alone; None where it is unknown."""
    compute_s, communication = result.compute_step_s, result.communication
    if compute_s is None or communication is None or communication.exposed_s is None:
        return None
    return communication.exposed_s / compute_s


def waiting_share(result: BenchmarkResult) -> float | None:
    """Return the share of a profiled step in which rank 0 waits for the others; None where that was not measured."""
    parts = result.parts_s
    return None if parts is None or "wait" not in parts else parts["wait"] / sum(parts.values())


def checkpoint_interval(result: BenchmarkResult, setting: DiagnosisInput) -> int | None:
    """Return the smallest number of steps between checkpoints, None where they depend on time or the end only."""
    by_epochs = setting.checkpoint_every_epochs
    intervals = [] if by_epochs is None else [by_epochs * result.steps_per_epoch]
    intervals += [] if setting.checkpoint_every_steps is None else [setting.checkpoint_every_steps]
    return min(intervals, default=None)


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"
