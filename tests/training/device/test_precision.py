"""Mixed precision trains with float32 weights, float16 overflow skips an update, and clipping bounds the gradient."""

import json
from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distrain.errors import RecipeError
from distrain.training.device.precision import Precision
from distrain.training.optim.clipping import Clip, clip_gradients

CPU = torch.device("cpu")
Name = Literal["fp32", "bf16", "fp16"]


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.5, fused=True)


def clipping(clip_norm: float | None) -> Clip | None:
    return None if clip_norm is None else partial(clip_gradients, clip_norm=clip_norm)


def take_steps(
    precision: Precision,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    clip_norm: float | None = None,
    loss_factor: float = 1.0,
) -> list[float]:
    """Learn the sign of the first of eight numbers."""
    images = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    targets = (images[:, 0] > 0).long()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with precision.autocast():
            loss = F.cross_entropy(model(images), targets) * loss_factor
        precision.backward(loss)
        precision.step(optimizer, list(model.parameters()), clip=clipping(clip_norm))
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_forward_pass_has_the_precision_and_the_weights_stay_float32(name: Name, dtype: torch.dtype) -> None:
    model, optimizer = make()
    precision = Precision(name, CPU)
    with precision.autocast():
        assert model(torch.zeros(1, 8)).dtype == dtype
    losses = take_steps(precision, model, optimizer, steps=20)
    assert losses[-1] < losses[0] / 2
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_loss_scale_comes_back_from_json_as_it_was() -> None:
    model, optimizer = make()
    precision = Precision("fp16", CPU)
    take_steps(precision, model, optimizer, steps=3)
    take_steps(precision, model, optimizer, steps=1, loss_factor=float("inf"))
    take_steps(precision, model, optimizer, steps=2)
    state = json.loads(json.dumps(precision.state()))
    assert state["scale"] == 2.0**15  # halved once by the overflow
    assert state["_growth_tracker"] == 2
    other = Precision("fp16", CPU)
    other.load_state(state)
    assert other.state() == precision.state()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_float16_overflow_skips_the_update(clip_norm: float | None) -> None:
    model, optimizer = make()
    before = [p.detach().clone() for p in model.parameters()]
    precision = Precision("fp16", CPU)
    take_steps(precision, model, optimizer, steps=1, clip_norm=clip_norm, loss_factor=float("inf"))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    take_steps(precision, model, optimizer, steps=1, clip_norm=clip_norm)
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_precisions_without_a_loss_scale_have_no_state(name: Name) -> None:
    precision = Precision(name, CPU)
    assert precision.state() == {}
    precision.load_state({})


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_clipping_bounds_the_length_of_an_update(name: Name) -> None:
    lengths = []
    for clip_norm in (None, 1e-2):
        model, optimizer = make()
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        take_steps(Precision(name, CPU), model, optimizer, steps=1, clip_norm=clip_norm)
        after = nn.utils.parameters_to_vector(model.parameters()).detach()
        lengths.append(float((after - before).norm()))
    unclipped, clipped = lengths
    assert unclipped > 0.05
    assert clipped == pytest.approx(0.5 * 1e-2, rel=1e-2)  # the learning rate times the bound


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_step_without_any_gradient_changes_nothing(name: Name, clip_norm: float | None) -> None:
    """As with `model.freeze_epochs={"*": 1}`: from the second epoch on no weight has one."""
    model, optimizer = make()
    precision = Precision(name, CPU)
    take_steps(precision, model, optimizer, steps=1, clip_norm=clip_norm)
    before, state = [p.detach().clone() for p in model.parameters()], precision.state()
    optimizer.zero_grad()
    assert precision.step(optimizer, list(model.parameters()), clip=clipping(clip_norm)) == []
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert precision.state() == state


@pytest.mark.parametrize(("clip_norm", "dtype"), [(0.1, torch.float32), (1e6, torch.float32), (0.1, torch.float64)])
def test_clipping_has_the_bits_of_torchs_own(clip_norm: float, dtype: torch.dtype) -> None:
    def clipped(clip: Callable[[list[nn.Parameter], float], object]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3).to(dtype))
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        model[0].bias = nn.Parameter(torch.zeros(7))  # it has no gradient
        clip(list(model.parameters()), clip_norm)
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    theirs, ours = clipped(nn.utils.clip_grad_norm_), clipped(clip_gradients)
    assert len(ours) == 3
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: including_emulation)
    with pytest.raises(RecipeError, match=r"Tesla T4 has 7\.5; use precision=fp16 or fp32"):
        Precision("bf16", torch.device("cuda", 0))
    Precision("bf16", torch.device("cpu"))


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_recorded_norm_is_that_of_the_gradient_before_clipping(name: Name, clip_norm: float | None) -> None:
    model, optimizer = make()
    precision = Precision(name, CPU)
    take_steps(precision, model, optimizer, steps=3, clip_norm=clip_norm)
    assert precision.pop_gradient_norm() is None  # no step was to be recorded
    images = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    optimizer.zero_grad()
    with precision.autocast():
        loss = F.cross_entropy(model(images), (images[:, 0] > 0).long())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])
    precision.backward(loss)
    precision.step(optimizer, list(model.parameters()), clip=clipping(clip_norm), is_recorded=True)
    assert precision.gradient_norm == pytest.approx(float(expected.norm()), rel=1e-3)
    assert float(expected.norm()) > 0.1
    assert precision.pop_gradient_norm() is not None
    assert precision.pop_gradient_norm() is None


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_recording_the_norm_changes_no_bit(name: Name, clip_norm: float | None) -> None:
    weights = []
    for is_recorded in (False, True):
        model, optimizer = make()
        precision = Precision(name, CPU)
        step = precision.step
        precision.step = partial(step, is_recorded=is_recorded)  # type: ignore[method-assign]
        take_steps(precision, model, optimizer, steps=5, clip_norm=clip_norm)
        weights.append((nn.utils.parameters_to_vector(model.parameters()), precision.state()))
    assert torch.equal(weights[0][0], weights[1][0])
    assert weights[0][1] == weights[1][1]


def test_step_without_any_gradient_has_no_norm() -> None:
    model, optimizer = make()
    precision = Precision("fp32", CPU)
    precision.step(optimizer, list(model.parameters()), clip=clipping(1.0), is_recorded=True)
    assert precision.pop_gradient_norm() is None
