"""The command ``fastgates bench``: tiny sizes, no peers, and no test asserts a time."""

import argparse
import functools
import json
import os
import subprocess

import numpy as np
import pytest
from helpers import run_python

import fastgates
from fastgates import _extras
from fastgates.benchmark import command, extras, machine, measure, peers, report
from fastgates.benchmark.cases import (
    AXES,
    CELLS,
    CENTRES,
    DEFAULT_CELLS,
    MOST_NUMBERS,
    MOST_WORK,
    Case,
    affordable,
    grid,
    make_data,
    random_cases,
)
from fastgates.benchmark.results import Results

needs_plot = pytest.mark.skipif(_extras.version("matplotlib") is None, reason="extra 'plot'")

CASE = Case("lstm", 1, 64, 4, 16)
OTHER = Case("rnn", 32, 128, 64, 32)

TINY = ["--cells", "rnn", "--sizes", "2,3,2,4", "--rounds", "1", "--seconds", "0.0001"]


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def run(run):
    """The command ``fastgates bench``."""
    return functools.partial(run, "bench")


@pytest.fixture
def results():
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
    results = Results(header)
    for contender, microseconds in (("torch", 40.0), ("fastgates", 10.0), ("jax", 20.0)):
        results.add(CASE, "inference", contender, microseconds)
    results.add(CASE, "inference", "jax", 30.0)
    for mode in ("inference", "training"):
        results.add(OTHER, mode, "fastgates", 1000.0)
        results.add(OTHER, mode, "torch", 500.0)
    long = Case("lstm", 1, 1000, 8, 32)
    results.add(long, "inference", "fastgates", 250.0)
    rows = [{"cell": "rnn", "mode": "training", "full": 200.0, "unequal": 120.0}]
    results.extras["lengths"] = {"size": [4, 100, 8, 8], "share": 0.5, "rows": rows}
    rows = [{"size": [4, 100, 8, 8], "mode": "training", "microseconds": [30.0, 20.0]}]
    results.extras["threads"] = {"cell": "lstm", "threads": [1, 2], "rows": rows}
    call = {"compiled": 9.5, "cached": 0.04, "after": 0.002}
    results.extras["cold"] = {
        "cell": "lstm", "import_numba": 0.5, "import_fastgates": 0.7,
        "inference": call, "training": call,
    }  # fmt: skip
    results.failures.append("jax, rnn 1,1,1,1: it cannot")
    return results


# Cases


def test_the_grid_keeps_its_corners_and_its_limits():
    sizes = grid()
    assert len(sizes) == len(set(sizes))
    for size in sizes:
        batch, time, inputs, hidden = size
        assert Case("lstm", *size).product_flops("training") <= 2 * MOST_WORK
        assert batch * time * (inputs + hidden) <= MOST_NUMBERS
    assert (1, 1, 1, 5) in sizes
    assert (1, 1000, 300, 512) in sizes
    corners = {(b, i, h) for b in (1, 256) for i in (1, 300) for h in (5, 512)}
    assert corners <= {(b, i, h) for b, _, i, h in sizes}
    for centre in CENTRES:
        assert centre in sizes
    for hidden in AXES[3]:
        assert (32, 128, 64, hidden) in sizes


def test_a_size_that_takes_too_long_has_fewer_steps():
    assert affordable((2, 128, 8, 32)) == (2, 128, 8, 32)
    batch, time, inputs, hidden = affordable((256, 1000, 300, 512))
    assert (batch, inputs, hidden) == (256, 300, 512)
    assert 1 < time < 1000


def test_random_cases_come_from_their_seed():
    drawn = random_cases(["rnn", "lstm"], 30, seed=4)
    assert len(set(drawn)) == 30
    assert drawn == random_cases(["rnn", "lstm"], 30, seed=4)
    assert drawn != random_cases(["rnn", "lstm"], 30, seed=5)
    assert {case.cell for case in drawn} == {"rnn", "lstm"}


