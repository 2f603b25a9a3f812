"""What the tests of threads and processes run; importable, so that spawned processes find it."""

import numpy as np
from helpers import (
    CELLS,
    assert_same_bits,
    assert_same_gradients,
    assert_same_state,
    make_problem,
)

from fastgates import _threads

NAMES = ("rnn", "gru", "lstm")

# The pool of threads takes part in all work, however small.
_threads.SMALL_WORK = _threads.WORTH_WAKING = 0


def problems():
    """A few layers."""
    cases = [case for case in CELLS if case.id in NAMES]
    return [
        make_problem(case, batch=24, time=40, input_size=9, hidden_size=33, num_layers=2)
        for case in cases
    ]


def results(all_problems=None):
    """Output, final state and gradients of each."""
    return [problem.run() for problem in all_problems or problems()]


def check(actual, expected):
    """Equality of everything in two `results`."""
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_same_bits(f"{name} output", a[0], e[0])
        assert_same_state(f"{name} final_state", a[1], e[1])
        assert_same_gradients(f"{name} gradients", a[2], e[2])


def digest(_=None):
    """The results as plain bytes, to send between processes."""
    chunks = []
    for output, _, gradients in results():
        chunks += [
            output.tobytes(),
            gradients.input.tobytes(),
            gradients.parameter_vector.tobytes(),
        ]
    return b"".join(chunks)


def digest_with_threads(threads):
    """`digest` after setting the number of threads."""
    import fastgates as fg

    fg.set_num_threads(threads)
    assert np.isfinite(np.frombuffer(digest(), dtype=np.float32)).all()
    return digest()
