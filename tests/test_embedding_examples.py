"""The examples of models inside other programs do what they say."""

import importlib.util
import sys

import pytest
from helpers import ROOT


@pytest.fixture
def example(request, folder, monkeypatch):
    """What the example of this name returns in its quick form."""
    path = ROOT / "examples" / f"{request.param}.py"
    spec = importlib.util.spec_from_file_location(request.param, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, request.param, module)  # where Numba's cache looks for it
    spec.loader.exec_module(module)
    return module.main(["--quick"])


@pytest.mark.parametrize("example", ["hybrid_simulation"], indirect=True)
def test_a_network_is_a_term_of_an_ode(example):
    assert example["hybrid"] < 0.4 * example["size of the movement"]
    assert example["hybrid"] < 0.2 * example["without friction"]


@pytest.mark.parametrize("example", ["soft_sensor"], indirect=True)
def test_a_soft_sensor_in_a_loop(example):
    assert example["error"] < 0.5 * example["spread"]
    assert 0 < example["p50"] <= example["p99"] <= example["max"]


@pytest.mark.parametrize("example", ["image_axis"], indirect=True)
def test_an_image_is_filtered_along_an_axis(example):
    assert example["error"] < 1e-6
    assert example["difference"] == 0
    assert 0.8 < example["mean of three"] < 1.2


@pytest.mark.parametrize("example", ["mapped_anomalies"], indirect=True)
def test_a_file_is_scored_piece_by_piece(example):
    assert example["anomalies found"] == 5
    assert example["bytes loaded at most"] < example["bytes of the file"] / 2
    assert example["difference by pieces"] == 0
