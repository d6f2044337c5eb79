"""Decides what a request may change in a recipe: keys that are listed here, with values that name no code or address.

A request comes from a browser, which may be tricked, so it cannot do what the user's shell can: run code, read a file
outside of the folders that `serve` was given, or send something anywhere. A key that is not listed is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrain.config.load import MAX_CHARACTERS
from distrain.config.task import TIMM
from distrain.config.user_code import is_reference
from distrain.errors import LaunchError, RecipeError
from distrain.launchers.warm_start import DOWNLOADED
from distrain.messages import counted, nearest, shown
from distrain.runs.directory import RunDirectory

_MAX_TEXT = 1000  # characters
_MAX_ITEMS = 1000  # of a list or a mapping
_MAX_DEPTH = 6
_MAX_NUMBER = 2.0**63


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What `serve` was started with: folders of data and weights, the folder of the runs, and whether code is."""

    data_roots: tuple[Path, ...] = ()
    root: Path | None = None
    code: bool = False


Rule = Callable[[Any, Allowed], str | None]  # returns why a value is refused


def check_request(
    changes: Mapping[str, Any],
    *,
    data: str | None = None,
    data_roots: Sequence[Path] = (),
    root: Path | None = None,
    allow_code: bool = False,
) -> None:
    """Raise `RecipeError`, which names the key, where a request may not change a recipe so.

    `changes` are values by dotted key, as for --set; `data` is a path. Types are checked by the recipe itself.
    """
    allowed = Allowed(data_roots=tuple(data_roots), root=root, code=allow_code)
    for key, value in [*changes.items(), *([] if data is None else [("data.path", data)])]:
        if (excess := _find_excess([key, value])) is not None:
            raise RecipeError(f"{shown(key)}: {excess}")
        if (fault := _find_fault(key, value, allowed)) is not None:
            raise RecipeError(f"{shown(key)}={shown(value)}: {fault}")


def check_code(recipe: Mapping[str, Any], *, allow_code: bool) -> None:
    """Raise `RecipeError` where the recipe of a run, as values by dotted key, names code that a request may not run."""
    allowed = Allowed(code=allow_code)
    for key in _NAMES_OF_CODE:
        named = recipe.get(key)
        if key == "data.more" and isinstance(named, list):
            named = [part.get("source") for part in named if isinstance(part, Mapping)]
        if (fault := _without_code(named, allowed)) is not None:
            raise RecipeError(f"{key}={shown(named)}: {fault}")


def is_allowed_key(key: str) -> bool:
    """Whether a request may set a key, with some value."""
    return key in ALLOWED or key.rpartition(".")[0] in MAPPINGS


def check_devices(count: int, *, available: int) -> None:
    """Raise `LaunchError` where a request demands more processes than the queue has slots or GPUs for."""
    if not 1 <= count <= max(1, available):
        raise LaunchError(f"devices.count={count}: the queue has {counted(available, 'device')} of this kind")


def _find_fault(key: str, value: Any, allowed: Allowed) -> str | None:
    section, _, name = key.rpartition(".")
    if section in MAPPINGS and name.isidentifier():  # such as model.arguments.dropout
        key, value = section, {name: value}
    if key not in ALLOWED:
        advice = "it can be set by `distrain submit` alone" if key in REFUSED else "a request cannot set this key"
        return f"{advice}{nearest(key, ALLOWED, count=1, cutoff=0.8)}"
    return ALLOWED[key](value, allowed)


def _find_excess(value: Any, depth: int = 0) -> str | None:
    """Return why a value is too large, too long or not plain text, whatever its key; None where it is not."""
    if isinstance(value, str):
        if not value.isprintable():
            return "it has control characters"
        return f"it is longer than {_MAX_TEXT} characters" if len(value) > _MAX_TEXT else None
    if isinstance(value, int | float):
        return None if abs(value) <= _MAX_NUMBER else "it is not finite, or too large"
    if isinstance(value, Mapping | list | tuple):
        if depth >= _MAX_DEPTH:
            return "it is nested too deeply"
        if len(value) > _MAX_ITEMS:
            return f"it has more than {_MAX_ITEMS} entries"
        parts = [*value, *value.values()] if isinstance(value, Mapping) else value
        return next((fault for part in parts if (fault := _find_excess(part, depth + 1))), None)
    return None if value is None else "it is not JSON"


def _plain(_: Any, __: Allowed) -> str | None:
    """Allow what the recipe does."""
    return None


def _at_most(limit: float) -> Rule:
    """Allow numbers up to a limit, above which they only exhaust the machine; texts are none."""

    def check(value: Any, _: Allowed) -> str | None:
        largest = max(map(abs, _numbers(value)), default=0)
        return f"{largest:g} is more than a request may use, {limit:,.0f}" if largest > limit else None

    return check


