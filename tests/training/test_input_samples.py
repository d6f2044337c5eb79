"""The first training inputs are those that the network trains on, and no random number is drawn."""

import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from distrain.data.loading.loader import read_batches
from distrain.training.input_samples import take_input_samples
from tests.training.test_build import session_of

RANDOM = "augment.train=[{RandomCrop: {size: 8, padding: 2}}, {ColorJitter: {brightness: 0.5}}]"
NORMAL = "augment={mean: [0.3], std: [0.4]}"


@pytest.mark.parametrize(
    ("overrides", "first", "count"),
    [
        (["train.micro_batch_size=4"], 0, 4),
        ([NORMAL, RANDOM], 0, 8),
        ([RANDOM, "data.repeats=3"], 0, 8),
        (["augment.sizes=[[0, 12], [1, 8]]"], 0, 8),
        (["augment.mixup=0.4", "augment.cutmix=1.0"], 1, 7),
        (["augment.cutmix=1.0", "train.micro_batch_size=4"], 0, 4),
    ],
)
def test_samples_are_the_inputs_of_the_first_step(tmp_path: Path, overrides: list[str], first: int, count: int) -> None:
    session = session_of(tmp_path / "run", "train.micro_batch_size=16", *overrides)
    states = (torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate())
    samples = take_input_samples(session)
    assert torch.equal(states[0], torch.get_rng_state())
    assert str(states[1]) == str(np.random.get_state(legacy=False))
    assert states[2] == random.getstate()
    order = session.sampler.micro_batches([0])
    with closing(read_batches(session.train_reader, order, num_workers=0, device=session.world.device)) as batches:
        images, targets = session.prepare(*next(batches), step=0, index=0)
    shown = slice(first, first + count)
    assert torch.equal(samples.images, images[shown])
    assert samples.indices == session.sampler.samples(0)[shown].tolist()
    assert samples.names == [f"sample {index}" for index in samples.indices]
    if targets.ndim == 1:
        assert samples.targets == [str(number) for number in targets[shown].tolist()]
    else:
        assert all(target.startswith("mixed: ") or len(target) == 1 for target in samples.targets)
        assert any("mixed: " in target for target in samples.targets)


def test_normalising_is_inverted(tmp_path: Path) -> None:
    session = session_of(tmp_path / "run", NORMAL)
    assert torch.equal(take_input_samples(session).visible, session.first[0])
