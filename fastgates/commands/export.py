"""The command ``fastgates export``."""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "export",
        help="write a saved model as C source",
        description="Write a saved model as C99: NAME.h and NAME.c without malloc, globals or "
        "libm, a test that compares with fastgates, and a Makefile.",
    )
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("--to", choices=["c"], default="c", help="default: %(default)s")
    parser.add_argument("--out", required=True, metavar="DIRECTORY")
    parser.add_argument(
        "--name",
        default="model",
        help="what files and functions are called; default: %(default)s",
    )
    parser.add_argument(
        "--scalar",
        action="store_true",
        help="plain C99 for any compiler, in place of GCC's vector extension",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from fastgates import files
    from fastgates._parameters import Module
    from fastgates.commands._shared import fail
    from fastgates.sequential import deployed

    model = files.load(arguments.model)
    try:
        model = deployed(model)
        if not isinstance(model, Module):
            raise TypeError(f"{arguments.model}: {type(model).__name__} has no to_sequential")
        source = model.to_c(arguments.name, scalar=arguments.scalar)
    except (ValueError, TypeError) as error:
        return fail(error, 2)
    source.write(arguments.out)
    print(f"{', '.join(source.files)} in {arguments.out}")
    print(source.report)
    if sys.stdout.isatty():
        print(f"Next: make -C {arguments.out} test")
    return 0
