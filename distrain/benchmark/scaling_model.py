"""Predicts the same training on many GPUs from a step measured here, as pure functions.

A step of n processes is

    max( compute + update + jitter(n) + exposed(n),  input(n) )

compute    forward and backward passes of a process's share of the batch: `image_s` for each image of it.
update     what does not depend on the share: optimizer, and whatever else happens once per step.
exposed    the part of the gradients' all-reduce that the backward pass does not hide. DistributedDataParallel reduces
           buckets of 25 MiB while the backward pass still runs (Li et al., "PyTorch Distributed: experiences on
           accelerating data parallel training", VLDB 2020): it hides up to `overlap` of the backward pass, but never
           the last bucket, which is whole only at the end.
all-reduce a ring: 2 (n-1) messages of bytes/n one after the other, so 2 (n-1)/n bytes/bandwidth + 2 (n-1) latency
           (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009). Several
           nodes reduce in steps: reduce-scatter within each node, a ring of nodes for each of its processes, which
           share the node's network, all-gather within each node. NCCL may do better, with trees or in the switch.
jitter     synchronous training waits for the slowest process: the mean of the largest of n normal times is
           mean + deviation z(n), with z(n) the normal quantile of (n - 0.375) / (n + 0.25) (Blom, "Statistical
           estimates and transformed beta-variables", 1958). The processes are taken to be independent.
input      the images of a node's processes, at the rate that the node's loader has by itself. It runs beside the
           network, so that the slower of the two counts.

The model ignores kernels that use less of a GPU at smaller shares, clocks that fall with heat and power, other jobs
on the network, BatchNorm statistics and checkpoints. It is therefore an upper bound on the speed, and shows which part
will matter.
"""

import dataclasses
import math
import statistics
from dataclasses import dataclass

from distrain.messages import MEBIBYTE

BUCKET_BYTES = 25 * MEBIBYTE  # DistributedDataParallel's bucket_cap_mb
_Z = statistics.NormalDist()


@dataclass(frozen=True)
class Link:
    """A link between processes, in one direction: bytes per second, and latency per message."""

    bandwidth: float
    latency_s: float


# Of one GPU to the others of its node. NVLink: half of what NVIDIA states as total, both ways, for an A100 (600 GB/s)
# and an H100 (900 GB/s), https://www.nvidia.com/en-us/data-center/nvlink/; PCIe x16: PCI-SIG's 16 and 32 GT/s.
# Latencies are what rings of NCCL take for each message within a node and between nodes, by order of magnitude.
LINKS = {
    "nvlink3": Link(300e9, 3e-6),
    "nvlink4": Link(450e9, 3e-6),
    "pcie4": Link(32e9, 5e-6),
    "pcie5": Link(64e9, 5e-6),
}
# Of one node to the others. InfiniBand: 200 Gb/s (HDR) and 400 Gb/s (NDR) a port, https://www.infinibandta.org/; a DGX
# H100 has eight NDR ports, one for each GPU, https://docs.nvidia.com/dgx/dgxh100-user-guide/.
NETWORKS = {
    "10gbe": Link(1.25e9, 30e-6),
    "25gbe": Link(3.125e9, 30e-6),
    "100gbe": Link(12.5e9, 20e-6),
    "hdr": Link(25e9, 5e-6),
    "ndr": Link(50e9, 5e-6),
    "8xndr": Link(400e9, 5e-6),
}


@dataclass(frozen=True)
class Cost:
    """The measured cost of a process's work, for a step with a share of `images` images."""

    image_s: float  # forward and backward, for each image
    backward_share: float  # of image_s
    update_s: float
    gradient_bytes: int
    deviation_s: float = 0.0  # of a step of `images` images
    images: int = 1
    overlap: float = 1.0  # of the backward pass that can hide a reduction; 0 where both need the same processors


@dataclass(frozen=True)
class Machines:
    """Identical nodes; a link that is None is unknown and assumed to cost nothing."""

    per_node: int
    inside: Link | None
    between: Link | None
    input_images_per_s: float | None = None  # of a node's loaders, all together


@dataclass(frozen=True)
class Prediction:
    """A step on `processes` processes, in seconds."""

    processes: int
    batch_size: int
    compute_s: float  # update included
    reduction_s: float  # all of it
    exposed_s: float
    jitter_s: float
    input_s: float
    efficiency: float  # the share of `processes` times the images per second of one

    @property
    def step_s(self) -> float:
        """The whole step."""
        return max(self.compute_s + self.jitter_s + self.exposed_s, self.input_s)

    @property
    def images_per_s(self) -> float:
        """The speed of all processes together."""
        return self.batch_size / self.step_s

    @property
    def bottleneck(self) -> str:
        """The largest part of the step."""
        if self.input_s >= self.compute_s + self.jitter_s + self.exposed_s:
            return "input: the loaders of a node are slower than its network's passes"
        if self.exposed_s > self.compute_s:
            return "communication: the reduction that the backward pass does not hide"
        if self.jitter_s > max(self.exposed_s, 0.1 * self.compute_s):
            return "stragglers: all wait for the slowest process"
        return "compute: forward and backward passes"


