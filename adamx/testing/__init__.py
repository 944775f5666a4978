"""Tools to test your own stages."""

from adamx.testing.conformance import Conformance, check_stage

__all__ = ["Conformance", "check_stage"]
