"""Equal optimisers behave equally: JAX may run the program compiled for one with the other."""

import collections
import contextvars
import copy
import dataclasses
import decimal
import functools
import io
import operator
import os
import pathlib
import pickle
import re
import textwrap
import types
import weakref

import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adamx
from adamx import StageError
from adamx.core import Real, stage
from adamx.identity import ByValue, fingerprint
from catalog import slow_but
from helpers import each_once

pytestmark = pytest.mark.sampled

W = jnp.ones(2)
LR = 0.5


def made(source, name="f", **world):
    """What a source defines, as a user's module or notebook cell would; and its globals."""
    scope = {"__name__": "cell", "jnp": jnp, "jax": jax, "np": np, "os": os, **world}
    exec(textwrap.dedent(source), scope)
    return scope[name], scope


def of_global():
    """A schedule that reads a global of this module."""
    return lambda t: LR / (1 + t / 100)


class State(TrainState):
    """Flax's: ``tx`` is no leaf, so it is part of what the step is compiled for."""


def train_state(tx):
    return State.create(apply_fn=None, params={"w": W}, tx=tx)


def in_train_state():
    """Of an optimiser, the size of one step taken by a jitted step that is reused."""
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    return lambda tx: float(1 - step(train_state(tx), {"w": W}).params["w"][0])


def as_static():
    step = jax.jit(lambda tx, state, w: tx.update(w, state, w)[0], static_argnums=0)
    return lambda tx: -float(step(tx, tx.init(W), W)[0])


def as_pytree():
    step = jax.jit(lambda tx, state, w: tx.update(w, state, w)[0])
    return lambda tx: -float(step(tx, tx.init(W), W)[0])


def outside_jit():
    return lambda tx: -float(tx.update(W, tx.init(W), W)[0][0])


STEPS = [in_train_state, as_static, as_pytree, outside_jit]
THREE, TWO = [in_train_state, as_pytree, outside_jit], [in_train_state, as_static]


