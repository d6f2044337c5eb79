"""A whole run, replayed in plain PyTorch: the same losses, learning rates, evaluations and weights in the end."""

import re
from pathlib import Path

import pytest

from tests.reference.logged import NUM_TRAIN, train, write_data
from tests.reference.plain import replay, sample_numbers

# 77 samples in batches of 16: the last one of an epoch has 13, in micro-batches of 3, 3, 3 and 4.
AVERAGED = ["train.ema_decay=0.9", "train.clip_norm=0.4"]
ALONE = {
    "accumulation": [],
    "records over several steps": ["log.every_steps=4", "train.micro_batch_size=8"],
    "a last batch of one sample": ["data.batch_size=19", "train.micro_batch_size=19", "log.every_steps=4"],
    "cosine, average, clipping, weights": [
        "schedule={name: cosine, warmup_epochs: 0.6, final_factor: 0.1}",
        *AVERAGED,
        "loss={label_smoothing: 0.1, class_weights: balanced}",
    ],
    "BatchNorm, one cycle, Nesterov": [
        "model.arguments={has_batch_norm: true}",
        "schedule.name=onecycle",
        "optimizer.nesterov=true",
        "loss.class_weights=[1, 2, 3, 4, 5]",
        *AVERAGED,
    ],
    "AdamW, steps, whole batches": [
        "optimizer={name: adamw, lr: 0.01, momentum: null, eps: 0.001}",
        "schedule={name: step, step_epochs: 1, gamma: 0.3}",
        "data.drop_last=true",
        "train.clip_norm=0.5",
    ],
    "RMSprop, milestones": [
        "optimizer={name: rmsprop, lr: 0.003, momentum: 0.5, eps: 0.001}",
        "schedule={name: multistep, milestones_epochs: [1, 2]}",
    ],
    "groups and freezing": [
        "optimizer.lr_factors={conv: 0.1}",
        "optimizer.no_decay=[bias]",
        "model.freeze=[mid]",
        "model.unfreeze_epochs={mid: 1}",
        "train.clip_norm=0.4",
    ],
    "NAdam, polynomial, adaptive clipping": [
        "optimizer={name: 'torch.optim:NAdam', lr: 0.01, weight_decay: 0.01, arguments: {momentum_decay: 0.01}}",
        "schedule={name: poly, power: 0.9, warmup_epochs: 0.6}",
        "train.agc=0.05",
    ],
    "timm's LAMB, restarts, clipping by value": [
        "optimizer={name: timm.lamb, lr: 0.02, weight_decay: 0.01, no_decay: [bias]}",
        "schedule={name: restarts, period_epochs: 1}",
        "train.clip_value=0.02",
    ],
    "lookahead": ["train.lookahead={every_steps: 3, decay: 0.7}"],
    "mixup": ["augment={mixup: 0.4, mix_prob: 0.7}", "loss.name=tests.reference.logged:loss_of_shares"],
}
TOGETHER = {
    "one buffer": [
        *AVERAGED,
        "loss={label_smoothing: 0.1, class_weights: balanced}",
        "schedule={name: cosine, warmup_epochs: 1, final_factor: 0.1}",
        "log.every_steps=4",
    ],
    "mixup": ["augment.mixup=0.4", "loss.name=tests.reference.logged:loss_of_shares"],
}
SLOW = {
    "ddp": [
        "parallel.strategy=ddp",
        "optimizer={name: adam, lr: 0.01, momentum: null, eps: 0.001}",
        "train.clip_norm=0.5",
    ],
    "ddp, one piece": ["parallel.strategy=ddp", "train.micro_batch_size=null", "train.ema_decay=0.9"],
    "fsdp": ["parallel.strategy=fsdp", *AVERAGED, "loss.label_smoothing=0.1"],
    "exact": [*AVERAGED, "train.exact=true"],
}


def check(folder: Path, overrides: list[str], processes: int) -> None:
    write_data(folder / "data.npz")
    trained = train(folder, overrides, processes)
    plain = replay(trained, folder / "data.npz")
    steps, spe = len(plain.losses), len(plain.losses) // trained.recipe.train.epochs
    is_mixed = bool(trained.shares[0])

    samples = sum(count for _, count in plain.losses.values())
    assert trained.checkpoint["samples_seen"] == samples
    if not is_mixed:
        numbers, per_epoch = sample_numbers(trained, folder / "data.npz"), samples // trained.recipe.train.epochs
        for start in range(0, samples, per_epoch):
            assert len(set(numbers[start : start + per_epoch])) == per_epoch <= NUM_TRAIN

    before, last, seconds = 0, {}, 0.0
    for record in trained.records:
        step = int(record["step"])
        assert record["epoch"] == round(step / spe, 4)
        if "train/loss" in record:
            assert record["train/loss"] == pytest.approx(plain.mean_loss(before, step), abs=1e-6)
            assert record["train/lr"] == pytest.approx(plain.rates[step], rel=1e-12)
            assert record["train/grad_norm"] == pytest.approx(plain.gradient_norms[step], rel=1e-4)
            num_samples = sum(count for at, (_, count) in plain.losses.items() if before < at <= step)
            seconds += num_samples / record["train/samples_per_s"] + record.get("checkpoint/blocked_s", 0.0)
            before = step
        if "val/loss" in record:
            last = {name: value for name, value in record.items() if name.startswith("val/")}
            assert last == pytest.approx(plain.evaluations[step], abs=2e-6, nan_ok=True)
    assert before == steps
    assert sum("val/loss" in record for record in trained.records) == len(plain.evaluations)

    told = [
        re.search(r"step (\d+)/\d+ +loss ([\d.]+) +val loss ([\d.]+) +top-1 ([\d.]+)%", line) for line in trained.lines
    ]
    assert [int(line[1]) for line in told if line] == list(plain.evaluations)
    for line, (step, evaluation) in zip(told, plain.evaluations.items(), strict=True):
        assert line is not None
        of_epoch = plain.mean_loss((step - 1) // spe * spe, step)
        assert [float(number) for number in line.groups()[1:]] == pytest.approx(
            [of_epoch, evaluation["val/loss"], 100 * evaluation["val/top1"]], abs=6e-3, rel=0
        )
        assert float(line[2]) == pytest.approx(of_epoch, abs=6e-5)

    for name, value in plain.weights.items():
        assert (trained.weights[name] - value).abs().max() < 2e-6, name

    status = trained.status
    assert (status.step, status.total_steps, status.epoch) == (steps, steps, trained.recipe.train.epochs)
    assert status.last is not None and status.best is not None
    assert {name: value for name, value in status.last.items() if name.startswith("val/")} == last
    best = max(plain.evaluations, key=lambda step: (plain.evaluations[step]["val/top1"], -step))
    assert status.best["step"] == best
    assert 0 < seconds < status.train_seconds, "steps and saves are parts of the training"


@pytest.mark.parametrize("overrides", ALONE.values(), ids=ALONE)
def test_run_is_that_of_plain_pytorch(tmp_path: Path, overrides: list[str]) -> None:
    check(tmp_path, overrides, 1)


@pytest.mark.parametrize("overrides", TOGETHER.values(), ids=TOGETHER)
def test_run_on_two_processes_is_that_of_plain_pytorch(tmp_path: Path, overrides: list[str]) -> None:
    check(tmp_path, overrides, 2)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SLOW.values(), ids=SLOW)
def test_run_of_any_strategy_is_that_of_plain_pytorch(tmp_path: Path, overrides: list[str]) -> None:
    check(tmp_path, overrides, 2)