def options(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_what_options_select():
    assert command.sections(options()) == list(command.SECTIONS)
    assert command.sections(options("--quick")) == ["sizes", "shares"]
    assert command.sections(options("--without", "cold", "threads"))[-1] == "lengths"
    assert command.sections(options("--sizes", "1,2,3,4")) == ["sizes"]
    assert command.sections(options("--sizes", "1,2,3,4", "--sections", "cold")) == ["cold"]
    cases = command.cases(options("--random", "7", "--seed", "2"))
    assert list(cases) == random_cases(DEFAULT_CELLS, 7, 2)
    everything = command.cases(options("--grid"))
    assert len(everything) >= len(DEFAULT_CELLS) * len(grid()) + command.GRID_RANDOM / 2
    assert everything[Case("lstm", 1, 1000, 8, 32)] == ["inference", "training"]
    assert command.cases(options())[Case("lstm", 1, 1000, 8, 32)] == ["inference"]
    assert not command.cases(options("--sections", "cold"))


def test_the_command_can_be_given_again():
    given = ["--peers", "--cells", "rnn", "--sizes", "1,2,3,4", "5,6,7,8", "--clock", "cpu"]
    line = command._command(options(*given, "--json", "run.json"))
    assert line == f"fastgates bench {' '.join(given)}"


def test_the_names_of_the_options_are_those_of_the_code():
    assert tuple(peer.name for peer in peers.PEERS) == command.PEERS
    assert tuple(measure.CLOCKS) == command.CLOCKS


# Taking turns


def runner(*seconds):
    """A call that takes these times by the clock of the plan, then always the last one."""
    times = list(seconds)
    made = measure.Runner(lambda: None)

    def turn(plan):
        made.best = min(made.best, times.pop(0) if len(times) > 1 else times[0])
        made.calls += 1

    made.turn = turn
    return made


def test_the_hopeless_take_one_turn():
    runners = {"fastgates": runner(1.0), "slow": runner(5.5), "fair": runner(3.0)}
    measure.take_turns(runners, measure.Plan(rounds=4))
    assert {name: each.calls for name, each in runners.items()} == {
        "fastgates": 4, "slow": 1, "fair": 4,
    }  # fmt: skip


def test_fastgates_is_never_left_out():
    runners = {"fastgates": runner(9.0), "torch": runner(1.0)}
    measure.take_turns(runners, measure.Plan(rounds=3))
    assert runners["fastgates"].calls == 3


def test_close_results_are_measured_twice_as_long():
    runners = {"fastgates": runner(1.0), "torch": runner(1.1)}
    measure.take_turns(runners, measure.Plan(rounds=3))
    assert {each.calls for each in runners.values()} == {6}


def test_a_turn_has_one_call_at_least():
    calls = []
    made = measure.Runner(lambda: calls.append(1))
    made.turn(measure.Plan(seconds=1e-9))
    assert made.calls >= 1
    assert len(calls) == made.calls + 1  # the first one warms up
    assert 0 < made.best < np.inf


class Broken(peers.Fastgates):
    """A peer whose outputs are wrong."""

    name = "torch"

    def build(self, case, data):
        weights = {name: value + np.float32(1) for name, value in data.weights.items()}
        return super().build(case, peers.Data(weights, data.x, data.d_output))


class Raising(peers.Fastgates):
    """A peer that does not run."""

    name = "jax"

    def build(self, case, data):
        raise RuntimeError("no such\noperator")


def test_a_wrong_peer_is_not_timed(results):
    case = Case("rnn", 2, 3, 2, 4)
    plan = measure.Plan(rounds=1, seconds=1e-4)
    results.failures.clear()
    measure.measure(results, case, [peers.SUBJECT, Broken(), Raising()], plan)
    wrong, raising = results.failures
    assert wrong.startswith("torch, rnn 2,3,2,4: AssertionError: torch: output differs by")
    assert raising == "jax, rnn 2,3,2,4: RuntimeError: no such operator"
    for mode in ("inference", "training"):
        assert list(results.times[case, mode]) == ["fastgates"]


@pytest.mark.parametrize("cell", CELLS)
def test_fastgates_has_every_cell(cell):
    case = Case(cell, 2, 3, 2, 4)
    data = make_data(case)
    built = peers.SUBJECT.build(case, data)
    peers.check(cell, built, built)
    assert built.output_of(built.inference()).shape == data.d_output.shape


@pytest.mark.parity
@pytest.mark.parametrize(
    ("cell", "peer"),
    [
        pytest.param(cell, peer, id=f"{peer.name}-{cell}")
        for peer in peers.PEERS
        for cell in CELLS
        if peer.supports(cell, "inference")
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_peers_compute_the_same(cell, peer):
    if not peer.available():
        pytest.skip(f"{peer.name} is not installed")
    case = Case(cell, 2, 3, 2, 4)
    data = make_data(case)
    peers.check(peer.name, peer.build(case, data), peers.SUBJECT.build(case, data))


# The machine


def test_one_core_gives_everything_back(restore_threads):
    allowed = machine.allowed_cores()
    before = dict(os.environ)
    fastgates.set_num_threads(3)
    with machine.one_core(min(allowed, default=None)) as core:
        assert fastgates.get_num_threads() == 1
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert machine.allowed_cores() == ({core} if allowed else set())
    assert fastgates.get_num_threads() == 3
    assert os.environ == before
    assert machine.allowed_cores() == allowed


# fastgates alone


def test_lengths():
    found = extras.lengths(["rnn"], measure.Plan(rounds=1, seconds=1e-4), (3, 30, 2, 4))
    assert 20 / 30 <= found["share"] < 1
    assert [row["mode"] for row in found["rows"]] == ["inference", "training"]
    assert all(row["full"] > 0 and row["unequal"] > 0 for row in found["rows"])


def test_threads(monkeypatch, restore_threads):
    monkeypatch.setattr(extras, "THREADS_SIZES", ((2, 3, 2, 4),))
    cores = machine.allowed_cores() or {0}

    def in_this_process(line, environment):
        assert "FASTGATES_NUM_THREADS" not in environment
        assert line[2:4] == ["-m", "fastgates.benchmark.extras"]
        cell, seconds, *given = line[4:]
        return json.dumps(extras._measure_threads(cell, float(seconds), set(map(int, given))))

    monkeypatch.setattr(extras, "_output", in_this_process)
    found = extras.threads(cores, "rnn", seconds=1e-4)
    assert found["threads"][:2] == [1, 2]
    for row in found["rows"]:
        assert len(row["microseconds"]) == len(found["threads"])


def test_cold_start(monkeypatch):
    folders = []

    def output(line, environment):
        if "import time; start" in line[-1]:
            return "0.5\n"
        folders.append(environment["FASTGATES_CACHE_DIR"])
        return "4\n3\n2\n1\n" if len(folders) == 1 else "0.4\n0.3\n0.2\n0.1\n"

    monkeypatch.setattr(extras, "_output", output)
    found = extras.cold_start("rnn", repeats=2)
    assert found["import_numba"] == found["import_fastgates"] == 0.5
    assert found["inference"] == {"compiled": 4.0, "cached": 0.4, "after": 0.3}
    assert found["training"] == {"compiled": 2.0, "cached": 0.2, "after": 0.1}
    assert len(folders) == 3
    assert len(set(folders)) == 1
    assert not os.path.exists(folders[0])


@pytest.mark.slow
def test_other_processes_measure():
    cores = machine.allowed_cores() or {0}
    assert len(extras.threads(cores, "rnn", 1e-3)["rows"]) == 2 * len(extras.THREADS_SIZES)
    assert extras.cold_start("rnn", repeats=1)["training"]["compiled"] > 0


# Results and the report


def test_ratio_is_against_the_fastest_peer(results):
    assert results.ratio(CASE, "inference") == 2.0
    assert results.best_peer(CASE, "inference") == "jax"
    assert results.ratio(OTHER, "inference") == 0.5
    assert len(results.ratios()) == 3
    assert results.ratios("training") == {(OTHER, "training"): 0.5}


def test_floor_counts_products_and_gates(results):
    products, whole = results.floor(CASE, "inference")
    assert products == pytest.approx(2 * 4 * 16 * (64 * 4 + 63 * 16) / 100e3)
    assert whole == pytest.approx(products + 64 * 16 * 5 * 0.5e-3)


def test_json_round_trip(results):
    assert Results.from_json(results.to_json()) == results


def test_runs_are_merged(results):
    results.header["command"] = "fastgates bench --grid"
    other = Results.from_json(results.to_json())
    other.header |= {"peak_gflops": 101.0, "tanh_ns": 0.6, "command": "fastgates bench"}
    other.times[CASE, "inference"] |= {"fastgates": 9.0, "torch": 50.0}
    other.extras["lengths"]["rows"][0] |= {"full": 190.0, "unequal": 130.0}
    del other.extras["cold"]
    whole = Results.merged([results, other, other])
    assert whole.times[CASE, "inference"] == {"torch": 40.0, "fastgates": 9.0, "jax": 20.0}
    assert whole.times.keys() == results.times.keys()
    assert whole.header["peak_gflops"] == 101.0 and whole.header["tanh_ns"] == 0.5
    assert whole.extras["lengths"]["rows"][0]["full"] == 190.0
    assert whole.extras["lengths"]["rows"][0]["unequal"] == 120.0
    assert whole.extras["cold"] == results.extras["cold"]
    assert Results.merged([results]) == results
    text = report.markdown(Results.from_json(whole.to_json()))
    assert (
        "Of 3 runs, the fastest time of each contender: `fastgates bench --grid`; "
        "`fastgates bench` (2 times)."
    ) in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.header.update(cpu="another"), "cpu is a processor of one, another of"),
        (lambda run: run.header["versions"].update(fastgates="2"), "fastgates is 1.0 of one, 2 of"),
        (lambda run: run.extras["threads"].update(threads=[1, 4]), "their sections threads are of"),
        (lambda run: run.extras["lengths"]["rows"].clear(), "their sections lengths are of"),
    ],
)
def test_runs_that_cannot_be_merged(results, change, message):
    other = Results.from_json(results.to_json())
    change(other)
    with pytest.raises(ValueError, match=message):
        Results.merged([results, other])


