"""Code that exits its process during training is a failure, whatever its exit code."""

from pathlib import Path

import pytest

from tests.cli_runner import QUIET, Done, distrain, status

# The last lines that are called are those of `end`; the network is tried once before the first step.
ENDING_LOSS = """
import ctypes, os, sys, threading, torch
CALLS = []
def end():
    WHAT
def loss(logits, targets):
    CALLS.append(1)
    if len(CALLS) > 5 and os.environ.get("RANK", "0") in RANKS:
        end()
    return torch.nn.functional.cross_entropy(logits, targets)
"""
IN_A_THREAD = "thread = threading.Thread(target=os._exit, args=(0,)); thread.start(); thread.join()"


def end_by(what: str, folder: Path, *, ranks: str = "0", processes: int = 1) -> Done:
    (folder / "ending.py").write_text(ENDING_LOSS.replace("WHAT", what).replace("RANKS", repr(ranks)))
    loss = "--set=loss={name: 'ending:loss'}"
    options = [f"--procs={processes}", "--restarts=0", "--stall-timeout=60", "--run=run"]
    return distrain("fit", loss, *options, *QUIET, cwd=folder)


def assert_failed(done: Done, folder: Path, words: str, *, rank: int = 0) -> None:
    assert done.code == 1, done.out + done.err
    assert words in done.out
    assert f"on rank {rank} (" in done.out
    assert "resume with" in done.out
    assert "finished" not in done.out.replace("before the run had finished", "")
    assert "Traceback" not in done.out + done.err
    assert status(folder / "run")["state"] == "failed"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("sys.exit(0)", "sys.exit(0) was called before the run had finished, at "),
        ("sys.exit('enough')", "sys.exit('enough') was called before the run had finished, at "),
        ("os._exit(0)", "os._exit(0) was called before the run had finished, at "),
        ("raise KeyboardInterrupt", "KeyboardInterrupt was raised before the run had finished, at "),
        ("next(iter([]))", "StopIteration was raised before the run had finished, at "),
    ],
)
def test_exit_requested_by_code_in_one_process_is_a_failure(tmp_path: Path, what: str, words: str) -> None:
    done = end_by(what, tmp_path)
    assert_failed(done, tmp_path, words)
    assert f"{words}{tmp_path / 'ending.py'}:5, in end" in done.out
    assert "ending.py" in (tmp_path / "run" / "logs" / "rank-0.log").read_text()


def test_process_that_a_thread_of_the_users_ends_has_failed_and_says_so(tmp_path: Path) -> None:
    done = end_by(IN_A_THREAD, tmp_path)
    assert done.code == 1, done.out
    assert "failed at step 4: os._exit(0) was called before the run had finished, at " in done.out
    assert status(tmp_path / "run")["state"] == "failed"
    assert "os._exit(0) was called" in (tmp_path / "run" / "errors" / "rank-0.json").read_text()


@pytest.mark.parametrize(
    ("what", "ranks", "rank"),
    [
        ("os._exit(0)", "1", 1),
        pytest.param("sys.exit(0)", "01", None, marks=pytest.mark.slow),
        pytest.param("sys.exit(0)", "1", 1, marks=pytest.mark.slow),
        pytest.param(IN_A_THREAD, "1", 1, marks=pytest.mark.slow),
    ],
)
def test_rank_that_ends_itself_is_named_also_where_others_wait_for_it(
    tmp_path: Path, what: str, ranks: str, rank: int | None
) -> None:
    done = end_by(what, tmp_path, ranks=ranks, processes=2)
    named = (0 if "on rank 0 (" in done.out else 1) if rank is None else rank
    assert_failed(done, tmp_path, "(0) was called before the run had finished, at ", rank=named)
    assert "stalled" not in done.out


@pytest.mark.slow
def test_processes_that_native_code_ends_are_not_taken_for_a_run_at_its_end(tmp_path: Path) -> None:
    done = end_by("ctypes.CDLL(None)._exit(0)", tmp_path, ranks="01", processes=2)
    named = 0 if "on rank 0 (" in done.out else 1
    assert_failed(done, tmp_path, "it exited with code 0 before the run had finished", rank=named)


def test_module_that_ends_the_program_when_it_is_imported_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys\nsys.exit(0)\n")
    done = distrain("fit", "--set=model.name=program:Net", "--run=run", *QUIET, cwd=tmp_path)
    assert done.code == 2
    assert "model.name=program:Net: sys.exit(0) was called before the run had finished, at " in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
