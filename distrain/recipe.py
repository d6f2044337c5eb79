"""Owns the recipe: what is trained, as one frozen, validated model, read from YAML and changed by --set.

Every field says here what it does. A recipe never says where or on how many devices it runs: that is the profile's.
"""

import difflib
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from distrain.errors import RecipeError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """Which samples are trained on, and how they are read."""

    source: str = Field(description="digits, cifar10, imagefolder, or package.module:name of your own dataset factory")
    path: str | None = Field(None, description="folder of the data; --data sets it")
    batch_size: int = Field(gt=0, description="samples in one optimizer step, over all processes")
    num_workers: int = Field(0, ge=0, description="loader processes for each training process; 0 reads in the process")
    drop_last: bool = Field(default=False, description="leave out an epoch's last, smaller batch")
    train_samples: int | None = Field(None, gt=0, description="train on so many samples, drawn by the seed; null: all")
    val_samples: int | None = Field(None, gt=0, description="evaluate so many samples, drawn by the seed; null: all")


class Transform(Section):
    """One transform of torchvision.transforms.v2, by its class name, or package.module:name, and its arguments."""

    name: str
    arguments: dict[str, Any] = {}


def _read_transform(value: object) -> object:
    """Take `Name`, or `Name: {argument: value}`, the two ways in which YAML writes a transform."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        (name, arguments), *_ = value.items()
        if isinstance(arguments, dict) or arguments is None:
            return {"name": name, "arguments": arguments or {}}
    raise ValueError("a transform is written `Name` or `Name: {argument: value}`")


TransformList = tuple[Annotated[Transform, BeforeValidator(_read_transform)], ...]


class Augment(Section):
    """How an image becomes the tensor that the model sees."""

    train: TransformList = Field((), description="transforms of a training image, drawn from (seed, epoch, sample)")
    eval: TransformList = Field((), description="transforms of a validation image; they draw nothing")
    mean: tuple[float, ...] | None = Field(None, description="a channel's mean in [0, 1], subtracted last")
    std: tuple[Positive, ...] | None = Field(None, description="a channel's standard deviation, divided by last")

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("augment.mean and augment.std go together, one number a channel in each")
        return self


class Model(Section):
    """The network."""

    name: str = Field(description="digits-cnn, cifar-cnn, any torchvision classifier, or package.module:factory")
    weights: str | None = Field(None, description="imagenet (torchvision's, downloaded once), or a .pth/.safetensors")


class Loss(Section):
    """What is minimised."""

    name: str = Field("cross_entropy", description="cross_entropy, or package.module:function(logits, targets)")
    label_smoothing: Fraction = Field(0.0, description="share of the target spread over all classes")


class Optimizer(Section):
    """The update rule, as in torch.optim; a field that the rule does not have stays null."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = Field("sgd", description="the rule")
    lr: Positive = Field(description="base learning rate, which the schedule multiplies")
    weight_decay: NonNegative = Field(0.0, description="L2 penalty, decoupled from the gradient by adamw")
    momentum: Fraction | None = Field(None, description="sgd, rmsprop")
    nesterov: bool | None = Field(None, description="sgd")
    betas: tuple[Fraction, Fraction] | None = Field(None, description="adam, adamw")
    alpha: Fraction | None = Field(None, description="rmsprop: smoothing of the squared gradient")
    eps: Positive | None = Field(None, description="adam, adamw, rmsprop")

    @model_validator(mode="after")
    def _fields_belong_to_the_rule(self) -> Self:
        known = {"sgd": "momentum nesterov", "adam": "betas eps", "adamw": "betas eps", "rmsprop": "momentum alpha eps"}
        _refuse_unused(self, {"name", "lr", "weight_decay", *known[self.name].split()}, "optimizer")
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


class Schedule(Section):
    """The learning rate as a pure function of the step; a field that the schedule does not have stays null."""

    name: Literal["constant", "step", "multistep", "cosine", "onecycle"] = Field("constant", description="the curve")
    warmup_epochs: NonNegative = Field(0.0, description="linear rise from near 0; not for onecycle, which has its own")
    step_epochs: Positive | None = Field(None, description="step: epochs between two drops")
    milestones_epochs: tuple[Positive, ...] | None = Field(None, description="multistep: the epochs of the drops")
    gamma: Positive | None = Field(None, description="step, multistep: factor of a drop; 0.1 if null")
    final_factor: NonNegative | None = Field(None, description="cosine: last factor of the learning rate; 0 if null")
    pct_start: Fraction | None = Field(None, description="onecycle: share of the steps that rises; 0.3 if null")
    div_factor: Positive | None = Field(None, description="onecycle: peak over first learning rate; 25 if null")
    final_div_factor: Positive | None = Field(None, description="onecycle: first over last learning rate; 1e4 if null")

    @model_validator(mode="after")
    def _fields_belong_to_the_schedule(self) -> Self:
        known = {
            "constant": "",
            "step": "step_epochs gamma",
            "multistep": "milestones_epochs gamma",
            "cosine": "final_factor",
            "onecycle": "pct_start div_factor final_div_factor",
        }
        _refuse_unused(self, {"name", "warmup_epochs", *known[self.name].split()}, "schedule")
        if self.name == "onecycle" and self.warmup_epochs:
            raise ValueError("schedule.warmup_epochs is not for onecycle, which rises by pct_start; leave it 0")
        needed = {"step": "step_epochs", "multistep": "milestones_epochs"}.get(self.name)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"schedule.name={self.name} needs schedule.{needed}")
        if self.milestones_epochs and list(self.milestones_epochs) != sorted(set(self.milestones_epochs)):
            raise ValueError("schedule.milestones_epochs must rise from one to the next")
        return self


