"""Every logger of a real run is read back and holds what metrics.jsonl holds; none of them can stop the training."""

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from tests.cli_runner import distrain, metrics

FAKE_KEY = "0123456789abcdef0123456789abcdef01234567"
BLOCK = 32768
HEADER = 7


def wandb_records(path: Path) -> Iterator[Any]:
    """Read an offline W&B file: a seven-byte header, then LevelDB's log format in blocks of 32 KiB."""
    data = path.read_bytes()
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in {1, 4}:  # a record in one piece, or the last piece of one
            yield wandb_internal_pb2.Record.FromString(parts)  # type: ignore[attr-defined]  # made at import
            parts = b""


def wandb_history(path: Path) -> list[dict[str, float]]:
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items})
    return rows


def pixels(file: Path | io.BytesIO) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def on_one_strip(run: Path) -> NDArray[np.uint8]:
    """Return the images of `samples.png`, which are 8 pixels wide and enlarged, side by side in their own size."""
    sheet, boxes = pixels(run / "samples.png"), json.loads((run / "samples.json").read_text())["images"]
    enlarged = [sheet[box["top"] :, box["left"] :][: box["height"], : box["width"]] for box in boxes]
    assert len(enlarged) == 8
    return np.concatenate([image[:: len(image) // 8, :: len(image) // 8] for image in enlarged], axis=1)


def test_all_sinks_of_a_resumed_run_hold_the_same_metrics(tmp_path: Path) -> None:
    arguments = [
        "digits",
        "--procs=1",
        "--set=log.every_steps=5",
        "--set=log.system_every_s=0.1",
        "--set=train.epochs=2",
        "--run=run",
    ]
    run = tmp_path / "run"
    started = round(time.time(), 3)
    done = distrain("fit", *arguments, cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    for word in ("epoch 1/2", "step 46/46", "loss", "top-1", "samples/s", "finished"):
        assert word in done.out
    assert re.search(
        r"^epoch 1/2  step 23/46  loss [\d.]+  val loss [\d.]+  top-1 [\d.]+%  [\d,]+ samples/s$", done.out, re.M
    )
    assert re.search(r"^finished  top-1 [\d.]+% \(best [\d.]+% at step \d+\), validation loss", done.out, re.M)
    records = metrics(run)
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    assert {5, 23, 45, 46} <= set(steps)
    times = [record["time"] for record in records]
    assert started <= times[0] and times == sorted(times) and times[-1] <= time.time()

    # As if it had been killed in the second epoch: the copies are made again from what metrics.jsonl keeps.
    for path in (run / "checkpoints").glob("step-00000046"):
        path.rename(tmp_path / "later")
    (run / "status.json").unlink()
    drawn = (run / "samples.png").stat()
    assert distrain("fit", "--run=run", cwd=tmp_path).code == 0
    assert (run / "samples.png").stat().st_mtime_ns == drawn.st_mtime_ns
    again = metrics(run)
    assert [record["step"] for record in again] == steps
    assert [r.get("train/loss") for r in again] == [r.get("train/loss") for r in records]
    kept = steps.index(23) + 1
    assert [r["time"] for r in again[:kept]] == times[:kept]
    assert again[kept]["time"] > times[-1]

    scalars = EventAccumulator(str(run / "tensorboard"))
    scalars.Reload()
    names = {name for record in again for name in record if "/" in name}
    assert names >= {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/samples_per_s",
        "val/loss",
        "val/top1",
        "val/top5",
    }
    assert names >= {"rank/0/cpus_used", "node/0/memory_used_gib", "node/0/disk_free_gib"}
    assert set(scalars.Tags()["scalars"]) == names
    for name in names:
        expected = [(record["step"], record[name]) for record in again if name in record]
        found = scalars.Scalars(name)
        assert [event.step for event in found] == [step for step, _ in expected]
        assert [event.value for event in found] == pytest.approx([value for _, value in expected], rel=1e-6)
    (images,) = scalars.Images("train/images")
    assert np.array_equal(pixels(io.BytesIO(images.encoded_image_string)), on_one_strip(run))
    assert scalars.Tags()["graph"]

    run_id = (run / "wandb" / "run-id").read_text()
    files = sorted((run / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(files) == 2
    rows = wandb_history(files[-1])
    assert [row["_step"] for row in rows] == steps
    assert not any("time" in row for row in rows)
    for row, record in zip(rows, again, strict=True):
        assert {k: v for k, v in row.items() if "/" in k} == {k: v for k, v in record.items() if "/" in k}


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"WANDB_API_KEY": ""},
        pytest.param({"WANDB_API_KEY": FAKE_KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, marks=pytest.mark.slow),
    ],
)
def test_online_wandb_without_key_or_network_trains_on_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)  # a key of whoever runs the tests
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), **env}
    run = tmp_path / "run"
    started = time.monotonic()
    arguments = ["--set=log.wandb=online", "--set=log.tensorboard=false", "--set=train.max_steps=20", "--run=run"]
    done = distrain("fit", *arguments, cwd=tmp_path, env=home)
    took_s = time.monotonic() - started
    assert done.code == 0, done.out + done.err
    assert "finished" in done.out
    warnings = [line for line in (done.out + done.err).splitlines() if "warning" in line.lower()]
    assert len(warnings) == 1, done.out + done.err
    assert warnings[0].startswith("warning: wandb is not reached")
    assert "Traceback" not in done.out + done.err
    assert took_s < 90  # some 10 s of its own, and at most a minute that the logger may take
    records = metrics(run)
    assert records[-1]["step"] == 20

    (file,) = (run / "wandb").glob(f"offline-run-*/run-{(run / 'wandb' / 'run-id').read_text()}.wandb")
    assert [row["_step"] for row in wandb_history(file)] == [record["step"] for record in records]
    files = [path for path in run.rglob("*") if path.is_file()]
    assert not any(FAKE_KEY.encode() in path.read_bytes() for path in files), "the key was written to the run"
