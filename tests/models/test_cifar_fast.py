"""The network of the fastest training whitens patches by the data, and starts as the identity."""

import pytest
import torch

from distrain.models.cifar_fast import MIN_VARIANCE, CifarFast, whitening_directions


def images() -> torch.Tensor:
    """Return images whose neighbouring pixels and channels are correlated, as in photographs: [64, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 36, 36, generator=generator), 5, stride=1)
    return smooth + 0.5 * smooth.mean(dim=1, keepdim=True) + 0.05 * torch.randn(smooth.shape, generator=generator)


def test_whitened_patches_are_uncorrelated_and_of_variance_one() -> None:
    shown = images() * 20
    outputs = torch.nn.functional.conv2d(shown, whitening_directions(shown, 2))
    flat = outputs.permute(0, 2, 3, 1).reshape(-1, 12).double()
    torch.testing.assert_close(flat.T @ flat / len(flat), torch.eye(12).double(), atol=2e-3, rtol=0)


def test_directions_without_contrast_are_not_amplified() -> None:
    grey = torch.randn(8, 1, 32, 32).expand(-1, 3, -1, -1)  # two thirds of the directions are empty
    assert whitening_directions(grey, 2).flatten(1).norm(dim=1).max() <= 1.001 / MIN_VARIANCE**0.5


def test_first_layer_gives_components_and_their_negatives_the_same_for_the_same_images() -> None:
    nets = [CifarFast(10, 3), CifarFast(10, 3)]
    for net in nets:
        net.initialize_from(images())
    first = nets[0].whiten.weight
    assert torch.equal(first[:12], -first[12:])
    assert torch.equal(first, nets[1].whiten.weight)


def test_network_has_the_papers_size_and_starts_as_the_identity() -> None:
    net = CifarFast(10, 3)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == pytest.approx(1.97e6, rel=0.002)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    group = net.groups[0]
    features = torch.rand(1, 24, 8, 8)
    torch.testing.assert_close(group.conv1(features)[:, :24], features)  # type: ignore[operator]
