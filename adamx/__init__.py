"""adamx: Adam taken apart. Small stages, chained into the Adam family, for JAX and Optax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# What rooms export is public here; of the core, the explanations and the tools, these names.
from adamx import recipes, schedules, stages, wrappers
from adamx.core import (
    StageError,
    Transformation,
    apply_updates,
    chain,
    kernel_axes,
    matrix_view,
    stage,
)
from adamx.recipes import *
from adamx.recipes.registry import get_recipe, list_recipes, recipe
from adamx.stages import *
from adamx.states.hyperparams import hyperparams
from adamx.tools import convert
from adamx.tools.averages import ema_snapshot, eval_params, reconstruct_ema
from adamx.tools.checkpoints import Restored, RestoreReport, restore_state
from adamx.tools.config import from_config, to_config
from adamx.tools.curvature import gauss_newton_bartlett, hutchinson_diagonal
from adamx.tools.learning_rate import LearningRate, find_learning_rate
from adamx.tools.sweep import sweep
from adamx.tools.sweep_result import Sweep
from adamx.wrappers import *

if TYPE_CHECKING:
    from adamx.equations import Explanation, explain

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
    "ema_snapshot",
    "eval_params",
    "explain",
    "find_learning_rate",
    "from_config",
    "gauss_newton_bartlett",
    "get_recipe",
    "hutchinson_diagonal",
    "hyperparams",
    "kernel_axes",
    "list_recipes",
    "matrix_view",
    "recipe",
    "reconstruct_ema",
    "restore_state",
    "schedules",
    "stage",
    "sweep",
    "to_config",
]
__all__ += recipes.__all__
__all__ += stages.__all__
__all__ += wrappers.__all__


def __getattr__(name: str) -> Any:
    """Equations are imported when they are asked for."""
    if name in ("Explanation", "explain"):
        from adamx import equations

        return getattr(equations, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _latex(opt: Transformation) -> str | None:
    return __getattr__("explain")(opt)._repr_latex_()


Transformation.equations = staticmethod(_latex)
