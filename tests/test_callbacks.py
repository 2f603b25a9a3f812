"""C function pointers: ctypes, cffi, a C program, SciPy's callbacks, and how long things live."""

import copy
import ctypes
import gc
import shutil
import subprocess

import numpy as np
import pytest
from helpers import assert_same_bits, normal
from scipy import integrate, ndimage
from test_streaming import every_kind

import fastgates as fg

FLOATS = ctypes.POINTER(ctypes.c_float)

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def pointer(array):
    return array.ctypes.data_as(FLOATS)


def call(function, x, state, y, user_data):
    function(pointer(x), pointer(state), pointer(y), user_data)


@pytest.fixture
def model():
    return every_kind()


@pytest.fixture
def x():
    return normal(np.random.default_rng(0), (6, 3))


def test_ctypes(model, x):
    step = model.cfunc()
    assert (step.input_size, step.output_size) == (3, 3)
    state, y, expected = step.new_state(), np.empty(3, np.float32), model(x[None])[0][0]
    assert state.shape == (step.state_size,)
    for t in range(6):
        call(step.function, x[t], state, y, step.user_data)
        assert_same_bits("output", y, expected[t])
    other = type(step).prototype(step.address)
    call(other, x[0], step.new_state(), y, step.user_data.value)
    assert_same_bits("by its address", y, expected[0])
    assert fg.GRU(1, 1, seed=0).cfunc().address == step.address


@pytest.mark.parity
def test_cffi(model, x):
    cffi = pytest.importorskip("cffi")
    ffi, step = cffi.FFI(), model.cfunc()
    function = ffi.cast("void (*)(const float *, float *, float *, void *)", step.address)
    data = step.user_data
    state, y = step.new_state(), np.empty(3, np.float32)
    for t in range(6):
        function(
            ffi.cast("const float *", ffi.from_buffer(x[t])),
            ffi.cast("float *", ffi.from_buffer(state)),
            ffi.cast("float *", ffi.from_buffer(y)),
            ffi.cast("void *", data.value),
        )
    assert_same_bits("output", y, model(x[None])[0][0, -1])


PROGRAM = """
typedef void step_function(const float *x, float *state, float *y, void *model);

/* The host: knows nothing of Python, and calls what it is given. */
double host(step_function *step, void *model, const float *x, int steps, int inputs, float *state,
            float *y)
{
    double total = 0.0;
    for (int t = 0; t < steps; ++t) {
        step(x + t * inputs, state, y, model);
        total += y[0];
    }
    return total;
}
"""


@needs_gcc
def test_a_c_program(model, x, tmp_path):
    (tmp_path / "host.c").write_text(PROGRAM)
    subprocess.run(
        [
            "gcc",
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O2",
            "-shared",
            "-fPIC",
            "host.c",
            "-o",
            "host.so",
        ],
        cwd=tmp_path,
        check=True,
    )
    host = ctypes.CDLL(str(tmp_path / "host.so")).host
    host.restype = ctypes.c_double
    step, y = model.cfunc(), np.empty(3, np.float32)
    state, data = step.new_state(), step.user_data
    total = host(step.function, data, pointer(x), 6, 3, pointer(state), pointer(y))
    expected = model(x[None])[0][0]
    assert total == expected[:, 0].astype(np.float64).sum()
    assert_same_bits("last output", y, expected[-1])


def test_filter_of_an_image_axis():
    model = fg.Sequential(fg.GRU(3, 8, seed=0), fg.Dense(8, 2, seed=1))
    image = np.random.default_rng(0).normal(size=(5, 20))
    padded = np.pad(image, ((0, 0), (1, 1)), mode="symmetric")
    around = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)
    for output in range(2):
        callback = model.cfunc().filter1d(output=output)
        filtered = ndimage.generic_filter1d(image, callback, 3, axis=1)
        assert_same_bits("image", filtered, model(around)[0][..., output].astype(np.float64))
    state = [normal(np.random.default_rng(1), (1, 1, 8))]
    callback = model.cfunc().filter1d(state)
    filtered = ndimage.generic_filter1d(image[:1], callback, 3, axis=1)
    assert_same_bits("from a state", filtered, model(around[:1], state)[0][..., 0].astype("f8"))
    with pytest.raises(RuntimeError):
        ndimage.generic_filter1d(image, callback, 2, axis=1)


def test_integrand():
    model = fg.Sequential(fg.LSTM(2, 8, seed=0), fg.Dense(8, 1, "tanh", seed=1))
    state = [normal(np.random.default_rng(0), (2, 1, 1, 8))]
    state = [tuple(state[0])]

    def python(a, b):
        return float(model(np.array([[[a, b]]]), state)[0][0, 0, 0])

    callback = model.cfunc().integrand(state)
    precision = {"epsabs": 1e-4, "epsrel": 1e-4}
    for b in (-0.5, 1.0):
        expected = integrate.quad(python, 0, 2, args=(b,), **precision)
        assert integrate.quad(callback, 0, 2, args=(b,), **precision) == expected
    volume = integrate.nquad(callback, [(0, 1), (0, 1)], opts=precision)[0]
    points = (np.arange(20) + 0.5) / 20
    grid = np.stack(np.meshgrid(points, points), -1).reshape(-1, 1, 2)
    repeated = [tuple(np.repeat(part, len(grid), axis=1) for part in state[0])]
    assert abs(volume - model(grid, repeated)[0].mean()) < 1e-3
    result = integrate.quad(callback, 0, 1, full_output=True)  # an argument is missing
    assert np.isnan(result[0])


def test_pointers_keep_the_parameters_alive():
    """The model and what was made of it go; the pointer and the callback stay."""
    x, y = np.ones(4, np.float32), np.empty(300, np.float32)
    model = fg.GRU(4, 300, seed=0)
    expected = model(x[None, None])[0][0, 0]
    step = model.cfunc()
    function, data, state = step.function, step.user_data, step.new_state()
    callback = model.cfunc().filter1d()
    lines = np.random.default_rng(0).normal(size=(2, 30))
    filtered = ndimage.generic_filter1d(lines, callback, 4)
    del model, step
    gc.collect()
    rubbish = [np.full(300_000, np.nan, np.float32) for _ in range(20)]
    call(function, x, state, y, data)
    assert_same_bits("output", y, expected)
    assert_same_bits("image", ndimage.generic_filter1d(lines, callback, 4), filtered)
    del rubbish


def test_close(model, x):
    with model.cfunc() as step:
        data, state, y = step.user_data, step.new_state(), np.zeros(3, np.float32)
        callback = step.filter1d()
    call(step.function, x[0], state, y, data)
    assert np.isnan(y).all() and not state.any()
    with pytest.raises(ValueError, match="this C function was closed"):
        step.user_data  # noqa: B018
    with pytest.raises(ValueError, match="this C function was closed"):
        step.filter1d()
    ndimage.generic_filter1d(np.zeros((2, 5)), callback, 3)  # has parameters of its own


@pytest.mark.parametrize("output", [-1, 3, 0.0, True])
def test_outputs_that_there_are_not(model, output):
    with pytest.raises(ValueError, match="output must be from 0 to 2"):
        model.cfunc().filter1d(output=output)


def test_wrong_states(model):
    with pytest.raises(ValueError, match="state must be a list of 2 states"):
        model.cfunc().integrand([None])


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy])
def test_no_copies(model, again):
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        again(model.cfunc())
