"""The table maker, on times that are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report
from bench.cases import Case

CASE = Case("lstm", 1, 64, 4, 16)
OTHER = Case("rnn", 32, 100, 8, 32)


@pytest.fixture
def results() -> report.Results:
    header = {
        "date": "2026-01-01 00:00 UTC",
        "cpu": "a processor",
        "numba_target": "generic",
        "system": "Linux x86_64",
        "python": "3.11.0",
        "versions": {"fastgates": "1.0"},
        "lanes": 8,
        "fma": True,
        "peak_gflops": 100.0,
        "tanh_ns": 0.5,
        "sigmoid_ns": 0.5,
    }
    results = report.Results(header, {})
    for contender, microseconds in (("torch", 40.0), ("fastgates", 10.0), ("jax", 20.0)):
        results.add(CASE, "inference", contender, microseconds)
    results.add(CASE, "inference", "jax", 30.0)
    results.add(OTHER, "inference", "fastgates", 100.0)
    results.add(OTHER, "inference", "torch", 50.0)
    return results


def test_ratio_is_against_the_fastest_peer(results: report.Results) -> None:
    assert results.ratio(CASE, "inference") == 2.0
    assert results.ratio(OTHER, "inference") == 0.5


def test_floor_counts_products_and_gates(results: report.Results) -> None:
    products, whole = results.floor(CASE, "inference")
    assert products == pytest.approx(2 * 64 * 4 * 16 * (4 + 16) / 100e3)
    assert whole == pytest.approx(products + 64 * 16 * 5 * 0.5e-3)


def test_json_round_trip(results: report.Results) -> None:
    again = report.Results.from_json(results.to_json())
    assert again == results


def test_reads_pytest_benchmark(results: report.Results) -> None:
    sizes = {"batch": 1, "time": 64, "input": 4, "hidden": 16}
    extra = {"cell": "lstm", **sizes, "mode": "inference", "contender": "torch"}
    content = {
        "machine_info": {"fastgates_bench": results.header},
        "benchmarks": [{"extra_info": extra, "stats": {"min": 4e-5}}],
    }
    read = report.Results.from_json(json.dumps(content))
    assert read.times == {(CASE, "inference"): {"torch": pytest.approx(40.0)}}
    with pytest.raises(ValueError, match="pytest --benchmark-json"):
        report.Results.from_json("[]")


def test_summary_comes_first_with_the_worst_ratio(results: report.Results) -> None:
    text = report.markdown(results)
    assert text.index("0.50 (rnn 32,100,8,32)") < text.index("### Inference")
    assert "| **all cells** | 1.00 | 0.50 (rnn 32,100,8,32) |  |  |" in text
    assert "| lstm | 1,64,4,16 | 10.0 | 40.0 | 20.0 | 2.00 |" in text


def test_writes_between_the_markers_only(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    report.write_between_markers(path, "new")
    assert path.read_text() == f"above\n{report.BEGIN}\n\nnew\n\n{report.END}\nbelow\n"
    path.write_text("no markers")
    with pytest.raises(ValueError, match="must contain the lines"):
        report.write_between_markers(path, "new")
