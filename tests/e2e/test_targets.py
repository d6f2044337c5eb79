"""Several labels a sample, and numbers to predict: trained, evaluated and predicted from a file of arrays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distrain.config import Data
from distrain.data.sources.registry import open_sources
from tests.cli_runner import distrain, fit, status


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    """The digits, and of each whether it is even, above 4, and prime."""
    digits = open_sources(Data(source="digits", batch_size=1))
    found = {}
    for split, source in digits.items():
        numbers = source.targets.numpy()
        found[f"{split}_images"] = np.stack([source.read(index)[0].numpy() for index in range(len(source))])
        found[f"{split}_labels"] = np.stack(
            [numbers % 2 == 0, numbers > 4, np.isin(numbers, [2, 3, 5, 7])], axis=1
        ).astype(np.float32)
        found[f"{split}_values"] = numbers[:, None].astype(np.float32)
    Image.fromarray(found["val_images"][0, 0]).save(tmp_path / "digit.png")
    return found


@pytest.mark.parametrize(
    ("target", "loss", "metric", "is_good"),
    [
        ("labels", "bce", "f1", lambda f1: f1 > 0.9),
        pytest.param("values", "mse", "mae", lambda mae: mae < 1.0, marks=pytest.mark.slow),
    ],
)
def test_other_targets_than_classes_are_learnt(
    tmp_path: Path, arrays: dict[str, np.ndarray], target: str, loss: str, metric: str, is_good: object
) -> None:
    splits: dict[str, Any] = {f"{split}_labels": arrays[f"{split}_{target}"] for split in ("train", "val")}
    images: dict[str, Any] = {f"{split}_images": arrays[f"{split}_images"] for split in ("train", "val")}
    np.savez(tmp_path / "digits.npz", **splits, **images)
    changes = [
        "data.source=tensors",
        f"data.target={target}",
        f"loss={{name: {loss}}}",
        "optimizer={name: adamw, lr: 0.003}",
        "train.epochs=6",
    ]
    fit(
        "digits",
        f"--data={tmp_path / 'digits.npz'}",
        *(f"--set={change}" for change in changes),
        "--run=run",
        cwd=tmp_path,
    )
    best = status(tmp_path / "run")["best"]
    assert callable(is_good)
    assert is_good(best[f"val/{metric}"]), best
    examined = json.loads(distrain("eval", "run", "--json", "--no-pictures", cwd=tmp_path).out)
    assert examined["metrics"][f"val/{metric}"] == best[f"val/{metric}"]
    assert examined["mistakes"][0]["badness"] > 0
    done = distrain("predict", "run", "digit.png", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    print(done.out)
