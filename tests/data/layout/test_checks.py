"""Missing and malformed data is reported before anything is started, without torch and without reading an image."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distrain.config import Data
from distrain.data.layout.checks import check_requirements
from distrain.errors import UserError
from tests.data.writing import write


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": "imagefolder"}, "pass it with --data DIR"),
        ({"source": "labelfolders"}, "pass it with --data DIR"),
        ({"source": "manifest"}, "pass it with --data: a .csv, .tsv, .json or .jsonl file"),
        ({"source": "tensors"}, "pass it with --data: a .npz, .pt or .safetensors file"),
        ({"source": "imagefolder", "path": "nowhere"}, "data folder nowhere does not exist"),
        ({"source": "manifest", "path": "none.csv"}, "none.csv does not exist"),
        ({"source": "torchvision.MNIST", "path": "nowhere"}, "nowhere does not exist"),
        ({"source": "imagefolder", "path": "alone"}, "data alone has no validation samples; put them below val/"),
        ({"source": "labelfolders", "path": "alone"}, "--set data.val_fraction=0.2"),
        ({"source": "manifest", "path": "all.csv"}, "mark them in a column split, or split some off"),
        ({"source": "manifest", "path": "bad.csv"}, "bad.csv, line 2 names image none.png, which does not exist"),
        ({"source": "digits", "more": [{"source": "manifest", "path": "bad.csv"}]}, "bad.csv, line 2 names image"),
        ({"source": "digits", "target": "values"}, "data.target=values, but data.source=digits has target class"),
        ({"source": "digits", "more": [{"source": "imagefolder", "path": "none"}]}, "none does not exist"),
    ],
)
def test_missing_or_malformed_data_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("alone/cat_image/1.png"))
    Path("all.csv").write_text("path,label\nalone/cat_image/1.png,cat\n")
    Path("bad.csv").write_text("path,label\nnone.png,cat\n")
    with pytest.raises(UserError) as caught:
        check_requirements(Data.model_validate({**fields, "batch_size": 1}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validation_split_may_come_from_a_fraction_or_from_another_source(tmp_path: Path) -> None:
    write(tmp_path / "cat_image" / "1.png")
    alone = {"source": "labelfolders", "path": str(tmp_path)}
    check_requirements(Data.model_validate({**alone, "batch_size": 1, "val_fraction": 0.5}))
    check_requirements(Data.model_validate({"source": "digits", "more": [alone], "batch_size": 1}))


def test_check_imports_no_torch() -> None:
    code = "import sys, distrain.data.layout.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
