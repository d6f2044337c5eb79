"""Checks the import contracts of pyproject.toml, and that the control plane loads nothing of the training plane."""

import ast
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import distrain

PACKAGE = Path(distrain.__file__).parent
CONTRACTS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
    "contracts"
]
# From the top to the bottom, as the import contracts have them. Files of the package's own folder are rooms too.
ROOMS: list[str] = [*CONTRACTS[0]["layers"], "__init__"]
CONTROL = {
    "cli",
    "api",
    "service",
    "launchers",
    "runs",
    "config",
    "system",
    "rng",
    "messages",
    "errors",
    "worker",
    "fork_server",
}
HEAVY = {"torch", "torchvision", "accelerate", "wandb", "tensorboard", "timm"}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def room(module: str) -> str:
    _, _, rest = module.partition(".")
    return rest.partition(".")[0] or "__init__"


def named(node: ast.stmt | ast.AST) -> list[str]:
    """Return what an import names: modules, or names in them."""
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def imports(module: str, *, lazy: bool) -> Iterator[str]:
    """Yield the modules of the package that a module imports, only those of its load where not `lazy`."""
    nodes = ast.walk(TREES[module]) if lazy else iter(TREES[module].body)
    for node in nodes:
        for name in named(node):
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


def loads(module: str) -> Iterator[str]:
    """Yield what the load of a module loads: the packages that it lies in, and what it imports at its own level."""
    if "." in module:
        yield module.rpartition(".")[0]
    yield from imports(module, lazy=False)


def is_heavy(module: str) -> bool:
    return any(name.partition(".")[0] in HEAVY for node in TREES[module].body for name in named(node))


def test_import_contracts_are_kept() -> None:
    ended = subprocess.run(
        ["lint-imports", "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_control_plane_loads_nothing_of_the_training_plane() -> None:
    """Neither itself nor by what it imports: `distrain --help` answers at once."""
    reaches: dict[str, set[str]] = defaultdict(set)

    def closure(module: str) -> set[str]:
        if module not in reaches:
            reaches[module] = {module}
            for other in loads(module):
                reaches[module] |= closure(other)
        return reaches[module]

    heavy = [
        f"{module} loads {other}"
        for module in sorted(MODULES)
        if room(module) in CONTROL
        for other in sorted(closure(module))
        if is_heavy(other)
    ]
    assert not heavy
