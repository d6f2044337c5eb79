"""Updates hidden matrices by torch's Muon, and all other weights by AdamW."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from distrain import config as recipe
from distrain.config.parameter_patterns import prefixes
from distrain.errors import RecipeError
from distrain.messages import first_line
from distrain.tensors.dtensor import is_sharded
from distrain.training.optim.param_groups import ParamGroupOptions, group_parameters

Groups = list[dict[str, Any]]


def build_muon(
    config: recipe.Optimizer, model: nn.Module, settings: Mapping[str, ParamGroupOptions], *, heads: Sequence[str]
) -> "MuonWithAdamW":
    """Return the optimizer over all trainable weights; raises `RecipeError` where there is no hidden matrix."""
    if not heads:
        raise RecipeError("optimizer.name=muon needs to know the head of the network; name it with model.head_name")
    names = hidden_matrices(model, heads)
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [(name, weight) for name, weight in weights if name in names]
    if not matrices:
        raise RecipeError(
            "optimizer.name=muon updates weights between hidden layers, and this network trains none; use adamw"
        )
    ratio = (config.adamw_lr or config.lr) / config.lr
    others = [(name, weight) for name, weight in weights if name not in names]
    return join_groups(
        config,
        group_parameters(config, matrices, settings),
        group_parameters(config, others, settings, lr_factor=ratio),
    )


def join_groups(config: recipe.Optimizer, matrices: Groups, others: Groups) -> "MuonWithAdamW":
    """Return the optimizer of a recipe over groups of matrices and of other weights."""
    given = {"momentum": config.momentum, "nesterov": config.nesterov}
    of_muon = {key: value for key, value in given.items() if value is not None} | config.arguments
    of_adamw = {"betas": config.betas or (0.9, 0.999), "eps": config.eps or 1e-8}
    try:
        return MuonWithAdamW(matrices, others, lr=config.lr, of_muon=of_muon, of_adamw=of_adamw)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"optimizer.name=muon with optimizer.arguments: {first_line(error)}") from None


def hidden_matrices(model: nn.Module, heads: Sequence[str]) -> set[str]:
    """Return the names of the weights that Muon updates: those of linear and convolutional layers between others.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. The first such layer and the heads
    are not among them, nor are embeddings, depthwise kernels, which mix no channels, and weights of a norm layer.
    """
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)]
    first = next((path for path, _ in layers if not any(head in prefixes(path) for head in heads)), None)
    found = set()
    for path, module in model.named_modules():
        if path == first or any(head in prefixes(path) for head in heads):
            continue
        for name, weight in module.named_parameters(recurse=False):
            if _is_matrix(module, name, weight):
                found.add(f"{path}.{name}" if path else name)
    return found


def _is_matrix(module: nn.Module, name: str, weight: torch.Tensor) -> bool:
    if weight.ndim < 2 or not name.endswith("weight"):
        return False
    if isinstance(module, _ConvNd):
        return module.in_channels > module.groups
    return weight.ndim == 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer of two rules: torch's Muon for groups of matrices, torch's fused AdamW for the other groups.

    Muon knows matrices alone: a kernel [out, in, height, width] is the matrix [out, in x height x width], as in
    Jordan's own code. The order of the columns is that in memory, which the orthogonalization does not depend on.
    """

    def __init__(
        self, matrices: Groups, others: Groups, *, lr: float, of_muon: Mapping[str, Any], of_adamw: Mapping[str, Any]
    ) -> None:
        super().__init__([*matrices, *others], {"lr": lr})
        self.num_matrix_groups = len(matrices)
        self._matrices, others = self.param_groups[: len(matrices)], self.param_groups[len(matrices) :]
        flat = [
            {**group, "params": [nn.Parameter(_as_matrix(weight.detach(), weight)) for weight in group["params"]]}
            for group in self._matrices
        ]
        self._muon = torch.optim.Muon(flat, lr=lr, **of_muon)
        self._adamw = None
        if others:
            self._adamw = torch.optim.AdamW(others, lr=lr, fused=True, **of_adamw)  # has the same groups
            self._adamw.state, self.defaults = self.state, self._adamw.defaults

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient; there is no closure."""
        assert closure is None
        for group, flat in zip(self._matrices, self._muon.param_groups, strict=True):
            flat["lr"] = group["lr"]
            for weight, matrix in zip(group["params"], flat["params"], strict=True):
                self._link(weight, matrix)
        self._muon.step()  # type: ignore[no-untyped-call]
        self._muon.zero_grad()
        if self._adamw is not None:
            self._adamw.step()

    def _link(self, weight: torch.Tensor, matrix: torch.Tensor) -> None:
        """Give a matrix the gradient and the momentum of its weight, which has the state."""
        if weight.grad is None:
            return
        matrix.grad = _as_matrix(weight.grad, weight, may_copy=True)
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        self._muon.state[matrix] = {"momentum_buffer": _as_matrix(state["momentum_buffer"], weight)}


def _as_matrix(tensor: torch.Tensor, weight: torch.Tensor, *, may_copy: bool = False) -> torch.Tensor:
    """Return a tensor like `weight` as the matrix [out, rest], with the columns in the memory order of the weight."""
    if weight.ndim == 2:
        return tensor
    if not is_sharded(weight) and not weight.is_contiguous():  # channels_last
        tensor = tensor.movedim(1, -1)
    shape = weight.shape[0], weight.numel() // weight.shape[0]
    return tensor.reshape(shape) if may_copy else tensor.view(shape)
