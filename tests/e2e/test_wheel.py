"""A wheel has all that an installed distrain reads: it trains, serves its page, and writes reports."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from tests.cli_runner import QUIET

REPOSITORY = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        int(version("setuptools").partition(".")[0]) < 77, reason="needs setuptools 77, to build a wheel"
    ),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed distrain, from a wheel of a copy of the repository: building writes into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(["git", "-C", REPOSITORY, "ls-files", "-z"], capture_output=True, check=True).stdout
    source.mkdir()
    subprocess.run(["tar", "-cf", folder / "source.tar", "--null", "-T", "-"], cwd=REPOSITORY, input=files, check=True)
    subprocess.run(["tar", "-xf", folder / "source.tar", "-C", source], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    wheel = next(folder.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.fixture
def call(installed: Path, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts the installed distrain outside of the repository."""
    env = {**os.environ, "PYTHONPATH": str(installed), "DISTRAIN_LOCK_DIR": str(tmp_path / "locks")}

    def start(*arguments: str) -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "distrain", *arguments]
        return subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)

    return start


def test_wheel_trains_reports_and_serves(call: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    for arguments in (
        ["fit", "--device=cpu", "--set=train.max_steps=5", "--run=runs/first", *QUIET],
        ["report", "runs/first"],
        ["launch"],
        ["recipes"],
    ):
        with call(*arguments) as done:
            out, _ = done.communicate(timeout=120)
        assert done.returncode == 0, out
    assert "<style>" in (tmp_path / "runs" / "first" / "report.html").read_text()
    with call("serve") as serve:
        try:
            assert serve.stdout is not None
            link = next(line.split()[1] for line in serve.stdout if line.startswith("page"))
            with httpx.Client(base_url=link.partition("/login")[0]) as client:
                token = (tmp_path / "runs" / ".serve" / "token").read_text().strip()
                bearer = {"Authorization": f"Bearer {token}"}
                for path in ("/", "/queue", "/submit", "/docs", "/runs/first", "/api/v1/runs"):
                    answer = client.get(path, headers=bearer)
                    assert answer.status_code == 200, path
                assert "first" in client.get("/", headers=bearer).text
                for path in ("/static/style.css", "/static/charts.js", "/plotly.min.js"):
                    assert client.get(path, headers=bearer).status_code == 200, path
        finally:
            serve.terminate()
