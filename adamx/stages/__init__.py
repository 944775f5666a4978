"""The vocabulary: one idea of the paper each, to be chained."""

from adamx.stages.averaging import polyak_ema, polyak_params
from adamx.stages.bias import bias_correction
from adamx.stages.momentum import scale_by_heavy_ball, scale_by_momentum
from adamx.stages.norms import scale_by_adamax, scale_by_lp_norm
from adamx.stages.rms import scale_by_adadelta, scale_by_rms, scale_by_rss, scale_by_stddev
from adamx.stages.shaping import (
    add_decayed_weights,
    clip_by_global_norm,
    scale,
    scale_by_learning_rate,
)

__all__ = [
    "add_decayed_weights",
    "bias_correction",
    "clip_by_global_norm",
    "polyak_ema",
    "polyak_params",
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
]
