"""A pack that is stopped in any way resumes, and has the same bytes as an uninterrupted one."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from distrain.data.packing import journal, source_files
from distrain.data.packing import pack as dataset
from distrain.data.packing.encode import Stored, store_file
from distrain.data.packing.format import Form
from distrain.errors import DataError
from tests.cli_runner import wait_until
from tests.data.packing.packs import content, make_folder, noise, opened, pack
from tests.disk import fill, small_disk


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(dataset, "MAX_SHARDS", 10**9)


@pytest.mark.parametrize("form", ["jpeg", "pixels"])
def test_killed_pack_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: None, form: str
) -> None:
    folder = make_folder(tmp_path / "photos", train=12)
    out, written = tmp_path / "packed", tmp_path / "packed.tmp" / "journal.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "SAVED_EVERY_BYTES", 1)
        patch.setattr(source_files, "store_file", slowly)
        patch.setattr(source_files, "IMAGES_PER_TASK", 1)  # so that they come one by one
        process = multiprocessing.get_context("fork").Process(target=pack, args=(folder, out), kwargs={"format": form})
        process.start()
    wait_until(lambda: written.exists() and written.read_bytes().count(b"\n") >= 7, "packing", every_s=0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    outcome = pack(folder, out, format=form)
    assert 0 < outcome.num_packed < 12 + 2
    assert not written.parent.exists()
    assert len(outcome.pack.splits["train"].shards) == (3 if form == "jpeg" else 12)
    pack(folder, tmp_path / "whole", format=form)
    assert content(out) == content(tmp_path / "whole")


def slowly(path: str, form: Form, *, expected_bytes: int) -> Stored:
    time.sleep(0.05)
    return store_file(path, form, expected_bytes=expected_bytes)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, count: int) -> None:
    """Pack `count` training images, and stop as if by Ctrl-C."""
    add, added = journal.ShardWriter.add, 0

    def stop(*arguments: object, **more: object) -> None:
        nonlocal added
        if added == count:
            raise KeyboardInterrupt
        added += 1
        add(*arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(journal.ShardWriter, "add", stop)
        pack(folder, out)


def flip(path: Path, place: int = 10) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_only_damaged_and_changed_parts_are_packed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: None
) -> None:
    folder, out, below = make_folder(tmp_path / "photos"), tmp_path / "packed", tmp_path / "packed.tmp"
    names = [opened(folder)["train"].describe(index) for index in range(6)]
    interrupt_after(monkeypatch, folder, out, 5)
    shutil.copytree(below, tmp_path / "kept")
    assert pack(folder, out).num_packed == 1 + 2  # and the validation images
    expected = content(out)

    def again(spoil: object = None) -> int:
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "kept", below, dirs_exist_ok=True)
        assert callable(spoil)
        spoil()
        return pack(folder, out).num_packed

    assert again(lambda: flip(below / "pack" / "train-00001.bin")) == 2 + 2  # the first shard holds four images
    assert content(out) == expected
    assert again(lambda: flip(below / "rows" / "train-00000")) == 2 + 6
    assert content(out) == expected
    journal = below / "journal.jsonl"
    assert again(lambda: journal.write_bytes(journal.read_bytes() + b'{"split": "train", "numb')) == 2 + 1
    assert content(out) == expected
    assert again(lambda: Path(names[4]).write_bytes(Path(names[0]).read_bytes())) == 2 + 2
    assert (out / "train-00001.bin").read_bytes().startswith(Path(names[0]).read_bytes())


def test_broken_image_is_one_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "photos"), tmp_path / "packed"
    broken = folder / "train" / "käfer" / os.fsdecode(b"3 \xff.jpg")  # not UTF-8, as in old archives
    (folder / "train" / "käfer" / "3 画.jpg").rename(broken)
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        pack(folder, out)
    assert str(broken) in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert "\n" not in str(caught.value)
    broken.write_bytes(whole)
    assert pack(folder, out).num_packed == 2 + 2
    broken.write_bytes(b"no image")
    outcome = pack(folder, out, starts_over=True, skips=True)
    part = outcome.pack.splits["train"]
    assert [(skipped.name, part.images) for skipped in part.skipped] == [(f"train/käfer/{broken.name}", 5)]
    found, expected = opened(out)["train"], opened(folder)["train"]
    assert [found.describe(i).partition(" of ")[0] for i in range(5)] == [
        str(Path(expected.describe(i)).relative_to(folder)) for i in (0, 1, 2, 3, 5)
    ]
    assert found.targets.tolist() == [0, 0, 0, 1, 1]
    assert pack(folder, out, skips=True).was_complete


class Deadly:
    """A dataset with a sample that crashes the process that reads it."""

    classes = ("a", "b")
    targets = tuple(index % 2 for index in range(12))

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return noise(index), index % 2


def deadly(*, split: str, path: str | None) -> Deadly | None:
    return Deadly()


def test_sample_that_crashes_its_reader_is_handled_like_any_broken_one(tmp_path: Path) -> None:
    out, source = tmp_path / "packed", f"{__name__}:deadly"
    words = rf"^image sample 7 of {source} cannot be read \(reading it crashed the process: it was killed by SIGKILL\)"
    with pytest.raises(DataError, match=words):
        pack(None, out, source=source)
    outcome = pack(None, out, source=source, skips=True)
    assert [skipped.name for skipped in outcome.pack.splits["train"].skipped] == [f"sample 7 of {source}"]
    assert outcome.pack.splits["train"].images == 11
    assert not [child for child in multiprocessing.active_children() if child.name == "distrain-reader"]


def test_image_that_is_a_dangling_link_is_skipped_like_any_broken_one(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "photos"), tmp_path / "packed"
    link = Path(opened(folder)["train"].describe(0))
    link.unlink()
    link.symlink_to("/nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        pack(folder, out)
    assert not out.exists()
    outcome = pack(folder, out, skips=True)
    (skipped,) = outcome.pack.splits["train"].skipped
    assert "No such file" in skipped.reason
    assert outcome.num_packed == 5 + 2
    assert pack(folder, out, skips=True).was_complete


def test_row_of_a_manifest_without_its_image_is_skipped_like_any_broken_one(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "photos"), tmp_path / "packed"
    names = [Path(opened(folder)["train"].describe(index)).relative_to(folder) for index in range(3)]
    table = folder / "all.csv"
    table.write_text("".join(["path,label\n", *(f"{name},x\n" for name in (*names, "none.jpg"))]))
    with pytest.raises(DataError, match=r"none\.jpg, which does not exist"):
        pack(table, out, source="manifest")
    outcome = pack(table, out, source="manifest", skips=True)
    assert outcome.num_packed == 3
    assert [skipped.name for skipped in outcome.pack.splits["train"].skipped] == ["none.jpg"]


def test_skipped_files_are_not_packed_but_reported(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "photos"), tmp_path / "packed"
    names = [
        opened(folder)[split].describe(index) for split, count in (("train", 6), ("val", 2)) for index in range(count)
    ]
    shutil.copytree(folder / "val", folder / "train/__MACOSX")
    (folder / "train/ants/._0.jpg").touch()
    (folder / "val/ants/up").symlink_to("..")
    for was_complete in (False, True):
        outcome = pack(folder, out)
        assert (outcome.num_packed, outcome.was_complete) == (0 if was_complete else 8, was_complete)
        assert [note.removeprefix(f"{folder}: ") for note in outcome.notes] == [
            "skipped hidden and system files: 1 file (train/ants/._0.jpg) and 1 folder (train/__MACOSX)",
            "did not follow 1 link to a folder that is read anyway (val/ants/up)",
        ]
    assert [opened(out)["train"].describe(i).partition(" of ")[0] for i in range(6)] == [
        str(Path(name).relative_to(folder)) for name in names[:6]
    ]


def test_skipped_images_are_tried_again_without_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = make_folder(tmp_path / "photos"), tmp_path / "packed"
    Path(opened(folder)["train"].describe(0)).write_bytes(b"no image")
    Path(opened(folder)["val"].describe(0)).write_bytes(b"no image")
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_finish", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            pack(folder, out, skips=True)
    with pytest.raises(DataError, match=r"0 画\.jpg cannot be read"):
        pack(folder, out)


def test_finished_pack_reports_changes_and_is_replaced_only_by_force(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "photos"), tmp_path / "packed"
    pack(folder, out)
    before = content(out)
    assert pack(folder, out).was_complete
    shutil.copy(opened(folder)["train"].describe(0), folder / "train" / "ants" / "new.jpg")
    Path(opened(folder)["val"].describe(0)).unlink()
    with pytest.raises(DataError, match=r"complete, but .*train has 1 added; val has 1 removed; --force"):
        pack(folder, out)
    with pytest.raises(DataError, match="size is None in it, but 50 was requested"):
        pack(folder, out, size=50)
    assert content(out) == before
    assert pack(folder, out, starts_over=True).num_packed == 8
    assert len(opened(out)["train"]) == 7


def test_unfinished_pack_is_not_resumed_with_other_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = make_folder(tmp_path / "photos"), tmp_path / "packed"
    interrupt_after(monkeypatch, folder, out, 3)
    with pytest.raises(DataError, match=r"was started with size=None, but now it is size=64; .* --force"):
        pack(folder, out, size=64)
    assert pack(folder, out, size=64, starts_over=True).num_packed == 8


def test_output_folder_that_is_used_or_inside_the_data_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos")
    pack(folder, tmp_path / "packed")
    (tmp_path / "mine.tmp").mkdir()
    (tmp_path / "mine.tmp" / "file").touch()
    for out, source, words in (
        (folder, folder, "would be inside the data"),
        (folder / "train" / "packed", folder, "would be inside the data"),
        (tmp_path, folder, "exists and is not a packed dataset"),
        (tmp_path / "mine", folder, "exists and is not an unfinished pack"),
        (tmp_path / "again", tmp_path / "packed", "is packed already"),
    ):
        with pytest.raises(DataError, match=words):
            pack(source, out)
    assert (tmp_path / "mine.tmp" / "file").exists()


def test_disk_that_is_too_small_or_full_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "photos", train=40)
    with small_disk(tmp_path / "disk", mebibytes=4) as disk:
        filler = fill(disk, leave_bytes=300_000)
        with pytest.raises(DataError, match=r"needs about 0\.4 MiB more, but the disk of .* has 0\.3 MiB left"):
            pack(folder, disk / "packed")
        monkeypatch.setattr(dataset, "_check_space", lambda *_: None)  # another program fills it meanwhile
        with pytest.raises(DataError, match="is full; free some space and run the same command again"):
            pack(folder, disk / "packed")
        filler.unlink()
        pack(folder, disk / "packed")
        pack(folder, tmp_path / "whole")
        assert content(disk / "packed") == content(tmp_path / "whole")
