"""Recipe keys are read under the names of earlier versions, and a note says how they are called now."""

from pathlib import Path

import pytest

from distrain.config import load_recipe, read_recipe
from distrain.config.old_names import OLD_NAMES, note_old_name, rename_overrides
from distrain.config.recipe import Recipe
from distrain.config.validation import keys_of
from distrain.errors import RecipeError
from tests.cli_runner import distrain

NOTE = "note: the recipe key data.hold has been renamed; write data.cache instead\n"


@pytest.fixture(autouse=True)
def _as_in_a_new_process() -> None:
    note_old_name.cache_clear()


def write_recipe(path: Path, *, data: str) -> Path:
    """Write a recipe that has `data` as one more line of its section data."""
    text = load_recipe("digits", overrides=[]).to_yaml().replace("  cache: auto\n", data)
    path.write_text(text, encoding="utf-8")
    return path


def test_old_names_stay_in_their_sections_and_new_ones_are_keys_of_today() -> None:
    keys = set(keys_of(Recipe))
    for old, new in OLD_NAMES.items():
        assert old.rpartition(".")[0] == new.rpartition(".")[0]
        assert new in keys
        assert old not in keys


def test_old_key_of_a_file_is_read_with_one_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path / "mine.yaml", data="  hold: never\n")
    for _ in range(2):
        assert load_recipe(str(path), overrides=[]).data.cache == "never"
    assert load_recipe(str(path), overrides=["data.cache=always"]).data.cache == "always"
    assert capsys.readouterr().err == NOTE


@pytest.mark.parametrize(
    "override", ["data.hold=never", " data.hold =never", "data={source: digits, batch_size: 64, hold: never}"]
)
def test_old_key_of_an_override_is_read_with_one_note(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_recipe("digits", overrides=[override]).data.cache == "never"
    assert capsys.readouterr().err == NOTE


def test_override_under_the_old_name_replaces_the_new_key_of_a_file(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml", data="  cache: always\n")
    assert load_recipe(str(path), overrides=["data.hold=never"]).data.cache == "never"


def test_stored_recipe_with_an_old_key_is_read_without_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", data="  hold: never\n")
    assert read_recipe(path).data.cache == "never"
    assert capsys.readouterr().err == ""


def test_wrong_value_of_an_old_key_is_refused_under_its_new_name() -> None:
    with pytest.raises(RecipeError, match=r"^data.cache=sometimes: must be auto, always or never"):
        load_recipe("digits", overrides=["data.hold=sometimes"])


def test_section_that_is_not_one_keeps_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: hold\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="must be a section of keys"):
        load_recipe(str(tmp_path / "mine.yaml"), overrides=[])


def test_overrides_keep_their_order_and_their_values() -> None:
    assert rename_overrides(["data.hold=a=b", "train.seed=1", "data.holder=2"]) == [
        "data.cache=a=b",
        "train.seed=1",
        "data.holder=2",
    ]


def test_both_names_of_a_key_are_one_sentence(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml", data="  hold: never\n  cache: auto\n")
    for arguments in ([str(path)], ["digits", "--set=data.cache=auto", "--set=data.hold=auto"]):
        done = distrain("fit", *arguments, "--run=run", cwd=tmp_path)
        assert done.code == 2
        assert done.err == "distrain: data.hold is the old name of data.cache, and both are given; remove data.hold\n"
        assert not (tmp_path / "run").exists()


def test_command_that_reads_old_keys_several_times_has_one_note(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml", data="  hold: never\n")
    done = distrain("fit", str(path), "--dry-run", "--debug", "--set=data.hold=auto", cwd=tmp_path)
    assert done.code == 0
    assert done.err == NOTE
