"""The command ``fastgates``: its subcommands are the modules of ``fastgates.commands``.

Exit codes: 0 done; 2 the input cannot be used (one line on stderr, nothing is overwritten);
1 training diverged; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fastgates._extras import MissingPackageError
from fastgates._modelfile import ModelFileError
from fastgates._tables import DataError
from fastgates.commands import (
    bench,
    convert,
    demo,
    depth,
    evaluate,
    export,
    fit,
    info,
    inspect,
    predict,
    warmup,
)
from fastgates.commands._shared import fail, with_configuration

__all__ = ["main"]

_COMMANDS = (fit, predict, evaluate, convert, export, inspect, info, bench, demo, depth, warmup)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code.  Wrong usage raises ``SystemExit(2)``, as argparse does.
    """
    parser = _parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(argv)
    try:
        if getattr(arguments, "config", None) is not None:
            arguments = with_configuration(parser, argv, arguments)
        result: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nfastgates: interrupted; no file is half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DataError, ModelFileError, MissingPackageError, OSError, MemoryError) as error:
        return fail(error, 2)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastgates", description="Fast gated recurrent networks: forecast, predict, classify."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
