"""Reads the weights that model.weights names in a checkpoint or a bundle."""

import logging
from pathlib import Path

from distrain.config import Model, read_recipe
from distrain.errors import BundleError, CheckpointError, ModelError, UserError
from distrain.models.weight_sets import StoredWeights
from distrain.runs import checkpoints
from distrain.runs.directory import BUNDLE, RunDirectory

TRAINED, AVERAGE = "model", "average"  # the two sets of weights in a checkpoint that has moving averages

log = logging.getLogger(__name__)


def read_stored(config: Model) -> StoredWeights | None:
    """Return what model.weights names where that is a checkpoint or a bundle; None where it is anything else.

    Of a checkpoint with moving averages it is these, which were evaluated, unless model.weights_entry is `model`. Every
    byte is verified. Raises `ModelError` for what is damaged.
    """
    if config.weights is None:
        return None
    path = Path(config.weights).expanduser()
    if path in checkpoints.committed(path.parent):
        return _read_checkpoint(path, config)
    from distrain.export.bundle import read_bundle

    if not (path / BUNDLE).is_file():
        return None
    try:
        description, tensors = read_bundle(path)
        return StoredWeights({None: tensors}, classes=description.classes)
    except BundleError as error:
        raise ModelError(f"model.weights={config.weights}: {error}") from None


def _read_checkpoint(path: Path, config: Model) -> StoredWeights:
    from distrain.checkpoint.load import describe_tensors, read_model
    from distrain.checkpoint.tensors import AVERAGE as AVERAGED

    title = f"model.weights={config.weights}"
    if fault := checkpoints.find_corruption(path):
        raise ModelError(f"{title} is not used: {fault}")
    try:
        has_average = any(name.startswith(AVERAGED) for name in describe_tensors(path))
        known = [TRAINED, AVERAGE] if has_average else [TRAINED]
        entry = config.weights_entry or known[-1]
        if entry not in known:
            raise ModelError(f"{title} has no weights {entry!r} (model.weights_entry); it holds {', '.join(known)}")
        if has_average:
            log.info("%s: of the moving average and the weights as trained, it is the %s", title, _NAMES[entry])
        classes = tuple(checkpoints.read(path).state["classes"])
        return StoredWeights(
            {entry: read_model(path, use_average=entry == AVERAGE)},
            classes=classes,
            network=_read_network(RunDirectory(path.parents[1])),
            origin=_describe_place(path),
        )
    except CheckpointError as error:
        raise ModelError(f"{title} is not used: {error}") from None


_NAMES = {TRAINED: "weights as trained", AVERAGE: "moving average"}


def _describe_place(path: Path) -> str:
    """Return which of its run's checkpoints it is, where it is the best or the newest one."""
    entries = checkpoints.read_catalog(path.parent)
    places = [
        word
        for word, entry in (("best", checkpoints.find_best(entries)), ("newest", entries[-1] if entries else None))
        if entry is not None and entry.path.name == path.name
    ]
    return f" (the {' and '.join(places)} of its run)" if places else ""


def _read_network(run: RunDirectory) -> str:
    """Return the name of a run's network; empty where its recipe cannot be read."""
    try:
        return read_recipe(run.recipe).model.name
    except (OSError, UserError):
        return ""
