"""The speed limits of one core, measured: fused multiply-adds, and the gate functions.

`fma_peak` runs independent chains of fused multiply-adds on vector registers only, at the width
that fastgates uses. Nothing is loaded or stored inside its loop, so this is the number that no
matrix product can exceed. `gate_nanoseconds` runs fastgates' tanh and sigmoid over an array that
stays in the first-level cache.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import no_type_check

import numpy as np

from fastgates._jit import STAMP, helper, kernel
from fastgates._simd import LANES, float_pointer, fma, load, splat, store
from fastgates._vecmath import sigmoid, tanh

#: Independent chains in `_chains`. Two units with a latency of four cycles need eight; twelve
#: leave room for slower designs and fit, with the two constants, into sixteen registers.
_CHAINS = 12

#: Numbers in the array of `gate_nanoseconds`; two such arrays are 16 KiB.
_ARRAY = 2048


@kernel
@no_type_check
def _chains(trips, seed, target, stamp=STAMP):
    """Do `trips` multiply-adds on each of `_CHAINS` registers; store their sum at `target`."""
    factor, addend = splat(seed), splat(seed)
    a = splat(seed)  # the chains start apart, or the compiler would keep only one of them
    b = a + seed
    c = b + seed
    d = c + seed
    e = d + seed
    f = e + seed
    g = f + seed
    h = g + seed
    i = h + seed
    j = i + seed
    k = j + seed
    m = k + seed
    for _ in range(trips):
        a = fma(a, factor, addend)
        b = fma(b, factor, addend)
        c = fma(c, factor, addend)
        d = fma(d, factor, addend)
        e = fma(e, factor, addend)
        f = fma(f, factor, addend)
        g = fma(g, factor, addend)
        h = fma(h, factor, addend)
        i = fma(i, factor, addend)
        j = fma(j, factor, addend)
        k = fma(k, factor, addend)
        m = fma(m, factor, addend)
    store(float_pointer(target), 0, a + b + c + d + e + f + g + h + i + j + k + m)


@helper
@no_type_check
def _loop(function, trips, source, target):
    """Apply a function to the array at `source` and write to `target`, then the other way round."""
    p, q = float_pointer(source), float_pointer(target)
    for trip in range(trips):
        x, y = (p, q) if trip % 2 == 0 else (q, p)
        for i in range(0, _ARRAY, LANES):
            store(y, i, function(load(x, i)))


@kernel
@no_type_check
def _tanh_loop(trips, source, target, stamp=STAMP):
    _loop(tanh, trips, source, target)


@kernel
@no_type_check
def _sigmoid_loop(trips, source, target, stamp=STAMP):
    _loop(sigmoid, trips, source, target)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one core can do.

    Attributes
    ----------
    gflops : float
        Fused multiply-adds in float32, a multiplication and an addition counted as two.
    tanh, sigmoid : float
        Nanoseconds for each value.
    """

    gflops: float
    tanh: float
    sigmoid: float


def fma_peak(repeats: int = 20, seconds: float = 3e-4) -> float:
    """Measure the fused multiply-add peak of this core.

    Parameters
    ----------
    repeats : int
        Timed runs; the fastest one counts.
    seconds : float
        Rough length of one run. Short runs find the gaps on a busy machine.

    Returns
    -------
    float
        GFLOP/s in float32, a multiplication and an addition counted as two.
    """
    flops_of_trip = 2 * _CHAINS * LANES
    trips = int(seconds * 1e11 / flops_of_trip)
    target = np.zeros(LANES, np.float32)
    best = _best_seconds(_chains, repeats, trips, np.float32(0.25), target.ctypes.data)
    return trips * flops_of_trip / best * 1e-9


def gate_nanoseconds(repeats: int = 20, seconds: float = 3e-4) -> tuple[float, float]:
    """Measure fastgates' tanh and sigmoid; return the nanoseconds for one value of each."""
    trips = max(int(seconds / (_ARRAY * 3e-10)), 2)
    source = np.linspace(-4, 4, _ARRAY, dtype=np.float32)
    target = np.empty_like(source)
    arguments = trips, source.ctypes.data, target.ctypes.data
    scale = 1e9 / (trips * _ARRAY)
    return (
        scale * _best_seconds(_tanh_loop, repeats, *arguments),
        scale * _best_seconds(_sigmoid_loop, repeats, *arguments),
    )


def limits(repeats: int = 20) -> Limits:
    """Measure all limits of this core."""
    return Limits(fma_peak(repeats), *gate_nanoseconds(repeats))


def _best_seconds(loop: Callable[..., object], repeats: int, *arguments: object) -> float:
    loop(*arguments)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        loop(*arguments)
        best = min(best, time.perf_counter() - start)
    return best
