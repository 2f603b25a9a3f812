"""Models inside @njit code: the same bits, errors, caches of users, upgrades."""

import pickle
import shutil
from pathlib import Path

import numba
import numpy as np
import pytest
from helpers import (
    CELLS,
    assert_same_bits,
    assert_same_state,
    make_problem,
    normal,
    run_python,
)
from test_streaming import every_kind

import fastgates as fg
from fastgates import jit


@numba.njit(nogil=True)
def by_steps(handle, x, state, out):
    for t in range(len(x)):
        jit.step(handle, x[t], state, out[t])


@numba.njit
def at_once(handle, x, out):
    state = jit.new_state(handle)
    jit.forward(handle, x, state, out)
    return state


@numba.njit
def batched(handle, x, out):
    state = jit.new_state(handle, x.shape[1])
    for t in range(len(x)):
        jit.step(handle, x[t], state, out[t])
    return state


@numba.njit(parallel=True)
def in_parallel(handle, x, out):
    states = jit.new_state(handle, len(x))
    for b in numba.prange(len(x)):
        for t in range(x.shape[1]):
            jit.step(handle, x[b, t], states[b], out[b, t])


def test_same_bits_as_a_call(case):
    """One compiled function for all cells: what a handle holds is data."""
    problem = make_problem(case, batch=1, time=4, num_layers=2)
    layer, x = problem.layer, problem.x[0]
    expected, final = layer(problem.x, problem.initial_state)
    handle, out = layer.jit_handle(), np.empty_like(expected[0])
    state = jit.new_state(handle)
    jit.write_state(layer, problem.initial_state, state)
    by_steps(handle, x, state, out)
    assert_same_bits("output", out, expected[0])
    assert_same_state("state", jit.read_state(layer, state), final)
    assert len(by_steps.signatures) == 1


def test_every_way_in():
    model = every_kind()
    x = normal(np.random.default_rng(0), (50, 4, 3))
    expected, final = model(x)
    handle = model.jit_handle()
    out = np.empty_like(expected)
    state = at_once(handle, x[0], out[0])
    assert_same_bits("forward", out[0], expected[0])
    for actual, wanted in zip(jit.read_state(model, state), final, strict=True):
        parts = wanted if isinstance(wanted, tuple) else (wanted,)
        assert_same_state("state", actual, tuple(p[:, :1] for p in parts) if len(parts) > 1 else
                          parts[0][:, :1])  # fmt: skip
    across = np.empty((4, 50, 3), np.float32)
    batched(handle, np.ascontiguousarray(x.swapaxes(0, 1)), across)
    assert_same_bits("batch", across.swapaxes(0, 1), expected)
    in_parallel(handle, x, out)
    assert_same_bits("prange", out, expected)


def test_from_python():
    model = every_kind()
    x = normal(np.random.default_rng(0), (4, 3))
    expected = model(x[None])[0][0]
    handle, out = model.jit_handle(), np.empty((4, 3), np.float32)
    state = jit.new_state(handle)
    for t in range(4):
        jit.step(handle, x[t], state, out[t])
    assert_same_bits("step", out, expected)
    jit.forward(handle, x, jit.new_state(model), out)
    assert_same_bits("forward", out, expected)
    state, rows = jit.new_state(handle, 4), np.empty((4, 3), np.float32)
    jit.step(handle, x, state, rows)
    assert_same_bits("batch", rows, model(x[:, None])[0][:, 0])
    assert (handle.input_size, handle.output_size) == (3, 3)
    assert handle.state_size == state.shape[1]


def test_a_step_allocates_nothing():
    """And no reference is counted but those of the user's own slices."""
    handle = fg.RNN(3, 4, seed=0).jit_handle()

    @numba.njit
    def one(handle, x, state, out):
        jit.step(handle, x, state, out)

    one(handle, np.zeros(3, np.float32), jit.new_state(handle), np.zeros(4, np.float32))
    (code,) = one.inspect_llvm().values()
    body = code[code.index("define ") :]
    body = body[: body.index("\n}")]
    assert "fastgates_table" in body
    assert "NRT_MemInfo" not in body and "NRT_Allocate" not in body
    # Seven arrays are held while the function runs, and no more.
    assert body.count("@NRT_incref(") == body.count("@NRT_decref(") == 7


def test_a_state_can_be_remembered():
    layer = fg.GRU(2, 5, seed=0)
    x = normal(np.random.default_rng(0), (4, 2))
    handle, out, again = layer.jit_handle(), *np.empty((2, 2, 5), np.float32)
    state = jit.new_state(handle)
    by_steps(handle, x[:2], state, out)
    kept = state.copy()
    by_steps(handle, x[2:], state, out)
    state[:] = kept
    by_steps(handle, x[2:], state, again)
    assert_same_bits("output", again, out)


def test_a_handle_keeps_its_parameters():
    layer = fg.GRU(2, 5, seed=0)
    x, out = normal(np.random.default_rng(0), (4, 2)), np.empty((4, 5), np.float32)
    before, handle = layer(x[None])[0][0], layer.jit_handle()
    with layer.edit_parameters() as parameters:
        parameters.vector[:] *= 2
    at_once(handle, x, out)
    assert_same_bits("output", out, before)
    del layer
    at_once(handle, x, out)
    assert_same_bits("without the model", out, before)


