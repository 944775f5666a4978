"""The names that examples in docstrings use without importing them."""

import jax
import jax.numpy as jnp
import optax
import pytest

import adamx


@pytest.fixture(autouse=True)
def _names_in_docstrings(doctest_namespace):
    doctest_namespace.update(adamx=adamx, jax=jax, jnp=jnp, optax=optax)
