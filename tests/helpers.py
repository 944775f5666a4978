"""What several tests say alike."""

import itertools
import re

import numpy as np

__all__ = ["branches", "each_once", "is_drawn", "says"]


def says(*parts):
    """A pattern for messages with all these parts, in any order."""
    return re.compile("".join(f"(?=.*{re.escape(part)})" for part in parts), re.DOTALL)


def each_once(*factors):
    """Rows in which each value of each factor is at least once, in place of their product.

    For factors that go through the same code, one after the other: what is said of a bad number
    does not depend on who was given it.
    """
    longest = max(map(len, factors))
    columns = [itertools.islice(itertools.cycle(factor), longest) for factor in factors]
    return list(zip(*columns, strict=True))


def is_drawn(path):
    """Whether a picture can be read, and is neither blank nor of a few strokes."""
    import matplotlib.image

    pixels = np.asarray(matplotlib.image.imread(path))[..., :3]
    colours = np.unique((pixels * 255).astype(np.uint8).reshape(-1, 3), axis=0)
    return len(colours) > 16 and np.mean(np.ptp(pixels, axis=(0, 1))) > 0.5


def branches(row):
    """A row without what mathtext does not know: alignment and cases, each case by itself."""
    head, found, tail = row.partition(r"\begin{cases}")
    inside, _, rest = tail.partition(r"\end{cases}")
    parts = inside.split(r"\\") if found else [""]
    return [f"{head}{part}{rest}".replace("&", "") for part in parts]