def _name(value: Any, allowed: Allowed) -> str | None:
    """Allow a text that is the name of something that distrain knows."""
    return _without_code(value, allowed) if isinstance(value, str) else "it is not a name"


def _without_code(value: Any, allowed: Allowed) -> str | None:
    """Allow a name that distrain knows; one of a module only where `serve` allows code."""
    for text in _texts(value):
        if is_reference(text) and not allowed.code:
            return "it names code, or an address; `distrain serve --allow-code` allows that"
    return None


def _arguments_of_code(value: Any, allowed: Allowed) -> str | None:
    """Allow arguments only where they go to code that `serve` allows."""
    if value and not allowed.code:
        return "these go to code of your own; `distrain serve --allow-code` allows that"
    return None


def _own_parts(value: Any, allowed: Allowed) -> str | None:
    """Allow loggers and hooks, which are always code, only where `serve` allows that."""
    if value and not allowed.code:
        return "these are code; `distrain serve --allow-code` allows that"
    return None


def _arguments_of_a_network(value: Any, allowed: Allowed) -> str | None:
    """Allow numbers and booleans: some networks take texts for files and addresses of weights."""
    if not allowed.code and (texts := [text for text in _texts(_values(value)) if text]):
        return f"{shown(texts[0])} is text, which may be a file or an address; `distrain serve --allow-code` allows it"
    return _at_most(2**20)(value, allowed)


def _metrics(value: Any, allowed: Allowed) -> str | None:
    """Allow distrain's and torchmetrics' metrics, with arguments that are not the place of a file."""
    return _without_code(value, allowed) or _at_most(2**20)(value, allowed)


def _transforms(value: Any, allowed: Allowed) -> str | None:
    """Allow torchvision's and distrain's transforms, with sizes that an image may have."""
    return _without_code(value, allowed) or _at_most(16384)(value, allowed)


def _sources(value: Any, allowed: Allowed) -> str | None:
    """Allow more data as `data.source` and `data.path` do."""
    for part in value if isinstance(value, list) else [value]:
        source, path = (part.get("source"), part.get("path")) if isinstance(part, Mapping) else (part, None)
        if (fault := _without_code(source, allowed) or _data_path(path, allowed)) is not None:
            return fault
    return None


def _data_path(value: Any, allowed: Allowed) -> str | None:
    """Allow a path below a folder of `--data-root`, links resolved."""
    return None if value is None else _find_path_fault(value, allowed.data_roots)


def _weights(value: Any, allowed: Allowed) -> str | None:
    """Allow published ImageNet weights, a run of this folder, or one of its checkpoints, and files as for data."""
    if value is None or value in DOWNLOADED:
        return None
    if allowed.root is not None and isinstance(value, str) and _is_in_a_run(value, allowed.root):
        return None
    return _find_path_fault(value, allowed.data_roots)


def _teacher(value: Any, allowed: Allowed) -> str | None:
    """Allow published networks, and runs, checkpoints and bundles as for weights."""
    if isinstance(value, str) and value.startswith(TIMM) and value.removeprefix(TIMM).replace(".", "_").isidentifier():
        return None
    return _weights(value, allowed)


def _wandb(value: Any, _: Allowed) -> str | None:
    """Allow to record a run, or not; whether it is sent somewhere is up to the operator."""
    return None if value in ("offline", "disabled") else "a request cannot have a run uploaded"


def _run_name(value: Any, _: Allowed) -> str | None:
    """Allow a name that file systems accept with what is appended to it."""
    return f"it is longer than {MAX_CHARACTERS} characters" if len(str(value)) > MAX_CHARACTERS else None