def test_reads_pytest_benchmark(results):
    sizes = {"batch": 1, "time": 64, "input": 4, "hidden": 16}
    extra = {"cell": "lstm", **sizes, "mode": "inference", "contender": "torch"}
    content = {
        "machine_info": {"fastgates_bench": results.header},
        "benchmarks": [{"extra_info": extra, "stats": {"min": 4e-5}}],
    }
    read = Results.from_json(json.dumps(content))
    assert read.times == {(CASE, "inference"): {"torch": pytest.approx(40.0)}}
    for text in ("[]", "{}", "no", '{"header": {}, "extras": {}, "failures": [], "times": [1]}'):
        with pytest.raises(ValueError, match="must come from fastgates bench --json"):
            Results.from_json(text)


def squeezed(text):
    return " ".join(text.split())


def test_the_worst_comes_first_and_everything_below_1_is_named(results):
    text = report.markdown(results)
    assert text.startswith("**Worst: 0.50** times as fast as the fastest peer, rnn 32,128,64,32, ")
    assert "**Geometric mean: 1.00 in inference (2 points), 0.50 in training (1 points).**" in text
    assert "A peer is faster at 2 of 3 points" in text
    assert "| rnn | 32,128,64,32 | training | torch | 0.500 |" in squeezed(text)
    assert "- jax, rnn 1,1,1,1: it cannot" in text
    assert "| lstm | 1,64,4,16 | 10.0 | 40.0 | 20.0 | 2.00 |" in squeezed(text)
    order = ["A peer is faster", "| **all** ", "### Share", "### Latency", "### Unequal"]
    order += ["### Threads", "### Cold", "### Inference", "### Training"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)


