import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _programs_are_given_back():
    """Each compiled program maps memory; of maps Linux grants 65,530, and beyond XLA crashes."""
    yield
    jax.clear_caches()
