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
    with pytest.raises(RecipeError, match=r"has no 'zzz'$"):
        load_reference("nets_of_mine:zzz", key="model.name")
