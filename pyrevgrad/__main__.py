"""The command line: `python -m pyrevgrad` with info, demo, train, explain or bench.

May import everything public, each command's part only when that command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__


def parser() -> argparse.ArgumentParser:
    """The commands of this version; all but info read what follows them themselves."""
    made = argparse.ArgumentParser(
        prog="python -m pyrevgrad", description="Change what an activation sends back."
    )
    made.add_argument("--version", action="version", version=f"pyrevgrad {__version__}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="print what is built, what would serve which tensor, and why")
    commands.add_parser(
        "demo",
        add_help=False,
        help="train on real digits, draw gradient maps, time fused against eager (demo --help)",
    )
    commands.add_parser(
        "train",
        add_help=False,
        help="adapt between two domains: moons, digits, or your own arrays (train --help)",
    )
    commands.add_parser(
        "explain",
        add_help=False,
        help="draw what a model sees in an image, for your own model (explain --help)",
    )
    commands.add_parser(
        "bench",
        add_help=False,
        help="what a modified backward costs here, against what others use (bench --help)",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command and its options; those of the process if not given.

    Returns
    -------
    int
        The exit status, 0 if all went well.

    Raises
    ------
    SystemExit
        Status 2 for no command, or for one or an option that does not exist; 0 after ``--help`` and
        ``--version``.
    """
    reader = parser()
    options, rest = reader.parse_known_args(arguments)
    if options.command is None:
        reader.print_help(sys.stderr)
        reader.exit(2, "\nname a COMMAND\n")
    if options.command == "demo":
        from . import demonstration

        return demonstration.main(rest)
    if options.command == "train":
        from . import adaptation

        return adaptation.main(rest)
    if options.command == "explain":
        from . import explaining

        return explaining.main(rest)
    if options.command == "bench":
        from .bench import __main__ as suite

        return suite.main(rest)
    if rest:
        reader.error(f"{options.command} takes no options, got {' '.join(rest)}")
    from . import show_config

    show_config()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