class TestErrors:
    """Sizes when a function runs, types when it is compiled."""

    @pytest.mark.parametrize(
        ("x", "state", "out", "message"),
        [
            ((4, 2), 0, (4, 5), "the last axis of x must have input_size"),
            ((4, 3), -1, (4, 5), "state must come from fastgates.jit.new_state"),
            ((4, 3), 0, (4, 6), "the last axis of out must have output_size"),
            ((4, 3), 0, (3, 5), "x and out must have the same time"),
        ],
    )
    def test_sizes(self, x, state, out, message):
        @numba.njit
        def forward(handle, x, state, out):
            jit.forward(handle, x, state, out)

        handle = fg.LSTM(3, 5, seed=0).jit_handle()
        state = np.zeros(handle.state_size + state, np.float32)
        arrays = np.zeros(x, np.float32), state, np.ones(out, np.float32)
        with pytest.raises(ValueError, match=message):
            forward(handle, *arrays)
        assert (arrays[2] == 1).all()
        if "time" not in message:
            message = message.split(" must")[0].split()[-1]
            with pytest.raises(ValueError, match=f"{message} must have shape"):
                jit.forward(handle, *arrays)

    def test_batches(self):
        handle = fg.LSTM(3, 5, seed=0).jit_handle()

        @numba.njit
        def step(handle, x, state, out):
            jit.step(handle, x, state, out)

        state, out = jit.new_state(handle, 2), np.zeros((3, 5), np.float32)
        with pytest.raises(ValueError, match="the same batch_size"):
            step(handle, np.zeros((3, 3), np.float32), state, out)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": np.zeros((4, 3))}, "x of fastgates.jit.forward must be a C-contiguous float32"),
            ({"out": np.zeros((4, 5))}, "out of fastgates.jit.forward must be"),
            ({"state": np.zeros((1, 40), np.float32)}, "state of fastgates.jit.forward must be"),
            ({"x": np.zeros((3, 4), np.float32).T}, "x of fastgates.jit.forward must be"),
            ({"handle": np.zeros(3)}, r"handle must come from model.jit_handle\(\)"),
        ],
    )
    def test_types(self, change, message):
        handle = fg.LSTM(3, 5, seed=0).jit_handle()
        values = {
            "handle": handle,
            "x": np.zeros((4, 3), np.float32),
            "state": jit.new_state(handle),
            "out": np.zeros((4, 5), np.float32),
        } | change

        @numba.njit
        def forward(handle, x, state, out):
            jit.forward(handle, x, state, out)

        with pytest.raises(numba.TypingError, match=message):
            forward(*values.values())
        with pytest.raises((TypeError, ValueError), match=rf"{next(iter(change))} must"):
            jit.forward(*values.values())

    def test_states(self):
        layer = fg.LSTM(3, 5, seed=0)
        with pytest.raises(ValueError, match=r"state must have shape \(state_size="):
            jit.read_state(layer, np.zeros(3, np.float32))
        with pytest.raises(TypeError, match="state must be a float32 array"):
            jit.write_state(layer, None, np.zeros(3))
        with pytest.raises(ValueError, match="batch_size must be a positive integer"):
            jit.new_state(layer, 0)


# -- Caches and processes -------------------------------------------------------------------------

USER_MODULE = """
import numba
from fastgates import jit


@numba.njit(cache=True)
def total(handle, x):
    state, y, result = jit.new_state(handle), jit.np.empty(4, jit.np.float32), 0.0
    for t in range(len(x)):
        jit.step(handle, x[t], state, y)
        result += y[0]
    return result
""".replace("jit.np", "np").replace("import numba\n", "import numba\nimport numpy as np\n")

RUN_USER = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    import fastgates as fg
    from fastgates import _jit
    import user

    value = user.total(fg.RNN(3, 4, seed=0).jit_handle(), np.ones((5, 3), np.float32))
    ran = [k for k in _jit.kernels().values() if k.signatures]
    mine = user.total.stats
    print(
        float(value).hex(),
        sum(mine.cache_hits.values()),
        sum(mine.cache_misses.values()),
        sum(sum(k.stats.cache_misses.values()) for k in ran),
    )
"""


@pytest.fixture
def user(tmp_path):
    """A folder with a module of a user's."""
    (tmp_path / "user.py").write_text(USER_MODULE)
    return tmp_path


@pytest.fixture
def copied_package(tmp_path):
    """A copy of the package, to be edited; its parent directory."""
    parent = tmp_path / "copy"
    source = Path(fg.__file__).parent
    shutil.copytree(source, parent / "fastgates", ignore=shutil.ignore_patterns("__pycache__"))
    return parent


def run_user(folder, **options):
    value, hits, misses, kernels = run_python(RUN_USER, folder, **options).stdout.split()
    return float.fromhex(value), int(hits), int(misses), int(kernels)


