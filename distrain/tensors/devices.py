"""Sets the GPU of a training process in its helper threads."""

import torch


def use_device(device: torch.device) -> None:
    """Make `device` the default of this thread; every thread that may use a GPU calls this first.

    The default of a new thread is GPU 0, where each process would create a context of about 500 MiB on a large GPU.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
