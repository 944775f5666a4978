"""Try adamx where nothing is installed but what it asks for: ``make package`` runs this there."""

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import pkgutil
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax  # noqa: F401  # not in the time below

start = time.perf_counter()
import adamx  # noqa: E402  # timed beyond JAX and Optax

took = time.perf_counter() - start

README = Path(__file__).parent.parent / "README.md"
OPTIONAL = ("equinox", "flax", "matplotlib", "rich", "torch")


def check_where_it_comes_from() -> None:
    """It is the package, and no other adamx that happens to be near."""
    assert Path(adamx.__file__).is_relative_to(sys.prefix), adamx.__file__
    assert importlib.metadata.version("adamx") == adamx.__version__
    for name in ("py.typed", "engine/frame.c"):
        assert importlib.resources.files(adamx).joinpath(name).is_file(), name
    assert not [name for name in OPTIONAL if importlib.util.find_spec(name)]


def import_all() -> int:
    """Every module imports without the optional packages."""
    names = [found.name for found in pkgutil.walk_packages(adamx.__path__, "adamx.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)


def run_readme() -> None:
    """The first example of the README."""
    found = re.search(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    assert found
    names: dict[str, dict[str, jax.Array]] = {}
    exec(found[1], names)
    assert jnp.all(names["params"]["w"] > 0)  # on their way from 0 to 1


def miss_an_extra() -> str:
    """What needs an optional package says which extra brings it."""
    try:
        adamx.sweep(lambda opt: jnp.ones(3), [adamx.sgd(0.1)]).plot()
        said = "nothing"
    except ImportError as error:
        said = str(error)
    assert "adamx[tools]" in said, said
    return said


if __name__ == "__main__":
    check_where_it_comes_from()
    print(f"adamx {adamx.__version__} imported in {took:.3f} s beyond JAX and Optax")
    print(f"{import_all()} modules import without {', '.join(OPTIONAL)}")
    run_readme()
    print("README's first example runs")
    print(f"a plot says: {miss_an_extra()}")
