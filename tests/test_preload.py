"""What training imports is there at once, and no business of the garbage collector's."""

import subprocess
import sys

SCRIPT = """
import gc
import sys
from distrain.preload import preload

preload()
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
assert len(gc.get_objects()) < 10_000
before = set(sys.modules)
import torch
from torch import nn
from distrain.config import load_recipe

network = nn.Linear(2, 2)
torch.optim.Adam(network.parameters()).step()
from distrain.training import build, determinism, trainer
from torchvision.transforms import v2

v2.RandomCrop(8)
determinism.set_determinism(load_recipe("digits", overrides=["train.deterministic=true"]))
assert torch.are_deterministic_algorithms_enabled()
assert torch._inductor.config.deterministic  # what torch.compile makes is so as well
print(sorted(name for name in set(sys.modules) - before if name.startswith(("torch", "distrain"))))
"""


def test_nothing_of_torch_is_left_to_import_and_nothing_imported_is_collected() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert done.stderr == ""  # at its end, neither
