"""The command line: `crisscross demo`, `doctor`, `bench` and `tune`.

Nothing here imports an optional dependency; those of a command are imported when it runs.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from crisscross.cli.arguments import build_parser
from crisscross.cli.errors import CommandError
from crisscross.errors import MissingDependencyError

__all__ = ["main"]

_INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `crisscross` command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the command's name; those of the process by default.

    Returns
    -------
    int
        The exit code: 0, 1 when the command failed, 2 for wrong usage, 130 when interrupted.

    Examples
    --------
    >>> from crisscross.cli import main
    >>> main(["--version"])
    crisscross 0.1.0
    0
    """
    parser = build_parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
        # The command's own arguments, which the record of a benchmark quotes.
        arguments.given = list(sys.argv[1:] if argv is None else argv)[1:]
    except SystemExit as stop:  # argparse has printed what there is to say
        return int(stop.code or 0)
    name = " ".join(filter(None, [parser.prog, arguments.command]))
    if unknown:
        return _fail(name, f"unknown arguments: {' '.join(unknown)}; see {name} --help", code=2)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        _run(arguments)
        sys.stdout.flush()
    except (CommandError, MissingDependencyError) as error:
        return _fail(name, str(error))
    except MemoryError:
        smaller = "--max-side" if arguments.command == "demo" else "--shape"
        return _fail(name, f"not enough memory: a smaller {smaller} needs less")
    except KeyboardInterrupt:
        return _fail(name, "interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has left; the interpreter must not try to flush to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of the terminal or the pipe; those of files are told before
        return _fail(name, f"cannot print: {error.strerror or error}")
    return 0


def _run(arguments: Namespace) -> None:
    if arguments.command == "doctor":
        from crisscross.cli.doctor import report

        print(report())
        return
    try:
        if arguments.command == "bench":
            from crisscross.cli.bench import run
        elif arguments.command == "tune":
            from crisscross.cli.tune import run
        else:
            from crisscross.cli.demo import run
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        extra = "demo" if arguments.command == "demo" else "bench"
        raise MissingDependencyError(
            f"{package} is not installed: pip install 'crisscross-attention[{extra}]'"
        ) from error
    run(arguments)


def _fail(name: str, message: str, code: int = 1) -> int:
    # A message may quote an error of the system or of Pillow, which may have several lines.
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code
