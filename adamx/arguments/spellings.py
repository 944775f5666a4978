"""How arguments of Optax, PyTorch and Keras are spelled here, for errors that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["spelled_here"]

_NAMES: dict[str, tuple[str, ...]] = {
    # The first of these that the function has is meant.
    "alpha": ("decay", "b2"),
    "beta": ("b1",),
    "beta1": ("b1",),
    "beta2": ("b2",),
    "beta3": ("b3",),
    "beta_1": ("b1",),
    "beta_2": ("b2",),
    "beta_3": ("b3",),
    "decay": ("rho",),
    "epsilon": ("eps",),
    "lr": ("learning_rate",),
    "momentum": ("b1",),
    "rho": ("decay", "b2"),
    "step_size": ("learning_rate",),
    "wd": ("weight_decay",),
}
"""Other names of the same number."""

_LEFT_OUT = "leave it out: "
_MASK = (
    "to decay some of the weights only, write the recipe's chain (print shows it) with "
    'where("…", add_decayed_weights(…)) in place of add_decayed_weights(…)'
)
_L2 = (
    "chain(add_decayed_weights(λ), …) in front of it is L2 regularisation (weight_decay of "
    "torch.optim.Adam)"
)
_COMPILED = f"{_LEFT_OUT}XLA compiles and fuses the step"
_FEWER_BITS = 'slots are float32 at least; quantize_state(…, "bf16") keeps them in fewer bits'
_WORDS: dict[str, str] = {
    "accumulator_dtype": _FEWER_BITS,
    "accumulator_value": "the value is initial_accumulator_value of adagrad and yogi",
    "amsgrad": "it is a recipe of its own: amsgrad(…)",
    "capturable": _COMPILED,
    "caution": "cautious_adamw(…) is a recipe, cautious() a stage that stands behind any",
    "clipnorm": "a clip is a stage in front: chain(clip_by_norm(…), …)",
    "clipvalue": "a clip is a stage in front: chain(optax.clip(…), …)",
    "dampening": "scale_by_momentum(b1) is a momentum with dampening b1",
    "decouple": f"weight decay is decoupled; {_L2}",
    "decoupled_weight_decay": f"weight decay is decoupled; {_L2}",
    "differentiable": f"{_LEFT_OUT}every step can be differentiated",
    "ema_momentum": "an average of the parameters is a stage at the end: chain(…, polyak_ema(…))",
    "eps_in_sqrt": "the argument chooses the place: eps beside the root, eps_root inside it",
    "foreach": _COMPILED,
    "fused": _COMPILED,
    "global_clipnorm": "a clip is a stage in front: chain(clip_by_global_norm(…), …)",
    "gradient_accumulation_steps": "wrap it: optax.MultiSteps(…, every_k_schedule=…)",
    "jit_compile": _COMPILED,
    "lr_decay": "a schedule is the learning rate: learning_rate=lambda t: α / (1 + t * lr_decay)",
    "mask": _MASK,
    "maximize": "chain(scale(-1.0), …) climbs",
    "mu_dtype": _FEWER_BITS,
    "nesterov": "Nesterov's momentum is nadam(…), nadamw(…), adan(…) or sgd(…, nesterov=True)",
    "no_prox": "it is proximal=False",
    "params": "an optimiser does not hold the parameters; they are passed to init and update",
    "rectify": "rectification is radam(…) or adabelief(…, rectify=True)",
    "use_ema": "an average of the parameters is a stage at the end: chain(…, polyak_ema(…))",
    "use_nesterov": "Nesterov's momentum is nadam(…), nadamw(…) or sgd(…, nesterov=True)",
    "weight_decay": f"chain(…, add_decayed_weights(λ), …) or adamw(…) decays weights; {_L2}",
    "weight_decay_mask": _MASK,
    "weight_decouple": f"weight decay is decoupled; {_L2}",
}
"""What stands for arguments that adamx has in another form."""


def spelled_here(name: str, value: Any, names: Sequence[str]) -> str | None:
    """What adamx has for an argument of another library.

    Args:
        name: the argument's name there.
        value: what was passed.
        names: the arguments of the function to which it was passed.

    Returns:
        The end of a sentence, or None where the name is not known.
    """
    if name == "betas":
        ours = [x for x in names if x in ("b1", "b2", "b3")]
        numbers = isinstance(value, (tuple, list)) and all(isinstance(x, float) for x in value)
        shown = value if numbers and len(value) == len(ours) else ["…"] * len(ours)
        written = ", ".join(f"{x}={y}" for x, y in zip(ours, shown, strict=True))
        return f"adamx calls them {written}" if written else None
    for ours in _NAMES.get(name, ()):
        if ours in names:
            return f"adamx calls it {ours}"
    return _WORDS.get(name)
