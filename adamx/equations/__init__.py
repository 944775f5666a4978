"""The equations of a chain, as text and as LaTeX, read off the rules of its stages.

==============  ====================================================================================
``formulas``    formulas in a normalised form
``shown``       formulas as text and as LaTeX
``program``     traces the rules of a chain as one program
``reader``      formulas, read off the jaxpr of a program
``lines``       the lines of an algorithm: which values get one, corrected averages, names
``overrides``   rules in the arithmetic of the papers, for the stages that compute in another way
==============  ====================================================================================
"""

from adamx.equations.explanation import Explanation, explain
from adamx.equations.overrides import paper_form  # registers the rules of the papers

__all__ = ["Explanation", "explain", "paper_form"]