def test_the_sections(results):
    text = squeezed(report.markdown(results))
    assert "| rnn | 32 | 25% | 32% | 50% (torch) | 59% | 65% | 117% (torch) |" in text
    assert "| lstm | 8 | 32 | 0.250 |" in text
    assert "| rnn | training | 200 | 120 | 0.60 | 1.20 |" in text
    assert "| 4,100,8,8 | training | 30.0 | 20.0 | 1.50 |" in text
    assert "| inference: first call of a later process | 40.0 ms |" in text
    results.extras["threads"] = {"left_out": "one core only"}
    assert "Left out: one core only." in report.markdown(results)


def test_nothing_but_what_was_measured(results):
    for key in results.times:
        results.times[key] = {"fastgates": 10.0}
    results.extras.clear()
    results.failures.clear()
    text = report.markdown(results)
    assert text.startswith("Measured 2026")
    assert "ratio" not in text
    assert "### Threads" not in text


def test_long_tables_are_not_printed(results):
    for hidden in range(1, 60):
        results.add(Case("rnn", 1, 1, 1, hidden), "training", "fastgates", 1.0)
    assert "60 rows: --json or --markdown writes them." in report.markdown(results, short=True)
    assert "| rnn | 1,1,1,59 |" in squeezed(report.markdown(results))


