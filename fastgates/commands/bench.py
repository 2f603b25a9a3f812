"""The command ``fastgates bench``, which lives in ``fastgates.benchmark``."""

from __future__ import annotations

import argparse

from fastgates.benchmark import command

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "bench",
        help="measure speed, against this machine's limits and other packages",
        description="Measure fastgates on one core: its share of the peak of fused multiply-adds, "
        "and with --peers the same work in other packages. bench/README.md has the method.",
    )
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)
