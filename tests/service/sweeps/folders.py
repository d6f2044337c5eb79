"""Folders of sweeps to show."""

from pathlib import Path

from distrain.service.sweeps.folder import SweepFolder
from distrain.service.sweeps.spec import as_spec
from distrain.service.sweeps.trial import Trial

PARAMS = {"optimizer.lr": "log(0.001, 1.0)", "model.name": ["lenet", "<script>"], "train.epochs": "int(1, 9)"}


def make_trials() -> list[Trial]:
    """Seven trials: five have finished, one was pruned, one has failed."""
    params = [
        {
            "optimizer.lr": 10 ** (-number / 3),
            "model.name": PARAMS["model.name"][number % 2],
            "train.epochs": 1 + number,
        }
        for number in range(7)
    ]
    trials = [Trial(number=number, params=each, run=f"s-{number:04}", stage=1) for number, each in enumerate(params)]
    for trial in trials[:5]:
        trial.state, trial.value, trial.rungs = "finished", 0.9 - 0.1 * trial.number, [0.5]
    trials[5].state, trials[5].value, trials[5].rungs = "pruned", 0.2, [0.2]
    trials[6].state, trials[6].reason = "failed", "refused: <b>"
    return trials


def make_sweep(root: Path) -> SweepFolder:
    """Write the folder of a sweep that is over."""
    folder = SweepFolder(root / "s")
    folder.path.mkdir(parents=True)
    more = {"metric": "val/top1", "trials": 7, "prune": "asha", "rungs": [1], "cohorts": [7], "lag": 4}
    folder.write_spec(as_spec({"recipe": "digits", "name": "s", "params": PARAMS, **more}, noun="s"))
    folder.write_trials(make_trials())
    repeats = [
        Trial(number=0, params={}, run=f"s-0000-seed{seed}", state="finished", value=0.8 + seed / 100, seed=seed)
        for seed in (1, 2, 3)
    ]
    folder.write_repeats(repeats)
    folder.importance.write_text('{"optimizer.lr": 0.75, "model.name": 0.2, "train.epochs": 0.05}')
    return folder
