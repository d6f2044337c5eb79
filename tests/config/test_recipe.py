"""Recipes: the built-in ones resolve, --set changes one value, and every mistake is reported in one sentence."""

from pathlib import Path

import pytest
import yaml

from distrain.config import Recipe, builtin_recipes, change_recipe, fields, load_recipe, read_recipe
from distrain.errors import RecipeError

MINIMAL = """
data: {source: digits, batch_size: 64}
model: {name: digits-cnn}
optimizer: {lr: 0.1}
train: {epochs: 2}
"""


def digits(*overrides: str) -> Recipe:
    return load_recipe("digits", overrides=list(overrides))


def sentence(*overrides: str, reference: str = "digits") -> str:
    """Return the sentence that refuses the recipe."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(reference, overrides=list(overrides))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipe_resolves_and_is_read_back_equal_from_its_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, overrides=[])
    assert recipe.name == name
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(file) == recipe
    assert read_recipe(file).identity == recipe.identity
    assert read_recipe(file).to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipe_begins_with_what_it_trains_and_its_measured_result(name: str) -> None:
    lines = builtin_recipes()[name].splitlines()
    assert lines[0].startswith(f"# {name}: ")
    for word in ("Expected", "Hardware", "Command"):
        assert any(line.startswith(f"# {word} ") for line in lines)


def test_transforms_with_and_without_arguments_are_read_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe("cifar10", overrides=["augment.eval=[{Resize: {size: [40, 40]}}, 'mine:crop', {Pad: null}]"])
    assert [transform.name for transform in recipe.augment.eval] == ["Resize", "mine:crop", "Pad"]
    assert recipe.augment.eval[0].arguments == {"size": [40, 40]}
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_own_recipe_is_named_by_its_file_unless_it_names_itself(tmp_path: Path) -> None:
    file = tmp_path / "my photos.yaml"
    file.write_text(MINIMAL)
    assert load_recipe(str(file), overrides=[]).name == "my-photos"
    file.write_text(MINIMAL + "name: ants\n")
    assert load_recipe(str(file), overrides=[]).name == "ants"


def test_overrides_apply_in_their_order_at_any_depth() -> None:
    assert digits("train.epochs=3", "train.epochs=4").train.epochs == 4
    assert digits("name=mine", "checkpoint.every_steps=7").checkpoint.every_steps == 7
    assert digits("augment.mean=[0.5]").augment.mean == (0.5,)
    assert digits("loss.label_smoothing=null", "loss.name=mine:f=g").loss.name == "mine:f=g"


def test_override_reaches_into_lists_by_index() -> None:
    recipe = load_recipe(
        "cifar10",
        overrides=["augment.train.0.RandomCrop.padding=2", "augment.mean.1=0.25", "augment.train.1=RandomVerticalFlip"],
    )
    assert recipe.augment.train[0].arguments == {"size": 32, "padding": 2}
    assert recipe.augment.train[1].name == "RandomVerticalFlip"
    assert recipe.augment.mean == (0.4914, 0.25, 0.4465)
    for place in ("3", "-1", "first"):
        assert "is not a place in a list of 3" in sentence(f"augment.mean.{place}=0.5", reference="cifar10")


def test_override_goes_through_a_section_that_is_left_empty(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINIMAL + "log:\n")
    assert load_recipe(str(file), overrides=["log.every_steps=3"]).log.every_steps == 3


def test_override_through_a_plain_value_is_refused() -> None:
    assert "'epochs' is a value, 15, and has no keys of its own" in sentence("train.epochs.more=1")


@pytest.mark.parametrize("override", ["epochs", "=3", "", ".=3", "train..epochs=3", "train.=3"])
def test_override_without_key_and_value_is_refused(override: str) -> None:
    assert "is not of the form section.key=value" in sentence(override)


def test_override_that_is_not_yaml_is_refused() -> None:
    assert "cannot be read as YAML" in sentence("augment.mean=[0.1")


def test_data_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("cifar10", overrides=[], data="photos").data.path == str(tmp_path / "photos")


def test_unknown_recipe_names_the_nearest() -> None:
    assert "unknown recipe 'digit'; did you mean digits?" in sentence(reference="digit")
    assert "did you mean" not in sentence(reference="zzz")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", "the recipe has no key train.epoch; did you mean train.epochs?"),
        ("optimiser.lr=3", "the recipe has no key optimiser.lr; did you mean optimizer.lr?"),
        ("checkpoint.keep=3", "the recipe has no key checkpoint.keep"),
    ],
)
def test_unknown_key_names_the_nearest(override: str, words: str) -> None:
    assert words in sentence(override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_size=abc", ["data.batch_size=abc", "whole number"]),
        ("data.batch_size=1.5", ["data.batch_size=1.5", "whole number"]),
        ("data.batch_size=null", ["data.batch_size=null", "whole number"]),
        ("data.drop_last=maybe", ["data.drop_last=maybe", "true or false"]),
        ("model=resnet18", ["model=resnet18", "did you mean model.name=resnet18?"]),
        ("augment.train=[3]", ["augment.train.0", "a transform is written"]),
    ],
)
def test_value_of_the_wrong_type_is_named(override: str, words: list[str]) -> None:
    text = sentence(override)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_size=0", ["data.batch_size=0", "greater than 0"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1", "greater than 0"]),
        ("optimizer.lr=.nan", ["optimizer.lr=.nan", "finite"]),
        ("optimizer.lr_per=0", ["optimizer.lr_per=0", "greater than 0"]),
        ("train.micro_batch_size=0", ["train.micro_batch_size: 0 is not", "above 0", "auto"]),
        ("train.micro_batch_size=most", ["most is not a number of samples", "auto"]),
        ("train={epochs: 1, exact: true, micro_batch_size: auto}", ["train.exact", "give a number"]),
        (
            "train={epochs: 1, exact: true}|compute.compile=whole",
            ["train.exact", "compute.compile=whole", "choose one"],
        ),
        ("train={epochs: 1, exact: true, deterministic: false}", ["train.exact", "set train.deterministic=true"]),
        ("train={epochs: 1, exact: true}|compute.tf32=true", ["train.exact", "compute.tf32", "choose one"]),
        ("compute={compile: regional, cuda_graphs: true}", ["compute.cuda_graphs", "compute.compile is regional"]),
        ("schedule={name: triangle, warmup_epochs: 1}", ["schedule.warmup_epochs", "triangle"]),
        ("optimizer.even_decay=true", ["optimizer.even_decay", "lr_factors"]),
        ("train.lookahead={decay: 1}", ["train.lookahead.decay=1", "less than 1"]),
        ("train.max_time=soon", ["train.max_time", "soon is not a time", "1h30m"]),
        ("train.max_time=0", ["train.max_time=0", "greater than 0"]),
        ("augment.sizes=[[1, 8]]", ["augment.sizes", "start at 0 and increase"]),
        ("augment.sizes=[[0, 8], [2, 9], [2, 10]]", ["[0, 2, 2]", "must start at 0 and increase"]),
        ("augment.mix_prob=0.5", ["augment.mix_prob=0.5", "augment.mixup"]),
        ("augment.cutmix=0", ["augment.cutmix=0", "greater than 0"]),
        ("parallel={strategy: fsdp, sync_batchnorm: true}", ["parallel.sync_batchnorm", "fsdp"]),
        ("optimizer.momentum=1", ["optimizer.momentum=1", "less than 1"]),
        ("train.seed=-1", ["train.seed=-1", "at least 0"]),
        ("precision=fp8", ["precision=fp8", "fp32, bf16 or fp16"]),
        ("name=a/b", ["name=a/b"]),
    ],
)
def test_value_out_of_range_is_named(override: str, words: list[str]) -> None:
    text = sentence(*override.split("|"))
    assert all(word in text for word in words), text


def test_missing_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINIMAL.replace("lr: 0.1", "name: sgd"))
    assert "the recipe is missing optimizer.lr, which has no default" in sentence(reference=str(file))


def test_momentum_is_refused_for_adam_until_null_unsets_it() -> None:
    text = sentence("optimizer.name=adam", "optimizer.nesterov=null")
    assert text == "optimizer.momentum=0.9 is not used by adam; --set optimizer.momentum=null unsets it"
    text = sentence("optimizer.name=adamw")
    assert text == (
        "optimizer.momentum=0.9 and optimizer.nesterov=true are not used by adamw; write --set 'optimizer={name: "
        "adamw, lr: 0.1}', or --set optimizer.momentum=null --set optimizer.nesterov=null"
    )
    assert digits("optimizer={name: adamw, lr: 0.1}").optimizer.name == "adamw"
    adam = digits("optimizer.name=adam", "optimizer.nesterov=null", "optimizer.momentum=null").optimizer
    assert adam.name == "adam"
    assert adam.momentum is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["schedule.gamma=0.5"], "schedule.gamma=0.5 is not used by onecycle; --set schedule.gamma=null unsets it"),
        (["schedule.warmup_epochs=1"], "schedule.warmup_epochs is not for onecycle"),
        (["schedule.name=step"], "schedule.name=step needs schedule.step_epochs"),
        (["schedule.name=multistep", "schedule.milestones_epochs=[4, 2]"], "schedule.milestones_epochs must increase"),
        (["optimizer.momentum=null"], "optimizer.nesterov needs optimizer.momentum above 0"),
        (["data.arguments={size: 9}"], "data.arguments are for torchvision.NAME"),
        (
            ["loss.name=focal"],
            "loss.label_smoothing=0.05 is not used by focal; --set loss.label_smoothing=null unsets it",
        ),
        (["loss.gamma=2"], "loss.gamma=2.0 is not used by cross_entropy; --set loss.gamma=null unsets it"),
        (["loss.name=mine:f"], "loss.label_smoothing=0.05 is not used by mine:f"),
        (["loss.name=focals"], "loss.name=focals: unknown loss; did you mean focal?"),
        (["eval.metrics=[top1, acc]"], "eval.metrics: unknown metric acc; use loss, top1"),
        (["eval.best=top2"], "eval.best: unknown metric top2; did you mean top5?"),
        (["eval.best=confusion_matrix"], "eval.best=confusion_matrix is not a single number"),
        (["augment.std=null"], "augment.mean and augment.std go together"),
        (["augment.std=[0.3, 0.3]"], "augment.mean and augment.std go together"),
    ],
)
def test_values_that_contradict_each_other_are_refused(overrides: list[str], words: str) -> None:
    assert words in sentence(*overrides)


def test_pos_weight_is_one_number_or_one_for_each_label(tmp_path: Path) -> None:
    overrides = ["loss.label_smoothing=null", "loss.name=bce"]
    assert digits(*overrides, "loss.pos_weight=[1, 2.5]").loss.pos_weight == (1.0, 2.5)
    recipe = digits(*overrides, "loss.pos_weight=3")
    assert recipe.loss.pos_weight == (3.0,)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_identity_ignores_logs_checkpoints_and_the_data_folder() -> None:
    same = ["log.every_steps=3", "log.wandb=disabled", "checkpoint.keep_last=5", "data.path=/elsewhere"]
    same += ["data.num_workers=3", "data.loader=threads", "data.cache=never", "eval.batch_size=7"]
    same += ["compute={memory_format: channels_last, compile: whole}"]
    assert digits(*same).identity == digits().identity
    assert digits(*same) != digits()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], True),
        (["train.exact=true"], False),
        (["compute.tf32=false"], False),
    ],
)
def test_gpus_use_tf32_unless_the_recipe_forbids_it(overrides: list[str], expected: bool) -> None:
    assert digits(*overrides).has_tf32 == expected


@pytest.mark.parametrize("change", ["train.seed=1", "data.batch_size=32", "optimizer.lr=0.2", "precision=bf16"])
def test_identity_changes_with_what_determines_the_result(change: str) -> None:
    assert digits(change).identity != digits().identity


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3"])
def test_learning_rate_without_a_dot_is_a_number(text: str) -> None:
    assert digits(f"optimizer.lr={text}").optimizer.lr == 0.001


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: [1,\nmodel: {", "cannot be read as YAML: at line 2, column"),
        ("- one\n- two\n", "is [one, two], not sections"),
        ("", "is empty; `distrain recipes init digits FILE`"),
        ("# nothing\n", "is empty"),
        (
            "data: {batch_size: 64, batch_size: 32}",
            "line 1, column 24: the key batch_size is given twice, first at line 1",
        ),
        (
            "model:\n  name: a\ntrain: {}\nmodel: {}\n",
            "at line 4, column 1: the key model is given twice, first at line 1",
        ),
        ("name: 2024-13-45", "cannot be read as YAML: it has an invalid number or date (month must be in"),
        ("data: " + "[" * 2000, "nested too deeply"),
        ("data: \x00", "cannot be read as YAML"),
    ],
)
def test_file_that_is_not_a_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert words in sentence(reference=str(file))


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\xfe")
    assert "is not UTF-8 text" in sentence(reference=str(tmp_path / "mine.yaml"))


def test_missing_file_is_named_with_a_way_to_get_one(tmp_path: Path) -> None:
    file = tmp_path / "missing.yaml"
    assert f"{file} does not exist; `distrain recipes init digits`" in sentence(reference=str(file))


def test_file_whose_section_is_a_value_is_refused_whatever_is_set_on_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINIMAL.replace("{source: digits, batch_size: 64}", "digits"))
    assert "data=digits: must be a section" in sentence(reference=str(file))
    with pytest.raises(RecipeError):
        load_recipe(str(file), overrides=[], data=str(tmp_path))
    file.write_text("data:\n")
    with pytest.raises(RecipeError):
        load_recipe(str(file), overrides=[], data=str(tmp_path))


def test_every_key_has_a_type_and_a_meaning_and_can_be_set() -> None:
    tree = yaml.safe_load(digits().to_yaml())
    for key, kind, default, meaning in fields():
        assert kind and default, key
        assert meaning, key
        section, _, leaf = key.rpartition(".")
        assert leaf in (tree[section] if section else tree), key


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("0.5", 0.5), ("2h", 120), ("1h30m", 90), ("90s", 1.5), ("'1.5h 6m'", 96)]
)
def test_time_is_minutes_or_text_with_units(text: str, minutes: float) -> None:
    assert digits(f"train.max_time={text}").train.max_time == minutes


def test_learning_rate_scales_with_the_batch_if_lr_per_is_set() -> None:
    assert digits("data.batch_size=512").base_lr == 0.1
    assert digits("data.batch_size=512", "optimizer.lr_per=256").base_lr == pytest.approx(0.2)


def test_identity_includes_sync_batchnorm_but_not_the_strategy() -> None:
    assert digits("parallel.sync_batchnorm=true").identity != digits().identity
    assert digits("parallel.strategy=ddp").identity == digits().identity


def test_changed_recipe_is_the_one_that_was_read_with_the_changes() -> None:
    changes = ["train.epochs=3", "augment.train=[{RandomCrop: {size: 28}}]", "model.weights=null"]
    assert change_recipe(load_recipe("cifar10", overrides=[]), changes) == load_recipe("cifar10", overrides=changes)
    with pytest.raises(RecipeError, match="no key train"):
        change_recipe(load_recipe("digits", overrides=[]), ["train.epoch=3"])


def test_key_that_is_set_twice_in_one_value_is_refused() -> None:
    assert "the key name is given twice" in sentence("optimizer={name: sgd, lr: 0.1, name: adam}")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ünï.yaml", "ünï"),
        ("u\u0308n.yaml", "ün"),  # as macOS writes it
        ("数字 2.yaml", "数字-2"),
        ('it\'s "mine".yaml', "it-s-mine"),
        ("new\nline.yaml", "new-line"),
        ("--.yaml", "recipe"),
        (f"{'x' * 200}.yaml", "x" * 50),
    ],
)
def test_recipe_name_is_made_from_any_file_name(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text(builtin_recipes()["digits"], encoding="utf-8")
    assert load_recipe(str(tmp_path / file), overrides=[]).name == name
