"""What the examples share: the option --quick, and a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence


def arguments(description: str, given: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``--quick``, ``--plot`` and ``--seed``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few epochs, to see that it runs")
    parser.add_argument("--plot", metavar="FILE.png", help="a picture, with matplotlib")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    return parser.parse_args(given)


def print_table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    """Print numbers by row and column."""
    width = max(map(len, [title, *rows]))
    print(f"{title:<{width}}" + "".join(f"{name:>12}" for name in columns))
    for name, values in rows.items():
        print(f"{name:<{width}}" + "".join(f"{value:12.4g}" for value in values))
    print()


def progress() -> bool:
    """Tell whether a progress bar can be seen."""
    return sys.stderr.isatty()
