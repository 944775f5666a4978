import collections

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a module that is marked ``sampled``, two of three tests are slow."""
    seen = collections.Counter()
    for item in items:
        if item.get_closest_marker("sampled"):
            if seen[item.path] % 3:
                item.add_marker(pytest.mark.slow)
            seen[item.path] += 1


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs(request):
    """A module's programs are compiled quickly, unless it tests their last digits.

    And they are given back: each maps memory; of maps Linux grants 65,530, and beyond XLA crashes.
    """
    exact = any(mark.name == "optimised" for mark in request.node.iter_markers())
    jax.config.update("jax_disable_most_optimizations", not exact)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def lenient():
    """JAX as users have it, which broadcasts and promotes where it can."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
