"""One-file models: the same bits back, and one clear line for every damaged file."""

import json
import os

import numpy as np
import pytest

from fastgates import _extras
from fastgates._modelfile import ModelFileError, read_model, require_library, write_model

safetensors_numpy = pytest.importorskip("safetensors.numpy")

KIND = "fastgates.test"
TENSORS = {
    "readout.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "recurrent.bias_ih_l0": np.float32([0.1, -1e-30]),
}
HEADER = {"settings": {"window": 3, "rate": 0.1}, "columns": ["µ", "b"]}


@pytest.fixture
def path(tmp_path):
    write_model(tmp_path / "model.safetensors", KIND, 2, TENSORS, HEADER)
    return tmp_path / "model.safetensors"


def test_round_trip(path):
    tensors, header = read_model(path, KIND, 2)
    assert header == HEADER
    assert sorted(tensors) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], tensor)


def test_any_safetensors_reader_reads_the_weights(path):
    tensors = safetensors_numpy.load_file(path)
    np.testing.assert_array_equal(tensors["readout.weight"], TENSORS["readout.weight"])


def test_same_model_same_bytes(path, tmp_path):
    write_model(tmp_path / "again", KIND, 2, dict(reversed(TENSORS.items())), HEADER)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_views_and_strides_are_written_as_they_read(tmp_path):
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    write_model(tmp_path / "model", KIND, 1, {"a": tensor}, {})
    np.testing.assert_array_equal(read_model(tmp_path / "model", KIND, 1).tensors["a"], tensor)


def test_a_value_json_does_not_know_leaves_what_was_there(path):
    before = path.read_bytes()
    for bad in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_model(path, KIND, 2, TENSORS, {"bad": bad})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def edited(path, change):
    tensors, header = read_model(path, KIND, 2)
    metadata = {"fastgates": {"format": KIND, "format_version": 2, **header}}
    tensors, metadata = dict(tensors), metadata
    change(tensors, metadata)
    text = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    path.write_bytes(safetensors_numpy.save(tensors, metadata=text))


EDITS = {
    "not ours": (lambda t, m: m.clear(), "not written by fastgates"),
    "newer": (
        lambda t, m: m["fastgates"].update(format_version=3),
        r"newer fastgates \(format 3, this one reads up to 2\): pip install --upgrade fastgates",
    ),
    "version is text": (
        lambda t, m: m["fastgates"].update(format_version="2"),
        "format_version must be 1 to 2, got '2'",
    ),
    "other kind": (lambda t, m: m["fastgates"].update(format="x"), "holds a 'x', not a"),
    "no kind": (lambda t, m: m["fastgates"].pop("format"), "header is damaged"),
    "not JSON": (lambda t, m: m.update(fastgates="{"), "header is damaged"),
    "a JSON list": (lambda t, m: m.update(fastgates="[]"), "header is damaged"),
    "float64": (
        lambda t, m: t.update({"readout.weight": np.zeros((2, 3))}),
        "tensor readout.weight must be float32, got float64",
    ),
    "NaN": (
        lambda t, m: t.update({"readout.weight": np.full((2, 3), np.nan, np.float32)}),
        "tensor readout.weight holds NaN or infinite weights",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_files(path, name):
    change, message = EDITS[name]
    edited(path, change)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_model(path, KIND, 2)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 60, 200, -1])
def test_truncated_files(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match="not a safetensors file, or cut short") as caught:
        read_model(path, KIND, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n" * 50, b"PK\x03\x04" * 100, b"\xff" * 64])
def test_other_files(path, content):
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not a safetensors file, or cut short"):
        read_model(path, KIND, 2)


def test_no_file(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        read_model(tmp_path / "absent", KIND, 1)
    with pytest.raises(ModelFileError, match=r"not a safetensors file|cannot be read"):
        read_model(tmp_path, KIND, 1)


def test_without_safetensors(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(_extras.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"needs safetensors: pip install 'fastgates\[files\]'"):
        require_library()


def test_versions_of_optional_packages():
    assert _extras.version("numpy") == np.__version__
    assert _extras.version("no-such-package-at-all") is None
