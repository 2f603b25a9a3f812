"""The command ``fastgates demo``."""

from __future__ import annotations

import argparse

from fastgates import _extras

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "demo",
        help="the four cells on the sunspot series",
        description="Fit the four cells to the yearly and monthly sunspot numbers that come "
        "with the package, and compare them with persistence and a linear autoregression.",
    )
    parser.add_argument(
        "--plot",
        default="fastgates-demo.png",
        metavar="DEMO.png",
        help="the picture; default: %(default)s, where matplotlib is installed",
    )
    parser.add_argument("--quick", action="store_true", help="one short training for each cell")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from fastgates import _demo

    picture = arguments.plot
    if _extras.version("matplotlib") is None:
        picture = None
    else:
        from fastgates._plots import check_picture

        check_picture(picture)
    result = _demo.run(_demo.QUICK if arguments.quick else _demo.FULL, verbose=True)
    print(_demo.report(result))
    if picture is None:
        print("\nfor a picture: pip install 'fastgates[plot]'")
    else:
        _demo.draw(result, picture)
        print(f"\npicture: {picture}")
    return 0
