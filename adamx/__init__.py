"""adamx: Adam taken apart. Small stages, chained into the Adam family, for JAX and Optax."""

# The recipes: optimisers by name.
# The core: what chains are made of. `adamx.core` has the rest for writing new stages.
from adamx.core import StageError, Transformation, apply_updates, chain, stage
from adamx.recipes import adadelta, adagrad, adam, adamax, rmsprop, sgd

# The vocabulary: stages to chain.
from adamx.stages import (
    add_decayed_weights,
    bias_correction,
    clip_by_global_norm,
    polyak_ema,
    polyak_params,
    scale,
    scale_by_adadelta,
    scale_by_adamax,
    scale_by_heavy_ball,
    scale_by_learning_rate,
    scale_by_lp_norm,
    scale_by_momentum,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
)

__version__ = "0.1.0"

__all__ = [
    "StageError",
    "Transformation",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "add_decayed_weights",
    "apply_updates",
    "bias_correction",
    "chain",
    "clip_by_global_norm",
    "polyak_ema",
    "polyak_params",
    "rmsprop",
    "scale",
    "scale_by_adadelta",
    "scale_by_adamax",
    "scale_by_heavy_ball",
    "scale_by_learning_rate",
    "scale_by_lp_norm",
    "scale_by_momentum",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_stddev",
    "sgd",
    "stage",
]
