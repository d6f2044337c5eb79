"""A wrong command line ends with one sentence that suggests a correction, and exit code 2."""

from pathlib import Path

import pytest

from tests.cli.walker import walk

SENTENCES = {
    "train": "distrain has no command train; did you mean fit?",
    "list": "distrain has no command list; did you mean runs?",
    "evaluate last": "distrain has no command evaluate; did you mean eval?",
    "check photos": "distrain has no command check; did you mean data check?",
    "fti": "distrain has no command fti; did you mean fit?",
    "zzzzz": "distrain has no command zzzzz; see `distrain --help`",
    "runs shw": "distrain runs has no command shw; did you mean show?",
    "fit --gpu 2": "distrain fit has no option --gpu; did you mean --gpus?",
    "fit --lr 0.1": "distrain fit has no option --lr; use --set optimizer.lr=VALUE",
    "fit --batch-size 8": (
        "distrain fit has no option --batch-size; use --set data.batch_size=VALUE or eval.batch_size=VALUE"
    ),
    "fit --zzz": "distrain fit has no option --zzz; see `distrain fit --help`",
    "fit --gpus x": "--gpus x: must be a whole number",
    "fit --gpus": "--gpus needs a value",
    "fit --debug=3": "--debug does not take a value",
    "fit a b": "distrain fit does not take the argument b; see `distrain fit --help`",
    "eval last --split trian": "--split trian: must be train or val; did you mean train?",
    "eval": "distrain eval is missing RUN; see `distrain eval --help`",
    "bench --steps 1": "--steps 1: must be at least 2",
    "checkpoints prune last": (
        "distrain checkpoints prune is missing --keep-last; see `distrain checkpoints prune --help`"
    ),
    "fit a\nb.yaml": r"recipe file a\nb.yaml does not exist; `distrain recipes init digits` writes one",
    "fit \x1b[31mred": (
        r"unknown recipe '\x1b[31mred'; `distrain recipes` lists them, and your own is named by its path, which ends "
        "in .yaml"
    ),
    "import .": "there is no file .",
    "recipes keys epochs": "no key begins with 'epochs'; did you mean train.epochs?",
}


def test_wrong_command_line_is_one_sentence(tmp_path: Path) -> None:
    for walked in walk([line.split(" ") for line in SENTENCES], cwd=tmp_path, torch=False):
        assert walked.code == 2, walked
        assert walked.err == f"distrain: {SENTENCES[' '.join(walked.arguments)]}\n"
        assert not walked.out


@pytest.mark.parametrize("line", [[], ["data"], ["checkpoints"]])
def test_command_without_arguments_prints_its_help(tmp_path: Path, line: list[str]) -> None:
    (walked,) = walk([line], cwd=tmp_path, torch=False)
    assert (walked.code, walked.err) == (0, "")
    assert "Usage" in walked.out


def test_faults_that_were_found_together_are_a_line_each(tmp_path: Path) -> None:
    arguments = ["fit", "imagefolder-resnet18", "--procs=2", "--set=data.batch_size=63", "--data=no\nthing"]
    (walked,) = walk([arguments], cwd=tmp_path, torch=False)
    assert walked.code == 2
    first, second = walked.err.splitlines()
    assert first.startswith("distrain: data.batch_size=63 does not divide")
    assert second == rf"distrain: data folder {tmp_path}/no\nthing does not exist"
