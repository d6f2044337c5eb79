"""What goes to a run by reference and what by value, and that nothing else than those bytes is loaded."""

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import nn

from distrain.api.given import read_given
from distrain.config import load_recipe
from distrain.config.user_code import OBJECTS, load_reference
from distrain.errors import DataError, LaunchError, RecipeError
from distrain.runs.directory import RunDirectory
from distrain.runs.objects import provide_objects, read_objects, write_objects
from tests.users import as_nobody


def net(num_classes: int) -> nn.Module:
    return nn.Linear(2, num_classes)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    run = RunDirectory(tmp_path / "run")
    run.create()
    yield run
    sys.modules.pop(OBJECTS, None)


def refer(run: RunDirectory, value: Any) -> str:
    """Give a value to a run; returns what names it there."""
    given = read_given({"model.name": value})
    write_objects(run, given.pickles)
    return load_recipe("digits", overrides=given.overrides).model.name


def load(run: RunDirectory, reference: str) -> Any:
    provide_objects(run)
    return load_reference(reference, key="model.name")


def test_importable_code_goes_by_reference() -> None:
    for value, reference in ((net, "tests.api.test_given:net"), (OrderedDict, "collections:OrderedDict")):
        given = read_given({}, model=value)
        assert (given.overrides, given.pickles) == ([f'model.name="{reference}"'], {})
    assert read_given({}, model="lenet").overrides == ['model.name="lenet"']


def test_local_and_main_code_goes_by_value(run: RunDirectory) -> None:
    width = 5

    def local(num_classes: int) -> nn.Module:
        return nn.Linear(width, num_classes)

    reference = refer(run, local)
    assert reference.startswith(f"{OBJECTS}:local_")
    width = 6  # what was given is what it was then
    assert load(run, reference)(num_classes=3).weight.shape == (3, 5)
    assert run.objects.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in run.objects.iterdir()} == {0o600}
    assert list(read_objects(run)) == [reference.partition(":")[2]]


def test_module_that_a_new_process_does_not_find_goes_by_value(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a notebook has changed sys.path, with all that it imports from there."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "part_of_it.py").write_text("WIDTH = 7\n")
    (tmp_path / "elsewhere" / "found_by_path.py").write_text(
        "import part_of_it\nfrom torch import nn\ndef net(num_classes):\n"
        "    return nn.Linear(part_of_it.WIDTH, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    module = __import__("found_by_path")
    try:
        reference = refer(run, module.net)
    finally:
        for name in ("found_by_path", "part_of_it"):
            sys.modules.pop(name)
    assert reference.startswith(f"{OBJECTS}:net_")
    code = (
        "import sys; from pathlib import Path; from distrain.runs.directory import RunDirectory\n"
        "from distrain.runs.objects import provide_objects; from distrain.config.user_code import load_reference\n"
        "provide_objects(RunDirectory(Path(sys.argv[1])))\n"
        "print(tuple(load_reference(sys.argv[2], key='model.name')(num_classes=2).weight.shape))"
    )
    done = subprocess.run([sys.executable, "-c", code, run.path, reference], capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 7)\n"


def test_network_is_copied_at_each_use(run: RunDirectory) -> None:
    network = nn.Linear(2, 3)
    given = read_given({}, model=network)
    write_objects(run, given.pickles)
    factory = load(run, load_recipe("digits", overrides=given.overrides).model.name)
    first, second = factory(), factory()
    assert first is not second
    assert first.weight.equal(network.weight)


def test_datasets_take_the_place_of_the_recipes_own(run: RunDirectory) -> None:
    given = read_given({}, train=[1, 2], val=[3])
    write_objects(run, given.pickles)
    data = load_recipe("imagefolder-resnet18", overrides=[*given.overrides, "data.decode_size=null"]).data
    factory = load(run, data.source)
    assert (factory(split="train", path=None), factory(split="val", path=None)) == ([1, 2], [3])
    with pytest.raises(DataError, match="data photos would be ignored"):
        factory(split="train", path="photos")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": [1], "data": "photos"}, "data=photos and train= both give the data"),
        ({"val": [1]}, "val= is for a dataset given with train="),
    ],
)
def test_contradictions_are_one_sentence(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        read_given({}, **arguments)


def test_what_cannot_be_given_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not a network"):
        read_given({}, model=3)
    with pytest.raises(RecipeError, match=r"set train.seed: <object object at .* is not a value of a recipe"):
        read_given({"train.seed": object()})
    with (tmp_path / "file").open("w") as file, pytest.raises(RecipeError, match="cannot be given by value"):
        read_given({"model.name": lambda num_classes: (file, num_classes)})


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("optimizer.lr", 1e-05, 1e-05),
        ("optimizer.lr", np.float64(0.25), 0.25),
        ("train.max_steps", np.int64(3), 3),
        ("train.exact", True, True),
        ("data.path", Path("a: b"), "a: b"),
        ("data.path", "null", "null"),
        ("model.weights", None, None),
        ("model.arguments", {"width": (1, 2), "name": "1"}, {"width": [1, 2], "name": "1"}),
    ],
)
def test_values_of_python_are_those_of_the_recipe(key: str, value: Any, read: Any) -> None:
    recipe = load_recipe("digits", overrides=read_given({key: value}).overrides)
    section, _, field = key.partition(".")
    assert getattr(getattr(recipe, section), field) == read


def test_other_bytes_are_not_loaded(run: RunDirectory) -> None:
    reference = refer(run, lambda num_classes: num_classes)
    (path,) = run.objects.iterdir()
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(RecipeError, match="it has other bytes than the object that the run was started with"):
        load(run, reference)
    path.write_bytes(content)
    path.chmod(0o620)
    with pytest.raises(RecipeError, match="another user owns it or can write to it"):
        load(run, reference)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(RecipeError, match="is not a regular file"):
        load(run, reference)
    path.unlink()
    with pytest.raises(RecipeError, match="is a Python object that another run was started with"):
        load(run, reference)


def test_objects_of_another_user_are_not_loaded(run: RunDirectory) -> None:
    reference = refer(run, lambda num_classes: num_classes)
    for path in (run.path.parent, run.path, run.objects, *run.objects.iterdir()):
        path.chmod(0o755)
    assert "the run belongs to another user" in as_nobody(lambda: load(run, reference))


def test_module_of_objects_has_nothing_else() -> None:
    provide_objects(RunDirectory(Path("nowhere")))
    try:
        module = sys.modules[OBJECTS]
        assert isinstance(module, ModuleType)
        assert not hasattr(module, "__path__")
    finally:
        sys.modules.pop(OBJECTS)
