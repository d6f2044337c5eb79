"""Takes one network from a file of 1,000 classes to a bundle of three: `python -m tests.models.family '{...}'`.

All is done in one process, since it takes seconds to load timm: the commands are called as the command line calls them.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from distrain.checkpoint.load import read_model
from distrain.cli import main as command
from distrain.config import Model
from distrain.config.parameter_patterns import prefixes
from distrain.export import load
from distrain.models.registry import build_model, head_paths

CLASSES = 3
WEIGHTS, DATA, RUN, RESUMED, BUNDLE = (Path(n) for n in ("thousand.pth", "data.npz", "run", "resumed", "bundle"))


def go(name: str, size: int, arguments: dict[str, object]) -> None:
    """Load the weights, train a step, save, resume, export; raises where any result is wrong."""
    torch.manual_seed(0)
    config = Model(name=name, arguments=arguments)
    donor = build_model(config, num_classes=1000, in_channels=3).state_dict()
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in donor.items()}, "epoch": 3}, WEIGHTS)
    check_loaded(config.model_copy(update={"weights": str(WEIGHTS)}), donor)
    write_images(size)
    options = ["--device=cpu", "--set=data.batch_size=4", "--set=train.epochs=2", f"--set=model.weights={WEIGHTS}"]
    run("fit", "recipe.yaml", f"--run={RUN}", *options)
    end_after_first_step()
    run("fit", f"--run={RESUMED}", "--device=cpu")
    whole, resumed = (read_model(folder / "checkpoints/step-00000002") for folder in (RUN, RESUMED))
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items()), "other bits after a resume"
    run("export", str(RUN), f"--out={BUNDLE}")
    bundle = load(BUNDLE)
    probabilities = bundle.predict([torch.zeros(3, size, size, dtype=torch.uint8)] * 2)
    assert probabilities.shape == (2, CLASSES)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))


def check_loaded(config: Model, donor: dict[str, torch.Tensor]) -> None:
    """Compare a network of three classes with the one whose weights it starts from."""
    model = build_model(config, num_classes=CLASSES, in_channels=3)
    heads = head_paths(config, model)
    changed = set()
    for key, tensor in model.state_dict().items():
        if tensor.shape != donor[key].shape:
            changed |= {head for head in heads if head in prefixes(key)}
            assert tensor.shape[0] == CLASSES, key
            assert any(head in prefixes(key) for head in heads), f"{key} is not in a head: {heads}"
        else:
            assert torch.equal(tensor, donor[key]), f"{key} was not loaded"
    assert changed == set(heads), f"heads {heads}, but {changed} depend on the classes"


def write_images(size: int) -> None:
    """Write four images to train on, three to validate on, and the recipe."""
    images = np.random.default_rng(0).integers(0, 256, (7, 3, size, size), dtype=np.uint8)
    labels = np.arange(7) % CLASSES
    np.savez(DATA, train_images=images[:4], train_labels=labels[:4], val_images=images[4:], val_labels=labels[4:])
    name, arguments = json.loads(sys.argv[1])["name"], json.loads(sys.argv[1])["arguments"]
    recipe = {
        "name": "family",
        "data": {"source": "tensors", "path": str(DATA), "batch_size": 4},
        "model": {"name": name, "arguments": arguments},
        "optimizer": {"name": "sgd", "lr": 0.001},
        "train": {"epochs": 2},
        "log": {"tensorboard": False, "wandb": "disabled"},
    }
    Path("recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")


def end_after_first_step() -> None:
    """Create a run that was killed after the first of its two steps."""
    shutil.copytree(RUN, RESUMED)
    shutil.rmtree(RESUMED / "checkpoints/step-00000002")
    status = json.loads((RESUMED / "status.json").read_text(encoding="utf-8"))
    (RESUMED / "status.json").write_text(json.dumps({**status, "state": "running", "step": 1}), encoding="utf-8")


def run(*arguments: str) -> None:
    sys.argv = ["distrain", *arguments]
    try:
        command()
    except SystemExit as end:
        assert end.code == 0, f"distrain {' '.join(arguments)} ends with {end.code}"


if __name__ == "__main__":
    go(**json.loads(sys.argv[1]))
