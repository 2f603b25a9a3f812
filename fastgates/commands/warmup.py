"""The command ``fastgates warmup``."""

from __future__ import annotations

import argparse
import sys

from fastgates.commands._shared import fail

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's name and options."""
    parser = commands.add_parser(
        "warmup",
        help="compile cells into the disk cache, for container images and clusters",
        description="Compile cells now, so that no later process on this type of machine has to. "
        "Exits with 2 when nothing can be kept on disk.",
    )
    parser.add_argument(
        "--cells", type=_cell_list, metavar="A,B",
        help="names such as gru, gru_reset_after, lstm, simplified_gru, rnn; "
        "default: all but those whose functions are chosen by options",
    )  # fmt: skip
    parser.add_argument(
        "--inference-only", action="store_true", help="leave out what only training needs"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    import fastgates
    from fastgates._compile import WarmupError, checked_names

    try:
        cells = checked_names(arguments.cells)
        with tqdm(
            total=len(cells), unit=" cells", leave=False, disable=not sys.stderr.isatty()
        ) as bar:
            bar.set_description("compiling")

            def advance(name: str) -> None:
                bar.set_postfix_str(f"{name} done", refresh=False)
                bar.update()

            done = fastgates.warmup(cells, not arguments.inference_only, progress=advance)
    except (ValueError, WarmupError) as error:
        return fail(error, 2)
    what = "inference and training" if done.training else "inference"
    print(
        f"{', '.join(done.cells)}: ready for {what}\n"
        f"{done.compiled} kernels compiled in {done.seconds:.1f} s\n"
        f"cache: {done.directory} ({done.size / 2**20:.1f} MiB)"
    )
    return 0


def _cell_list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
