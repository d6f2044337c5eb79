"""State that no checkpoint could give back is refused in one sentence, before anything is trained."""

from pathlib import Path

import pytest
from torch import nn

from distrain.errors import ModelError
from distrain.training.probe import check_state
from tests.cli_runner import fit
from tests.training.state.factories import CountingInADict, Forgetful, Giving, PlainCentred, Unstorable


class UnstorableLoss(PlainCentred):
    def state_dict(self) -> dict[str, object]:
        return {"center": self.center, "draw": lambda: 0}


unstorable_loss = UnstorableLoss()


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (
            Unstorable(10),
            r"mine:x has a builtins\.object at \['log'\]\[0\] as _extra_state in its state_dict, which a",
        ),
        (
            nn.Sequential(Unstorable(10)),
            r"as 0\._extra_state in its state_dict, which a checkpoint cannot store; use num",
        ),
        (Giving(10), r"mine:x does not load the state that it returns \(.*Unexpected key.*; define set_extra_state"),
        (
            Forgetful(10),
            r"mine:x does not load the state that it returns \('count'\); define set_extra_state together with",
        ),
        (unstorable_loss, r"mine:x has a builtins\.function as draw in its state_dict"),
    ],
)
def test_state_that_cannot_be_given_back_is_named(owner: object, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        check_state(owner, name="mine:x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("owner", [CountingInADict(10), PlainCentred(), nn.Linear(1, 1), PlainCentred, len])
def test_state_that_can_passes_and_is_left_as_it_is(owner: object) -> None:
    check_state(owner, name="mine:x")


@pytest.mark.parametrize(
    "name",
    [
        "model.name=tests.training.state.factories:Unstorable",
        "loss.name=tests.training.state.test_refusing:unstorable_loss",
    ],
)
def test_run_with_such_state_ends_with_2_before_it_trains(tmp_path: Path, name: str) -> None:
    done = fit(f"--set={name}", "--set=loss.label_smoothing=null", "--run=run", cwd=tmp_path, code=2)
    assert len(done.err.strip().splitlines()) == 1
    assert f"{name} has a builtins." in done.err
    assert not (tmp_path / "run").exists()