def ring_s(num_bytes: float, processes: int, link: Link) -> float:
    """Return the seconds of an all-reduce in one ring."""
    messages = 2 * (processes - 1)
    return messages / processes * num_bytes / link.bandwidth + messages * link.latency_s


def all_reduce_s(num_bytes: float, processes: int, machines: Machines) -> float:
    """Return the seconds of an all-reduce, in steps where there are several nodes."""
    local = min(processes, machines.per_node)
    nodes = -(-processes // machines.per_node)
    inside_s = 0.0 if machines.inside is None else ring_s(num_bytes, local, machines.inside)
    if nodes == 1 or machines.between is None:
        return inside_s
    return inside_s + ring_s(
        num_bytes, nodes, machines.between
    )  # each ring has 1/local of the bytes and of the network


def predict(cost: Cost, machines: Machines, *, processes: int, batch_size: int, is_weak: bool = False) -> Prediction:
    """Predict a step of `batch_size` images over all processes, each of which has an equal share.

    The efficiency is against one process that has the whole batch; `is_weak`: against one that has a single share.
    """
    share = batch_size / processes
    alone = _predict(cost, machines, 1, share if is_weak else batch_size)
    many = _predict(cost, machines, processes, share)
    return dataclasses.replace(many, efficiency=many.images_per_s / alone.images_per_s / processes)


def assumptions(cost: Cost, machines: Machines) -> list[str]:
    """Return the assumptions of a prediction, one sentence each."""
    found = [
        f"a process takes {cost.image_s * 1e3:.3f} ms for each image and {cost.update_s * 1e3:.3f} ms once per step, "
        "whatever its share of the batch",
        f"{cost.gradient_bytes / MEBIBYTE:.1f} MiB of gradients are reduced in a ring, of which {cost.overlap:.0%} of "
        f"the backward pass ({cost.backward_share:.0%} of an image's time) hides all but the last bucket",
        _words_for(machines.inside, "within a node"),
        _words_for(machines.between, "between nodes"),
        f"a step's time deviates by {cost.deviation_s * 1e3:.3f} ms, independently in each process, and the slowest "
        "one counts",
    ]
    if machines.input_images_per_s is not None:
        found.append(f"the loaders of a node of {machines.per_node} give {machines.input_images_per_s:,.0f} images/s")
    return found


def largest_of(count: int) -> float:
    """Return the mean of the largest of `count` standard normal values, by Blom's approximation; 0 for one."""
    return _Z.inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def fit_link(times: list[tuple[int, float, float, float]]) -> Link:
    """Return the link by measured (processes, bytes, seconds, seconds of one number): means over the measurements.

    A ring's latency is that of one number over its 2 (n-1) messages.
    """
    bandwidths, latencies = [], []
    for processes, num_bytes, seconds, least_s in times:
        messages = 2 * (processes - 1)
        latencies.append(least_s / messages)
        bandwidths.append(messages / processes * num_bytes / max(seconds - least_s, 1e-9))
    return Link(math.fsum(bandwidths) / len(bandwidths), math.fsum(latencies) / len(latencies))


def _predict(cost: Cost, machines: Machines, processes: int, share: float) -> Prediction:
    passes_s = cost.image_s * share
    reduction_s = all_reduce_s(cost.gradient_bytes, processes, machines)
    hidden_s = cost.overlap * cost.backward_share * passes_s
    last_s = all_reduce_s(min(BUCKET_BYTES, cost.gradient_bytes), processes, machines)
    local = min(processes, machines.per_node)
    rate = machines.input_images_per_s
    return Prediction(
        processes=processes,
        batch_size=round(share * processes),
        compute_s=passes_s + cost.update_s,
        reduction_s=reduction_s,
        exposed_s=max(reduction_s - hidden_s, last_s),
        # Of a share that is larger or smaller the deviation is as much larger or smaller as its time.
        jitter_s=cost.deviation_s * share / cost.images * largest_of(processes),
        input_s=0.0 if rate is None else share * local / rate,
        efficiency=1.0,
    )


def _words_for(link: Link | None, where: str) -> str:
    if link is None:
        return f"nothing is known of the link {where}: it is taken to cost nothing"
    return f"{where} a link has {link.bandwidth / 1e9:.1f} GB/s each way and {link.latency_s * 1e6:.0f} us a message"
