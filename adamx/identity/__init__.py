"""When two functions, or two values that hold functions, behave the same.

It knows nothing of optimisers.
"""

from adamx.identity.reads import is_library
from adamx.identity.values import ByValue, Static, alike, fingerprint

__all__ = ["ByValue", "Static", "alike", "fingerprint", "is_library"]
