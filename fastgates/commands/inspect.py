"""The command ``fastgates inspect``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "inspect",
        help="show what is in a model's file",
        description="Show a model's layers, their shapes, options and numbers of parameters, and a "
        "digest of all of it. The file may be of any format that convert reads.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import json

    from fastgates import files
    from fastgates._parameters import Module
    from fastgates.interchange import formats
    from fastgates.sequential import Sequential

    lines: list[tuple[str, str]] = [("file", arguments.file)]
    model: Any = None
    if arguments.file.endswith(".safetensors"):
        found = files.read_header(arguments.file)
        model = files.load(arguments.file)
        lines.append(("format", f"{found.kind.name} {found.version}"))
        proven = "by its reference output" if found.reference is not None else "it has no reference"
        lines.append(("verified", proven))
        if found.kind.summary is not None:
            lines += found.kind.summary(found.header)
        record, tensors, header = found.header.get("record"), found.tensors, found.header
    else:
        model = formats.read(arguments.file)
        record, tensors, header = None, model.state_dict(), {"model": files.describe(model)}
    if not isinstance(model, Module) and hasattr(model, "to_sequential"):
        model = model.to_sequential()
    if isinstance(model, Sequential):
        lines.append(("output", f"of {'every' if model.return_sequences else 'the last'} step"))
    lines.append(("digest", f"sha256 {files.digest(tensors, header)}"))
    width = max(8, *(len(name) for name, _ in lines)) + 2
    for name, text in lines:
        print(f"{name:<{width}}{text}")
    if isinstance(model, Module):
        print()
        _print_table(
            ("layer", "features", "parameters", "options"),
            [
                (row.kind, f"{row.input_size} -> {row.output_size}", f"{row.parameters:,}",
                 row.options)
                for row in files.summarize(model)
            ],
        )  # fmt: skip
    count = sum(tensor.size for tensor in tensors.values())
    print(f"\n{count:,} numbers in {len(tensors)} tensors")
    if arguments.tensors:
        _print_table(
            ("tensor", "shape"),
            [(name, " x ".join(map(str, tensor.shape))) for name, tensor in tensors.items()],
        )
    if record is not None:
        print(f"\n{'record':<{width}}{json.dumps(record, sort_keys=True)}")
    return 0


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    for row in (head, *rows):
        cells = [
            text.rjust(width) if name == "parameters" else text.ljust(width)
            for name, text, width in zip(head, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())
