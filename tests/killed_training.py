"""A training that saves checkpoints, and is killed again and again; run by test_checkpoints.py.

    python killed_training.py FOLDER KILLS

trains once undisturbed and once with KILLS kills, leaves both results in FOLDER, and prints as JSON
where every process began and how it ended (-9 is SIGKILL). Every life of a training is a process,
forked before JAX has started any threads, so that JAX is imported only once; the program that is
compiled is kept in FOLDER, too.
"""

import json
import os
import pickle
import random
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import adamx

STEPS, EVERY = 200, 4
OPTIMISERS = {
    "adam": lambda: adamx.adam(lambda t: 0.1 / (t + 1)),
    "stored": lambda: adamx.quantize_state(adamx.adamw(0.05), "int8", min_size=1),
}


def loss(params, step):
    """A noisy one: its data is drawn by the number of the step."""
    x = jnp.sin(jnp.arange(1.0, 16 * 24 + 1) * (step + 1.0)).reshape(16, 24)
    y = jnp.sum(x**2, axis=1)
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


@jax.jit
def advance(training):
    after = {}
    for name, (params, state) in training.items():
        opt = OPTIMISERS[name]()
        grads = jax.grad(loss)(params, state["count"])
        updates, state = opt.update(grads, state, params)
        after[name] = adamx.apply_updates(params, updates), state
    return after


@jax.jit
def start():
    params = {"w": jnp.full((24, 32), 0.1), "v": jnp.full(32, 0.1)}
    return {name: (params, make().init(params)) for name, make in OPTIMISERS.items()}


def train(path, stepped):
    """From the last checkpoint, if there is one, to the end."""
    training = pickle.loads(path.read_bytes()) if path.exists() else start()
    while (step := int(training["adam"][1]["count"])) < STEPS:
        training = advance(training)
        os.write(stepped, b".")
        if (step + 1) % EVERY == 0:
            beside = path.with_suffix(".new")
            beside.write_bytes(pickle.dumps(jax.device_get(training)))
            beside.replace(path)


def life(path, steps, delay):
    """One process, killed, if it gets that far, some time after so many steps.

    Returns where it began, and how it ended.
    """
    began = int(pickle.loads(path.read_bytes())["adam"][1]["count"]) if path.exists() else 0
    seen, stepped = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(path, stepped)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(stepped)
    while steps and os.read(seen, 1):
        steps -= 1
    time.sleep(delay)
    if not steps:
        os.kill(child, signal.SIGKILL)
    os.close(seen)
    return began, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    lives = [life(folder / "undisturbed", STEPS + 1, 0.0)]
    for _ in range(kills):
        steps = random.randint(1, 2 * EVERY)
        lives.append(life(folder / "killed", steps, random.uniform(0, 2e-3)))
    lives.append(life(folder / "killed", STEPS + 1, 0.0))
    print(json.dumps(lives))
