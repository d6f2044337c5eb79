"""The commands of every README work, its links lead somewhere, and its examples are recipes and Python.

A shell block is marked. `run` blocks are run as they are, in one folder for each page. The commands of `dry-run` blocks
are parsed by the real command line, with their recipe, its changed values, launch profile and metrics resolved.
"""

import ast
import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distrain.cli.app import build_command
from distrain.cli.complete import formats
from distrain.config import load_recipe
from distrain.config.load import builtin_recipes, load_data
from distrain.config.metrics import METRICS
from distrain.config.profile import read_options
from distrain.launchers.profile_files import builtin_profiles
from tests.cli_runner import distrain

ROOT = Path(__file__).parents[1]
SHELLS = {"sh", "bash", "shell", "console"}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        *(
            page
            for folder in ("distrain", "launch", "slurm", "tests")
            for page in (ROOT / folder).rglob("README.md")
            if page.resolve() == page
        ),
    )
)


@dataclass(frozen=True)
class Block:
    """A fenced block: language, mark and lines."""

    language: str
    mark: str
    lines: tuple[str, ...]

    @property
    def is_shell(self) -> bool:
        """Whether it holds commands, also where it does not say so."""
        return self.language in SHELLS or (
            not self.language and any(re.match(r"\$ |(distrain|python|pip) [\w-]", line) for line in self.lines)
        )

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; in a `console` block those behind the prompt."""
        lines = [line.removeprefix("$ ") for line in self.lines if self.language != "console" or line.startswith("$ ")]
        parts = [part for line in lines for part in line.split(" && ")]
        return [words for part in parts if (words := shlex.split(part, comments=True))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def split(text: str) -> tuple[str, list[Block]]:
    """Return a page's prose, and its fenced blocks."""
    blocks: list[Block] = []

    def take(found: re.Match[str]) -> str:
        language, _, mark = found[1].strip().partition(" ")
        blocks.append(Block(language, mark.strip(), tuple(found[2].splitlines())))
        return ""

    prose = re.sub(r"^ *```([^\n`]*)\n(.*?)^ *```$", take, text, flags=re.MULTILINE | re.DOTALL)
    return prose, blocks


def pages_with(mark: str) -> list[str]:
    return [page for page in PAGES if any(block.mark == mark for block in split(read(page))[1])]


@cache
def root_command() -> Any:
    return build_command()


def walk(words: list[str]) -> tuple[Any, str, list[str]]:
    """Return the command of `distrain` that the words name, its path, and the words behind it."""
    command, path = root_command(), []
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]
        path.append(words[0])
        words = words[1:]
    assert not (hasattr(command, "commands") and words and not words[0].startswith("-")), f"no command {words[0]}"
    return command, " ".join(path), words


def resolve(words: list[str]) -> None:
    """Resolve a command without running it; raises where it would be refused before it has looked at any file."""
    match words:
        case ["distrain", *arguments]:
            resolve_distrain(arguments)
        case ["python", "-m", "pip", "install", "-e", place]:
            extras = set(distribution("distrain").metadata.get_all("Provides-Extra") or [])
            assert set(re.findall(r"[\w-]+", place)) <= extras, place
        case ["python", "-m", module, *options]:
            found = find_spec(module)
            assert found is not None, module
            assert found.origin is not None
            source = Path(found.origin).read_text(encoding="utf-8")
            assert all(f'"{option}"' in source for option in options if option.startswith("--")), words
        case ["sbatch", *options]:
            assert any((ROOT / word).is_file() for word in options), words
        case ["salloc", *rest]:
            resolve(rest[rest.index("distrain") :])
        case [program, *_]:
            assert entry_points(group="console_scripts", name=program), f"unknown program {program}"


