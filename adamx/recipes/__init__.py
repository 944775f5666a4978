"""The recipes. Each is a docstring with equations, and a chain of stages."""

from adamx.recipes import (
    adaptive,
    adaptive_moments,
    bases,
    differences,
    factored,
    gradient_descent,
    layers,
    learning_rate_free,
    matrices,
    schedule_free,
    signs,
    two_rates,
    variants,
)
from adamx.recipes.adaptive import *
from adamx.recipes.adaptive_moments import *
from adamx.recipes.bases import *
from adamx.recipes.differences import *
from adamx.recipes.factored import *
from adamx.recipes.gradient_descent import *
from adamx.recipes.layers import *
from adamx.recipes.learning_rate_free import *
from adamx.recipes.matrices import *
from adamx.recipes.schedule_free import *
from adamx.recipes.signs import *
from adamx.recipes.two_rates import *
from adamx.recipes.variants import *

__all__: list[str] = []
__all__ += adaptive.__all__
__all__ += adaptive_moments.__all__
__all__ += bases.__all__
__all__ += differences.__all__
__all__ += factored.__all__
__all__ += gradient_descent.__all__
__all__ += layers.__all__
__all__ += learning_rate_free.__all__
__all__ += matrices.__all__
__all__ += schedule_free.__all__
__all__ += signs.__all__
__all__ += two_rates.__all__
__all__ += variants.__all__
