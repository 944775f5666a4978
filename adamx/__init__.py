"""adamx: Adam taken apart. Small stages, chained into the Adam family, for JAX and Optax."""

# What rooms export is public here; of the core, the explanations and the tools, these names.
from adamx import recipes, stages, wrappers
from adamx.core import StageError, Transformation, apply_updates, chain, stage
from adamx.explain import Explanation, explain, in_symbols
from adamx.recipes import *
from adamx.recipes.registry import get_recipe, list_recipes, recipe
from adamx.stages import *
from adamx.states.hyperparams import hyperparams
from adamx.tools import convert
from adamx.tools.checkpoints import Restored, RestoreReport, restore_state
from adamx.tools.config import from_config, to_config
from adamx.tools.learning_rate import LearningRate, find_learning_rate
from adamx.tools.sweep import sweep
from adamx.tools.sweep_result import Sweep
from adamx.wrappers import *

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "LearningRate",
    "RestoreReport",
    "Restored",
    "StageError",
    "Sweep",
    "Transformation",
    "apply_updates",
    "chain",
    "convert",
    "explain",
    "find_learning_rate",
    "from_config",
    "get_recipe",
    "hyperparams",
    "in_symbols",
    "list_recipes",
    "recipe",
    "restore_state",
    "stage",
    "sweep",
    "to_config",
]
__all__ += recipes.__all__
__all__ += stages.__all__
__all__ += wrappers.__all__
