"""The family: each optimiser a docstring with its equations and a chain of stages."""

from adamx.recipes.adam import adam, adamax
from adamx.recipes.adaptive import adadelta, adagrad, rmsprop
from adamx.recipes.gradient_descent import sgd

__all__ = ["adadelta", "adagrad", "adam", "adamax", "rmsprop", "sgd"]
