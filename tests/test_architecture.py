"""Draws the graph of all imports, those inside functions too: rooms import only downwards, and planes stay apart."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import distrain

PACKAGE = Path(distrain.__file__).parent
# From the top to the bottom: a module imports from its own room and from those below. Files of the package's own
# folder are rooms of their own.
ROOMS = [
    "__main__",
    "cli",
    "worker",
    "fork_server",
    "preload",
    "evaluation",
    "benchmark",
    "launchers",
    "training",
    "export",
    "checkpoint",
    "distributed",
    "models",
    "data",
    "runs",
    "config",
    "tensors",
    "global_rng",
    "rng",
    "system",
    "messages",
    "errors",
    "__init__",
]
CONTROL = {"cli", "launchers", "runs", "config", "system", "rng", "messages", "errors", "worker", "fork_server"}
INDEPENDENT = [{"models", "data"}, {"models", "checkpoint"}, {"data", "checkpoint"}]
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


def test_every_room_is_in_the_list() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)


def test_rooms_import_only_downwards() -> None:
    upward = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports(module, lazy=True)
        if ROOMS.index(room(module)) > ROOMS.index(room(other))
    ]
    assert not upward


def test_models_data_and_checkpoints_know_nothing_of_each_other() -> None:
    pairs = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports(module, lazy=True)
        if {room(module), room(other)} in INDEPENDENT
    ]
    assert not pairs


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
