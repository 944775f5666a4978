"""Arithmetic on which exactness rests: formats, roots and norms, random bits.

It knows arrays and nothing of optimisers.
"""
