"""The equations of a chain, as text and as LaTeX."""

from adamx.explain import symbols
from adamx.explain.equations import Explanation, SymbolicSignal, decayed, explain, in_symbols

__all__ = ["Explanation", "SymbolicSignal", "decayed", "explain", "in_symbols", "symbols"]