class Train(Section):
    """How long and how training runs."""

    epochs: int = Field(gt=0, description="passes over the training samples")
    max_steps: int | None = Field(None, gt=0, description="stop after this many optimizer steps, if sooner")
    micro_batch_size: int | None = Field(None, gt=0, description="samples of one forward pass; null: batch / processes")
    seed: int = Field(0, ge=0, lt=2**63, description="the one seed of order, augmentation, weights and dropout")
    deterministic: bool = Field(default=True, description="take deterministic kernels where torch has them")
    exact: bool = Field(default=False, description="the same bits at every number of processes")
    threads: int | None = Field(None, gt=0, description="CPU threads of a process; null: its share, 1 in exact mode")
    clip_norm: Positive | None = Field(None, description="largest 2-norm of the gradient; null: not clipped")
    ema_decay: Fraction | None = Field(None, description="moving average of the weights, evaluated in their place")
    max_rollbacks: int = Field(3, ge=0, description="batches left out at most because their loss was not finite")
    detect_anomaly: bool = Field(default=False, description="slow: name the operation whose gradient is not a number")
    target_loss: Positive | None = Field(
        None, description="end where an epoch's mean training loss is below this, and fail where it never is; null: no"
    )


class Parallel(Section):
    """How the processes share the work."""

    strategy: Literal["auto", "ddp", "dp", "fsdp", "none"] = Field(
        "auto", description="ddp; dp: one process for several GPUs; fsdp: weights divided; auto: ddp, else dp"
    )


class Checkpoint(Section):
    """When the state of the run is written; it always is at the end."""

    every_epochs: int | None = Field(1, gt=0, description="epochs between two checkpoints; null: not by epochs")
    every_steps: int | None = Field(None, gt=0, description="steps between two checkpoints; null: not by steps")
    every_minutes: Positive | None = Field(None, description="minutes between two checkpoints; null: not by the clock")
    asynchronous: bool = Field(default=True, description="write in the background; false holds up the training")
    keep_last: int = Field(2, gt=0, description="how many of the newest checkpoints stay")
    keep_best: bool = Field(default=True, description="write and keep one at the evaluation with the best val/top1")
    keep_every_steps: int | None = Field(None, gt=0, description="checkpoints of multiples of this stay for ever")


class Log(Section):
    """What is recorded, and where to."""

    every_steps: int = Field(50, gt=0, description="steps between two lines of metrics")
    verbose: bool = Field(default=False, description="print every line of metrics, not only evaluations")
    tensorboard: bool = Field(default=True, description="write TensorBoard files into the run directory")
    wandb: Literal["offline", "online", "disabled"] = Field("offline", description="online uploads while training")
    wandb_project: str = Field("distrain", description="the Weights & Biases project of the run")


class Eval(Section):
    """When and how the validation samples are evaluated; they always are at the end."""

    every_epochs: int | None = Field(1, gt=0, description="epochs between two evaluations; null: not by epochs")
    every_steps: int | None = Field(None, gt=0, description="steps between two evaluations; null: not by steps")
    at_start: bool = Field(default=False, description="also before the first step: a fault in it shows at once")
    batch_size: int = Field(256, gt=0, description="samples of one forward pass")


