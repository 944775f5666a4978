"""What a signal, a stage, a chain and a transformation are.

Three optimisers show the design. Inside a chain two signals run side by side: statistics are
taken of the **gradient** g, stages shape the **update** u, and with the update travels its
**bias**, the factor by which averages that started at zero fall short.

**Adam** (Kingma & Ba 2015, Algorithm 1) is four stages::

    scale_by_momentum(b1)             m ← β₁m + (1−β₁)u      u ← m              bias ← w₁
    scale_by_rms(b2, eps)             v ← β₂v + (1−β₂)g²     u ← u/(√v + ε√w₂)  bias ← w₁/√w₂
    bias_correction()                                        u ← u/bias       = m̂/(√v̂ + ε)
    scale_by_learning_rate(rate)                             u ← −αu

The second stage measures g, not the m that flows past it; that is what the two signals are for.
w₁ = 1 − Πβ₁ and w₂ = 1 − Πβ₂ are the weights that the averages have seen.

**LaProp** (Ziyin et al. 2020) is the same row with momentum last: the normalised gradient is
averaged, and each average has its own correction::

    scale_by_rms · bias_correction · scale_by_momentum · bias_correction · scale_by_learning_rate

**AdaMax** (Section 7.1) swaps one stage: an infinity norm needs no correction, so it leaves the
bias as it found it::

    scale_by_momentum · scale_by_adamax · bias_correction · scale_by_learning_rate

A stage is written for one array (:class:`Rule`): arrays it keeps for a parameter are *slots*,
scalars it keeps for a step are *clocks*, and a number it needs of all parameters at once is a
*global sum*. Its hyperparameters are data; by the time it runs they are plain numbers. It knows
nothing of trees, schedules, batches, or how its slots are kept, so that all of these can be
changed around it. :mod:`adamx.core.engine` is the only code that knows trees.
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
