"""What examples in docstrings use without importing it, and what they leave behind."""

import jax
import jax.numpy as jnp
import optax
import pytest

import adamx
from adamx.links.link import Around
from adamx.recipes import registry


@pytest.fixture(autouse=True)
def _names_in_docstrings(doctest_namespace):
    doctest_namespace.update(adamx=adamx, jax=jax, jnp=jnp, optax=optax)


@pytest.fixture(autouse=True)
def _names_of_examples(monkeypatch):
    monkeypatch.setattr(registry, "_RECIPES", dict(registry._RECIPES))
    monkeypatch.setattr(Around, "axes", dict(Around.axes))