def test_writes_between_the_markers_only(folder, results):
    path = folder / "page.md"
    path.write_text(
        "above\n<!-- bench:table -->\nold\n<!-- bench:end -->\nbetween\n"
        "<!-- bench:sentence -->\n<!-- bench:end -->\nbelow\n"
    )
    for _ in range(2):  # the second time replaces what the first one wrote
        report.write_between_markers(path, results)
        text = path.read_text()
        assert text.startswith("above\n<!-- bench:table -->\n\n| times as fast as")
        assert text.count("| **all** ") == 1
        assert "old" not in text
        assert "\n<!-- bench:end -->\nbetween\n<!-- bench:sentence -->\n\n3 points" in text
        assert text.endswith("slower.\n\n<!-- bench:end -->\nbelow\n")
        assert "a peer is faster at 2 of them. Below 1 fastgates is slower." in squeezed(text)


# The command line


def test_measures_and_prints(run):
    code, out, err = run(*TINY, "--sections", "sizes", "lengths")
    assert code == 0
    assert "FMA peak of that core" in out
    assert "ns a value" in out
    assert "| rnn  | 2,3,2,4 " in out
    assert "### Unequal lengths" in out
    assert "ratio" not in out
    assert "points" in err  # the bar


def test_leaves_the_process_as_it_was(run):
    before = machine.allowed_cores(), fastgates.get_num_threads(), dict(os.environ)
    assert run(*TINY)[0] == 0
    assert before == (machine.allowed_cores(), fastgates.get_num_threads(), dict(os.environ))


def test_json_and_back(run, folder):
    code, out, _ = run(*TINY, "--json", "run.json", "--clock", "cpu")
    assert code == 0
    content = json.loads((folder / "run.json").read_text())
    assert {record["mode"] for record in content["times"]} == {"inference", "training"}
    assert content["header"]["peak_gflops"] > 0
    assert "processor time" in out
    code, again, _ = run("--from", "run.json", "--json", "copy.json")
    assert (code, again) == (0, out)
    assert (folder / "copy.json").read_text() == (folder / "run.json").read_text()
    assert sorted(os.listdir(folder)) == ["copy.json", "run.json"]


def test_modes(run, folder):
    assert run(*TINY, "--modes", "training", "--json", "run.json")[0] == 0
    content = json.loads((folder / "run.json").read_text())
    assert {record["mode"] for record in content["times"]} == {"training"}


def test_one_core_leaves_threads_out(run, monkeypatch):
    monkeypatch.setattr(machine, "allowed_cores", lambda: {0})
    monkeypatch.setattr(machine, "pin_to_one_core", lambda core: core)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    code, out, _ = run(*TINY, "--sections", "threads")
    assert code == 0
    assert "Left out: this process may use one core only." in out


def test_a_failing_section_does_not_end_the_run(run, monkeypatch):
    def failing(*arguments):
        raise subprocess.CalledProcessError(1, ["python"])

    monkeypatch.setattr(extras, "cold_start", failing)
    code, out, _ = run(*TINY, "--sections", "sizes", "cold")
    assert code == 1
    assert "- cold: Command '['python']' returned non-zero exit status 1." in out
    assert "### Inference" in out


def test_missing_peers_are_named_with_their_extra(run, monkeypatch):
    absent = [type(peer.name, (Raising,), {"name": peer.name})() for peer in peers.PEERS]
    for peer in absent:
        monkeypatch.setattr(type(peer), "available", lambda self: False)
    monkeypatch.setattr(peers, "PEERS", tuple(absent))
    code, _, err = run(*TINY, "--peers")
    assert code == 0
    assert (
        "not installed, left out: torch, onnxruntime, openvino, jax "
        "(pip install 'fastgates[bench]')\n" in err
    )
    code, _, err = run(*TINY, "--peers", "jax")
    assert "left out: jax (pip" in err


class Twin(peers.Fastgates):
    """Stands in for a peer."""

    name = "torch"


