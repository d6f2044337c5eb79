"""A network is copied whatever its modules keep, or one sentence says why not."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from distrain.errors import ModelError
from distrain.models.copies import copy_network

IMAGES = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))


class Keeping(nn.Sequential):
    """A network that keeps computed tensors."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        self.kept = {"answers": [outputs]}
        return outputs


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_tensors_that_modules_have_computed_are_copied_without_their_history() -> None:
    model = Keeping(nn.utils.weight_norm(nn.Linear(3, 3)), nn.utils.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    prune.l1_unstructured(model[2], "weight", 0.3)  # type: ignore[no-untyped-call]
    model(IMAGES).sum().backward()
    copied = copy_network(model, name="mine:net")
    assert isinstance(copied, Keeping)
    assert model.kept["answers"][0].requires_grad
    assert not copied.kept["answers"][0].requires_grad
    assert torch.equal(copied.kept["answers"][0], model.kept["answers"][0])
    expected = model.eval()(IMAGES)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(copied.eval()(IMAGES), expected)


def test_network_that_cannot_be_copied_is_one_sentence() -> None:
    model = nn.Linear(3, 2)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(
        ModelError, match=r"model\.name=mine:net cannot be copied: cannot pickle '_thread\.lock' object"
    ):
        copy_network(model, name="mine:net")
