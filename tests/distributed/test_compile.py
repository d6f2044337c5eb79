"""torch.compile makes training's regular passes quicker and changes nothing else: names, evaluation, odd batches."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from distrain.config import Model, load_recipe
from distrain.distributed.compile import cache_folder, check_compiler, compile_network
from distrain.distributed.world import World
from distrain.errors import LaunchError, UserError
from distrain.models.registry import build_model

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_rank=0, device=CPU)
SIZE = 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + torch.relu(self.norm(self.linear(features)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(6, 3))


def compiled(mode: str, net: nn.Module) -> None:
    recipe = load_recipe("digits", overrides=[f"compute.compile={mode}"])
    assert compile_network(recipe, net, ALONE, micro_batch_size=SIZE, num_micro_batches=1, processes=2) is not None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["regional", "whole"])
def test_compiled_network_trains_as_before_under_the_same_names(mode: str, tmp_path: Path) -> None:
    eager, net = network(), network()
    keys = list(net.state_dict())
    compiled(mode, net)
    assert cache_folder() == str(tmp_path)
    for size in (SIZE, SIZE - 1, SIZE):
        images = torch.randn(size, 6)
        outputs = [one(images) for one in (eager, net)]
        for one, out in zip((eager, net), outputs, strict=True):
            one.zero_grad()
            out.square().sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0])
        for ours, theirs in zip(net.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert list(net.state_dict()) == keys
    assert any(tmp_path.rglob("*.so")), "nothing was compiled"


def test_evaluation_and_smaller_micro_batches_have_the_bits_of_the_plain_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pass runs compiled")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    eager, net = network(), network()
    compiled("regional", net)
    odd, images = torch.randn(SIZE - 1, 6), torch.randn(SIZE, 6)
    assert torch.equal(net(odd), eager(odd))
    assert torch.equal(net.eval()(images), eager.eval()(images))
    with pytest.raises(AssertionError):
        net.train()(images)


@pytest.mark.parametrize(
    ("overrides", "world", "num_micro_batches", "words"),
    [
        (["compute.compile=regional"], ALONE, 1, "no repeated blocks"),
        (
            ["compute={compile: whole, cuda_graphs: true}"],
            ALONE,
            1,
            "compute.cuda_graphs needs one process with a GPU .* trains on the CPU",
        ),
        (
            ["compute={compile: whole, cuda_graphs: true}"],
            World(rank=0, size=1, local_rank=0, device=torch.device("cuda", 0)),
            3,
            "has 3 per step",
        ),
        (
            ["compute.compile=whole"],
            World(rank=0, size=1, local_rank=0, device=torch.device("cuda", 0), num_devices=2),
            1,
            "one process per GPU, and one has 2",
        ),
        (
            ["compute.compile=whole", "parallel.strategy=fsdp"],
            World(rank=0, size=2, local_rank=0, device=CPU),
            1,
            "use regional",
        ),
    ],
)
def test_what_cannot_be_compiled_is_said(
    overrides: list[str], world: World, num_micro_batches: int, words: str
) -> None:
    recipe = load_recipe("digits", overrides=overrides)
    net = build_model(recipe.model, num_classes=10, in_channels=1)
    with pytest.raises(UserError, match=words):
        compile_network(recipe, net, world, micro_batch_size=SIZE, num_micro_batches=num_micro_batches, processes=1)


@pytest.mark.parametrize(("device", "package"), [("cpu", r"g\+\+"), ("cuda", "gcc")])
def test_machine_without_a_compiler_is_told_what_to_install(
    device: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(LaunchError, match=rf"apt-get install {package}.*compute\.compile=none"):
        check_compiler(torch.device(device), key="compute.compile=whole")


@pytest.mark.gpu
@pytest.mark.parametrize("change", ["cuda_graphs: false", "cuda_graphs: true"])
def test_compiled_steps_on_a_gpu_give_the_gradients_of_plain_ones(change: str) -> None:
    device = torch.device("cuda", 0)
    world = World(rank=0, size=1, local_rank=0, device=device)
    recipe = load_recipe("digits", overrides=[f"compute={{compile: whole, {change}}}", "train.deterministic=false"])
    eager = build_model(Model(name="cifar-fast"), num_classes=10, in_channels=3).to(device)
    net = copy.deepcopy(eager)
    compile_network(recipe, net, world, micro_batch_size=SIZE, num_micro_batches=1, processes=1)
    for seed in range(6):  # graphs are recorded in the second or third pass, and replayed from then on
        torch.manual_seed(seed)
        images = torch.randn(SIZE, 3, 32, 32, device=device)
        for one in (eager, net):
            for parameter in one.parameters():
                parameter.grad = None
            one(images).square().sum().backward()
        for ours, theirs in zip(net.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-3)