def test_peers_beside_it(run, folder, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", (Twin(),))
    (folder / "page.md").write_text("a\n<!-- bench:report -->\n<!-- bench:end -->\nb\n")
    code, out, _ = run(*TINY, "--peers", "--markdown", "page.md")
    assert code == 0
    assert out.startswith("**Worst: ")
    assert "written: page.md" in out
    text = (folder / "page.md").read_text()
    assert text.startswith("a\n<!-- bench:report -->\n\n**Worst: ")
    assert text.endswith("\n\n<!-- bench:end -->\nb\n")


@needs_plot
def test_plot(run, folder, results):
    (folder / "run.json").write_text(results.to_json())
    code, out, _ = run("--from", "run.json", "--plot", "bench.png")
    assert code == 1  # a peer failed in that run
    assert "picture: bench.png" in out
    first = (folder / "bench.png").read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    run("--from", "run.json", "--plot", "bench.png")
    assert (folder / "bench.png").read_bytes() == first


@needs_plot
def test_plot_of_a_run_without_peers_or_shares(run, folder):
    code, _, _ = run(*TINY, "--plot", "bench.png")
    assert code == 0
    assert (folder / "bench.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "tcn"], "invalid choice: 'tcn' (choose from"),
        (["--sizes", "1,2,3"], "a size is batch,time,input,hidden, integers of at least 1"),
        (["--sizes", "1,2,0,3"], "got '1,2,0,3'"),
        (["--sections", "warm"], "invalid choice: 'warm'"),
        (["--peers", "keras"], "invalid choice: 'keras'"),
        (["--rounds", "0"], "an integer of at least 1, got '0'"),
        (["--random", "-1"], "an integer of at least 0, got '-1'"),
        (["--seconds", "nan"], "more than 0 and at most 60, got 'nan'"),
    ],
)
def test_wrong_usage(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--core", "4096"], "core must be one of"),
        (["--from", "none.json"], "cannot read none.json: No such file"),
        (["--from", "page.md"], "page.md: the file must come from fastgates bench --json"),
        (["--json", "no/run.json"], "there is no folder"),
        (["--from", "run.json", "--sizes", "1,1,1,1"], "--sizes has no meaning with --from"),
        (["--from", "run.json", "--peers"], "--peers has no meaning with --from"),
        (["--markdown", "none.md"], "cannot read none.md: No such file"),
        (["--markdown", "page.md"], "must have lines <!-- bench:report -->"),
        (["--json", "page.md", "--markdown", "page.md"], "each output must be a file of its own"),
        pytest.param(["--plot", "run.txt"], "must end in .png", marks=needs_plot),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    run, folder, monkeypatch, arguments, message
):
    if arguments[0] == "--core" and not machine.allowed_cores():
        pytest.skip("the system has no affinity")
    monkeypatch.setattr(measure, "measure", None)
    (folder / "page.md").write_text("text\n<!-- bench:other -->\n<!-- bench:end -->\n")
    code, out, err = run(*([] if arguments[0] == "--from" else TINY), *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fastgates: error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert os.listdir(folder) == ["page.md"]


def test_plot_without_matplotlib(run, monkeypatch):
    def missing(name, *arguments):
        raise ImportError(name)

    monkeypatch.setattr(_extras.importlib, "import_module", missing)
    code, out, err = run(*TINY, "--plot", "bench.png")
    assert (code, out) == (2, "")
    assert "a picture needs matplotlib: pip install 'fastgates[plot]'" in err


def test_an_interrupt_leaves_what_was_measured(run, folder, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupted)
    code, _, err = run(*TINY, "--json", "run.json")
    assert code == 130
    assert err.endswith("fastgates: interrupted; no file is half-written\n")
    assert json.loads((folder / "run.json").read_text())["times"] == []


def test_importing_fastgates_does_not_import_it():
    code = "import sys, fastgates; print([m for m in sys.modules if 'benchmark' in m])"
    assert run_python(code).stdout == "[]\n"


def test_the_command_line_imports_no_peer():
    code = """
        import sys
        from fastgates import cli
        peers = {"torch", "jax", "onnxruntime", "openvino", "matplotlib", "tqdm"}
        print(sorted(peers & set(sys.modules)))
    """
    assert run_python(code).stdout == "[]\n"
