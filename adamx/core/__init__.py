"""The core: signals, stages, chains and transformations.

Three optimisers show the design. A chain carries two signals side by side: stages compute
statistics of the **gradient** g and transform the **update** u. The update has a **bias**, the
factor by which averages that started at zero are too small.

**Adam** (Kingma & Ba 2015, Algorithm 1) is four stages::

    scale_by_momentum(b1)             m ← β₁m + (1−β₁)u      u ← m              bias ← w₁
    scale_by_rms(b2, eps)             v ← β₂v + (1−β₂)g²     u ← u/(√v + ε√w₂)  bias ← w₁/√w₂
    bias_correction()                                        u ← u/bias       = m̂/(√v̂ + ε)
    scale_by_learning_rate(rate)                             u ← −αu

The second stage averages g², although u is already m; this is why a chain carries two signals.
w₁ = 1 − Πβ₁ and w₂ = 1 − Πβ₂ are the total weights of the averages.

**LaProp** (Ziyin et al. 2020) puts momentum last: it averages the normalised gradient, and
corrects each average by itself (:func:`adamx.laprop` has the learning rate before the momentum,
which is the same for a constant rate)::

    scale_by_rms · bias_correction · scale_by_momentum · bias_correction · scale_by_learning_rate

**AdaMax** (Section 7.1) replaces one stage. Its infinity norm needs no correction and leaves the
bias unchanged::

    scale_by_momentum · scale_by_adamax · bias_correction · scale_by_learning_rate

A stage is written for one array (:class:`Rule`). Its *slots* are arrays kept for each parameter,
its *clocks* are scalars kept per step, and its *global sum* is a number summed over all parameters.
Its hyperparameters are data, and plain numbers when it runs. It knows nothing of trees, schedules,
batches or the format of its slots, so these can change without changing the stage.
:mod:`adamx.engine` is the only code that runs stages on trees.
"""

from adamx.arguments.hyper import (
    Decay,
    Domain,
    Hyper,
    NonNegative,
    Positive,
    Real,
    Same,
    Schedule,
    clock_dtype,
    is_off,
)
from adamx.core.transformation import Transformation, chain, stage
from adamx.errors import StageError
from adamx.links.averages import DecayingAverage, decay_clock, decay_weight, decaying_average
from adamx.links.rule import Clock, Refresh, Rule, Step
from adamx.links.signal import Signal
from adamx.links.slots import (
    Slot,
    iterate,
    itself,
    real_zeros,
    remainder,
    squares,
    squares_from,
    zeros,
)
from adamx.links.space import Space, Turn, enter_space, leave_space, space_of
from adamx.numerics.arithmetic import (
    Norm,
    Squares,
    abs_sq,
    divide,
    mean,
    norm,
    plus,
    root,
    shrunk,
    times,
)
from adamx.numerics.matrices import MatrixView, kernel_axes, matrix_view
from adamx.numerics.shards import elements, total
from adamx.trees.steps import apply_updates

__all__ = [
    "Clock",
    "Decay",
    "DecayingAverage",
    "Domain",
    "Hyper",
    "MatrixView",
    "NonNegative",
    "Norm",
    "Positive",
    "Real",
    "Refresh",
    "Rule",
    "Same",
    "Schedule",
    "Signal",
    "Slot",
    "Space",
    "Squares",
    "StageError",
    "Step",
    "Transformation",
    "Turn",
    "abs_sq",
    "apply_updates",
    "chain",
    "clock_dtype",
    "decay_clock",
    "decay_weight",
    "decaying_average",
    "divide",
    "elements",
    "enter_space",
    "is_off",
    "iterate",
    "itself",
    "kernel_axes",
    "leave_space",
    "matrix_view",
    "mean",
    "norm",
    "plus",
    "real_zeros",
    "remainder",
    "root",
    "shrunk",
    "space_of",
    "squares",
    "squares_from",
    "stage",
    "times",
    "total",
    "zeros",
]
