"""A missing name in the user's module is reported with the most similar one."""

from pathlib import Path

import pytest

from distrain.config.user_code import load_reference
from distrain.errors import RecipeError


def test_misspelt_name_in_a_module_is_reported_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_mine.py").write_text("def network(): ...\n_netwerk = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        RecipeError, match=r"^model.name=nets_of_mine:netwerk: .* has no 'netwerk'; did you mean network\?$"
    ):
        load_reference("nets_of_mine:netwerk", key="model.name")
    with pytest.raises(RecipeError, match=r"has no 'NETWORK'; did you mean network\?$"):
        load_reference("nets_of_mine:NETWORK", key="model.name")
    with pytest.raises(RecipeError, match=r"has no 'zzz'; it defines network$"):
        load_reference("nets_of_mine:zzz", key="model.name")


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("mine.py:net", "name the module, not its file: mine:net"),
        ("nets/mine.py:net", "name the module, not its file: start distrain in nets, with mine:net"),
        ("../mine:net", "'../mine' is not the name of a module; use package.module:name"),
        (":net", "'' is not the name of a module; use package.module:name"),
    ],
)
def test_reference_to_a_file_is_told_how_its_module_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, fault: str
) -> None:
    (tmp_path / "nets").mkdir()
    for folder in (tmp_path, tmp_path / "nets"):
        (folder / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_reference(reference, key="loss.name")
    assert str(caught.value) == f"loss.name={reference}: {fault}"
