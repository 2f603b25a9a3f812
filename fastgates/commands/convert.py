"""The command ``fastgates convert``."""

from __future__ import annotations

import argparse

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "convert",
        help="bring a model from one format to another",
        description="Bring a model from one format to another, by their suffixes: .safetensors "
        "(fastgates), .pt (weights of PyTorch), .keras and .weights.h5 (Keras 3), .onnx, .json "
        "(RTNeural). What the other side cannot express is refused by its name.",
    )
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument(
        "--nonlinearity",
        choices=("tanh", "relu"),
        help="of an RNN in a .pt file, which does not say it",
    )
    parser.add_argument(
        "--last",
        action="store_true",
        help="of weights alone (.pt, .weights.h5): the model gives its last output only",
    )
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="write an ONNX model of one step, with its states as inputs and outputs",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from fastgates.interchange import formats

    options = {}
    if arguments.nonlinearity is not None:
        options["nonlinearity"] = arguments.nonlinearity
    if arguments.last:
        options["return_sequences"] = False
    model = formats.read(arguments.source, **options)
    formats.write(model, arguments.target, **({"streaming": True} if arguments.streaming else {}))
    if hasattr(model, "to_sequential") and not str(arguments.target).endswith(".safetensors"):
        model = model.to_sequential()  # what other files hold of it
    print(f"{arguments.target}: {model!r}")
    return 0
