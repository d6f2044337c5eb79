"""Gives a helper thread of a training process that process's own GPU."""

import torch


def use_device(device: torch.device) -> None:
    """Make `device` the one that this thread uses by default; every thread that may touch a GPU begins with it.

    A new thread has GPU 0. It would leave a context there, some 500 MiB on a large GPU, for each process of the node.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