class Recipe(Section):
    """What is trained: everything that decides the result, and nothing about the machine it runs on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run directory")
    data: Data
    augment: Augment = Field(default_factory=Augment)
    model: Model
    loss: Loss = Field(default_factory=Loss)
    optimizer: Optimizer
    schedule: Schedule = Field(default_factory=Schedule)
    train: Train
    parallel: Parallel = Field(default_factory=Parallel)
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of the forward pass, by autocast"
    )
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    log: Log = Field(default_factory=Log)
    eval: Eval = Field(default_factory=Eval)

    @model_validator(mode="after")
    def _exact_mode_has_its_own_strategy(self) -> Self:
        if self.train.exact and self.parallel.strategy in {"dp", "fsdp"}:
            raise ValueError(
                f"train.exact and parallel.strategy={self.parallel.strategy} exclude each other; choose one"
            )
        return self

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The fields that decide the training; a run directory goes on only with these unchanged."""
        dump = self.model_dump(
            mode="json", exclude={"log": True, "checkpoint": True, "parallel": True, "eval": {"batch_size"}}
        )
        for field in ("path", "num_workers"):
            del dump["data"][field]
        return dump

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that `load_recipe` reads back to an equal recipe."""
        dump = self.model_dump(mode="json")
        for split in ("train", "eval"):
            dump["augment"][split] = [{t["name"]: t["arguments"]} for t in dump["augment"][split]]
        return yaml.safe_dump(dump, sort_keys=False, allow_unicode=True)


def load_recipe(reference: str, *, overrides: list[str], data: str | None = None) -> Recipe:
    """Resolve a built-in name or a YAML path, then `a.b=c` overrides in their order, then the data folder.

    Raises `RecipeError` with one sentence that names the key, the value seen and what to do.
    """
    text, name = _find(reference)
    tree = _parse_yaml(text, reference)
    tree.setdefault("name", name)
    for override in overrides:
        _apply_override(tree, override)
    if data is not None and isinstance(section := tree.setdefault("data", {}), dict):  # else refused below
        section["path"] = str(Path(data).expanduser().absolute())
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_first_sentence(error, tree)) from None


def read_recipe(path: Path) -> Recipe:
    """Read the resolved recipe of a run directory."""
    return load_recipe(str(path), overrides=[])


def builtin_recipes() -> dict[str, str]:
    """Return the text of each built-in recipe by its name."""
    folder: Traversable = resources.files("distrain") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in files}


def fields(section: type[Section] = Recipe, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Return (key, type, default, meaning) of every field that --set can change, in the order of the recipe."""
    rows: list[tuple[str, str, str, str]] = []
    for key, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            rows += fields(info.annotation, f"{prefix}{key}.")
            continue
        kind = _type_text(info.annotation)
        default = "required" if info.is_required() else yaml.safe_dump(info.default).split("\n")[0]
        if isinstance(info.default, tuple):
            default = "[]"
        rows.append((f"{prefix}{key}", kind, default, info.description or ""))
    return rows


def _find(reference: str) -> tuple[str, str]:
    path = Path(reference).expanduser()
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise RecipeError(f"recipe file {reference} does not exist; `distrain recipes init digits` writes one")
        try:
            return path.read_text(encoding="utf-8"), path.stem.replace(" ", "-")
        except UnicodeDecodeError:
            raise RecipeError(f"recipe file {reference} is not UTF-8 text") from None
    recipes = builtin_recipes()
    if reference not in recipes:
        raise RecipeError(
            f"there is no recipe {reference!r}{_did_you_mean(reference, recipes)}; "
            f"`distrain recipes` lists them, and your own is given by its path, ending in .yaml"
        )
    return recipes[reference], reference


def _parse_yaml(text: str, reference: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"recipe {reference} cannot be read as YAML{place}: {problem}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {reference} holds {type(tree).__name__}, not sections such as data: and model:")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override} is not of the form section.key=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: {text!r} cannot be read as a YAML value; quote it") from None
    *parents, leaf = key.strip().split(".")
    node: Any = tree
    for parent in parents:
        node = _step_into(node, parent, override)
    if isinstance(node, list):
        _step_into(node, leaf, override)
        node[int(leaf)] = value
    else:
        node[leaf] = value


def _step_into(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise RecipeError(f"--set {override}: {key!r} is not a place in a list of {len(node)}, counted from 0")
        return node[int(key)]
    child = node.setdefault(key, {})
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise RecipeError(f"--set {override}: {key!r} is a value, {child!r}, and has no keys of its own")
    return child


def _first_sentence(error: ValidationError, tree: dict[str, Any]) -> str:
    detail = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1])
        return f"the recipe has no key {key}{_did_you_mean(str(detail['loc'][-1]), known)}"
    if detail["type"] == "missing":
        return f"the recipe lacks {key}, which has no default"
    if detail["type"] == "value_error":
        reason = detail["msg"].removeprefix("Value error, ")
        return reason if "." in reason.split()[0] else f"{key}: {reason}"
    reason = detail["msg"].removeprefix("Input ")
    return f"{key}={detail['input']!r}: the value {reason}" if key else f"the recipe {reason}, not {tree!r}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: type[Section] = Recipe
    for part in location:
        info = section.model_fields.get(str(part))
        if info is None or not (isinstance(info.annotation, type) and issubclass(info.annotation, Section)):
            return []
        section = info.annotation
    return list(section.model_fields)


def _did_you_mean(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _refuse_unused(section: Section, known: set[str], title: str) -> None:
    for field in type(section).model_fields:
        value = getattr(section, field)
        if field not in known and value is not None:
            name = getattr(section, "name", "")
            raise ValueError(f"{title}.{field}={value} is not used by {name}; --set {title}.{field}=null unsets it")


def _type_text(annotation: Any) -> str:
    """Return a type in YAML's words, such as `number or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == TransformList:
        return "list of transforms"
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return ", ".join(str(choice) for choice in arguments)
    if origin is tuple:
        return f"list of {_type_text(arguments[0])}s"
    if origin is UnionType or origin is Union:
        return " or ".join(_type_text(choice) for choice in arguments)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "null"}
    return names[annotation]
