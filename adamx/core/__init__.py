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
corrects each average by itself::

    scale_by_rms · bias_correction · scale_by_momentum · bias_correction · scale_by_learning_rate

**AdaMax** (Section 7.1) replaces one stage. Its infinity norm needs no correction and leaves the
bias unchanged::

    scale_by_momentum · scale_by_adamax · bias_correction · scale_by_learning_rate

A stage is written for one array (:class:`Rule`). Its *slots* are arrays kept for each parameter,
its *clocks* are scalars kept per step, and its *global sum* is a number summed over all parameters.
Its hyperparameters are data, and plain numbers when it runs. It knows nothing of trees, schedules,
batches or the format of its slots, so these can change without changing the stage.
:mod:`adamx.core.engine` is the only code that knows trees.
"""

from adamx.core.averages import DecayingAverage, decay_clock, decaying_average
from adamx.core.editing import hyperparams
from adamx.core.hyper import (
    Decay,
    Domain,
    Hyper,
    NonNegative,
    Positive,
    Real,
    Same,
    Schedule,
    is_off,
)
from adamx.core.signal import Signal
from adamx.core.slots import Slot, zeros
from adamx.core.stage import Clock, Rule, Step
from adamx.core.transformation import Transformation, chain, stage
from adamx.core.trees import apply_updates
from adamx.errors import StageError
from adamx.numerics.arithmetic import Norm, Squares, abs_sq, divide, norm, plus, root, shrunk, times

__all__ = [
    "Clock",
    "Decay",
    "DecayingAverage",
    "Domain",
    "Hyper",
    "NonNegative",
    "Norm",
    "Positive",
    "Real",
    "Rule",
    "Same",
    "Schedule",
    "Signal",
    "Slot",
    "Squares",
    "StageError",
    "Step",
    "Transformation",
    "abs_sq",
    "apply_updates",
    "chain",
    "decay_clock",
    "decaying_average",
    "divide",
    "hyperparams",
    "is_off",
    "norm",
    "plus",
    "root",
    "shrunk",
    "stage",
    "times",
    "zeros",
]
