"""What a request may change in a recipe: each key is either listed, with its hostile values refused, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from distrain.config import load_recipe
from distrain.config.reference import fields
from distrain.errors import LaunchError, RecipeError
from distrain.service.web.security.requests import ALLOWED, REFUSED, check_code, check_devices, check_request

KEYS = [key for key, *_ in fields()]
TEXTS = [key for key, kind, *_ in fields() if "text" in kind]
HOSTILE = ["os:system", "https://evil.example/x.pth", "hf_hub:evil/model", "/etc/passwd", "../../etc/passwd", "~/x", ""]


def is_refused(key: str, value: Any, **options: Any) -> bool:
    try:
        check_request({key: value}, **options)
    except RecipeError as error:
        assert key[:50] in str(error), "the message names the key"
        return True
    return False


def test_each_key_of_a_recipe_is_listed() -> None:
    """A new key is refused until somebody has thought about it: it belongs into one of both lists."""
    assert set(KEYS) == ALLOWED.keys() | REFUSED
    assert not ALLOWED.keys() & REFUSED


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_refused_key_is_refused_with_any_value(key: str) -> None:
    assert is_refused(key, "x")
    assert is_refused(key, None)
    assert is_refused(key, "x", allow_code=True, data_roots=[Path("/")])


@pytest.mark.parametrize(
    "key",
    [
        *("data", "model", "log", "", "x", "data.", ".path", "data.path ", "data.path.x", "DATA.PATH", "data..path"),
        *("model.weights=/etc/x #", "model.arguments.a=/etc/x #", "model.arguments.a.b", "model.arguments."),
        *(
            "augment.train.0",
            "augment.train.0.Resize",
            "data.more.0.path",
            "optimizer.lr_factors.x",
            "train.lookahead.x",
        ),
        *(
            "data.hold",
            "on_event",
            "webhook",
            "command",
            "setup",
            "sbatch",
            "env",
            "launcher",
            "mirror",
            "log.wandb_entity",
        ),
    ],
)
def test_anything_but_a_whole_key_is_refused(key: str) -> None:
    assert is_refused(key, "x")
    assert is_refused(key, 1, allow_code=True, data_roots=[Path("/")])


@pytest.mark.parametrize("key", ["data.source", "data.sampling", "model.name", "loss.name"])
def test_code_is_named_only_where_serve_allows_it(key: str) -> None:
    for text in ("mine:make", "os:system", "timm.hf_hub:evil/model", "timm.hf-hub:evil/model", "a.b:c", ":"):
        assert is_refused(key, text)
    assert not is_refused(key, "mine:make", allow_code=True)
    assert not is_refused(key, "resnet18")


@pytest.mark.parametrize("key", ["augment.train", "augment.eval"])
def test_transforms_are_those_of_torchvision_and_distrain(key: str) -> None:
    hostile: list[Any] = [["mine:Make"], [{"mine:Make": {}}], [{"Resize": {"size": "a:b"}}], "mine:Make", {"a:b": 1}]
    for value in hostile:
        assert is_refused(key, value), value
        assert not is_refused(key, value, allow_code=True)
    assert is_refused(key, [{"Resize": {"size": 10**6}}])
    assert not is_refused(key, [{"Resize": {"size": [224, 224], "interpolation": "bilinear"}}, "RandomHorizontalFlip"])


@pytest.mark.parametrize("key", ["eval.metrics", "augment.batch", "log.loggers", "hooks"])
def test_own_parts_are_named_only_where_serve_allows_code(key: str) -> None:
    named: list[Any] = [["mine:Make"], [{"mine:Make": {}}], [{"name": "mine:Make", "arguments": {"a": 1}}], "mine:Make"]
    for value in named:
        assert is_refused(key, value), value
        assert not is_refused(key, value, allow_code=True)
    assert not is_refused(key, [])
    assert is_refused("data.sampling_arguments", {"power": 1})
    assert is_refused("data.sampling_arguments.power", 1)
    assert not is_refused("data.sampling_arguments.power", 1, allow_code=True)


def test_metrics_are_those_of_distrain_and_torchmetrics() -> None:
    assert not is_refused("eval.metrics", ["top1", {"torchmetrics.F1Score": {"task": "multiclass", "num_classes": 9}}])
    assert is_refused("eval.metrics", [{"torchmetrics.F1Score": {"task": "multiclass", "num_classes": 10**9}}])


@pytest.mark.parametrize(
    "recipe",
    [
        {"hooks": [{"mine:Watch": {}}]},
        {"log.loggers": [{"mine:Csv": {}}]},
        {"eval.metrics": ["top1", "mine:kappa"]},
        {"augment.batch": [{"mine:noise": {}}]},
        {"data.sampling": "mine:weights"},
    ],
)
def test_runs_with_own_parts_are_resumed_only_where_serve_allows_code(recipe: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="--allow-code"):
        check_code(recipe, allow_code=False)
    check_code(recipe, allow_code=True)


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("key", ["data.path", "model.weights", "data.more"])
def test_paths_and_addresses_are_refused_without_a_data_root(key: str, value: str, tmp_path: Path) -> None:
    given: Any = [{"source": "imagefolder", "path": value}] if key == "data.more" else value
    assert is_refused(key, given)
    assert is_refused(key, given, data_roots=[tmp_path], root=tmp_path, allow_code=True)


def test_data_is_a_path_as_well(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.path=/etc"):
        check_request({}, data="/etc", data_roots=[tmp_path])
    check_request({}, data=str(tmp_path / "flowers"), data_roots=[tmp_path])


def test_a_path_lies_in_a_data_root_with_its_links_resolved(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "data-other"
    for folder in (data / "flowers", other):
        folder.mkdir(parents=True)
    (data / "out").symlink_to(other)
    (data / "in").symlink_to(data / "flowers")
    (data / "loop").symlink_to(data / "loop")
    (tmp_path / "root").symlink_to(data)
    for inside in (data, data / "flowers", data / "in", data / "missing", data / "flowers" / ".." / "in"):
        assert not is_refused("data.path", str(inside), data_roots=[data]), inside
        assert not is_refused("model.weights", str(inside), data_roots=[other, data]), inside
        assert not is_refused("data.path", str(inside), data_roots=[tmp_path / "root"]), inside
    for outside in (other, data / "out", data / "out" / "x", data / ".." / "data-other", data / "loop", "/", tmp_path):
        assert is_refused("data.path", str(outside), data_roots=[data]), outside
    for value in ("flowers", f"{data}\0/x", f"{data}/{'x' * 5000}", 5, [str(data)], {"x": str(data)}, False):
        assert is_refused("data.path", value, data_roots=[data]), value


def test_weights_are_those_of_a_run_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    step = root / "digits-1" / "checkpoints" / "step-00000010"
    step.mkdir(parents=True)
    (root / "digits-1" / "recipe.yaml").touch()
    (root / ".serve").mkdir()
    (root / ".serve" / "recipe.yaml").touch()
    (root / "link").symlink_to(root / "digits-1")
    (root / "digits-1" / "out").symlink_to("/etc")
    for value in (None, "imagenet", "digits-1", "digits-1 best", "digits-1 last", "digits-1 10", str(step)):
        assert not is_refused("model.weights", value, root=root), value
    for value in (
        "last",
        "digits",
        "digits-2",
        "link",
        ".serve",
        ".serve/token",
        "digits-1/../.serve/token",
        "..",
        ".",
    ):
        assert is_refused("model.weights", value, root=root), value
    for value in (str(root), f"{root}/digits-1/out/passwd", "digits-1/out/passwd", "digits-1 /etc", "x" * 5000, "\0"):
        assert is_refused("model.weights", value, root=root), value


def test_arguments_are_numbers_unless_code_is_allowed() -> None:
    for value in ({"checkpoint_path": "x.pth"}, {"pretrained_cfg": {"url": 1}}, {"a": ["x"]}, {"a": {"b": "c"}}, "x"):
        assert is_refused("model.arguments", value), value
        assert not is_refused("model.arguments", value, allow_code=True)
    assert is_refused("model.arguments.checkpoint_path", "x.pth")
    assert is_refused("model.arguments.width", 10**9)
    assert not is_refused("model.arguments.dropout", 0.1)
    assert not is_refused("model.arguments", {"dropout": 0.1, "aux_logits": False})
    assert is_refused("data.arguments", {"download": True})
    assert is_refused("data.arguments.root", 1)
    assert not is_refused("data.arguments", {})
    assert not is_refused("data.arguments", {"x": "y"}, allow_code=True)


def test_a_run_is_not_uploaded_by_a_request() -> None:
    assert is_refused("log.wandb", "online")
    assert is_refused("log.wandb", None)
    assert not is_refused("log.wandb", "disabled")


@pytest.mark.parametrize(
    "key", ["data.num_workers", "data.batch_size", "eval.batch_size", "train.threads", "checkpoint.keep_last"]
)
def test_numbers_that_only_exhaust_the_machine_are_refused(key: str) -> None:
    for value in (10**8, 1e30, "100000000", "1_000_000_000", [10**8]):
        assert is_refused(key, value), value
    assert not is_refused(key, 16)


@pytest.mark.parametrize("key", sorted(ALLOWED))
def test_no_value_is_large_or_has_control_characters(key: str) -> None:
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    for value in (
        "a\nb",
        "\x1b[31m",
        "\u2028",
        "\ud800",
        "x" * 10**5,
        [0] * 10**4,
        deep,
        float("nan"),
        10**400,
        object(),
    ):
        assert is_refused(key, value), repr(value)[:40]


@pytest.mark.parametrize("key", TEXTS)
def test_a_text_that_is_allowed_is_the_one_that_the_recipe_gets(key: str) -> None:
    for text in (
        "null",
        "true",
        "5",
        "'a'",
        '"a"',
        "a: b",
        "a #b",
        "[a]",
        "&a",
        "!!python/name:os.system",
        "a\\nb",
        "é",
    ):
        if key in REFUSED or is_refused(key, text):
            continue
        override = f"{key}={json.dumps(text, ensure_ascii=False)}"
        try:
            found: Any = load_recipe("digits", overrides=[override]).model_dump(mode="json")
        except RecipeError:
            continue  # by the recipe's own rules
        for part in key.split("."):
            found = found[part]
        assert found in (text, [text])


def test_devices_are_bounded_by_those_of_the_queue() -> None:
    check_devices(1, available=0)
    check_devices(4, available=4)
    for count in (0, 5, 10**9):
        with pytest.raises(LaunchError, match="devices"):
            check_devices(count, available=4)


@pytest.mark.parametrize("key", ["data.source", "model.name", "loss.name", "log.wandb"])
@pytest.mark.parametrize("value", [[], {}, [["x"]], {"a": {}}, True, 1.5])
def test_a_name_is_text(key: str, value: Any) -> None:
    assert is_refused(key, value)
