"""The commands beside `fit`, and how fast the command line answers."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.cli_runner import command, distrain

_HEAVY = {"torch", "torchvision", "accelerate", "wandb", "numpy", "PIL", "fastapi", "uvicorn", "jinja2", "plotly"}


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """So that it answers at once."""
    words = [sys.executable, "-X", "importtime", *command("--help")[1:]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "Examples" in done.stdout and "distrain.cli.app" in imported
    assert not imported & _HEAVY


def test_control_plane_imports_no_torch() -> None:
    modules = "cli, cli.run_fit, cli.output, runs.query, runs.environment, launchers, config, data.layout.image_folder"
    modules += ", rng, config.batching, data.inspection.output, data.inspection.image_table"
    modules += ", benchmark.scaling_run, benchmark.capacity_plan, benchmark.plot"
    imports = "; ".join(f"import distrain.{name}" for name in modules.split(", "))
    check = (
        "import sys; print([name for name in ('torch', 'torchvision', 'wandb', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["fit"],
        ["recipes"],
        ["recipes", "show"],
        ["runs"],
        ["runs", "show"],
        ["data", "check"],
        ["data", "info"],
        ["doctor"],
        ["export"],
        ["predict"],
        ["import"],
        ["eval"],
        ["bench"],
        ["plan"],
    ],
)
def test_every_command_has_help(tmp_path: Path, words: list[str]) -> None:
    done = distrain(*words, "--help", cwd=tmp_path)
    assert done.code == 0
    assert "Usage" in done.out


def test_version_is_printed(tmp_path: Path) -> None:
    assert distrain("--version", cwd=tmp_path).out.startswith("distrain 0.")


def test_recipes_are_listed_shown_explained_and_copied(tmp_path: Path) -> None:
    names = json.loads(distrain("recipes", "list", "--json", cwd=tmp_path).out)
    assert json.loads(distrain("recipes", "--json", cwd=tmp_path).out) == names
    assert {"digits", "cifar10", "imagefolder-resnet18"} <= names.keys()
    for name in names:
        text = distrain("recipes", "show", name, cwd=tmp_path).out
        assert all(f"# {word}" in text for word in ("Expected", "Hardware", "Command"))
        assert yaml.safe_load(text)["model"]
    assert len(distrain("recipes", cwd=tmp_path).out.splitlines()[-1]) <= 80
    keys = json.loads(distrain("recipes", "keys", "--json", cwd=tmp_path).out)
    assert all(row["meaning"] for row in keys)
    assert {"data.batch_size", "train.micro_batch_size", "optimizer.lr"} <= {row["key"] for row in keys}

    assert distrain("recipes", "init", "cifar10", "mine.yaml", cwd=tmp_path).code == 0
    assert "name: mine" in distrain("recipes", "show", "mine.yaml", "--resolved", cwd=tmp_path).out
    again = distrain("recipes", "init", "cifar10", "mine.yaml", cwd=tmp_path)
    assert again.code == 2
    assert "mine.yaml exists" in again.err


def test_command_suggested_for_a_new_recipe_works_once_its_folder_is_named(tmp_path: Path) -> None:
    for name, options in (("digits", ""), ("cifar10", ""), ("imagefolder-resnet18", " --data DIR")):
        done = distrain("recipes", "init", name, f"my {name}.yaml", cwd=tmp_path)
        assert done.out.endswith(f"then: distrain fit 'my {name}.yaml'{options}\n")
    words = shlex.split(done.out.partition("then: distrain ")[2].replace("DIR", "photos"))
    for path in ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg"):
        (tmp_path / "photos" / path).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / path)
    done = distrain(*words, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err


def test_dry_run_prints_recipe_and_command_and_creates_nothing(tmp_path: Path) -> None:
    done = distrain("fit", "--procs=2", "--set=train.seed=5", "--run=there", "--dry-run", cwd=tmp_path)
    assert done.code == 0
    assert "seed: 5" in done.out
    assert "torch.distributed.run --standalone" in done.out
    assert "--nproc-per-node=2" in done.out
    assert "OMP_NUM_THREADS=" in done.out
    assert not list(tmp_path.iterdir())


def test_failure_of_a_verified_training_is_reported_after_one_prefix(tmp_path: Path) -> None:
    done = distrain("verify", "--set=model.name=nothing", "--steps=3", cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("distrain: the training ended with exit code 2: model.name=nothing: unknown model")


def test_runs_of_an_empty_folder_are_none(tmp_path: Path) -> None:
    assert json.loads(distrain("runs", "list", "--json", cwd=tmp_path).out) == []
    assert json.loads(distrain("runs", "--json", "--root=elsewhere", cwd=tmp_path).out) == []
    misplaced = distrain("runs", "--root=elsewhere", "list", cwd=tmp_path)
    assert misplaced.code == 2
    assert misplaced.err == "distrain: --root must come after the command: distrain runs list --root ...\n"
    missing = distrain("runs", "show", "last", cwd=tmp_path)
    assert missing.code == 2
    assert "there is no run" in missing.err
    (tmp_path / "weights.pth").touch()
    (tmp_path / "picture.png").touch()
    for reference in ("weights.pth", "../bndle"):
        refused = distrain("predict", reference, "picture.png", cwd=tmp_path)
        assert refused.code == 2
        assert refused.err.endswith("; or name the folder of a bundle, which `distrain export` writes\n")


def test_doctor_reports_the_machine_and_no_secret(tmp_path: Path) -> None:
    done = distrain("doctor", "--json", cwd=tmp_path, env={"WANDB_API_KEY": "verysecret"})
    facts = json.loads(done.out)
    assert facts["torch"]["gloo"] is True
    assert "verysecret" not in done.out
    assert done.code == (1 if facts["problems"] else 0)
