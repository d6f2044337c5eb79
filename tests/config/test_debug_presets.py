"""What the debug options change in a recipe: each change is explicit, named, and overridden by the user's --set."""

from pathlib import Path

import pytest

from distrain.config import Recipe, load_recipe
from distrain.config.debug_presets import DebugOptions
from distrain.errors import LaunchError


def changed(debug_options: DebugOptions, *overrides: str, reference: str = "digits") -> Recipe:
    before = load_recipe(reference, overrides=list(overrides))
    return load_recipe(reference, overrides=[*overrides, *debug_options.overrides(before)])


def test_nothing_changes_without_debug_or_overfit() -> None:
    assert DebugOptions(trace=True, post_mortem=True).overrides(load_recipe("digits", overrides=[])) == []


def test_debug_trains_and_evaluates_a_few_batches_with_every_check_on() -> None:
    recipe = changed(DebugOptions(debug=True), "data.num_workers=4", "eval.batch_size=10")
    assert recipe.name == "digits-debug"
    assert recipe.train.max_steps == 8
    assert recipe.data.val_samples == 40
    assert recipe.data.num_workers == 0
    assert recipe.train.detect_anomaly and recipe.train.deterministic and recipe.eval.at_start


def test_overfit_learns_the_same_pixels_every_time() -> None:
    recipe = changed(DebugOptions(overfit_batches=5), "data.path=photos", reference="imagefolder-resnet18")
    assert recipe.name == "imagefolder-resnet18-overfit"
    assert recipe.data.train_samples == 5 * recipe.data.batch_size
    assert recipe.augment.train == recipe.augment.eval != ()
    assert recipe.train.max_steps == 500
    assert recipe.schedule.name == "constant"
    assert recipe.optimizer.momentum == 0.9


def test_both_together_overfit_with_every_check_on() -> None:
    debug_options = DebugOptions(debug=True, overfit_batches=1)
    recipe = changed(debug_options)
    assert recipe.name == "digits-debug-overfit"
    assert recipe.train.max_steps == 300
    assert recipe.train.detect_anomaly
    keys = [change.partition("=")[0] for change in debug_options.overrides(recipe)]
    assert len(keys) == len(set(keys))


def test_resumed_run_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(changed(DebugOptions(debug=True)).to_yaml())
    assert changed(DebugOptions(debug=True), reference=str(tmp_path / "recipe.yaml")).name == "digits-debug"


def test_invalid_numbers_are_refused() -> None:
    with pytest.raises(LaunchError, match="--overfit must be 1 batch or more, not 0"):
        DebugOptions(overfit_batches=0)
    with pytest.raises(LaunchError, match="--pdb needs a single process"):
        DebugOptions(post_mortem=True).check(processes=2)
    DebugOptions(trace=True, overfit_batches=2).check(processes=2)
