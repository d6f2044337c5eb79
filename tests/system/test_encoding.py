"""Any text can be printed on a terminal of any encoding."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import distrain

PRINT = """
import os
from rich.console import Console
from distrain.system.encoding import accept_any_text
accept_any_text()
print("▁▄█ … ü 日 " + os.fsdecode(b"\\xff"))
Console(highlight=False).print("▁▄█")
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "▁▄█ … ü 日 ".encode() + b"\xff\n" + "▁▄█\n".encode()),
        ("latin-1", b"_~# ... \xfc \\u65e5 \xff\n_~#\n"),
        ("ascii", b"_~# ... \\xfc \\u65e5 \xff\n_~#\n"),
    ],
)
def test_characters_missing_in_the_encoding_are_approximated(encoding: str, shown: bytes) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, check=True)
    assert done.stdout == shown


def test_every_text_file_is_read_and_written_as_utf8() -> None:
    """The locale of a colleague, or of a cluster's nodes, may have another encoding."""
    package = Path(distrain.__file__).parent
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_text = node.func.attr in {"read_text", "write_text"}
                assert not is_text or any(k.arg == "encoding" for k in node.keywords), f"{file}:{node.lineno}"