# The worst case ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make_step", STEPS)
def test_three_rates_through_a_global_train_with_three_rates(make_step):
    """Each new optimiser reads the rate of its time, as Optax's does."""
    global LR
    steps, theirs = make_step(), []
    ours = []
    for LR in (0.001, 0.01, 0.1):  # noqa: B007 (the schedules read it)
        ours.append(steps(adamx.sgd(of_global())))
        tx = optax.sgd(of_global())
        theirs.append(-float(tx.update(W, tx.init(W), W)[0][0]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    np.testing.assert_allclose(ours, [0.001, 0.01, 0.1], rtol=1e-4)


def test_a_training_of_three_rates_through_a_global_is_optaxs():
    """Ten steps of a Flax TrainState, in a loop over rates, with one jitted step."""
    global LR

    @jax.jit
    def step(state):
        grads = jax.grad(lambda p: jnp.sum((p["w"] - 3.0) ** 2))(state.params)
        return state.apply_gradients(grads=grads)

    found = {}
    for name, sgd in (("ours", adamx.sgd), ("theirs", optax.sgd)):
        for LR in (0.001, 0.01, 0.1):
            state = train_state(sgd(of_global()))
            for _ in range(10):
                state = step(state)
            found[name, LR] = float(state.params["w"][0])
    assert len({found["ours", rate] for rate in (0.001, 0.01, 0.1)}) == 3
    for rate in (0.001, 0.01, 0.1):
        np.testing.assert_allclose(found["ours", rate], found["theirs", rate], rtol=1e-6)


# What a function may read ------------------------------------------------------------------------


@dataclasses.dataclass
class Config:
    lr: float = 0.1


@dataclasses.dataclass(frozen=True)
class Frozen:
    lr: float = 0.1


@dataclasses.dataclass(slots=True)
class Slotted:
    lr: float = 0.1


@flax.struct.dataclass
class FlaxConfig:
    lr: float = 0.1


class Module(eqx.Module):
    lr: float

    def __call__(self, t):
        return self.lr


class ByMethod:
    def __init__(self, lr):
        self.lr = lr

    def rate(self, t):
        return self.lr

    def __call__(self, t):
        return self.rate(t)


class ByProperty:
    def __init__(self, lr):
        self._lr = lr

    @property
    def lr(self):
        return self._lr


class Class:
    lr = 0.1


class ByAttributeError:
    """Attributes by name, as configuration libraries have them."""

    def __init__(self, **values):
        self.__dict__["values"] = values

    def __getattr__(self, name):
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


class Money(decimal.Decimal):
    pass


@jax.tree_util.register_pytree_node_class
class Tree:
    """A schedule with numbers, which may be changed."""

    def __init__(self, lr, factor):
        self.lr, self.factor = lr, factor

    def __call__(self, t):
        return self.lr * self.factor

    def tree_flatten(self):
        return (self.lr,), self.factor

    @classmethod
    def tree_unflatten(cls, factor, numbers):
        return cls(*numbers, factor)


def context(rate):
    found = contextvars.ContextVar("rate")
    found.set(rate)
    return found


def new_ref(array):
    return jax.new_ref(array) if hasattr(jax, "new_ref") else jax.experimental.mutable_array(array)


def generated(found, rate):
    state = found.bit_generator.state
    state["state"]["state"] = round(10 * rate)
    found.bit_generator.state = state
    return found


FILE = {"pathlib": pathlib, "io": io}


def write(scope, rate):
    pathlib.Path(scope["file"]).write_text(str(rate))


def set_global(name):
    return lambda scope, rate: scope.__setitem__(name, rate)


def set_attribute(name, attribute="lr"):
    return lambda scope, rate: setattr(scope[name], attribute, rate)


def set_item(name, key):
    return lambda scope, rate: operator.setitem(scope[name], key, rate)


def redefine(source):
    return lambda scope, rate: exec(textwrap.dedent(source.replace("RATE", repr(rate))), scope)


def module(**values):
    found = types.ModuleType("helpers")
    vars(found).update(values)
    return found


# Source of a schedule f, its world, and what changes there so that its value is a new rate.
WORLDS = {
    "global": ("f = lambda t: lr", lambda: {"lr": 0.1}, set_global("lr")),
    "def": ("def f(t):\n    return lr", lambda: {"lr": 0.1}, set_global("lr")),
    "global array": (
        "f = lambda t: lr",
        lambda: {"lr": jnp.float32(0.1)},
        lambda scope, rate: scope.update(lr=jnp.float32(rate)),
    ),
    "NumPy array in place": (
        "f = lambda t: float(lr[0])",
        lambda: {"lr": np.array([0.1])},
        set_item("lr", 0),
    ),
    "list": ("f = lambda t: lr[0]", lambda: {"lr": [0.1]}, set_item("lr", 0)),
    "dict": ("f = lambda t: c['lr']", lambda: {"c": {"lr": 0.1}}, set_item("c", "lr")),
    "nested dict": (
        "f = lambda t: c['a']['lr']",
        lambda: {"c": {"a": {"lr": 0.1}}},
        lambda scope, rate: scope["c"]["a"].update(lr=rate),
    ),
    "attribute": ("f = lambda t: c.lr", lambda: {"c": Config()}, set_attribute("c")),
    "attribute by getattr": (
        "f = lambda t: getattr(c, 'lr')",
        lambda: {"c": Config()},
        set_attribute("c"),
    ),
    "attribute of an attribute": (
        "f = lambda t: c.inner.lr",
        lambda: {"c": types.SimpleNamespace(inner=Config())},
        lambda scope, rate: setattr(scope["c"].inner, "lr", rate),
    ),
    "another object": (
        "f = lambda t: c.lr",
        lambda: {"c": Frozen(0.1)},
        lambda scope, rate: scope.update(c=Frozen(rate)),
    ),
    "slots": ("f = lambda t: c.lr", lambda: {"c": Slotted()}, set_attribute("c")),
    "flax dataclass": (
        "f = lambda t: c.lr",
        lambda: {"c": FlaxConfig()},
        lambda scope, rate: scope.update(c=FlaxConfig(rate)),
    ),
    "attributes by name": (
        "f = lambda t: c.lr",
        lambda: {"c": ByAttributeError(lr=0.1)},
        lambda scope, rate: scope["c"].__dict__["values"].update(lr=rate),
    ),
    "property": ("f = lambda t: c.lr", lambda: {"c": ByProperty(0.1)}, set_attribute("c", "_lr")),
    "class attribute": (
        "f = lambda t: C.lr",
        lambda: {"C": type("C", (), {"lr": 0.1})},
        set_attribute("C"),
    ),
    "class attribute of an object": (
        "f = lambda t: c.lr",
        lambda: {"C": (C := type("C", (), {"lr": 0.1})), "c": C()},
        set_attribute("C"),
    ),
    "module": ("f = lambda t: m.lr", lambda: {"m": module(lr=0.1)}, set_attribute("m")),
    "function of a module": (
        "f = lambda t: m.rate(t)",
        lambda: {"m": module(rate=made("f = lambda t: 0.1")[0])},
        lambda scope, rate: setattr(scope["m"], "rate", lambda t: rate),
    ),
    "helper's global": (
        "def helper(t):\n    return lr\n\ndef f(t):\n    return 2 * helper(t) / 2",
        lambda: {"lr": 0.1},
        set_global("lr"),
    ),
    "helper redefined": (
        "def helper(t):\n    return 0.1\n\ndef f(t):\n    return helper(t)",
        dict,
        redefine("def helper(t):\n    return RATE"),
    ),
    "helper of a helper": (
        "a = lambda: b()\nb = lambda: c()\nc = lambda: lr\nf = lambda t: a()",
        lambda: {"lr": 0.1},
        set_global("lr"),
    ),
    "helpers that call each other": (
        "a = lambda n: b(n)\nb = lambda n: lr if n < 1 else a(n - 1)\nf = lambda t: a(3)",
        lambda: {"lr": 0.1},
        set_global("lr"),
    ),
    "function inside": (
        "def f(t):\n    def inner():\n        return [lr for _ in range(1)][0]\n    return inner()",
        lambda: {"lr": 0.1},
        set_global("lr"),
    ),
    "captured variable": (
        """
        def maker():
            lr = 0.1
            def set_it(rate):
                nonlocal lr
                lr = rate
            return (lambda t: lr), set_it
        f, set_it = maker()
        """,
        dict,
        lambda scope, rate: scope["set_it"](rate),
    ),
    "captured object": (
        "def maker(c):\n    return lambda t: c.lr\nf = maker(c)",
        lambda: {"c": Config()},
        set_attribute("c"),
    ),
    "bound method": ("f = c.rate", lambda: {"c": ByMethod(0.1)}, set_attribute("c")),
    "callable object": ("f = c", lambda: {"c": ByMethod(0.1)}, set_attribute("c")),
    "callable in a global": (
        "f = lambda t: c(t)",
        lambda: {"c": ByMethod(0.1)},
        set_attribute("c"),
    ),
    "method of a global": (
        "f = lambda t: c.rate(t)",
        lambda: {"c": ByMethod(0.1)},
        set_attribute("c"),
    ),
    "method redefined": (
        "class C:\n    def rate(self, t):\n        return 0.1\nc = C()\nf = lambda t: c.rate(t)",
        dict,
        lambda scope, rate: setattr(scope["C"], "rate", lambda self, t: rate),
    ),
    "call redefined": (
        "class C:\n    def __call__(self, t):\n        return 0.1\nf = C()",
        dict,
        lambda scope, rate: setattr(scope["C"], "__call__", lambda self, t: rate),
    ),
    "static method": (
        "class C:\n    @staticmethod\n    def rate():\n        return lr\nf = lambda t: C.rate()",
        lambda: {"lr": 0.1},
        set_global("lr"),
    ),
    "class method": (
        "class C:\n    lr = 0.1\n    @classmethod\n    def rate(cls):\n        return cls.lr\n"
        "f = lambda t: C.rate()",
        dict,
        set_attribute("C"),
    ),
    "base class": (
        "class B:\n    def rate(self):\n        return lr\nclass C(B):\n    def rate(self):\n"
        "        return super().rate()\nc = C()\nf = lambda t: c.rate()",
        lambda: {"lr": 0.1},
        set_global("lr"),
    ),
    "partial": (
        "f = functools.partial(lambda c, t: c.lr, c)",
        lambda: {"functools": functools, "c": Config()},
        set_attribute("c"),
    ),
    "partial of JAX": (
        "f = jax.tree_util.Partial(lambda x, t: x * lr, 1.0)",
        lambda: {"lr": 0.1},
        set_global("lr"),
    ),
    "equinox module's class": (
        "class S(eqx.Module):\n    x: float\n"
        "    def __call__(self, t):\n        return self.x * lr\nf = S(1.0)",
        lambda: {"lr": 0.1, "eqx": eqx},
        set_global("lr"),
    ),
    "default": (
        "def f(t, lr=0.1):\n    return lr",
        dict,
        lambda scope, rate: setattr(scope["f"], "__defaults__", (rate,)),
    ),
    "keyword default": (
        "def f(t, *, lr=0.1):\n    return lr",
        dict,
        lambda scope, rate: scope["f"].__kwdefaults__.update(lr=rate),
    ),
    "function attribute": (
        "def f(t):\n    return f.lr\nf.lr = 0.1",
        dict,
        set_attribute("f"),
    ),
    "code replaced": (
        "f = lambda t: 0.1",
        dict,
        lambda scope, rate: setattr(
            scope["f"], "__code__", made(f"f = lambda t: {rate}")[0].__code__
        ),
    ),
    "builtin shadowed": (
        "f = lambda t: 0.1 * max(1, 0)",
        dict,
        lambda scope, rate: scope.update(max=lambda *_: rate / 0.1),
    ),
    "name that appears": (
        "def f(t):\n    try:\n        return lr\n    except NameError:\n        return 0.1",
        dict,
        set_global("lr"),
    ),
    "import when called": (
        "def f(t):\n    from cell_helpers import lr\n    return lr",
        dict,
        lambda scope, rate: setattr(__import__("cell_helpers"), "lr", rate),
    ),
    "module imported when called": (
        "def f(t):\n    import cell_helpers as h\n    return h.lr",
        dict,
        lambda scope, rate: setattr(__import__("cell_helpers"), "lr", rate),
    ),
    "globals()": ("f = lambda t: globals()['lr']", lambda: {"lr": 0.1}, set_global("lr")),
    "module as a whole": (
        "f = lambda t: getattr(m, 'lr')",
        lambda: {"m": module(lr=0.1)},
        set_attribute("m"),
    ),
    "environment": (
        "f = lambda t: float(os.environ['ADAMX_TEST_LR'])",
        dict,
        lambda scope, rate: os.environ.update(ADAMX_TEST_LR=str(rate)),
    ),
    "environment by getenv": (
        "f = lambda t: float(os.getenv('ADAMX_TEST_LR'))",
        dict,
        lambda scope, rate: os.environ.update(ADAMX_TEST_LR=str(rate)),
    ),
    "schedule of Optax in a global": (
        "f = lambda t: s(t)",
        lambda: {"s": optax.constant_schedule(0.1)},
        lambda scope, rate: scope.update(s=optax.constant_schedule(rate)),
    ),
    "schedule inside a schedule of Optax": (
        "f = optax.join_schedules([lambda t: lr], [])",
        lambda: {"lr": 0.1, "optax": optax},
        set_global("lr"),
    ),
    "container that Optax captured": (
        "f = optax.piecewise_constant_schedule(1.0, scales)",
        lambda: {"scales": {0: 0.1}, "optax": optax},
        set_item("scales", 0),
    ),
    "vectorised by NumPy": (
        "f = lambda t: float(g(0.0))\ng = np.vectorize(lambda x: lr)",
        lambda: {"lr": 0.1},
        set_global("lr"),
    ),
    "deque": ("f = lambda t: c[0]", lambda: {"c": collections.deque([0.1])}, set_item("c", 0)),
    "subclass of a deque": (
        "f = lambda t: c[0]",
        lambda: {"c": type("C", (collections.deque,), {})([0.1])},
        set_item("c", 0),
    ),
    "subclass of a bytearray": (
        "f = lambda t: c[0] / 10",
        lambda: {"c": type("C", (bytearray,), {})(b"\1")},
        lambda scope, rate: operator.setitem(scope["c"], 0, round(10 * rate)),
    ),
    "subclass of Decimal": (
        "f = lambda t: float(c)",
        lambda: {"c": Money("0.1")},
        lambda scope, rate: scope.update(c=Money(str(rate))),
    ),
    "arguments of an exception": (
        "f = lambda t: c.args[0]",
        lambda: {"c": type("C", (Exception,), {})(0.1)},
        lambda scope, rate: setattr(scope["c"], "args", (rate,)),
    ),
    "context variable": (
        "f = lambda t: c.get()",
        lambda: {"c": context(0.1)},
        lambda scope, rate: scope["c"].set(rate),
    ),
    "weak reference": (
        "f = lambda t: ref().lr",
        lambda: {"c": (c := Config()), "ref": weakref.ref(c)},
        set_attribute("c"),
    ),
    "attribute of a metaclass": (
        "class M(type):\n    lr = 0.1\nclass C(metaclass=M):\n    pass\nf = lambda t: C.lr",
        dict,
        set_attribute("M"),
    ),
    "property of a metaclass": (
        """
        class M(type):
            @property
            def lr(cls):
                return cls.table[0]
        class C(metaclass=M):
            table = [0.1]
        f = lambda t: C.lr
        """,
        dict,
        lambda scope, rate: scope["C"].table.__setitem__(0, rate),
    ),
    "subclass that shadows": (
        "class A:\n    lr = 0.1\nclass B(A):\n    pass\nb = B()\nf = lambda t: getattr(b, 'lr')",
        dict,
        set_attribute("B"),
    ),
    "default of a dict": (
        "f = lambda t: c.default_factory()",
        lambda: {"c": collections.defaultdict(made("f = lambda: 0.1")[0])},
        lambda scope, rate: setattr(scope["c"], "default_factory", lambda: rate),
    ),
    "mask of a masked array": (
        "f = lambda t: float(c.mean())",
        lambda: {"c": np.ma.array([0.1, 0.2, 0.4], mask=[0, 1, 1])},
        lambda scope, rate: setattr(scope["c"], "mask", scope["c"].data != rate),
    ),
    "array of objects": (
        "f = lambda t: c[0]",
        lambda: {"c": np.array([0.1, None], object)},
        set_item("c", 0),
    ),
    "file by its path": (
        "f = lambda t: float(pathlib.Path(file).read_text())",
        lambda: FILE,
        write,
    ),
    "file by a path": (
        "f = lambda t: float(path.read_text())",
        lambda: {**FILE, "path": pathlib.Path(FILE["file"])},
        write,
    ),
    "file by NumPy": ("f = lambda t: float(np.loadtxt(file))", lambda: FILE, write),
    "file by a function of NumPy": (
        "f = lambda t: float(loadtxt(file))",
        lambda: {**FILE, "loadtxt": np.loadtxt},
        write,
    ),
    "file that is opened": (
        "def f(t):\n    with io.open(file) as opened:\n        return float(opened.read())",
        lambda: FILE,
        write,
    ),
    "random numbers of NumPy": (
        "f = lambda t: np.random.choice(1) + np.random.get_state()[1][0] / 10",
        lambda: np.random.seed(1) or {},  # noqa: NPY002 (what users write)
        lambda scope, rate: np.random.seed(round(10 * rate)),  # noqa: NPY002
    ),
    "generator of NumPy": (
        "f = lambda t: c.bit_generator.state['state']['state'] / 10",
        lambda: {"c": generated(np.random.default_rng(0), 0.1)},
        lambda scope, rate: generated(scope["c"], rate),
    ),
    "reference of JAX": (
        "f = lambda t: c[...]",
        lambda: {"c": new_ref(jnp.float32(0.1))},
        lambda scope, rate: operator.setitem(scope["c"], ..., jnp.float32(rate)),
    ),
    "environment read by an import": (
        "def f(t):\n    from os import getenv\n    return float(getenv('ADAMX_TEST_LR'))",
        dict,
        lambda scope, rate: os.environ.update(ADAMX_TEST_LR=str(rate)),
    ),
    "bytes in a view": (
        "f = lambda t: c[0] / 10",
        lambda: {"c": memoryview(bytearray(b"\1"))},
        lambda scope, rate: operator.setitem(scope["c"], 0, round(10 * rate)),
    ),
    "pytree with numbers": ("f = Tree(0.1, 1)", lambda: {"Tree": Tree}, set_attribute("f")),
    "pytree with structure": (
        "f = Tree(0.1, 1)",
        lambda: {"Tree": Tree},
        lambda scope, rate: setattr(scope["f"], "factor", round(10 * rate)),
    ),
    "function for each type": (
        "@functools.singledispatch\ndef g(t):\n    return lr\nf = lambda t: g(t)",
        lambda: {"lr": 0.1, "functools": functools},
        set_global("lr"),
    ),
    "wrapped": (
        "def deco(g):\n    @functools.wraps(g)\n    def h(t):\n        return g(t)\n    return h\n"
        "@deco\ndef f(t):\n    return lr",
        lambda: {"lr": 0.1, "functools": functools},
        set_global("lr"),
    ),
}


# The ways in which the records differ: what is read where, what is called, what can't be resolved.
QUICK = {
    "global",
    "NumPy array in place",
    "attribute of an attribute",
    "helper's global",
    "captured variable",
    "method redefined",
    "equinox module's class",
    "file by its path",
}


def worlds(steps):
    """Every world with one kind of step, every kind of step with many worlds."""
    return [
        pytest.param(name, step, marks=() if name in QUICK else pytest.mark.slow)
        for name, step in each_once(list(WORLDS), steps)
    ]


@pytest.fixture(autouse=True)
def _world(monkeypatch, tmp_path):
    monkeypatch.setitem(FILE, "file", str(tmp_path / "rate.txt"))
    write(FILE, 0.1)
    monkeypatch.setenv("ADAMX_TEST_LR", "0.1")
    monkeypatch.setitem(__import__("sys").modules, "cell_helpers", module(lr=0.1))


@pytest.mark.parametrize(("name", "make_step"), worlds(THREE))
def test_an_optimiser_made_after_a_change_steps_with_the_new_value(name, make_step):
    source, world, change = WORLDS[name]
    f, scope = made(source, **world())
    size = make_step()
    np.testing.assert_allclose(size(adamx.sgd(f)), 0.1, rtol=1e-6)
    for rate in (0.2, 0.4):
        change(scope, rate)
        f = scope["f"]
        np.testing.assert_allclose(size(adamx.sgd(f)), rate, rtol=1e-6)


@pytest.mark.parametrize(("name", "make_step"), worlds(TWO))
def test_a_change_between_making_and_tracing_does_not_mix_two_optimisers(name, make_step):
    """The program that is traced with the new value is not found by one of the old value."""
    source, world, change = WORLDS[name]
    f, scope = made(source, **world())
    size = make_step()
    early, also_early = adamx.sgd(f), adamx.sgd(f)
    change(scope, 0.2)
    np.testing.assert_allclose(size(early), 0.2, rtol=1e-6)
    change(scope, 0.1)
    np.testing.assert_allclose(size(adamx.sgd(scope["f"])), 0.1, rtol=1e-6)
    np.testing.assert_allclose(size(also_early), 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", slow_but(QUICK, WORLDS))
def test_outside_jit_a_step_uses_the_value_as_it_is(name):
    source, world, change = WORLDS[name]
    f, scope = made(source, **world())
    tx, size = adamx.sgd(f), outside_jit()
    sizes = []
    for rate in (0.1, 0.2, 0.1, 0.4):
        change(scope, rate)
        sizes.append(size(tx))
    np.testing.assert_allclose(sizes, [0.1, 0.2, 0.1, 0.4], rtol=1e-6)


UNSEEN = {  # which can't be resolved, and so equal nothing
    "arguments of an exception",
    "bytes in a view",
    "context variable",
    "deque",
    "environment by getenv",
    "environment read by an import",
    "file by NumPy",
    "file by a function of NumPy",
    "file by a path",
    "file by its path",
    "file that is opened",
    "generator of NumPy",
    "globals()",
    "mask of a masked array",
    "module as a whole",
    "random numbers of NumPy",
    "reference of JAX",
    "subclass of Decimal",
    "subclass of a bytearray",
    "subclass of a deque",
}
SEEN_ANYWAY = {  # the one is bound anew; the other is an argument of what is compiled
    "subclass of Decimal",
    "reference of JAX",
}


@pytest.mark.parametrize("name", sorted(UNSEEN - SEEN_ANYWAY))
def test_numbers_of_what_cant_be_resolved_are_refused_once_a_step_was_traced(name):
    source, world, change = WORLDS[name]
    f, scope = made(source, **world())
    tx = adamx.sgd(f)
    assert tx != adamx.sgd(f)
    rate = lambda: float(adamx.hyperparams(tx, 0)["learning_rate"])  # noqa: E731
    size = outside_jit()
    for now in (0.1, 0.2):  # outside jit each step reads it
        change(scope, now)
        np.testing.assert_allclose([rate(), size(tx)], now, rtol=1e-6)
    step = jax.jit(lambda w: tx.update(w, tx.init(w), w)[0])
    change(scope, 0.1)
    step(W)
    change(scope, 0.2)
    np.testing.assert_allclose(step(W), -0.1, rtol=1e-6)
    for read in (rate, lambda: adamx.explain(tx), lambda: adamx.to_config(tx)):
        with pytest.raises(StageError, match=r"learning_rate uses .*changes can't be detected"):
            read()
    again = adamx.sgd(f)
    as_pytree()(again)
    with pytest.raises(StageError, match="changes can't be detected"):
        adamx.hyperparams(again, 0)


COUNTERS = {
    "global": "calls = 0\ndef f(t):\n    global calls\n    calls += 1\n    return 0.1",
    "global, as a sum": "calls = 0\ndef f(t):\n    global calls\n    calls = calls + len('a')\n"
    "    return 0.1",
    "captured": "def make():\n    calls = 0\n    def f(t):\n        nonlocal calls\n"
    "        calls += 1\n        return 0.1\n    return f\nf = make()",
    "attribute": "class C:\n    calls, lr = 0, 0.1\n    def __call__(self, t):\n"
    "        self.calls += 1\n        return self.lr\nf = C()",
    "attribute, as a sum": "class C:\n    calls, lr = 0, 0.1\n    def __call__(self, t):\n"
    "        self.calls = self.calls + 1\n        return self.lr\nf = C()",
    "attribute of a global": "class C: pass\nc = C()\nc.calls = 0\ndef f(t):\n    c.calls += 1\n"
    "    return 0.1",
    "attribute that is only stored": "class C:\n    lr = 0.1\n    def __call__(self, t):\n"
    "        self.last = t\n        return self.lr\nf = C()",
    "cached property": "class C:\n    base = 0.05\n    @functools.cached_property\n"
    "    def lr(self):\n        return 2 * self.base\n    def __call__(self, t):\n"
    "        return self.lr\nf = C()",
    "lru_cache": "@functools.lru_cache\ndef g():\n    return 0.1\nf = lambda t: g()",
    "singledispatch": "@functools.singledispatch\ndef g(t):\n    return 0.1\nf = lambda t: g(t)",
}


@pytest.mark.parametrize("name", COUNTERS)
def test_what_a_schedule_counts_or_caches_for_itself_is_no_change(name):
    f, _ = made(COUNTERS[name], functools=functools)
    tx = adamx.sgd(f)
    state = tx.init(W)
    tx.update(W, state, W)
    program = tx._program.last
    jax.jit(tx.update)(W, state, W)
    tx.update(W, state, W)
    assert tx._program.last is program and program.lasts  # compiled once
    assert adamx.hyperparams(tx, 0)["learning_rate"] == pytest.approx(0.1)
    assert tx == adamx.sgd(f)


@pytest.mark.parametrize(
    "source",
    [
        "calls = 0\ndef f(t):\n    global calls\n    calls += 1\n    return calls / 10",
        "class C:\n    calls = 0\n    def __call__(self, t):\n        self.calls += 1\n"
        "        return self.calls / 10\nf = C()",
        "class C:\n    calls = 0\n    def __call__(self, t):\n        self.calls += 1\n"
        "        return vars(self)['calls'] / 10\nf = C()",
    ],
)
def test_a_schedule_that_reads_what_it_counts_equals_nothing(source):
    f, _ = made(source)
    tx, size = adamx.sgd(f), outside_jit()
    assert tx != adamx.sgd(f)
    sizes = [size(tx) for _ in range(3)]
    assert sizes[0] < sizes[1] < sizes[2]
    adamx.hyperparams(tx, 0)


def test_an_error_of_numbers_is_true_of_an_old_jitted_step_after_a_new_one_outside():
    f, scope = made("f = lambda t: lr", lr=0.1)
    tx = adamx.sgd(f)
    state = tx.init(W)
    step = jax.jit(tx.update)
    step(W, state, W)
    scope["lr"] = 0.2
    np.testing.assert_allclose(tx.update(W, state, W)[0], -0.2, rtol=1e-6)
    np.testing.assert_allclose(step(W, state, W)[0], -0.1, rtol=1e-6)
    with pytest.raises(StageError, match="reads lr, which has changed: a step that was compiled"):
        adamx.hyperparams(tx, state)


@pytest.mark.parametrize("name", slow_but(QUICK - UNSEEN, sorted(WORLDS.keys() - UNSEEN)))
def test_numbers_never_show_another_value_than_the_step_uses(name):
    source, world, change = WORLDS[name]
    f, scope = made(source, **world())
    tx = adamx.sgd(f)
    step = jax.jit(lambda state: tx.update(W, state, W)[0])
    state = tx.init(W)
    before = float(adamx.hyperparams(tx, state)["learning_rate"])
    np.testing.assert_allclose(before, -step(state)[0], rtol=1e-6)
    change(scope, 0.2)
    # The compiled step still uses 0.1, and what would be read now is 0.2.
    np.testing.assert_allclose(step(state)[0], -0.1, rtol=1e-6)
    for read in (lambda: adamx.hyperparams(tx, state), lambda: adamx.explain(tx)):
        with pytest.raises(StageError, match=r"learning_rate.*changed.*Make the optimiser"):
            read()


def test_numbers_are_shown_again_when_the_value_is_back():
    f, scope = made("f = lambda t: max(c.lr, 0.0)", c=Config(0.1))
    tx = adamx.sgd(f)
    scope["c"].lr = 0.2
    with pytest.raises(StageError):
        adamx.hyperparams(tx, 0)
    scope["c"].lr = 0.1
    assert adamx.hyperparams(tx, 0)["learning_rate"] == 0.1


def test_the_error_names_what_has_changed():
    f, scope = made("f = lambda t: config.lr", config=Config())
    tx = adamx.sgd(f)
    scope["config"].lr = 0.2
    with pytest.raises(StageError, match=re.escape("schedule of learning_rate reads config.lr, ")):
        adamx.hyperparams(tx, 0)
    with pytest.raises(StageError, match=re.escape("reads config.lr, ")):
        adamx.to_config(tx)


def test_numbers_after_a_step_with_the_new_value_show_it():
    """Outside jit, every step uses the value as it is."""
    f, scope = made("f = lambda t: lr", lr=0.1)
    tx = adamx.sgd(f)
    state = tx.init(W)
    tx.update(W, state, W)
    scope["lr"] = 0.2
    with pytest.raises(StageError):
        adamx.hyperparams(tx, state)
    np.testing.assert_allclose(tx.update(W, state, W)[0], -0.2, rtol=1e-6)
    assert adamx.hyperparams(tx, state)["learning_rate"] == 0.2


def test_numbers_of_an_optimiser_that_is_compiled_with_two_values_are_refused():
    f, scope = made("f = lambda t: lr", lr=0.1)
    tx = adamx.sgd(f)
    step = jax.jit(lambda w: tx.update(w, tx.init(w), w)[0])
    np.testing.assert_allclose(step(jnp.ones(2)), -0.1, rtol=1e-6)
    scope["lr"] = 0.2
    np.testing.assert_allclose(step(jnp.ones(3)), -0.2, rtol=1e-6)
    with pytest.raises(StageError, match="lr"):
        adamx.hyperparams(tx, 0)


# Equal again -------------------------------------------------------------------------------------


def fresh(name):
    source, world, _ = WORLDS[name]
    return made(source, **world())[0]


@pytest.mark.parametrize("name", sorted(WORLDS.keys() - UNSEEN))
def test_the_same_source_with_the_same_values_is_equal(name):
    """As of a notebook's cell that is run again, a line further down."""
    source, world, _ = WORLDS[name]
    one, other = fresh(name), made("\n\n" + textwrap.dedent(source), **world())[0]
    assert adamx.sgd(one) == adamx.sgd(other)
    assert hash(adamx.sgd(one)) == hash(adamx.sgd(other))


def test_another_source_is_unequal():
    sources = ["lr", "lr + 0", "1 * lr", "lr * 1.0", "lr * True", "lr - 0.0", "lr - -0.0", "rl"]
    world = {"lr": 0.1, "rl": 0.1}
    made_of = [adamx.sgd(made(f"f = lambda t: {source}", **world)[0]) for source in sources]
    assert len(set(made_of)) == len(sources)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (0.0, -0.0), (True, 1), ([0.1], (0.1,)), ("1", 1), (np.float32(1), np.float64(1))],
    ids=repr,
)
def test_values_of_other_types_are_unequal(one, other):
    assert ByValue(one) != ByValue(other)


def test_an_equal_value_in_another_object_is_no_change():
    f, scope = made("f = lambda t: c.lr", c=Config(0.1))
    tx = adamx.sgd(f)
    scope["c"] = Config(float("0.1"))
    assert tx == adamx.sgd(f) and adamx.hyperparams(tx, 0)["learning_rate"] == 0.1


def test_what_a_schedule_does_not_read_does_not_count():
    """As the parameters of a trainer whose method is the schedule."""

    class Trainer:
        def __init__(self):
            self.base, self.params, self.steps = 0.1, jnp.zeros(3), 0

        def rate(self, t):
            return self.base / (1 + t)

    trainer = Trainer()
    one = adamx.sgd(trainer.rate), adamx.sgd(lambda t: trainer.base)
    trainer.params, trainer.steps = jnp.ones(3), 7
    assert one == (adamx.sgd(trainer.rate), adamx.sgd(lambda t: trainer.base))
    assert adamx.hyperparams(one[0], 0)["learning_rate"] == 0.1
    trainer.base = 0.2
    assert one[0] != adamx.sgd(trainer.rate)


def test_what_cant_be_resolved_is_unequal():
    numbers = iter([0.1, 0.2])
    f, _ = made("f = lambda t: next(numbers)", numbers=numbers)
    tx = adamx.sgd(f)
    assert tx == tx and tx != adamx.sgd(f)
    big, _ = made("f = lambda t: big", big=[lambda t, i=i: i for i in range(5000)])
    assert adamx.sgd(big) != adamx.sgd(big)
    nested = [0.1]
    for _ in range(20_000):
        nested = [nested]
    deep, _ = made("f = lambda t: nested", nested=nested)
    assert adamx.sgd(deep) != adamx.sgd(deep)


def test_an_object_that_holds_itself_is_resolved():
    f, scope = made("f = lambda t: getattr(c, 'lr')", c=types.SimpleNamespace(lr=0.1))
    scope["c"].itself = scope["c"]
    tx = adamx.sgd(f)
    assert tx == adamx.sgd(f)
    scope["c"].lr = 0.2
    assert tx != adamx.sgd(f)


def test_a_copy_and_a_pickle_of_an_optimiser_with_open_functions_are_equal():
    tx = adamx.sgd(reading_a_global)
    assert copy.deepcopy(tx) == tx == pickle.loads(pickle.dumps(tx))


def reading_a_global(t):
    return LR


# Other functions than schedules ------------------------------------------------------------------


def updates(tx, params):
    with jax.numpy_dtype_promotion("standard"):
        return _updates(tx, params)


def _updates(tx, params):
    return jax.tree.map(lambda x: float(x[0]), tx.update(params, tx.init(params), params)[0])


def functions():
    """By kind: what makes an optimiser from a scope, and the sizes of its step before and after."""
    tree = {"a": W, "b": W}

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx, params):
        return tx.update(params, tx.init(params), params)[0]

    def sizes(tx):
        with jax.numpy_dtype_promotion("standard"):
            return {k: round(float(u[0]), 6) for k, u in step(tx, tree).items()}

    def seen(tx):
        _, state = jax.jit(lambda tx: tx.update(tree, tx.init(tree), tree), static_argnums=0)(tx)
        return sorted(adamx.metrics(state))

    return sizes, seen


