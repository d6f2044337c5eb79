"""Reports what a plan cannot know, before anything is measured."""

import os

from distrain.benchmark.scaling_model import Link
from distrain.config import Recipe
from distrain.config.profile import Profile
from distrain.messages import counted

WITHOUT_GPU = (
    "this machine has no GPU: the speed there, the memory of the passes, the largest micro-batch and the time to "
    "finish are not known; run `distrain plan` on a machine with one"
)


def find_unknown(
    recipe: Recipe,
    profile: Profile,
    *,
    device: str,
    nodes: int,
    per_node: int,
    link: Link | None,
    network: Link | None,
) -> list[str]:
    """Return, one sentence each, what a measurement with `profile` cannot show about `nodes` nodes with `device`s.

    `per_node` is the number of processes per node, `link` and `network` are the links within and between nodes.
    """
    found: list[str] = []
    measured = profile.world_size * profile.devices
    if device != profile.device:
        found.append(WITHOUT_GPU)
    elif nodes * per_node != measured:
        if (strategy := recipe.parallel.strategy) in {"dp", "fsdp"}:
            found.append(f"the scale model is of DistributedDataParallel, and not of parallel.strategy={strategy}")
        if link is None and measured == 1 and per_node > 1:
            found.append(
                "the link within a node is not known: give it with --link, or plan where there are two devices"
            )
        if network is None and nodes > 1:
            found.append("the network between the nodes is not known: give it with --network; the speed is one at best")
        cpus = len(os.sched_getaffinity(0))
        if device == "cpu" and per_node * profile.threads > cpus:
            found.append(
                f"{counted(per_node, 'process', 'processes')} with a thread count of {profile.threads} would share "
                f"{counted(cpus, 'CPU')} here: the speed is that of nodes with enough of them"
            )
    if recipe.augment.sizes is not None and device == profile.device:
        found.append("augment.sizes is measured at its first size; larger images take longer, and more memory")
    return found
