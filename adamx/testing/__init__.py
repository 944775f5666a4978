"""For tests of stages of your own."""

from adamx.testing.conformance import Conformance, check_stage

__all__ = ["Conformance", "check_stage"]
