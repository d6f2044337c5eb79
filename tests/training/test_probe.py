"""A first pass says what does not go together, and leaves the network as it was."""

import random
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distrain.config import Model, Recipe, load_recipe
from distrain.config.batching import solve_batching
from distrain.data.loading.epoch_order import uniform_order
from distrain.data.loading.sampler import TrainSampler
from distrain.errors import ModelError
from distrain.models.registry import build_model
from distrain.tensors.preserve_state import preserve_state
from distrain.training.own_code import refusing
from distrain.training.probe import check_outputs, check_single_sample
from distrain.training.single_samples import SingleSample, find_in_evaluation, find_in_training

IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def test_passes_leave_modes_statistics_and_random_numbers_as_they_were() -> None:
    inner = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(4).eval())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), inner)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(5)
    with preserve_state(net):
        net.train()(IMAGES)
        assert not torch.equal(net.state_dict()["2.1.running_mean"], before["2.1.running_mean"])
    with pytest.raises(RuntimeError), preserve_state(net):
        net.eval()(IMAGES[:, :1])
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert [module.training for module in (net, net[0], inner, inner[1])] == [True, True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "alexnet",
            r"model\.name=alexnet does not accept images of 3x40x40 pixels \(Given input size.*; make them what",
        ),
        ("vit_b_32", r"model\.name=vit_b_32 does not accept images of 3x40x40 pixels \(Wrong image height"),
        ("lenet", r"model\.name=lenet needs images of 32x32 pixels, but these have 40x40"),
    ],
)
def test_size_that_a_network_does_not_take_is_one_sentence(name: str, words: str) -> None:
    net = build_model(Model(name=name, weights=None), num_classes=5, in_channels=3)
    with pytest.raises(ModelError, match=words):
        check_outputs(net, IMAGES, name=name, num_outputs=5)


def test_size_that_a_network_of_torch_modules_does_not_take_is_one_sentence() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(65, 5))  # the user's, and no line of theirs runs in a pass
    with pytest.raises(
        ModelError,
        match=r"model\.name=mine:net does not accept images of 3x40x40 pixels \(mat1 and mat2 .*; make them what it "
        r"accepts in augment\.train and augment\.eval, or change the network",
    ):
        check_outputs(net, IMAGES, name="mine:net", num_outputs=5)


@pytest.mark.parametrize(
    "text", ["DefaultCPUAllocator: can't allocate memory", "CUDA error: an illegal memory access was encountered"]
)
def test_error_of_the_machine_is_not_blamed_on_the_images(text: str) -> None:
    with pytest.raises(RuntimeError, match=text), refusing(IMAGES, name="alexnet"):
        raise RuntimeError(text)


class Giving(nn.Module):
    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: torch.Tensor) -> Any:
        if isinstance(self.outputs, Exception):
            raise self.outputs
        return self.outputs


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (
            {"logits": torch.zeros(2, 5)},
            r"mine:net gives a dict at \S+test_probe.py:\d+, in forward; return a floating-point tensor \[samples, 5\]",
        ),
        (torch.zeros(2), r"mine:net gives float32 \[2\] for 2 samples at "),
        (torch.zeros(2, 6), r"gives float32 \[2, 6\] for 2 samples"),
        (torch.zeros(2, 5, dtype=torch.int64), r"gives int64 \[2, 5\] for 2 samples"),
    ],
)
def test_outputs_that_fit_no_classes_are_one_sentence(outputs: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_outputs(Giving(outputs), IMAGES, name="mine:net", num_outputs=5)


class Training(nn.Module):
    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: torch.Tensor) -> Any:
        return self.outputs if self.training else torch.zeros(len(images), 5)


def test_outputs_without_a_gradient_are_a_fault_of_a_network_that_trains() -> None:
    net = Training(torch.zeros(2, 5))
    check_outputs(net, IMAGES, name="mine:net", num_outputs=5, is_training=True)  # it has no weights
    net.weight = nn.Parameter(torch.ones(()))
    check_outputs(net, IMAGES, name="mine:net", num_outputs=5)
    with pytest.raises(ModelError, match=r"mine:net gives outputs without a gradient in training at \S+, in forward; "):
        check_outputs(net, IMAGES, name="mine:net", num_outputs=5, is_training=True)


def test_outputs_in_training_alone_are_one_sentence() -> None:
    logits = torch.zeros(2, 5)
    net = Training((logits, logits))
    check_outputs(net, IMAGES, name="mine:net", num_outputs=5)
    with pytest.raises(
        ModelError, match=r"mine:net gives a tuple in training at \S+, in forward; return a floating-point tensor"
    ):
        check_outputs(net, IMAGES, name="mine:net", num_outputs=5, is_training=True)
    assert net.training


