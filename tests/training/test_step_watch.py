"""The watch sees what is not finite, on the host and on a device, in small networks and in large ones; nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from distrain.distributed.world import World
from distrain.training.optim.clipping import gradient_norms
from distrain.training.step_watch import Watch

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_rank=0, device=CPU)
LEAST = torch.finfo(torch.float32).min


class Net(nn.Module):
    """Has a norm layer, two masks whose sum overflows, a sum of its own that a step changes, and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        for name in ("mask", "other_mask"):
            self.register_buffer(name, torch.tensor([0.0, LEAST]))
        self.register_buffer("none_yet", torch.zeros(0))
        self.register_buffer("total", torch.zeros(3))


def fill(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] = value


# What a step does to the network, and what the watch says of it.
CHANGES: dict[str, tuple[Callable[[nn.Module], None], str | None]] = {
    "nothing": (lambda net: None, None),
    "large variance": (lambda net: fill(net.get_buffer("norm.running_var"), 1e25), None),
    "variance": (lambda net: fill(net.get_buffer("norm.running_var"), torch.inf), "the statistic norm.running_var"),
    "mean": (lambda net: fill(net.get_buffer("norm.running_mean"), torch.nan), "the statistic norm.running_mean"),
    "buffer": (lambda net: fill(net.get_buffer("total"), -torch.inf), "the buffer total"),
    "replaced buffer": (lambda net: net.register_buffer("total", torch.full((3,), torch.nan)), "the buffer total"),
    "weight": (lambda net: fill(net.get_parameter("first.weight"), torch.inf), "a weight after the update"),
    "overflow": (lambda net: fill(net.get_parameter("last.bias"), 1e30), "a weight after the update"),
}


@pytest.fixture(params=["host", "device"])
def net(request: pytest.FixtureRequest) -> tuple[nn.Module, Watch]:
    made = Net()
    watching = Watch(made, every_step=True)
    watching._is_on_host = request.param == "host"  # on a GPU all is the same, and the numbers stay there
    return made, watching


def note(net: nn.Module, watching: Watch, *, gradient: float = 0.5, without: str | None = None) -> None:
    for name, weight in net.named_parameters():
        weight.grad = None if name == without or not weight.requires_grad else torch.full_like(weight, 0.5)
    fill(net.get_parameter("first.bias").grad, gradient)  # type: ignore[arg-type]
    if gradient != 0.5:  # the update hands it on
        fill(net.get_parameter("first.bias"), gradient)
    watching.note([] if watching._is_on_host else gradient_norms(list(net.parameters())))


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_finite_after_a_step_marks_it(net: tuple[nn.Module, Watch], change: str) -> None:
    do, words = CHANGES[change]
    note(*net)
    note(*net, without="last.weight")  # it joins in later
    do(net[0])
    note(*net)
    marks = net[1].pop_marks(CPU)
    assert marks.dtype == torch.float64
    assert marks.tolist() == [0, 0, words is not None]
    if words is not None:
        assert net[1].explain(2, ALONE) == words
    assert net[1].pop_marks(CPU).tolist() == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_gradient_is_named(net: tuple[nn.Module, Watch], value: float) -> None:
    note(*net)
    note(*net, gradient=value)
    assert net[1].pop_marks(CPU).tolist() == [0, 1]
    assert net[1].explain(1, ALONE) == "the gradient of first.bias"


def test_step_between_two_records_is_found_again_after_the_next_has_begun(net: tuple[nn.Module, Watch]) -> None:
    note(*net)
    note(*net)
    assert net[1].pop_marks(CPU).tolist() == [0, 0]
    note(*net, gradient=torch.nan)
    assert net[1].pop_marks(CPU).tolist() == [1]
    note(*net)
    assert net[1].explain(0, ALONE) == "the gradient of first.bias"


@pytest.mark.parametrize("change", CHANGES)
def test_one_look_on_the_host_finds_what_any_step_since_the_last_has_made(change: str) -> None:
    do, words = CHANGES[change]
    net = Net()
    watching = Watch(net, every_step=False)
    assert not watching.names_the_step
    assert watching.pop_marks(CPU).tolist() == []
    note(net, watching)
    assert watching.pop_marks(CPU).tolist() == [0]
    note(net, watching)
    do(net)
    note(net, watching)
    marks = watching.pop_marks(CPU)
    assert marks.dtype == torch.float64
    assert marks.tolist() == [0, words is not None]