def resolve_distrain(arguments: list[str]) -> None:
    command, path, rest = walk(arguments)
    assert path, "no command"
    given = command.make_context(path, rest).params
    recipes = [given["recipe"]] if given.get("recipe") else list(given.get("recipes") or ["digits"])
    if path.startswith("data "):
        load_data(Path("photos"), source=given.get("source") or "imagefolder", overrides=given.get("changes") or [])
    elif path in {"fit", "submit", "bench", "plan", "verify", "recipes show", "recipes init"}:
        for recipe in recipes:
            name = "digits" if recipe.endswith(".yaml") else recipe  # a recipe of the reader's own
            for changes in [given.get("overrides") or [], *([value] for value in given.get("array") or [])]:
                load_recipe(name, overrides=changes, data=given.get("data"))
    if path == "fit":
        names = ("gpus", "device", "launcher", "nodes", "node_rank", "rendezvous", "restarts")
        read_options(processes=given["procs"], **{name: given[name] for name in names})
    profile = given.get("launch") if path != "launch show" else given["name"]
    assert profile is None or profile in builtin_profiles() or profile.endswith(".yaml"), profile
    assert set((given.get("metrics") or "loss").split(",")) <= set(METRICS), given
    assert path != "export" or given["form"] in formats(""), given


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    prose, _ = split(page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_shell_block_is_marked_and_has_commands(page: str) -> None:
    text = read(page)
    _, blocks = split(text)
    assert 2 * len(blocks) == len(re.findall(r"^ *```", text, re.MULTILINE))
    for block in blocks:
        if block.is_shell:
            assert block.mark in {"run", "dry-run"}, block
            assert block.commands, block


@pytest.mark.parametrize("page", pages_with("run"))
def test_commands_of_run_blocks_succeed(page: str, tmp_path: Path) -> None:
    _, blocks = split(read(page))
    for block in blocks:
        if block.language == "python" and block.lines[0].startswith("# "):
            (tmp_path / block.lines[0].removeprefix("# ")).write_text("\n".join(block.lines))
    for words in [words for block in blocks if block.mark == "run" for words in block.commands]:
        assert words[0] == "distrain", words
        done = distrain(*words[1:], cwd=tmp_path)
        assert done.code == 0, f"{words}\n{done.out}\n{done.err}"


@pytest.mark.parametrize("page", pages_with("dry-run"))
def test_commands_of_dry_run_blocks_resolve(page: str) -> None:
    for words in [words for block in split(read(page))[1] if block.mark == "dry-run" for words in block.commands]:
        resolve(words)


@pytest.mark.parametrize(
    "line",
    [
        "distrain train",
        "distrain runs shwo last",
        "distrain fit --gpu 4",
        "distrain fit --set train.epoch=2",
        "distrain fit cifar11",
        "distrain fit --launch gpu-5",
        "distrain fit --gpus 4 --procs 2",
        "distrain submit digits --array optimizer.learning_rate=1",
        "distrain data check photos --set data.targets=labels",
        "distrain eval last --metrics top2",
        "distrain export last --format tflite",
        "python -m pip install -e .[gpu]",
        "python -m tests.benchmarks.nothing",
        "python -m tests.benchmarks.exact_mode --processors 2",
        "sbatch slurm/nothing.sbatch RUN",
        "salloc --nodes=2 distrain fit --launchers slurm",
        "tensorbord --logdir runs",
    ],
)
def test_commands_that_do_not_work_do_not_resolve(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - of the command line, the recipe, the profile, or an assertion
        resolve(shlex.split(line))


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_in_the_prose_exist(page: str) -> None:
    prose, _ = split(read(page))
    for text in re.findall(r"`((?:distrain|python -m tests)[^`\n]*)`", prose):
        words = text.replace("[", "").replace("]", "").split()
        if words[0] == "python":
            resolve(words)
        elif len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]):
            command, path, rest = walk(words[1:])
            options = {option for param in command.params for option in param.opts} | {"--help"}
            unknown = [word for word in rest if word.startswith("--") and word not in options]
            assert not unknown, f"distrain {path} has no option {unknown}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_lead_somewhere(page: str) -> None:
    prose, _ = split(read(page))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_a_page_names_exist(page: str) -> None:
    names = re.findall(r"`(?:tests/)?((?:[a-z_0-9]+/)*test_[a-z_0-9]+)(?:\.py)?[`:]", read(page))
    sources = {f"/{path}": path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [
        name
        for name in names
        if not any(path.endswith(f"/{name}.py") or f"def {name}(" in source for path, source in sources.items())
    ]
    assert not missing


def test_every_page_is_reached_from_the_first() -> None:
    linked = set()
    for link in re.findall(r"\]\(([\w/.-]*README\.md)", read("README.md")):
        linked.add((ROOT / link).relative_to(ROOT).as_posix())
    assert linked == set(PAGES) - {"README.md"}


def test_first_page_is_short_and_begins_with_install_and_tests() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 200
    assert [block.lines for block in split(text)[1] if block.is_shell][:2] == [
        ("python -m pip install -e . && distrain fit",),
        ('python -m pip install -e ".[dev]" && python -m pytest',),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit_the_width_of_the_code(page: str) -> None:
    assert not [line for line in read(page).splitlines() if len(line) > 120 and not line.startswith("| ")]


def test_the_recipe_that_is_explained_is_one(tmp_path: Path) -> None:
    page = "distrain/recipes/README.md"
    (yaml,) = (block for block in split(read(page))[1] if block.language == "yaml")
    (tmp_path / "my.yaml").write_text("\n".join(yaml.lines))
    assert load_recipe(str(tmp_path / "my.yaml"), overrides=[], data=str(tmp_path)).model.name == "resnet18"
    assert set(re.findall(r"^\| [^|]+ \| `([\w-]+)` \|", read(page), re.MULTILINE)) == set(builtin_recipes())


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in read(page)])
def test_python_blocks_parse(page: str) -> None:
    for block in split(read(page))[1]:
        if block.language == "python":
            assert ast.parse("\n".join(block.lines)).body