class Counting(nn.Module):
    """Sets its weights by its first batch, counts its calls in every way, and draws from every generator."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.has_begun, self.calls = False, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen = self.seen + len(images)
        if self.training and not self.has_begun:
            self.has_begun = True
            self.scale.data = 1 / images.std(dim=(0, 2, 3)) + random.random() + np.random.rand()
            self.last = images
        return images.mean(dim=(2, 3)) * self.scale


def test_passes_leave_weights_counters_and_all_generators_as_they_were() -> None:
    net = Counting()
    seen, state = net.seen, (random.getstate(), str(np.random.get_state()))
    check_outputs(net, IMAGES, name="mine:net", num_outputs=3, is_training=True)
    assert net.seen is seen
    assert net.seen == 0
    assert (net.calls, net.has_begun, hasattr(net, "last")) == (0, False, False)
    assert torch.equal(net.scale, torch.ones(3))
    assert (random.getstate(), str(np.random.get_state())) == state


def recipe(**changes: Any) -> Recipe:
    return load_recipe("digits", overrides=[f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


def order(config: Recipe, num_samples: int, world_size: int = 1) -> TrainSampler:
    train = config.train
    return TrainSampler(
        num_samples=num_samples,
        sampler=partial(uniform_order, num_samples=num_samples, seed=0),
        batching=solve_batching(config.data.batch_size, train.micro_batch_size, world_size, is_exact=train.exact),
        drop_last=config.data.drop_last,
        rank=0,
    )


@pytest.mark.parametrize(
    ("changes", "num_samples", "world_size", "num_devices", "words"),
    [
        ({"data__batch_size": 19}, 77, 1, 1, ("1 of 77", "data.drop_last=true", "data.batch_size=20")),
        ({"data__batch_size": 16, "train__micro_batch_size": 2}, 35, 1, 1, ("3 of 35", "drop_last")),
        ({"data__batch_size": 32}, 33, 2, 1, ("1 of 33", "drop_last", "batch_size=34")),
        ({"data__batch_size": 32}, 1, 2, 1, ("1 of 1", "add training samples")),
        ({"data__batch_size": 32, "train__exact": "true", "train__micro_batch_size": 8}, 65, 3, 1, ("1 of 65",)),
        ({"data__batch_size": 4}, 40, 4, 1, ("data.batch_size=4 on 4 devices", "data.batch_size=8")),
        ({"data__batch_size": 4}, 40, 1, 4, ("data.batch_size=4 on 4 devices", "data.batch_size=8")),
        ({"data__batch_size": 8, "train__micro_batch_size": 1}, 80, 1, 1, ("raise train.micro_batch_size",)),
    ],
)
def test_training_pass_of_one_sample_is_found_and_the_remedies_avoid_it(
    changes: dict[str, Any], num_samples: int, world_size: int, num_devices: int, words: tuple[str, ...]
) -> None:
    config = recipe(**changes)
    lone = find_in_training(config, order(config, num_samples, world_size), num_devices=num_devices)
    assert lone is not None
    assert all(word in f"{lone.where}; {lone.remedy}" for word in words), lone
    for key, value in re.findall(r"--set ([\w.]+)=(\w+)", lone.remedy):
        other = recipe(**{**changes, key.replace(".", "__"): value})
        assert find_in_training(other, order(other, num_samples, world_size), num_devices=num_devices) is None


def test_batches_of_two_and_more_are_no_fault() -> None:
    for changes, num_samples in (
        ({"data__batch_size": 19}, 76),
        ({"data__batch_size": 19}, 78),
        ({"data__batch_size": 19, "data__drop_last": "true"}, 77),
        ({"data__batch_size": 16, "train__micro_batch_size": 4}, 77),
    ):
        config = recipe(**changes)
        assert find_in_training(config, order(config, num_samples), num_devices=1) is None


def test_evaluation_pass_of_one_sample_is_found() -> None:
    lone = find_in_evaluation(recipe(eval__batch_size=10), num_samples=31)
    assert lone is not None
    assert "--set eval.batch_size=9" in lone.remedy
    assert find_in_evaluation(recipe(eval__batch_size=9), num_samples=31) is None
    assert find_in_evaluation(recipe(eval__batch_size=1), num_samples=30) is not None


@pytest.mark.parametrize(
    ("net", "is_training", "words"),
    [
        (nn.BatchNorm1d(5), True, r"in training \(Expected more than 1 value per channel.*, and HERE; THIS"),
        (nn.BatchNorm1d(5, track_running_stats=False), False, r"of a single sample \(Expected more than 1 value"),
        (nn.Flatten(0), True, r"\(it gives float32 \[5\] for 1 sample\)"),
    ],
)
def test_network_that_refuses_a_single_sample_is_told_where_it_comes(
    net: nn.Module, is_training: bool, words: str
) -> None:
    def check(net: nn.Module) -> None:
        lone = SingleSample("HERE", "THIS")
        check_single_sample(net, torch.ones(1, 5), name="x:y", num_outputs=5, is_training=is_training, single=lone)

    with pytest.raises(ModelError, match=words):
        check(net)
    check(nn.LayerNorm(5))


def test_fitting_outputs_pass_and_an_error_of_the_users_own_network_is_left_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_outputs(Giving(torch.zeros(2, 5, dtype=dtype)), IMAGES, name="mine:net", num_outputs=5)
    with pytest.raises(KeyError, match="theirs"):
        check_outputs(Giving(KeyError("theirs")), IMAGES, name="mine:net", num_outputs=5)