KINDS = {
    "predicate of partition": (
        "f = lambda path, shape: path == which",
        lambda f: adamx.partition({f: adamx.sgd(0.1), "*": adamx.sgd(0.2)}),
    ),
    "predicate of where": (
        "f = lambda path, shape: path == which",
        lambda f: adamx.where(f, adamx.sgd(0.1)),
    ),
    "transformation of Optax": (
        "def f(updates, state, params=None):\n"
        "    return {k: u if k == which else -u for k, u in updates.items()}, state",
        lambda f: adamx.chain(optax.GradientTransformation(lambda params: (), f), adamx.sgd(0.1)),
    ),
    "mask of Optax": (
        "f = lambda params: {k: k == which for k in params}",
        lambda f: adamx.chain(optax.masked(optax.scale(2.0), f), adamx.sgd(0.1)),
    ),
    "schedule of Optax": (
        "f = lambda t: 0.1 if which == 'a' else 0.3",
        lambda f: adamx.chain(optax.scale_by_schedule(f)),
    ),
    "adamx in Optax in adamx": (
        "f = lambda t: 0.1 if which == 'a' else 0.3",
        lambda f: adamx.chain(optax.chain(adamx.sgd(f))),
    ),
    "multiple steps": (
        "f = lambda t: 0.1 if which == 'a' else 0.3",
        lambda f: adamx.chain(optax.MultiSteps(adamx.sgd(f), 1)),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_function_of_an_optimiser_counts_by_what_it_reads(name):
    source, make = KINDS[name]
    f, scope = made(source, which="a")
    sizes, _ = functions()
    first = make(f)
    before = sizes(first)
    assert first == make(f)
    scope["which"] = "b"
    second = make(f)
    expected = {k: round(x, 6) for k, x in updates(make(f), {"a": W, "b": W}).items()}
    assert sizes(second) == expected != before
    assert first != second
    again = updates(first, {"a": W, "b": W})  # outside jit, as it is now
    assert {k: round(x, 6) for k, x in again.items()} == expected


def test_the_groups_of_watch_count_by_what_they_read():
    f, scope = made("f = lambda path: prefix + path", prefix="x")
    _, seen = functions()
    assert "xa/grad_rms" in seen(adamx.chain(adamx.sgd(0.1), adamx.watch(groups=f)))
    scope["prefix"] = "y"
    assert "ya/grad_rms" in seen(adamx.chain(adamx.sgd(0.1), adamx.watch(groups=f)))


def test_the_blocks_of_adam_mini_count_by_what_they_read():
    f, scope = made("f = lambda path, shape: axes", axes=())
    one = adamx.adam_mini(0.1, blocks=f)
    assert one == adamx.adam_mini(0.1, blocks=f)
    scope["axes"] = (0,)
    assert one != adamx.adam_mini(0.1, blocks=f)


def test_a_codec_counts_by_what_it_reads():
    f, scope = made("f = lambda x, bits, nonnegative: x * factor", factor=1.0)
    codec = adamx.Codec("c", f, lambda x: x)
    assert codec == adamx.Codec("c", f, lambda x: x)
    make = lambda: adamx.quantize_state(  # noqa: E731
        adamx.sgd(0.1, momentum=0.5), adamx.Codec("c", f, lambda x: x), min_size=1
    )
    tx, state = make(), make().init({"a": W})
    step = jax.jit(lambda tx: tx.update({"a": W}, state, None)[1], static_argnums=0)
    kept = lambda tx: float(step(tx)["scale_by_heavy_ball"]["trace"]["a"]["@c"][0])  # noqa: E731
    first = kept(tx)
    scope["factor"] = 0.5
    assert kept(make()) == 0.5 * first
    assert codec != adamx.Codec("c", f, lambda x: x) and tx != make()


def test_a_stage_of_ones_own_counts_by_what_its_factory_reads():
    source = """
    @stage
    def damp(factor: Real):
        return lambda signal: signal.with_update(signal.update * factor * gain)
    """
    damp, scope = made(source, "damp", stage=stage, Real=Real, gain=0.1)
    sizes = as_static()
    assert sizes(damp(-1.0)) == pytest.approx(0.1)
    assert damp(1.0) == damp(1.0)
    scope["gain"] = 0.2
    assert sizes(damp(-1.0)) == pytest.approx(0.2)
    again, _ = made("\n" + textwrap.dedent(source), "damp", stage=stage, Real=Real, gain=0.2)
    assert again(1.0) == damp(1.0)


def test_an_array_that_was_given_is_copied():
    rate = np.array(0.1)
    tx = adamx.sgd(rate)
    size = as_static()
    assert size(tx) == pytest.approx(0.1)
    rate[...] = 0.2
    assert adamx.hyperparams(tx)["learning_rate"] == 0.1
    assert tx != adamx.sgd(rate) and size(adamx.sgd(rate)) == pytest.approx(0.2)


def test_things_put_around_links_are_equal_only_to_their_kind():
    from adamx.links.link import Around

    class One(Around):
        pass

    class Other(Around):
        pass

    assert One("a") == One("a") != Other("a")


# The property ------------------------------------------------------------------------------------

PROGRAM = """
import dataclasses

@dataclasses.dataclass
class Config:
    scale: float = 1.0
    table: list = dataclasses.field(default_factory=lambda: [1.0, 2.0])
    factor = 1.0

    def rate(self, t):
        return self.scale * self.factor + 0 * t

class Callable:
    def __init__(self):
        self.base = 1.0

    def __call__(self, t):
        return self.base * helper(t)

a, b = 1.0, 1.0
c, callable_ = Config(), Callable()

def helper(t):
    return a + c.table[0]

def other(t):
    return helper(t) * b

def f0(t): return a
def f1(t): return helper(t)
def f2(t): return c.rate(t) + a
def f3(t): return [other(t) for _ in range(1)][0]
def f4(t): return getattr(c, "scale")
f5 = callable_
f6 = c.rate
f7 = (lambda held: lambda t: held.scale + held.table[1])(c)
f8 = lambda t, held=c: held.table[0] * b
"""
CHANGES = [
    "a = RATE",
    "b = RATE",
    "c.scale = RATE",
    "c.table[0] = RATE",
    "c.table = [RATE, 1.0]",
    "Config.factor = RATE",
    "Config.rate = lambda self, t: self.scale + RATE",
    "c = Config(RATE)",
    "callable_.base = RATE",
    "def helper(t):\n    return a * RATE",
    "def helper(t):\n    return c.scale + RATE",
    "other = lambda t: b + RATE",
]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("build"), st.integers(0, 8)),
            st.tuples(st.just("step"), st.integers(0, 30)),
            st.tuples(
                st.just("change"), st.sampled_from(CHANGES), st.sampled_from([0.5, 1.0, 2.0])
            ),
        ),
        min_size=4,
        max_size=14,
    )
)
def test_optimisers_that_are_equal_give_equal_steps_after_any_change(operations):
    """Whatever is changed when: one just built steps with the values of now, and equal ones alike.

    The model is the schedule itself, called when the step is traced.
    """
    scope = {"__name__": "cell"}
    exec(PROGRAM, scope)
    built, sizes = [], [in_train_state(), as_static()]

    def build(i):
        schedule = scope[f"f{i}"]
        built.append((schedule, adamx.sgd(schedule)))

    for operation, *arguments in [*operations, ("build", 0), ("build", 3)]:
        if operation == "change":
            change, rate = arguments
            exec(change.replace("RATE", repr(rate)), scope)
        elif operation == "build":
            build(*arguments)
            schedule, tx = built[-1]
            now = float(schedule(0))
            for size in sizes:  # whatever was compiled before, for whichever optimiser
                np.testing.assert_allclose(size(tx), now, rtol=1e-6, atol=1e-6)
        elif built:
            schedule, tx = built[arguments[0] % len(built)]
            now = float(schedule(0))
            np.testing.assert_allclose(outside_jit()(tx), now, rtol=1e-6, atol=1e-6)
            for _, other in built:
                if other == tx:
                    for size in sizes:
                        assert size(other) == size(tx)


def test_the_fingerprint_of_a_function_of_a_library_is_cheap_and_closed():
    """Optimisers of numbers and of Optax's schedules watch nothing, or next to nothing."""
    for tx in (adamx.adam(1e-3), adamx.adamw(jnp.float32(1e-3)), adamx.lion(np.float32(1e-3))):
        assert not tx._program.open
    assert not adamx.adam(optax.cosine_decay_schedule(1e-3, 100))._program.open
    assert fingerprint(jnp.where) == fingerprint(jnp.where)
