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

from adamx.equations.explanation import Explanation, explain
from adamx.equations.overrides import paper_form  # registers the rules of the papers

__all__ = ["Explanation", "explain", "paper_form"]
