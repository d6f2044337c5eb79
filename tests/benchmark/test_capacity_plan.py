"""A plan follows from given results, without a measurement."""

import json
from pathlib import Path

import pytest

from distrain.benchmark import capacity_plan
from distrain.benchmark.capacity_results import Plan
from distrain.benchmark.scaling_model import LINKS
from distrain.config import load_recipe
from distrain.config.profile import LaunchOptions
from distrain.errors import LaunchError
from distrain.messages import MEBIBYTE
from tests.benchmark.factories import figures, reduction
from tests.cli_runner import distrain

RECIPE = load_recipe("digits", overrides=["data.batch_size=800", "train.epochs=10"])  # 2 steps an epoch


def plan(place: Path, *, nodes: int, network: str | None, limit_s: float | None = None) -> Plan:
    wanted = LaunchOptions(device="cpu", processes=2, nodes=nodes)
    request = capacity_plan.resolve(RECIPE, wanted, reference="digits", link=None, network=network, steps=None)
    many = figures(
        processes=2,
        global_batch_size=200,
        num_train_samples=1600,
        communication=reduction(exposed_s=0.05),
        compute_images_per_s=1000.0,
        lone_step_s=0.1,
        evaluation_images_per_s=400.0,
        step_s=figures().step_s.model_copy(update={"median": 0.2}),
    )
    return capacity_plan.conclude(request, many, 7.0, place=place, limit_s=limit_s)


def test_target_that_was_measured_is_not_extrapolated(tmp_path: Path) -> None:
    found = plan(tmp_path, nodes=1, network=None)
    assert found.step is not None
    assert found.times is not None
    assert found.step.is_measured
    assert found.times.steps == pytest.approx(20 * 0.2)
    assert found.times.evaluations == pytest.approx(10 * 200 / 400)
    assert found.times.total == pytest.approx(4 + 5 + 7)


def test_more_nodes_are_extrapolated_from_the_parts(tmp_path: Path) -> None:
    found = plan(tmp_path, nodes=4, network="1", limit_s=200)
    step = found.step
    assert step is not None
    # 100 images a process in 0.1 s; nothing was hidden. 44 MiB: within a node 50 ms, between 4 nodes 1.5 x 46 ms.
    assert step.compute_s == pytest.approx(0.1)
    assert step.exposed_reduction_s == pytest.approx(0.05 + 1.5 * 44 * MEBIBYTE / 1e9 + 6 * 5e-6)
    assert step.efficiency == pytest.approx(0.1 / step.step_s)
    assert found.limit is not None
    assert found.limit.fits
    assert not found.unknown


def test_unknown_network_is_reported(tmp_path: Path) -> None:
    assert any("--network" in words for words in plan(tmp_path, nodes=4, network=None).unknown)


def test_reading_between_the_steps_is_part_of_an_image() -> None:
    with_loader = capacity_plan.cost_of(figures(), device="cuda")
    without = capacity_plan.cost_of(figures(num_workers=0, loader_images_per_s=2000.0), device="cuda")
    assert with_loader.image_s == pytest.approx((0.1 - 0.01) / 100)
    assert without.image_s == pytest.approx(with_loader.image_s + 1 / 2000)
    assert with_loader.backward_share == pytest.approx(1 - 0.03 / 0.09)
    assert (with_loader.overlap, capacity_plan.cost_of(figures(), device="cpu").overlap) == (1.0, 0.0)


def test_link_by_name_or_by_its_speed() -> None:
    assert capacity_plan.read_link("nvlink4", LINKS, option="--link") == LINKS["nvlink4"]
    found = capacity_plan.read_link("2.5", LINKS, option="--link")
    assert found is not None
    assert found.bandwidth == 2.5e9
    for text in ("fast", "0", "-3"):
        with pytest.raises(LaunchError, match="--link"):
            capacity_plan.read_link(text, LINKS, option="--link")


def test_batch_script_warns_before_the_limit() -> None:
    assert capacity_plan.warning_s() == 120


@pytest.mark.parametrize(
    ("overrides", "wanted", "words"),
    [
        ([], LaunchOptions(device="cuda", processes=8), ["this machine has no GPU"]),
        (["augment.sizes=[[0, 8]]"], LaunchOptions(device="cuda", processes=8), ["this machine has no GPU"]),
        ([], LaunchOptions(device="cpu", processes=1), []),
        ([], LaunchOptions(device="cpu", processes=1, nodes=4), ["--network"]),
        (["augment.sizes=[[0, 8]]"], LaunchOptions(device="cpu", processes=1), ["augment.sizes"]),
        (
            ["parallel.strategy=fsdp"],
            LaunchOptions(device="cpu", processes=1, nodes=2),
            ["parallel.strategy=fsdp", "--network"],
        ),
    ],
)
def test_unknowns_are_reported_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], wanted: LaunchOptions, words: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = load_recipe("digits", overrides=overrides)
    request = capacity_plan.resolve(recipe, wanted, reference="digits", link=None, network=None, steps=None)
    assert len(request.unknown) == len(words)
    for sentence, word in zip(request.unknown, words, strict=True):
        assert word in sentence


@pytest.mark.slow
def test_plan_for_missing_gpus_reports_that_before_measuring_and_never_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that leaves no step came to light as a traceback after minutes; the batches are those of the README."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = ["plan", "digits", "--gpus=8", "--nodes=2", "--set=data.drop_last=true"]
    done = distrain(*arguments, "--set=data.batch_size=2048", cwd=tmp_path)
    assert done.code == 2
    first, _, last = done.err.splitlines()
    assert first.startswith("unknown      this machine has no GPU")
    assert last.startswith(
        "distrain: data.drop_last leaves nothing: the data has 1,438 training samples and data.batch"
    )

    done = distrain(*arguments, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["total_steps"] == 330
    assert found["disk"]["checkpoint_bytes"] > 0
    assert found["times"] is found["step"] is found["measured_step_s"] is None
    assert not list(tmp_path.iterdir())
