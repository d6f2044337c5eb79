"""A damaged pack is reported in one sentence, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distrain.data.packing.format import read_pack, verify_shards
from distrain.errors import DataError
from tests.cli_runner import distrain
from tests.data.packing.packs import make_folder, opened, pack
from tests.data.packing.test_pack import flip


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack(make_folder(tmp_path / "photos"), tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize("name", ["train.index.npy", "val.targets.npy", "train.names.npy", "pack.json"])
def test_flipped_bit_of_any_array_or_of_the_header_is_one_sentence(packed: Path, name: str) -> None:
    for place in (0, (packed / name).stat().st_size // 2, (packed / name).stat().st_size - 2):
        flip(packed / name, place)
        with pytest.raises(DataError, match=f"packed is damaged: {name} is not as it was written") as caught:
            opened(packed)
        assert "\n" not in str(caught.value)
        flip(packed / name, place)
    opened(packed)


@pytest.mark.parametrize("name", ["train.index.npy", "val-00000.bin", "pack.json"])
def test_file_that_is_cut_short_or_gone_is_one_sentence(packed: Path, name: str) -> None:
    whole = (packed / name).read_bytes()
    (packed / name).write_bytes(whole[:-100])
    with pytest.raises(DataError, match=f"is damaged: {name}"):
        opened(packed)
    (packed / name).unlink()
    with pytest.raises(DataError, match=f"{name} cannot be read|has neither|has no class folders|but no train/"):
        opened(packed, source="packed")


def test_pack_of_another_version_is_one_sentence(packed: Path) -> None:
    header = json.loads((packed / "pack.json").read_text())
    (packed / "pack.json").write_text(json.dumps({**header, "version": 2}))
    with pytest.raises(DataError, match="has version 2, but this distrain reads version 1"):
        opened(packed)


def test_check_and_verify_name_a_damaged_shard(packed: Path, tmp_path: Path) -> None:
    assert verify_shards(packed, read_pack(packed), advance=lambda _: None) == []
    flip(packed / "val-00000.bin", 5000)
    assert [damage.file for damage in verify_shards(packed, read_pack(packed), advance=lambda _: None)] == [
        "val-00000.bin"
    ]
    done = distrain("data", "check", "packed", "--json", "--workers=1", cwd=tmp_path)
    assert done.code == 1, done.err
    found = {finding["kind"]: finding["items"] for finding in json.loads(done.out)["findings"]}
    assert found["damaged-shard"][0]["paths"][0].startswith("val-00000.bin, bytes 0 to ")


def test_pack_is_read_without_torch() -> None:
    code = "import sys, distrain.data.packing.format, distrain.data.inspection.scan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
