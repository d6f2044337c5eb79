"""A recipe is described in phrases that name what it changes from the defaults."""

import pytest

from distrain.config import builtin_recipes, load_recipe
from distrain.config.profile import Profile
from distrain.config.recipe_text import describe_recipe, describe_training


@pytest.mark.parametrize("name", builtin_recipes())
def test_each_built_in_recipe_is_described(name: str) -> None:
    recipe = load_recipe(name, overrides=[])
    found = describe_recipe(recipe)
    assert all(found.values())
    assert recipe.model.name in found["network"]
    assert "None" not in " ".join(found.values())


def test_values_that_differ_from_the_defaults_are_named() -> None:
    changes = ["optimizer={name: adamw, lr: 0.001, lr_per: 256}", "schedule={name: step, step_epochs: 7}"]
    more = ["augment.train=[{RandomCrop: {size: 8}}]", "augment.mixup=0.2", "schedule.warmup_epochs=1"]
    found = describe_recipe(load_recipe("digits", overrides=[*changes, *more, "train.clip_norm=1"]))
    assert found["optimizer"] == "adamw, learning rate 0.00025 (lr 0.001 for 256 samples, scaled to the batch)"
    assert found["schedule"] == "times 0.1 every 7 epochs, after 1 epoch of warm-up"
    assert found["augmentation"] == "RandomCrop (size 8); MixUp (alpha 0.2)"
    assert "gradient norm at most 1" in found["arithmetic"]


def test_training_is_one_line_with_its_processes_where_they_are_known() -> None:
    recipe = load_recipe("digits", overrides=["train.max_steps=9"])
    text = "digits-cnn on digits, 15 epochs (9 steps at most), fp32"
    assert describe_training(recipe, None) == text
    profile = Profile(launcher="torchrun", device="cuda", nodes=2, processes=2, threads=1)
    assert describe_training(recipe, profile) == f"{text}, on 4 GPUs"
