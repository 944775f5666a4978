"""The equations of a chain, as text and as LaTeX, read off the rules of its stages.

==============  ====================================================================================
``formulas``    formulas in a normalised form
``shown``       formulas as text and as LaTeX
``reader``      formulas, read off a jaxpr
``rules``       what a stage does: its clocks, slots and signal
``writer``      the lines of an algorithm: names, averages and their corrections
``overrides``   the equations of the stages whose arithmetic differs from the paper's form
==============  ====================================================================================
"""

from adamx.equations import overrides as overrides  # registers them
from adamx.equations.explanation import Explanation, explain, in_symbols

__all__ = ["Explanation", "explain", "in_symbols"]