def _find_path_fault(value: Any, folders: Sequence[Path]) -> str | None:
    """Return why a path may not be read; it is the same whether the path exists or not."""
    if not folders:
        return "paths need a folder that `distrain serve --data-root DIR` allows, and it allows none"
    if isinstance(value, str) and Path(value).is_absolute():
        with suppress(OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file has
            found = Path(value).resolve()
            if any(found.is_relative_to(folder.resolve()) for folder in folders):
                return None
    return "it is not an absolute path in a folder that `distrain serve --data-root DIR` allows"


def _is_in_a_run(text: str, root: Path) -> bool:
    """Whether a text is the exact name of a run in `root`, maybe with a checkpoint, or a path in the run's folder."""
    name, _, which = text.rpartition(" ")
    reference = name if name and (which in {"best", "last"} or which.isdecimal()) else text
    with suppress(OSError, RuntimeError, ValueError):
        inner = Path(root, reference).relative_to(root).parts
        if not inner or inner[0].startswith((".", "~")):  # `.serve`, `..`, or a home folder
            return False
        run = root / inner[0]
        is_run = not run.is_symlink() and RunDirectory(run).exists
        return is_run and Path(root, *inner).resolve().is_relative_to(run.resolve())
    return False


def _values(value: Any) -> Any:
    return list(value.values()) if isinstance(value, Mapping) else value


def _texts(value: Any) -> list[str]:
    """Return all texts in a value, also the keys of mappings."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for part in (*value, *value.values()) for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []


def _numbers(value: Any) -> list[float]:
    """Return all numbers in a value, also those that are written as text, which the recipe reads as well."""
    if isinstance(value, str):
        with suppress(ValueError):
            return [float(value)]
        return []
    if isinstance(value, int | float):
        return [value]
    parts = _values(value)
    return [number for part in parts for number in _numbers(part)] if isinstance(parts, list | tuple) else []


_SAFE = """
    task.logit_weight task.temperature task.feature_weight
    data.target data.path_column data.label_column data.delimiter data.val_fraction data.loader data.cache
    data.drop_last data.train_samples data.val_samples data.samples_per_epoch
    augment.mean augment.std augment.mixup augment.cutmix augment.mix_prob
    model.weights_entry model.partial model.head model.head_name model.freeze model.unfreeze_epochs model.freeze_epochs
    loss.label_smoothing loss.class_weights loss.pos_weight loss.gamma loss.alpha
    optimizer.lr optimizer.lr_per optimizer.adamw_lr optimizer.weight_decay optimizer.momentum optimizer.nesterov
    optimizer.betas optimizer.alpha optimizer.eps optimizer.no_decay optimizer.layer_decay optimizer.lr_factors
    optimizer.even_decay
    schedule.warmup_epochs schedule.step_epochs schedule.milestones_epochs schedule.gamma
    schedule.first_factor schedule.final_factor schedule.pct_start schedule.div_factor schedule.final_div_factor
    schedule.power schedule.period_epochs schedule.period_factor schedule.decay_epochs schedule.decay_shape
    schedule.patience schedule.threshold schedule.cooldown schedule.metric
    train.epochs train.max_steps train.max_time train.patience train.seed train.deterministic train.exact
    train.clip_norm train.clip_value train.agc train.ema_decay train.ema_warmup train.swa_start_epochs
    train.swa_every_steps train.batchnorm_steps train.lookahead train.max_rollbacks train.detect_anomaly
    train.target_loss
    parallel.strategy parallel.sync_batchnorm precision
    compute.memory_format compute.compile compute.cuda_graphs compute.recompute compute.tf32
    checkpoint.every_epochs checkpoint.every_steps checkpoint.every_minutes checkpoint.asynchronous
    checkpoint.keep_best checkpoint.keep_every_steps
    log.every_steps log.system_every_s log.verbose log.tensorboard
    eval.every_epochs eval.every_steps eval.at_start eval.flips eval.shift eval.best
"""
ALLOWED: dict[str, Rule] = {
    **dict.fromkeys(_SAFE.split(), _plain),
    "name": _run_name,
    "task.name": _name,
    "task.arguments": _arguments_of_code,
    "task.teacher": _teacher,
    "task.teacher_weights": _weights,
    "task.dimensions": _at_most(2**16),
    "data.source": _name,
    "data.path": _data_path,
    "data.arguments": _arguments_of_code,
    "data.more": _sources,
    "data.sampling": _name,
    "data.sampling_arguments": _arguments_of_code,
    "data.batch_size": _at_most(2**20),
    "data.num_workers": _at_most(64),
    "data.decode_size": _at_most(16384),
    "data.repeats": _at_most(1000),
    "augment.train": _transforms,
    "augment.eval": _transforms,
    "augment.batch": _transforms,
    "augment.sizes": _at_most(16384),
    "model.name": _name,
    "model.arguments": _arguments_of_a_network,
    "model.weights": _weights,
    "loss.name": _name,
    "optimizer.name": _name,
    "optimizer.arguments": _arguments_of_code,
    "schedule.name": _name,
    "schedule.arguments": _arguments_of_code,
    "train.micro_batch_size": _at_most(2**20),
    "train.threads": _at_most(256),
    "checkpoint.keep_last": _at_most(100),
    "log.wandb": _wandb,
    "log.loggers": _own_parts,
    "hooks": _own_parts,
    "eval.metrics": _metrics,
    "eval.batch_size": _at_most(2**20),
}
_OWN_PARTS = ("augment.train", "augment.eval", "augment.batch", "eval.metrics", "log.loggers", "hooks")
_NAMES_OF_CODE = (
    "task.name",
    "data.source",
    "data.more",
    "data.sampling",
    "model.name",
    "loss.name",
    "optimizer.name",
    "schedule.name",
    *_OWN_PARTS,
)
REFUSED = {"log.wandb_project"}  # where a run is recorded is up to the operator
MAPPINGS = {  # whose entries are keys, too
    "task.arguments",
    "data.arguments",
    "data.sampling_arguments",
    "model.arguments",
    "optimizer.arguments",
    "schedule.arguments",
}
