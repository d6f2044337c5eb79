"""What the READMEs for contributors name is there: each file, each function, and the steps of each walk."""

import ast
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

from distrain.runs.directory import RunDirectory
from tests.test_architecture import MODULES, PACKAGE, imports, room

ROOT = Path(__file__).parents[1]
PAGES = ["distrain/README.md", "distrain/checkpoint/README.md", "tests/README.md"]
# A path with its function or class, such as `training/trainer.py:train`; a name without a folder is a file of a run.
PLACE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|sbatch|yaml|md|toml)|\w+\.py)(?::([\w.]+))?`")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def find(name: str, page: str) -> Path | None:
    """Return what a page means by a path: from the package, from its own folder, or from the repository's."""
    places = (ROOT / "distrain" / name, ROOT / Path(page).parent / name, ROOT / name)
    return next((path for path in places if path.exists()), None)


@cache
def definitions(path: Path) -> dict[str, str]:
    """Return the source of what a file defines, by its name: functions, classes, methods and variables."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return dict.fromkeys(re.findall(r"^(\w+)\(\)", source, re.MULTILINE), source)
    lines = source.splitlines()
    found: dict[str, str] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            segment = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[prefix + node.name] = segment
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        found[prefix + target.id] = segment
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{node.name}.")

    add(ast.parse(source).body, "")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_files_and_functions_that_a_page_names_exist(page: str) -> None:
    names = PLACE.findall(text(page))
    missing = [name for name, _ in names if find(name, page) is None]
    for name, member in names:
        path = find(name, page)
        if path is not None and member and member not in definitions(path):
            missing.append(f"{name}:{member}")
    assert names
    assert not missing


def test_each_walk_ends_at_its_function_within_two_steps() -> None:
    page = PAGES[0]
    assert f"]({page})" in text("README.md")
    section = text(page).partition("## Five walks")[2].partition("\n## ")[0]
    walks = re.split(r"^\d\. ", section, flags=re.MULTILINE)[1:]
    assert len(walks) == 5
    for walk in walks:
        stops = [PLACE.findall(part) for part in walk.split("->")]
        assert len(stops) > 1, walk
        for before, after in itertools.pairwise(stops):
            (name, member), (next_name, next_member) = before[-1], after[0]  # around an arrow
            path = find(name, page)
            assert path is not None
            words = "|".join((next_member.rpartition(".")[2], Path(next_name).stem))
            assert re.search(rf"\b({words})\b", definitions(path)[member]), f"{before[-1]} says nothing of {after[0]}"


def test_table_of_rooms_has_every_room_with_what_it_imports() -> None:
    section = text(PAGES[0]).partition("## Rooms")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    table = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[3])) if len(row) == 4 else set() for row in rows}
    found: dict[str, set[str]] = {room(module): set() for module in MODULES if (PACKAGE / room(module)).is_dir()}
    for module in MODULES:
        if room(module) in found:
            found[room(module)] |= {room(other) for other in imports(module, lazy=True)}
    everywhere = {"tensors", "system"}  # and the files of the package's own folder
    assert table == {name: (others & found.keys()) - everywhere - {name} for name, others in found.items()}


def test_table_of_the_run_directory_has_every_file_of_it(tmp_path: Path) -> None:
    section = text(PAGES[0]).partition("## Run directory")[2].partition("\n## ")[0]
    names = set(re.findall(r"[\w.-]+", " ".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE))))
    run = RunDirectory(tmp_path)
    paths = [path for name in dir(run) if isinstance(path := getattr(run, name), Path) and path != tmp_path]
    assert run.status in paths
    assert {path.relative_to(tmp_path).parts[0] for path in paths} - names == set()
