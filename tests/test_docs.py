"""The documents: every Python snippet runs, every command runs, every link leads somewhere."""

import ast
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import toy_cell
from helpers import ROOT

import fastgates
from fastgates.benchmark import peers
from fastgates.cli import main

DOCUMENTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md")
] + sorted((ROOT / "docs").glob("*.md"))

# What a snippet may import that the extra `test` does not install. The first are run among the
# tests of parity; the second are only compiled, and `elnino_csv` stands in for them.
IMPORTS_OF_PARITY = {"torch", "keras", "onnxruntime"}
IMPORTS_OF_OTHERS = {"statsmodels"}

# Options that make a command quick; where an option is given twice, the last one counts.
QUICK = {
    "fit": ["--epochs", "2"],
    "demo": ["--quick"],
    "warmup": ["--cells", "rnn"],
    "depth": shlex.split("--lengths 5 --steps 10 --seeds 1 --cells gru --tasks order --jobs 1"),
    "bench": shlex.split(
        "--cells rnn --sizes 2,3,2,4 --random 0 --sections sizes --rounds 1 --seconds 1e-4"
    ),
}


@dataclass(frozen=True)
class Fence:
    """One fenced block of a document."""

    language: str
    line: int  # of its first line of text
    text: str

    @property
    def imports(self):
        """Top-level modules that a Python block imports."""
        names = set()
        for node in ast.walk(ast.parse(self.text)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
        return names


def fences(document):
    text = document.read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0, f"{document.name} has a block without an end"
    return [
        Fence(found[1], text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def snippets(document):
    return [fence for fence in fences(document) if fence.language == "python"]


def commands(document):
    """Arguments of every ``fastgates`` in a console block."""
    lines = [
        line[2:]
        for fence in fences(document)
        if fence.language == "console"
        for line in fence.text.splitlines()
        if line.startswith("$ ")
    ]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [part[1:] for part in parts if part and part[0] == "fastgates"]


def run_snippets(document, leave_out):
    """Run a document's Python in order, in one namespace, without what imports these modules."""
    namespace = {"__name__": "document"}
    for fence in snippets(document):
        code = compile("\n" * (fence.line - 1) + fence.text, str(document), "exec")
        if fence.text != toy_source() and not fence.imports & leave_out:
            exec(code, namespace)


def toy_source():
    return Path(toy_cell.__file__).read_text(encoding="utf-8")


def named(documents):
    return [pytest.param(document, id=str(document.relative_to(ROOT))) for document in documents]


def needs_torch(document):
    return any(fence.imports & IMPORTS_OF_PARITY for fence in snippets(document))


@pytest.fixture
def elnino_csv(folder):
    """A seasonal series with the columns of the file that the documents forecast."""
    random = np.random.default_rng(0)
    month = np.arange(732)
    values = 23 + 3 * np.sin(2 * np.pi * month / 12) + random.normal(0, 0.3, month.size)
    rows = [f"{1950 + m // 12},{m % 12 + 1},{v:.2f}" for m, v in zip(month, values, strict=True)]
    (folder / "elnino.csv").write_text("\n".join(["year,month,temperature", *rows]) + "\n")


@pytest.fixture
def runs_csv(folder):
    """Runs of a machine with the columns of the file that docs/command-line.md makes."""
    random = np.random.default_rng(0)
    lines = ["run,vibration,current,tool,wear"]
    for run in range(60):
        level = random.normal(run % 3, 0.1, size=5 + run % 4)
        tool = "worn" if run % 3 else "good"
        lines += [f"{run},{value:.3f},{-value:.3f},{tool},{run % 3}" for value in level]
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("folder", "restore_threads")
@pytest.mark.parametrize("document", named(filter(snippets, DOCUMENTS)))
def test_python(document):
    run_snippets(document, leave_out=IMPORTS_OF_PARITY | IMPORTS_OF_OTHERS)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Keras and PyTorch
@pytest.mark.usefixtures("folder", "restore_threads")
@pytest.mark.parametrize("document", named(filter(needs_torch, DOCUMENTS)))
def test_python_with_torch(document):
    for name in IMPORTS_OF_PARITY & {n for fence in snippets(document) for n in fence.imports}:
        pytest.importorskip(name)
    run_snippets(document, leave_out=IMPORTS_OF_OTHERS)


@pytest.fixture
def model_file(folder):
    """The model that the documents inspect and convert."""
    model = fastgates.Sequential(fastgates.LSTM(2, 3, seed=0), fastgates.Dense(3, 1, seed=1))
    fastgates.save(model, folder / "model.safetensors")


@pytest.fixture
def documents(folder, monkeypatch):
    """Copies of the documents that a command writes into; and no peers."""
    for name in ("bench", "docs"):
        (folder / name).mkdir()
    for name in ("README.md", "bench/README.md"):
        shutil.copy(ROOT / name, folder / name)
    monkeypatch.setattr(peers, "PEERS", ())


@pytest.mark.usefixtures("elnino_csv", "runs_csv", "model_file", "documents")
@pytest.mark.parametrize("document", named(filter(commands, DOCUMENTS)))
def test_commands(document, capsys):
    for arguments in commands(document):
        measures = "--from" not in arguments  # of `bench`
        quick = [*arguments, *(QUICK.get(arguments[0], []) if measures else [])]
        assert main(quick) == 0, f"{shlex.join(arguments)}\n{capsys.readouterr().err}"


def test_the_cell_is_the_one_that_is_tested():
    quoted = [fence.text for fence in snippets(ROOT / "docs" / "adding-a-cell.md")]
    assert toy_source() in quoted, "docs/adding-a-cell.md must quote tests/toy_cell.py whole"


def anchors(document):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", named(DOCUMENTS))
def test_links(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{target}: there is no such heading"


@pytest.mark.parametrize("document", named(DOCUMENTS))
def test_extras_exist(document):
    with open(ROOT / "pyproject.toml", "rb") as file:
        known = tomllib.load(file)["project"]["optional-dependencies"]
    for extras in re.findall(r"'(?:\.|fastgates)\[([\w,]+)\]'", document.read_text("utf-8")):
        assert set(extras.split(",")) <= set(known)
