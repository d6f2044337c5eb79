"""The recipe: what is trained, as one frozen, validated model, read from YAML and changed by --set.

Every field says here what it does. A recipe never says where or on how many devices it runs: that is the profile's.
"""

from distrain.recipe.compute import Compute
from distrain.recipe.data import Augment, Data, Transform, TransformList
from distrain.recipe.fields import fields
from distrain.recipe.model import Loss, Model
from distrain.recipe.output import Checkpoint, Eval, Log
from distrain.recipe.read import builtin_recipes, change_recipe, load_data, load_recipe, read_recipe
from distrain.recipe.training import Lookahead, Optimizer, Parallel, Schedule, Train
from distrain.recipe.whole import Recipe

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
    "Recipe",
    "Schedule",
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
