"""A checkpoint with one wrong byte in any of its files is quarantined, and the next older one is used."""

from pathlib import Path

import pytest

from distrain.runs import checkpoints
from tests.checkpoint.factories import DAMAGES, copy, damage, make_training, save, save_on_ranks
from tests.processes import run_ranks

FILES = ("__0_0.distcp", "__1_0.distcp", ".metadata", "state.json", "MANIFEST.json")  # of two processes


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(save_on_ranks, folder, 2, folder / "checkpoints", 2)
    newest = checkpoints.committed(folder / "checkpoints")[-1]
    assert sorted(file.name for file in newest.iterdir()) == sorted(FILES)
    return folder / "checkpoints"


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_quarantined_and_the_older_one_used(
    two_checkpoints: Path, tmp_path: Path, name: str, how: str
) -> None:
    folder = copy(two_checkpoints, tmp_path / "checkpoints")
    damage(folder / "step-00000002" / name, how)
    found, complaints = checkpoints.latest_valid(folder)
    assert found is not None
    assert found.step == 1
    assert len(complaints) == 1
    assert complaints[0].startswith("checkpoint step-00000002 is not used: ")
    assert name in complaints[0] or name == "MANIFEST.json"  # a flipped digest accuses the file that it is of
    assert (folder / "quarantine" / "step-00000002").is_dir()
    assert [path.name for path in checkpoints.committed(folder)] == ["step-00000001"]


def test_all_damaged_checkpoints_are_quarantined_one_after_the_other(two_checkpoints: Path, tmp_path: Path) -> None:
    folder = copy(two_checkpoints, tmp_path / "checkpoints")
    damage(folder / "step-00000002" / ".metadata", "flipped")
    damage(folder / "step-00000001" / "__1_0.distcp", "truncated")
    found, complaints = checkpoints.latest_valid(folder)
    assert found is None
    assert [complaint.split()[1] for complaint in complaints] == ["step-00000002", "step-00000001"]


@pytest.mark.parametrize("name", FILES)
def test_draft_is_never_read_whichever_file_is_missing(two_checkpoints: Path, tmp_path: Path, name: str) -> None:
    folder = copy(two_checkpoints, tmp_path / "checkpoints")
    draft = folder / "step-00000003.tmp"
    (folder / "step-00000002").rename(draft)
    damage(draft / name, "missing")
    found, complaints = checkpoints.latest_valid(folder)
    assert found is not None
    assert (found.step, complaints) == (1, [])
    checkpoints.remove_partial(folder)
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]


def test_folder_renamed_before_its_manifest_was_written_is_quarantined(two_checkpoints: Path, tmp_path: Path) -> None:
    folder = copy(two_checkpoints, tmp_path / "checkpoints")
    (folder / "step-00000002" / "MANIFEST.json").unlink()
    _, complaints = checkpoints.latest_valid(folder)
    assert "it has no MANIFEST.json" in complaints[0]


def test_checkpoint_under_the_name_of_another_step_is_quarantined(two_checkpoints: Path, tmp_path: Path) -> None:
    folder = copy(two_checkpoints, tmp_path / "checkpoints")
    (folder / "step-00000002").rename(folder / "step-00000009")
    found, complaints = checkpoints.latest_valid(folder)
    assert found is not None
    assert found.step == 1
    assert "it contains step 2" in complaints[0]


def test_other_things_beside_the_checkpoints_are_left_alone(two_checkpoints: Path, tmp_path: Path) -> None:
    folder = copy(two_checkpoints, tmp_path / "checkpoints")
    for name in ("00000007", "step-best", "notes.tmp"):
        (folder / name).mkdir()
    (folder / "step-00000008").touch()
    checkpoints.remove_partial(folder)
    assert [path.name for path in checkpoints.committed(folder)] == ["step-00000001", "step-00000002"]
    assert checkpoints.latest_valid(folder)[1] == []
    assert (folder / "notes.tmp").is_dir()


def test_any_flipped_byte_of_the_manifest_is_found(tmp_path: Path) -> None:
    model, optimizer = make_training("sgd")
    save(tmp_path, model, optimizer, 1)
    (path,) = checkpoints.committed(tmp_path)
    manifest = path / "MANIFEST.json"
    content = manifest.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1
        manifest.write_bytes(flipped)
        assert checkpoints.find_corruption(path) is not None, flipped[max(0, position - 20) : position + 20]
    manifest.write_bytes(content)
    assert checkpoints.find_corruption(path) is None


def test_progress_counts_every_byte(two_checkpoints: Path) -> None:
    path = two_checkpoints / "step-00000002"
    seen: list[int] = []
    assert checkpoints.find_corruption(path, advance=seen.append) is None
    assert sum(seen) == sum(file.stat().st_size for file in path.iterdir() if file.name != "MANIFEST.json")
