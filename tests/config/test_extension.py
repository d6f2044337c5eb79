"""Which values of a recipe may change in an existing run."""

import pytest

from distrain.config.extension import find_refusal
from distrain.config.load import load_recipe


@pytest.mark.parametrize(
    ("key", "old", "new", "reason"),
    [
        ("train.clip_value", None, 0.1, None),
        ("train.agc", None, 0.02, None),
        ("optimizer.lr", 0.1, 0.2, None),
        ("optimizer.arguments", {}, {"eps": 1e-3}, "the optimizer that was made with them"),
        ("schedule.name", "cosine", "plateau", None),
        ("schedule.name", "plateau", "constant", None),
        ("schedule.name", "plateau", "mine:schedule", "the state of another schedule"),
        ("schedule.name", "mine:schedule", "plateau", "the state of another schedule"),
        ("train.swa_start_epochs", None, 1, "it decides how a step is computed"),
    ],
)
def test_what_has_state_in_the_checkpoint_cannot_change(key: str, old: object, new: object, reason: str | None) -> None:
    found = find_refusal(key, load_recipe("digits", overrides=[]), old=old, new=new)
    assert (found is None) if reason is None else reason in str(found)
