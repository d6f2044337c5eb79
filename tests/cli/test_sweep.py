"""What `distrain sweep` takes and refuses, before anything trains."""

from pathlib import Path

import yaml

from tests.cli.walker import walk

RATES = "--param=optimizer.lr=log(1e-3, 1)"
FILE = """
recipe: digits
params: {optimizer.lr: "log(0.001, 1)", optimizer.momentum: [0.5, 0.9]}
set: [train.epochs=10]
trials: 30
prune: asha
places: {procs: 1}
"""
REFUSED = {
    ("sweep", "digits"): "a sweep needs a parameter",
    ("sweep", RATES): "a new sweep needs a recipe",
    ("sweep", "--name=x"): "there is no sweep 'x'",
    ("sweep", "digits", "--param=optimizer.lrr=log(1e-3, 1)"): "did you mean optimizer.lr?",
    ("sweep", "digits", RATES, RATES): "--param optimizer.lr is given twice",
    ("sweep", "digits", RATES, "--metric=val/top11"): "did you mean val/top1",
    ("sweep", "digits", RATES, "--parallel=9", "--lag=2"): "--parallel 9 is more than --lag 2",
    ("sweep", "digits", RATES, "--sampler=tpo"): "did you mean tpe?",
    ("sweep", "digits", RATES, "--sampler=nowhere:make"): "--sampler=nowhere:make: there is no module 'nowhere'",
    ("sweep", "digits", RATES, "--sampler=grid"): "needs a list of values for optimizer.lr",
    ("sweep", "digits", RATES, "--prune=ahsa"): "did you mean asha?",
    ("sweep", "digits", RATES, "--rungs=1,2"): "--rungs is for --prune asha",
    ("sweep", "digits", RATES, "--prune=asha", "--rungs=5 steps"): "add --set eval.every_steps=5",
    ("sweep", "digits", RATES, "--prune=asha", "--set=train.epochs=1"): "--prune asha has nothing to do",
    ("sweep", "digits", RATES, "--prune=asha", "--set=train.max_steps=9"): "--prune asha needs --rungs",
    ("sweep", "digits", RATES, "--seeds=3"): "--seeds needs --top",
    ("sweep", "digits", RATES, "--name=../x"): "is not a name of letters",
    ("sweep", "digits", RATES, "--name=new", "--device=cpu"): "DISTRAIN_LOCK_DIR is empty",
    ("sweep", "digits", RATES, "--name=taken"): "is a run; choose another --name",
    ("sweep", "digits", RATES, "--name=half"): "which is the name of a trial of half",
    ("sweep", "digits", RATES, "--gpus=1", "--procs=1"): "both give the number of processes",
    ("sweep", "digits", RATES, "--queue=pbs"): "places.queue=pbs: must be",
    ("sweep", "bad.yaml"): "it has no key trails; did you mean trials?",
}


def test_bad_requests_get_one_sentence_and_write_nothing(tmp_path: Path) -> None:
    for name in ("taken", "half-0003"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "taken" / "recipe.yaml").touch()
    (tmp_path / "bad.yaml").write_text(FILE + "trails: 3\n")
    before = sorted(tmp_path.rglob("*"))
    for walked, sentence in zip(
        walk([list(words) for words in REFUSED], cwd=tmp_path, torch=False), REFUSED.values(), strict=True
    ):
        assert walked.code == 2, walked
        assert sentence in walked.err, walked
        assert walked.err.count("distrain: ") == 1 and len(walked.err.splitlines()) == 1, walked
    assert sorted(tmp_path.rglob("*")) == before


def test_file_of_a_sweep_is_completed_and_changed_by_options(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(FILE)
    (done,) = walk(
        [["sweep", "mine.yaml", "--trials=40", "--parallel=6", "--name=s", "--dry-run"]], cwd=tmp_path, torch=False
    )
    assert done.code == 0, done
    found = yaml.safe_load(done.out.rpartition("would be")[0])
    assert found["trials"] == 40 and found["parallel"] == found["lag"] == 6
    assert found["metric"] == "val/top1"
    assert found["rungs"] == [1, 3, 9] and found["cohorts"] == [27, 13]
    assert found["set"] == ["train.epochs=10"]
    assert not (tmp_path / "runs").exists()
