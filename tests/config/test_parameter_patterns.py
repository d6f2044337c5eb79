"""Patterns match weights by their names, by those of layers, and by `head` and `backbone`."""

import pytest

from distrain.config.parameter_patterns import select
from distrain.errors import ModelError

NAMES = ["conv1.weight", "layer1.0.bn.weight", "layer1.0.bn.bias", "layer10.weight", "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("fc.bias", NAMES[5:]),
        ("layer1", NAMES[1:3]),
        ("layer1.*", NAMES[1:3]),
        ("layer*", NAMES[1:4]),
        ("layer[12].0", NAMES[1:3]),
        ("*.bias", [NAMES[2], NAMES[5]]),
        ("backbone", NAMES[:4]),
        ("head", NAMES[4:]),
    ],
)
def test_pattern_selects_weights_in_their_order(pattern: str, found: list[str]) -> None:
    assert select(pattern, NAMES, heads=["fc"], key="model.freeze") == found


def test_pattern_that_matches_nothing_is_reported_with_similar_names() -> None:
    with pytest.raises(
        ModelError, match=r"^model.freeze: 'layer11' is not the name of a weight or layer; did you mean "
    ):
        select("layer11", NAMES, heads=["fc"], key="model.freeze")
    with pytest.raises(ModelError, match=r"did you mean backbone\?$"):
        select("bakbone", NAMES, heads=["fc"], key="model.freeze")
    with pytest.raises(ModelError, match=r"name it with model\.head_name"):
        select("backbone", NAMES, heads=[], key="model.freeze")
