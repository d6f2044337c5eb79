"""Checks what no linter knows: how large rooms and files may be, and which words the project does not use."""

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

from tests.test_architecture import MODULES, PACKAGE, room

LONGEST_FILE = 350  # lines
# Lines of code of a room, without comments, docstrings and blank lines: about 3% more than there are. A room that needs
# more is looked at as a whole first.
BUDGETS = {
    "api": 1040,
    "benchmark": 1690,
    "checkpoint": 640,
    "cli": 4305,
    "config": 2455,
    "data": 5725,
    "distributed": 1380,
    "evaluation": 525,
    "export": 820,
    "launchers": 2625,
    "models": 1140,
    "runs": 3670,
    "service": 7360,
    "system": 2185,
    "tensors": 390,
    "training": 6945,
}
FILES_BUDGET = 529  # of the files in the package's own folder
# What the field has a word for, or a native speaker would not say: what to write in its place.
BANNED = {
    r", say(?! so)": "such as, for example",
    r"anew": "again",
    r"at hand": "in memory, available",
    r"be had": "is not available",
    r"asked for": "requested",
    r"broken off": "abandoned",
    r"compan(y|ies)": "node group",
    r"(go|goes|gone) on": "continues, resumes",
    r"guests?": "member",
    r"heart": "heartbeat",
    r"in words": "as text",
    r"lacks?": "has no, is missing",
    r"laid over": "blended with",
    r"leave it out": "remove it",
    r"lest": "so that ... not",
    r"ledgers?": "table",
    r"made up for": "repeated",
    r"mend(s|ed|ing)?": "fix",
    r"of ours": "of distrain, built-in",
    r"pass(ed)? over": "skipped",
    r"sees? to it": "makes sure",
    r"signs? of life": "heartbeat",
    r"so many": "N, that many",
    r"stands (for|where|in|on|at|beside)": "is",
    r"strangers?": "pending",
    r"superfluous": "expired",
    r"takes? the place of": "replaces",
    r"tells": "reports, says",
    r"told": "reported",
    r"turned upright": "rotated",
    r"undisturbed": "uninterrupted",
    r"whoever": "what, the code that",
    r"witness(es)?": "recorder",
}
# A word that stands in one file with reason: {(file, word): reason}.
ALLOWED: dict[tuple[str, str], str] = {}
TEXTS = [
    *PACKAGE.rglob("*.py"),
    *PACKAGE.rglob("*.yaml"),
    *(path for path in PACKAGE.parent.rglob("*.md") if not any(part.startswith(".") for part in path.parts)),
    *(PACKAGE.parent / "launch").rglob("*.yaml"),
    *(PACKAGE.parent / "slurm").rglob("*.sbatch"),
]


def is_length(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"


def code_lines(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def test_rooms_keep_their_line_budgets() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    counts = Counter[str]()
    for module, path in MODULES.items():
        counts[room(module) if room(module) in folders else ""] += code_lines(path)
    budgets = {**BUDGETS, "": FILES_BUDGET}
    assert counts.keys() == budgets.keys()
    assert not {name: count for name, count in counts.items() if count > budgets[name]}


def test_files_are_short() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()
    }
    assert not {name: n for name, n in lengths.items() if n > LONGEST_FILE}


@pytest.mark.parametrize("word", BANNED)
def test_no_house_dialect(word: str) -> None:
    """Wherever a line breaks, in comments too, and with a capital as well."""
    before = r"\b" if word[0].isalpha() else ""
    pattern = re.compile(rf"{before}(?:{word})\b".replace(" ", r"\s+(?:#\s+)?"), re.IGNORECASE)
    allowed = {file for file, of in ALLOWED if of == word}
    found: dict[str, list[int]] = {}
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        if lines := [text.count("\n", 0, match.start()) + 1 for match in pattern.finditer(text)]:
            found[str(path.relative_to(PACKAGE.parent))] = lines
    assert allowed <= found.keys(), "remove what is no longer needed from ALLOWED"
    assert not found.keys() - allowed, f"write instead: {BANNED[word]}: {found}"


def test_numbers_of_things_are_told_by_counted() -> None:
    """A length and a plural side by side in an f-string say `1 images` one day: `messages.counted` has both numbers."""
    found = [
        f"{module}:{node.lineno}: {words.value!s}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr)
        for number, words in zip(node.values, node.values[1:], strict=False)
        if isinstance(number, ast.FormattedValue) and is_length(number.value)
        if isinstance(words, ast.Constant) and re.match(r" (?!others\b)[a-z-]+s\b", str(words.value))
    ]
    assert not found
