"""Filter the rows of an image with a recurrent network, in SciPy's ``generic_filter1d``.

A detector that is read row by row leaves a trail behind bright spots: each pixel keeps a part of
the charge of those before it. A leaky unit is just such a memory, so that a network of one unit
with weights set by hand makes the trail of an image. The same callback takes a trained network of
any size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, signal

import fastgates as fg

KEPT = 0.8  # of the charge, from pixel to pixel


def trail(width: int = 1) -> fg.RNN:
    """Return a network of one unit: ``h' = KEPT h + (1 - KEPT) mean(x)``, for x of at least 0."""
    network = fg.RNN(width, 1, nonlinearity="relu", leak=KEPT, bias=False)
    with network.edit_parameters() as parameters:
        parameters["weight_ih_l0"][...] = 1 / width
        parameters["weight_hh_l0"][...] = 0
    return network


def main(given: Sequence[str] | None = None) -> dict[str, float]:
    """Filter an image, compare with SciPy's linear filter, and return errors and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small image")
    options = parser.parse_args(given)
    size = 64 if options.quick else 1024
    random = np.random.default_rng(0)
    image = random.exponential(1.0, (size, size)) * (random.random((size, size)) < 0.02)

    step = trail().cfunc()
    ndimage.generic_filter1d(image[:1], step.filter1d(), filter_size=1)  # compiles
    began = time.perf_counter()
    filtered = ndimage.generic_filter1d(image, step.filter1d(), filter_size=1, axis=1)
    compiled = time.perf_counter() - began
    exact = signal.lfilter([1 - KEPT], [1, -KEPT], image, axis=1)

    stream = trail().stream()

    def python(line: np.ndarray, result: np.ndarray) -> None:
        stream.reset()
        result[:] = stream.run(line[:, None])[:, 0]

    began = time.perf_counter()
    same = ndimage.generic_filter1d(image, python, filter_size=1, axis=1)
    interpreted = time.perf_counter() - began
    three = ndimage.generic_filter1d(image, trail(3).cfunc().filter1d(), filter_size=3, axis=0)
    result = {
        "error": float(np.abs(filtered - exact).max()),
        "difference": float(np.abs(filtered - same).max()),
        "nanoseconds a pixel": compiled / image.size * 1e9,
        "by Python, a line at a time": interpreted / image.size * 1e9,
        "mean of three": float(three.mean() / image.mean()),
    }
    for name, value in result.items():
        print(f"{name:<28}{value:12.4g}")
    return result


if __name__ == "__main__":
    main()
