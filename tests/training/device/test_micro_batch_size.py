"""The largest micro-batch within the memory's limit is found, and the search leaves nothing behind."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from distrain.config import Recipe, load_recipe
from distrain.data.transforms.pipeline import Normalize
from distrain.distributed.world import World
from distrain.errors import RecipeError
from distrain.messages import MEBIBYTE
from distrain.models.registry import build_model
from distrain.runs.directory import RunDirectory
from distrain.training.device.batch_transforms import BatchTransform
from distrain.training.device.micro_batch_size import (
    find_micro_batch_size,
    resolve_micro_batch_size,
    try_micro_batch_sizes,
    usable_bytes,
)
from distrain.training.losses import build_loss
from distrain.training.tasks.protocol import TaskLosses
from tests.processes import run_ranks

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("largest", "limit", "expected"),
    [
        (64, 10_000, 64),
        (64, 420, 32),
        (64, 419, 16),  # a pass of n samples takes 100 + 10 n
        (90, 560, 45),
        (90, 400, 30),
        (127, 1_000, 0),  # a prime: all or nothing
        (127, 1_370, 127),
        (64, 110, 0),
        (1, 110, 1),
    ],
)
@pytest.mark.parametrize("is_cautious", [True, False])
def test_found_size_is_the_largest_divisor_within_the_limit(
    largest: int, limit: int, expected: int, is_cautious: bool
) -> None:
    found = find_micro_batch_size(
        lambda size: 100 + 10 * size, largest=largest, limit_bytes=limit, is_cautious=is_cautious
    )
    assert found == expected


def test_sizes_grow_and_a_cautious_search_tries_none_beyond_the_limit() -> None:
    for is_cautious, expected in ((True, [2, 4, 7, 8, 14, 16]), (False, [2, 4, 7, 8, 14, 16, 28])):
        tried: list[int] = []

        def trial(size: int, tried: list[int] = tried) -> int:
            tried.append(size)
            return 100 + 10 * size

        assert find_micro_batch_size(trial, largest=56, limit_bytes=260, is_cautious=is_cautious) == 14
        assert tried == expected


def test_where_memory_ends_the_largest_before_it_is_taken() -> None:
    assert find_micro_batch_size(lambda n: n if n <= 8 else None, largest=64, limit_bytes=999, is_cautious=False) == 8


def losses_of(recipe: Recipe) -> TaskLosses:
    loss = build_loss(recipe.loss, num_classes=10, target="class", device=ALONE.device)
    return lambda model, batch: {"loss": loss(model(batch[0]), batch[1])}


def test_real_passes_obey_the_limit_and_leave_nothing_behind() -> None:
    recipe = load_recipe("cifar10", overrides=["optimizer={name: adamw, lr: 0.1}", "train.ema_decay=0.9"])
    model = build_model(recipe.model, num_classes=10, in_channels=3)
    before = copy.deepcopy(model.state_dict())
    normalize = Normalize(recipe.augment, num_channels=3, device=ALONE.device)
    prepare = BatchTransform(recipe, normalize, steps_per_epoch=10, num_classes=10)
    batch = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
    generator = torch.get_rng_state()

    def search(limit_bytes: int) -> int:
        return try_micro_batch_sizes(
            recipe,
            model,
            batch,
            largest=512,
            limit_bytes=limit_bytes,
            prepare=prepare,
            losses=losses_of(recipe),
            world=ALONE,
        )

    some = search(100 * MEBIBYTE)  # a sample's activations are about 1.5 MiB
    assert 2 <= some <= 128
    assert search(1) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


class Limited(nn.Module):
    """A network that fails with a message on more samples than `most`, as a GPU's libraries do."""

    def __init__(self, most: int, message: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 10)
        self.most, self.message = most, message

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise RuntimeError(self.message)
        logits: torch.Tensor = self.layer(images.flatten(1))
        return logits


def search_with(model: nn.Module) -> int:
    recipe = load_recipe("cifar10", overrides=["augment.train=[]"])
    normalize = Normalize(recipe.augment, num_channels=3, device=ALONE.device)
    return try_micro_batch_sizes(
        recipe,
        model,
        (torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)),
        largest=16,
        limit_bytes=2**60,
        prepare=BatchTransform(recipe, normalize, steps_per_epoch=10, num_classes=10),
        losses=losses_of(recipe),
        world=ALONE,
    )


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_libraries_that_run_out_of_memory_end_the_search_and_not_the_run(message: str) -> None:
    assert search_with(Limited(5, message)) == 4


def test_network_that_cannot_be_computed_at_any_size_is_not_taken_for_a_large_one() -> None:
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        search_with(Limited(0, "GET was unable to find an engine to execute this computation"))


def test_room_is_left_on_a_small_gpu() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert usable_bytes(80 * 2**30, gpu) == 72 * 2**30
    assert usable_bytes(8 * 2**30, gpu) == 7 * 2**30
    assert usable_bytes(2**29, gpu) == 0
    assert usable_bytes(10, cpu) == 9


def _settle(world: World, folder: str) -> None:
    run = RunDirectory(Path(folder))
    found = resolve_micro_batch_size(run, world, largest=64, find=lambda: 32 >> world.rank)
    assert found == 16
    world.barrier()
    assert resolve_micro_batch_size(run, world, largest=64, find=_fail) == 16
    assert resolve_micro_batch_size(run, world, largest=40, find=lambda: 20) == 20


def _fail() -> int:
    raise AssertionError("it is searched again")


def test_ranks_take_the_smallest_of_theirs_and_a_resume_takes_it_again(tmp_path: Path) -> None:
    run_ranks(_settle, tmp_path, 2, str(tmp_path))
    assert RunDirectory(tmp_path).read_micro_batch_size() == 20


def test_nothing_that_fits_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not fit into the memory that is left"):
        resolve_micro_batch_size(RunDirectory(tmp_path), ALONE, largest=64, find=lambda: 0)
    assert RunDirectory(tmp_path).read_micro_batch_size() is None
