"""The demo, with short trainings; its whole length is a slow test."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fastgates import _demo, _extras
from fastgates.cli import main

CELLS = ["RNN", "SimplifiedGRU", "GRU", "LSTM"]


@pytest.fixture(scope="module")
def result():
    return _demo.run(_demo.QUICK)


def test_persistence_has_its_published_figures(result):
    """Mean squared error / 1535 of persistence, known for these series and periods."""
    assert np.round(result.yearly["persistence"], 3).tolist() == [0.416, 0.940, 0.552]


def test_every_method_has_every_figure(result):
    assert list(result.yearly) == [*CELLS, "linear AR", "persistence"]
    assert list(result.monthly) == [*CELLS, "linear AR", "persistence"]
    assert all(len(errors) == 3 and min(errors) > 0 for errors in result.yearly.values())
    assert list(result.forecasts) == list(result.parameters) == CELLS
    for years, values in result.forecasts.values():
        np.testing.assert_array_equal(years, np.arange(1921, 2009))
        assert values.shape == (88,)


def test_parameters_are_as_1_2_3_4(result):
    readout = 9
    counts = [result.parameters[cell] - readout for cell in CELLS]
    assert counts == [counts[0] * k for k in (1, 2, 3, 4)]


def test_report_shows_every_figure(result):
    text = _demo.report(result)
    for errors in result.yearly.values():
        for error in errors:
            assert f"{error:.3f}" in text
    for error in result.monthly.values():
        assert f"{error.rmse:.2f}" in text
    assert max(map(len, text.splitlines())) < 80


def test_command(monkeypatch, tmp_path, capsys, result):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_demo, "run", lambda settings, verbose: result)
    assert main(["demo", "--quick"]) == 0
    out = capsys.readouterr().out
    assert _demo.report(result) in out
    if _extras.version("matplotlib") is not None:
        assert "picture: fastgates-demo.png" in out
        assert (tmp_path / "fastgates-demo.png").read_bytes()[:4] == b"\x89PNG"

    monkeypatch.setattr(_extras, "version", lambda name: None)
    assert main(["demo", "--quick"]) == 0
    assert "pip install 'fastgates[plot]'" in capsys.readouterr().out


def test_command_checks_the_picture_first(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(_demo, "run", None)
    assert main(["demo", "--plot", str(tmp_path / "absent" / "demo.png")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_gated_cells_reach_the_published_range():
    errors = _demo.run(_demo.FULL).yearly
    assert {cell: errors[cell][0] for cell in CELLS if errors[cell][0] > 0.15} == {}
