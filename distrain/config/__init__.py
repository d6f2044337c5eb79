"""The recipe: what is trained, as one frozen, validated model, read from YAML and changed by --set.

Each field is documented where it is defined. A recipe never says where or on how many devices it runs: the launch
profile does.
"""

from distrain.config.compute import Compute
from distrain.config.data import Augment, Data
from distrain.config.load import builtin_recipes, change_recipe, load_data, load_recipe, read_recipe
from distrain.config.model import Loss, Model
from distrain.config.optim import Optimizer, Schedule
from distrain.config.outputs import Checkpoint, Eval, Log
from distrain.config.parts import Part, Transform, TransformList
from distrain.config.recipe import Recipe
from distrain.config.reference import fields
from distrain.config.task import Task
from distrain.config.training import Lookahead, Parallel, Train

__all__ = [
    "Augment",
    "Checkpoint",
    "Compute",
    "Data",
    "Eval",
    "Log",
    "Lookahead",
    "Loss",
    "Model",
    "Optimizer",
    "Parallel",
    "Part",
    "Recipe",
    "Schedule",
    "Task",
    "Train",
    "Transform",
    "TransformList",
    "builtin_recipes",
    "change_recipe",
    "fields",
    "load_data",
    "load_recipe",
    "read_recipe",
]
