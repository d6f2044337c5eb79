"""Muon updates hidden matrices as torch's does, AdamW the rest, whatever the memory format; its state comes back."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

from distrain.checkpoint.optimizer_state import empty_optimizer_state, optimizer_tensors, restore_optimizer
from distrain.config import Optimizer
from distrain.errors import RecipeError
from distrain.training.optim.muon import MuonWithAdamW, hidden_matrices
from distrain.training.optim.optimizer import build_optimizer, set_learning_rate

CONFIG: dict[str, Any] = {"name": "muon", "lr": 0.02, "adamw_lr": 0.001, "weight_decay": 0.05}
HEADS = ["head"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.hidden = nn.Linear(16, 12, bias=False)
        self.table = nn.Embedding(4, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.depthwise(self.body(torch.relu(self.norm(self.stem(images)))))
        hidden = self.hidden(features.mean(dim=(2, 3)))
        return self.head(torch.relu(hidden) + self.table.weight[0])  # type: ignore[no-any-return]


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def learn(net: nn.Module, step: int) -> float:
    generator = torch.Generator().manual_seed(step)
    images, classes = torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 5
    net.zero_grad()
    loss = F.cross_entropy(net(images), classes)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def test_hidden_matrices_are_the_layers_between_the_first_one_and_the_head() -> None:
    assert hidden_matrices(make(), HEADS) == {"body.weight", "hidden.weight"}


def test_vision_transformer_has_the_matrices_of_its_blocks() -> None:
    net = VisionTransformer(
        image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=64, mlp_dim=32, num_classes=3
    )
    block = "encoder.layers.encoder_layer_0"
    assert hidden_matrices(net, ["heads.head"]) == {
        f"{block}.{name}.weight" for name in ("self_attention.out_proj", "mlp.0", "mlp.3")
    } | {f"{block}.self_attention.in_proj_weight"}


def test_losses_equal_those_of_torchs_two_optimizers_in_a_plain_loop() -> None:
    ours, theirs = make(), make()
    optimizer = build_optimizer(Optimizer.model_validate(CONFIG), ours, heads=HEADS)
    names = hidden_matrices(theirs, HEADS)
    flat = {w: nn.Parameter(w.detach().flatten(1)) for name, w in theirs.named_parameters() if name in names}
    muon = torch.optim.Muon(flat.values(), lr=0.02, weight_decay=0.05)
    others = [w for name, w in theirs.named_parameters() if name not in names]
    adamw = torch.optim.AdamW(others, lr=0.001, weight_decay=0.05, fused=True)
    for step in range(12):
        factor = 1 - step / 12
        assert learn(ours, step) == pytest.approx(learn(theirs, step), rel=1e-5)
        set_learning_rate(optimizer, 0.02 * factor)
        optimizer.step()
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = 0.02 * factor, 0.001 * factor
        for weight, matrix in flat.items():
            assert weight.grad is not None
            matrix.grad = weight.grad.flatten(1)
        muon.step()  # type: ignore[no-untyped-call]
        adamw.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_channels_last_trains_alike_and_keeps_its_format() -> None:
    one, other = make(), make().to(memory_format=torch.channels_last)
    optimizers = [build_optimizer(Optimizer.model_validate(CONFIG), net, heads=HEADS) for net in (one, other)]
    for step in range(3):
        for net, optimizer in zip((one, other), optimizers, strict=True):
            learn(net, step)
            optimizer.step()
    assert other.body.weight.is_contiguous(memory_format=torch.channels_last)
    moved = (one.body.weight - make().body.weight).norm()
    assert (one.body.weight - other.body.weight).norm() < 0.02 * moved  # Muon computes in bfloat16


def test_state_is_saved_in_the_shape_of_the_weights_and_comes_back_to_the_bit() -> None:
    whole = make()
    optimizer = build_optimizer(Optimizer.model_validate(CONFIG), whole, heads=HEADS)
    for step in range(2):
        learn(whole, step)
        optimizer.step()
    saved = {name: value.clone() for name, value in optimizer_tensors(whole.named_parameters(), optimizer).items()}
    assert saved["optimizer.body.weight.momentum_buffer"].shape == (16, 8, 3, 3)
    assert "optimizer.head.weight.exp_avg_sq" in saved
    assert not [name for name in saved if name.endswith(":json")]
    resumed = make()
    resumed.load_state_dict(whole.state_dict())
    again = build_optimizer(Optimizer.model_validate(CONFIG), resumed, heads=HEADS)
    described = {name: (value.shape, value.dtype) for name, value in saved.items()}
    state = empty_optimizer_state(resumed.named_parameters(), again, described)
    for name, value in saved.items():
        state[name].copy_(value)
    restore_optimizer(resumed.named_parameters(), again, state)
    for net, rule in ((whole, optimizer), (resumed, again)):
        learn(net, 2)
        rule.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_weights_without_a_gradient_stay() -> None:
    net = make()
    optimizer = build_optimizer(Optimizer.model_validate(CONFIG), net, heads=HEADS)
    before = net.body.weight.detach().clone()
    learn(net, 0)
    net.body.weight.grad = None
    optimizer.step()
    assert torch.equal(net.body.weight, before)
    assert isinstance(optimizer, MuonWithAdamW)


@pytest.mark.parametrize(
    ("net", "heads", "config", "sentence"),
    [
        (nn.Sequential(nn.Linear(3, 3)), ["0"], {}, "this network trains none; use adamw"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), [], {}, "name it with model.head_name"),
        (
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)),
            ["2"],
            {"arguments": {"adjust_lr_fn": "x"}},
            "with optimizer.arguments: Adjust learning rate function x is not supported",
        ),
    ],
)
def test_networks_and_arguments_that_do_not_fit_are_refused(
    net: nn.Module, heads: list[str], config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        build_optimizer(Optimizer.model_validate({**CONFIG, **config}), net, heads=heads)
    assert sentence in str(refusal.value)
