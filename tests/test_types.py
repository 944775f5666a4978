"""What annotations say of arrays."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import jax
import pytest

import adamx
import adamx.core

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_arrays_are_what_annotations_say():
    checked = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "checked_arrays.py")],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    assert set(checked.stdout.split()) >= {
        "adamx.links.averages.DecayingAverage.__call__",
        "adamx.numerics.arithmetic.root",
        "adamx.numerics.random.bits",
        "adamx.links.signal.Signal.with_statistic",
        "adamx.stages.factored.reduced_zeros",
        "adamx.wrappers.codecs._exponents",
        "adamx.wrappers.codecs._from_int8",
        "adamx.wrappers.codecs._to_bf16",
        "adamx.wrappers.codecs._to_fp8",
    }


def test_annotations_can_be_evaluated():
    for module in (adamx, adamx.core):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                get_type_hints(thing)
    assert get_type_hints(adamx.core.Signal)["gradient"] is jax.Array
    assert get_type_hints(adamx.apply_updates)["updates"] is Any
