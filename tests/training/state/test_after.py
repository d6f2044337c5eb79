"""Whatever uses a network after its training gets its extra state with it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distrain.checkpoint.load import read_model
from distrain.config import Model
from distrain.distributed.world import World
from distrain.evaluation.request import resolve
from distrain.evaluation.worker import evaluate_checkpoint
from distrain.export import load, read_state
from distrain.export.bundle import Bundle
from distrain.export.from_checkpoint import open_checkpoint
from distrain.export.write_bundle import write_bundle
from distrain.models.registry import build_model
from distrain.runs import checkpoints
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import Findings, read_findings
from distrain.training.monitor import RankMonitor
from distrain.training.stored_weights import read_stored
from tests.checkpoint.factories import SINGLE
from tests.cli_runner import distrain
from tests.export.factories import validation_digits
from tests.processes import run_ranks
from tests.training.state import factories
from tests.training.state.factories import SAMPLES_SEEN, CountingInADict, CountingInATensor, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    path = tmp_path_factory.mktemp("after") / "run"
    averaged = "train={epochs: 2, micro_batch_size: 4, ema_decay: 0.9}"
    train(path, f"model.name={factories.__name__}:CountingInADict", f"loss.name={factories.__name__}:Centred", averaged)
    return RunDirectory(path)


def newest(run: RunDirectory) -> Path:
    return checkpoints.committed(run.checkpoints)[-1]


def eval_newest(world: World, run: RunDirectory, out: Path, *overrides: str) -> Findings:
    folder, recipe, request = resolve(run, newest(run), split=None, overrides=list(overrides), data=None, out=out)
    if world.is_rank_zero:
        folder.path.mkdir(parents=True)
    world.barrier()
    with RankMonitor(folder, rank=world.rank) as monitor:
        assert evaluate_checkpoint(recipe, folder, request, world, monitor)
    world.barrier()
    return findings_of(folder.path)


def findings_of(folder: Path) -> Findings:
    findings = read_findings(RunDirectory(folder))
    assert findings is not None
    return findings


def eval_on_ranks(world: World, run: RunDirectory, out: Path) -> None:
    eval_newest(world, run, out)


def test_eval_finds_what_training_found(tmp_path: Path, run: RunDirectory) -> None:
    last = run.read_status().last
    assert last is not None
    run_ranks(eval_on_ranks, tmp_path, 2, run, tmp_path / "two")
    for found in (eval_newest(SINGLE, run, tmp_path / "one"), findings_of(tmp_path / "two")):
        assert {name: found.metrics[name] for name in ("val/loss", "val/top1")} == {
            name: last[name] for name in ("val/loss", "val/top1")
        }
    assert (
        eval_newest(SINGLE, run, tmp_path / "other", "loss.name=cross_entropy").metrics["val/loss"] != last["val/loss"]
    )


def test_bundle_has_the_networks_extra_state_before_and_after_it_is_written(tmp_path: Path, run: RunDirectory) -> None:
    trained = open_checkpoint(run, newest(run))
    write_bundle(trained, tmp_path / "bundle")
    images = list(validation_digits().images[:5])
    for bundle in (trained, load(tmp_path / "bundle")):
        assert isinstance(bundle, Bundle)
        assert isinstance(bundle.model, CountingInADict)
        assert bundle.model.seen == SAMPLES_SEEN
        assert torch.equal(bundle.predict(images), trained.predict(images))


def test_consolidated_file_is_loaded_strictly_by_the_plain_network(tmp_path: Path, run: RunDirectory) -> None:
    done = distrain("checkpoints", "consolidate", str(run.path), "last", "model.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "read it with distrain.export.read_state for load_state_dict" in done.out
    model = CountingInADict(10)
    model.load_state_dict(read_state(tmp_path / "model.safetensors"), strict=True)
    assert model.seen == SAMPLES_SEEN
    averaged = read_model(newest(run))["head.weight"]
    assert torch.equal(model.head.weight, averaged)


@pytest.mark.parametrize("entry", ["model", "average"])
def test_another_training_starts_with_the_extra_state_of_a_checkpoint(run: RunDirectory, entry: str) -> None:
    config = Model(name=f"{factories.__name__}:CountingInADict", weights=str(newest(run)), weights_entry=entry)
    model = build_model(config, num_classes=10, in_channels=1, stored=read_stored(config))
    assert isinstance(model, CountingInADict)
    assert model.seen == SAMPLES_SEEN


def test_extra_state_that_is_a_tensor_needs_no_reader_of_ours(tmp_path: Path) -> None:
    train(tmp_path / "run", f"model.name={factories.__name__}:CountingInATensor")
    done = distrain("checkpoints", "consolidate", "run", "last", "model.safetensors", cwd=tmp_path)
    assert "read_state" not in done.out
    model = CountingInATensor(10)
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert model.seen == SAMPLES_SEEN
