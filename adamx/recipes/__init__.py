"""The family: each optimiser a docstring with its equations and a chain of stages."""

from adamx.recipes.adam import adam, adamax, adamw
from adamx.recipes.adaptive import adadelta, adagrad, rmsprop
from adamx.recipes.differences import adan, mars
from adamx.recipes.factored import adafactor, adam_mini
from adamx.recipes.gradient_descent import sgd
from adamx.recipes.layers import lamb, lars, novograd
from adamx.recipes.moments import (
    adabelief,
    adam_atan2,
    adopt,
    amsgrad,
    laprop,
    nadam,
    nadamw,
    radam,
    stableadamw,
    yogi,
)
from adamx.recipes.prodigy import prodigy
from adamx.recipes.schedule_free import schedule_free_adamw
from adamx.recipes.signs import cautious_adamw, grams, lion, signum
from adamx.recipes.two_rates import ademamix

__all__ = [
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adam_atan2",
    "adam_mini",
    "adamax",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "cautious_adamw",
    "grams",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "mars",
    "nadam",
    "nadamw",
    "novograd",
    "prodigy",
    "radam",
    "rmsprop",
    "schedule_free_adamw",
    "sgd",
    "signum",
    "stableadamw",
    "yogi",
]
