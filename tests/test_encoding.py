"""Whatever is printed reaches a terminal of whatever encoding."""

import os
import subprocess
import sys

import pytest

PRINT = """
import os
from rich.console import Console
from distrain.encoding import accept_any_text
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
def test_text_is_approximated_where_the_terminal_lacks_it(encoding: str, shown: bytes) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, check=True)
    assert done.stdout == shown
