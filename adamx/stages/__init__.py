"""The vocabulary: one idea of the paper each, to be chained."""

from adamx.stages.averaging import lookahead, polyak_ema, polyak_params
from adamx.stages.bias import bias_correction
from adamx.stages.differences import reduce_variance, scale_by_extrapolated_momentum
from adamx.stages.distance import scale_by_prodigy
from adamx.stages.factored import (
    clip_by_block_rms,
    scale_by_block_rms,
    scale_by_factored_rms,
    scale_by_param_block_rms,
)
from adamx.stages.layers import adaptive_clip, clip_by_norm, scale_by_norm, trust_ratio
from adamx.stages.momentum import (
    scale_by_heavy_ball,
    scale_by_momentum,
    scale_by_nesterov_momentum,
)
from adamx.stages.norms import scale_by_adamax, scale_by_lp_norm
from adamx.stages.precision import kahan_summation, master_weights, stochastic_rounding
from adamx.stages.proximal import proximal_step
from adamx.stages.rms import (
    clip_by_relative_rms,
    scale_by_adadelta,
    scale_by_atan2,
    scale_by_belief,
    scale_by_delayed_rms,
    scale_by_max_rms,
    scale_by_rectified_rms,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
    scale_by_yogi,
)
from adamx.stages.schedule_free import schedule_free, schedule_free_eval_params
from adamx.stages.shaping import (
    add_decayed_weights,
    clip_by_global_norm,
    scale,
    scale_by_learning_rate,
    set_to_zero,
)
from adamx.stages.signs import align_with_gradient, cautious, sign
from adamx.stages.two_rates import scale_by_mixed_momentum, scale_by_two_rate_momentum

__all__ = [
    "adaptive_clip",
    "add_decayed_weights",
    "align_with_gradient",
    "bias_correction",
    "cautious",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_relative_rms",
    "kahan_summation",
    "lookahead",
    "master_weights",
    "polyak_ema",
    "polyak_params",
    "proximal_step",
    "reduce_variance",
    "scale",
    "scale_by_adadelta",
    "scale_by_adamax",
    "scale_by_atan2",
    "scale_by_belief",
    "scale_by_block_rms",
    "scale_by_delayed_rms",
    "scale_by_extrapolated_momentum",
    "scale_by_factored_rms",
    "scale_by_heavy_ball",
    "scale_by_learning_rate",
    "scale_by_lp_norm",
    "scale_by_max_rms",
    "scale_by_mixed_momentum",
    "scale_by_momentum",
    "scale_by_nesterov_momentum",
    "scale_by_norm",
    "scale_by_param_block_rms",
    "scale_by_prodigy",
    "scale_by_rectified_rms",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_stddev",
    "scale_by_two_rate_momentum",
    "scale_by_yogi",
    "schedule_free",
    "schedule_free_eval_params",
    "set_to_zero",
    "sign",
    "stochastic_rounding",
    "trust_ratio",
]
