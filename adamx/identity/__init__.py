"""Compare functions, and values that hold functions, by their behaviour.

This package knows nothing of optimisers.
"""

from adamx.identity.reads import is_library
from adamx.identity.values import ByValue, Static, alike, fingerprint

__all__ = ["ByValue", "Static", "alike", "fingerprint", "is_library"]