def test_second_process_compiles_nothing(user):
    env = {"FASTGATES_CACHE": None}
    value, hits, misses, _ = run_user(user, env=env)
    assert (hits, misses) == (0, 1)
    assert run_user(user, env=env) == (value, 1, 0, 0)


def test_no_old_machine_code_after_an_upgrade(user, copied_package):
    """The user's file and its cache stay; the vector maths of the package changes."""
    env = {"FASTGATES_CACHE_DIR": user / "kernels", "FASTGATES_CACHE": None}
    value, *_ = run_user(user, env=env, path=copied_package)
    path = copied_package / "fastgates" / "_vecmath.py"
    source = path.read_text()
    path.write_text(source.replace("return with_sign_of(", "return ONE + with_sign_of("))
    edited, hits, misses, _ = run_user(user, env=env, path=copied_package)
    assert abs(edited - value) > 1e-2
    assert (hits, misses) == (0, 1)
    path.write_text(source)
    assert run_user(user, env=env, path=copied_package) == (value, 1, 0, 0)


def test_a_handle_as_a_global_variable(user):
    """It is frozen into the code, which must not run where the parameters may be old."""
    module = USER_MODULE.replace("total(handle, x)", "total(x)") + "\n"
    module += "import fastgates as fg\nhandle = fg.RNN(3, 4, seed=0).jit_handle()\n"
    (user / "user.py").write_text(module)
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import numpy as np
        import user

        x = np.ones((5, 3), np.float32)
        try:
            print(float(user.total(x)))
        except RuntimeError as error:
            print(error)
    """
    expected = fg.RNN(3, 4, seed=0)(np.ones((1, 5, 3)))[0][0, :, 0].sum(dtype=np.float64)
    assert abs(float(run_python(code, user).stdout) - expected) < 1e-6
    assert "pass it to the compiled function as an argument" in run_python(code, user).stdout


def test_handles_go_to_other_processes(tmp_path):
    model = every_kind()
    x = normal(np.random.default_rng(0), (4, 3))
    stream = model.stream()
    stream.run(x[:2])
    (tmp_path / "handle").write_bytes(pickle.dumps((model.jit_handle(), x, stream)))
    code = """
        import pickle, sys
        import numpy as np
        handle, x, stream = pickle.load(open(sys.argv[1], "rb"))
        from fastgates import jit
        out = np.empty((4, 3), np.float32)
        jit.forward(handle, x, jit.new_state(handle), out)
        np.save(sys.argv[2], [out, np.concatenate([out[:2], stream.run(x[2:])])])
    """
    result = tmp_path / "result.npy"
    run_python(code, tmp_path / "handle", result)
    for actual in np.load(result):
        assert_same_bits("output", actual, model(x[None])[0][0])


def test_handles_of_another_width_are_refused():
    handle = fg.LSTM(2, 3, seed=0).jit_handle()
    remake, (stamp, lanes, *rest) = handle.__reduce__()
    for origin in ((stamp + 1, lanes), (stamp, 2 * lanes)):
        with pytest.raises(RuntimeError, match="packed by another version of fastgates"):
            remake(*origin, *rest)


def test_an_edited_cell_outside_the_package_is_compiled_again(tmp_path):
    """The kernel of its steps is in the package's cache, under a stamp of the cell's own file."""
    toy = (Path(__file__).parent / "toy_cell.py").read_text()
    (tmp_path / "own_cell.py").write_text(toy)
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import numpy as np
        import own_cell
        import fastgates as fg
        from fastgates import _jit

        layer = fg.Recurrent("coupled_lstm", 2, 3, seed=0)
        value = layer.stream().step([1, 2])[0]
        (kernel,) = [k for n, k in _jit.kernels().items() if n.endswith("step_coupled_lstm")]
        print(float(value).hex(), sum(kernel.stats.cache_hits.values()))
    """
    env = {"FASTGATES_CACHE": None}
    first = run_python(code, tmp_path, env=env).stdout.split()
    again = run_python(code, tmp_path, env=env).stdout.split()
    assert again == [first[0], "1"]
    (tmp_path / "own_cell.py").write_text(toy.replace("o * tanh(c)", "o * tanh(c) + c"))
    edited = run_python(code, tmp_path, env=env).stdout.split()
    assert edited[0] != first[0] and edited[1] == "0"


def test_a_fifth_cell():
    import toy_cell

    layer = fg.Recurrent(toy_cell.COUPLED_LSTM, 3, 10, 2, seed=0)
    x = normal(np.random.default_rng(0), (1, 5, 3))
    expected, out = layer(x)[0][0], np.empty((5, 10), np.float32)
    at_once(layer.jit_handle(), x[0], out)
    assert_same_bits("jit", out, expected)
    assert_same_bits("stream", layer.stream().run(x[0]), expected)


def test_all_cells_are_here():
    """What is registered is tested, but for the cells with settings, see test_streaming."""
    names = {case.registered for case in CELLS} | {"coupled_lstm"}
    assert {n for n, cell in fg.cells.registered().items() if not cell.functions} <= names
