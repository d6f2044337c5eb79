"""Notebooks, executed: a user's day in one, with a network of a cell, and a small one by default."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=32):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, images):
        return self.layers(images)
"""
FIT = """
import distrain

quiet = {"log.wandb": "disabled", "log.tensorboard": False}
run = distrain.fit("digits", set={"train.max_steps": 46, **quiet}, device="cpu", procs=PROCS, model=Net)
"""


def execute(cells: list[str], folder: Path, *, interrupt: int | None = None) -> list[list[dict[str, Any]]]:
    """Execute a notebook in a folder; returns the outputs of each cell. The cell `interrupt` is interrupted."""
    new: Any = nbformat.v4  # it has no types
    notebook = new.new_notebook(cells=[new.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(folder)}}, kernel_name="python3"
    )

    def interrupt_it(cell: Any, cell_index: int) -> None:
        if cell_index == interrupt:
            threading.Thread(target=_interrupt_when_training, args=(client, folder), daemon=True).start()

    client.on_cell_execute = interrupt_it
    client.execute()
    return [cell.outputs for cell in notebook.cells]


def _interrupt_when_training(client: nbclient.NotebookClient, folder: Path) -> None:
    manager: Any = client.km
    while True:
        for path in folder.glob("runs/*/status.json"):
            found = json.loads(path.read_text())
            if found["state"] == "running" and found["step"] > 20:
                asyncio.run(manager.interrupt_kernel())
                return
        time.sleep(0.05)


def text_of(outputs: list[dict[str, Any]]) -> str:
    return "".join(each.get("text", "") or each.get("data", {}).get("text/plain", "") for each in outputs)


def test_network_of_a_cell_trains_with_one_live_line(tmp_path: Path) -> None:
    cells = [NET, FIT.replace("PROCS", "1"), "run", "(run.status.state, run.recipe.model.name.split('_')[1])"]
    outputs = execute(cells, tmp_path)
    (line,) = outputs[1]  # one output, replaced in place
    assert line["output_type"] == "display_data"
    assert "finished" in line["data"]["text/plain"]
    assert "step 46/46" in line["data"]["text/plain"]
    assert '<svg class="area"' in outputs[2][0]["data"]["text/html"]
    assert text_of(outputs[3]) == "('finished', 'objects:Net')"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_day_of_a_user(tmp_path: Path, processes: int) -> None:
    """Load, fit on two processes, live line, interrupt, resume, stop, evaluate, confusion, export, compare, sweep."""
    day = [
        NET,
        # The notebook's own process has used torch, with threads, before the runs fork anything.
        "import torch; float(torch.ones(500, 500).mm(torch.ones(500, 500)).sum())",
        FIT.replace("PROCS", str(processes)),
        """
events = []
long = distrain.fit(
    "digits", set={"train.epochs": 2000, "checkpoint.every_steps": 100, **quiet}, device="cpu", procs=PROCS, model=Net,
    on_event=events.append,
)
""".replace("PROCS", str(processes)),
        "(long.status.state, long.checkpoints[-1].step == long.status.step, len(events) > 0)",
        "step = long.status.step; long.resume(wait=False); long.status.state in ('starting', 'running')",
        """
import time
while long.status.step <= step:
    time.sleep(0.05)
long.stop()
(long.status.state, long.status.step > step, len(long.status.attempts))
""",
        "evaluation = run.evaluate('last'); run.status.last['val/top1'] == evaluation.metrics['val/top1']",
        "counts = evaluation.read_confusion().counts; (counts.shape, int(counts.sum()) == evaluation.num_samples)",
        "float(run.metrics().to_pandas()['val/top1'].dropna().iloc[-1]) == evaluation.metrics['val/top1']",
        "run.export('onnx').name",
        "import numpy; run.predict(numpy.zeros((3, 8, 8), numpy.uint8)).values.shape",
        "comparison = distrain.compare_runs(run, long); comparison",
        "sorted(comparison.recipe)",
        "[each.name == run.name for each in distrain.list_runs('state=finished')]",
        "distrain.open_run(run.name).digest == run.digest",
        """
found = distrain.run_sweep(
    "digits", params={"optimizer.lr": "log(1e-3, 1)", "optimizer.momentum": [0.0, 0.9]}, trials=12, parallel=2,
    prune="asha", seed=0, name="rates", set={"train.epochs": 4, **quiet}, device="cpu", procs=1,
)
states = [trial.state for trial in found.trials]
(len(states), set(states) == {"finished", "pruned"}, found.best.value > 0.9, found.best_recipe.name)
""",
        "[run.name.startswith('rates') for run in distrain.list_runs('name=rates-*')] == [True] * 12",
    ]
    outputs = execute(day, tmp_path, interrupt=3)
    assert [each["output_type"] for each in outputs[2]] == ["display_data"]
    live, said = outputs[3]
    assert "stopped" in live["data"]["text/plain"]
    assert said["text"].startswith("interrupted: stopped at step")
    assert text_of(outputs[4]) == "('stopped', True, True)"
    assert text_of(outputs[5]) == "True"
    assert text_of(outputs[6]) == "('stopped', True, 2)"
    assert text_of(outputs[7]) == "True"
    assert text_of(outputs[8]) == "((10, 10), True)"
    assert text_of(outputs[9]) == "True"
    assert text_of(outputs[10]) == "'model.onnx'"
    assert text_of(outputs[11]) == "(3, 10)"
    assert '<svg class="area"' in outputs[12][0]["data"]["text/html"]
    assert "train.epochs" in text_of(outputs[13])
    assert text_of(outputs[14]) == "[True]"
    assert text_of(outputs[15]) == "True"
    assert text_of(outputs[16]) == "(12, True, True, 'best.yaml')"
    assert text_of(outputs[17]) == "True"
