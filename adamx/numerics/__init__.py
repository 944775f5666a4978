"""Accurate arithmetic on arrays: formats, roots and norms, random bits.

This package knows nothing of optimisers.
"""
