"""Every cell at the sizes of `fastgates bench`, in inference and training, beside the peers."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest

from fastgates.benchmark.cases import Case, make_data
from fastgates.benchmark.peers import CONTENDERS, Built, Contender, check


@functools.lru_cache(maxsize=len(CONTENDERS))
def _built(contender: Contender, case: Case) -> Built:
    """Build a contender, checked against the reference; kept while its case is measured."""
    built = contender.build(case, make_data(case))
    assert built is not None
    if contender is not CONTENDERS[0]:
        check(f"{contender.name}, {case.cell} {case.size_text}", built, _built(CONTENDERS[0], case))
    return built


@pytest.mark.benchmark(
    max_time=0.3, min_rounds=5, warmup=True, warmup_iterations=2, disable_gc=True
)
def test_cell(benchmark: Any, case: Case, mode: str, contender: Contender) -> None:
    """Time one contender; results agree with fastgates' within `peers.TOLERANCE`."""
    built = _built(contender, case)
    call = built.inference if mode == "inference" else built.train
    assert call is not None
    benchmark.group = f"{case.cell} {case.size_text} {mode}"
    benchmark.extra_info.update(dataclasses.asdict(case), mode=mode, contender=contender.name)
    benchmark(call)
