"""Runnable examples: `python -m examples.digits` and its neighbours."""
