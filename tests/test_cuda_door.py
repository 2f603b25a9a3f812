"""What `to("cuda")` says where there is no GPU, and what it leaves alone."""

import copy
import importlib.metadata
import pickle

import numpy as np
import pytest
from helpers import run_python

import fastgates as fg
from fastgates._extras import MissingPackageError


def test_the_module_is_reached_by_name_and_imports_no_cuda():
    run_python("""
        import sys
        import fastgates as fg

        assert "fastgates.cuda" not in sys.modules
        assert fg.cuda.__name__ == "fastgates.cuda"
        assert not [name for name in sys.modules if name.startswith("numba.cuda")]
        assert "numba_cuda" not in sys.modules
    """)


def test_without_the_extra_the_error_names_it(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    assert not fg.cuda.is_available()
    layer = fg.GRU(2, 3)
    with pytest.raises(MissingPackageError, match=r"pip install 'fastgates\[cuda\]'"):
        layer.to("cuda")
    assert layer.device == "cpu"


@pytest.mark.parity
@pytest.mark.skipif(fg.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_says_so():
    pytest.importorskip("numba_cuda")
    for module in (
        fg.GRU(2, 3),
        fg.Dense(2, 3),
        fg.Scaling([0.0], [1.0]),
        fg.Sequential(fg.GRU(2, 3), fg.Dense(3, 1)),
    ):
        with pytest.raises(RuntimeError, match="needs an NVIDIA GPU with its driver"):
            module.to("cuda")
        assert module.device == "cpu"
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
        fg.cuda.device_name()


def test_to_the_cpu_is_always_possible():
    model = fg.Sequential(fg.GRU(2, 3, seed=0), fg.Dense(3, 1, seed=1))
    x = np.ones((1, 4, 2))
    expected = model(x)[0]
    assert model.to("cpu") is model
    assert np.array_equal(model(x)[0], expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.device == "cpu"
        assert np.array_equal(twin(x)[0], expected)
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'tpu'"):
        model.to("tpu")
