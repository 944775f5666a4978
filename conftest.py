"""The names that examples in docstrings use without importing them."""

import importlib.util

import jax
import jax.numpy as jnp
import optax
import pytest

import adamx

# What imports matplotlib is no module of those who have none.
collect_ignore = [] if importlib.util.find_spec("matplotlib") else ["adamx/tools/picture.py"]


@pytest.fixture(autouse=True)
def _names_in_docstrings(doctest_namespace):
    doctest_namespace.update(adamx=adamx, jax=jax, jnp=jnp, optax=optax)
