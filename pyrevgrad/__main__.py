"""The command line: `python -m pyrevgrad` with info, demo, train, explain or bench.

May import everything public, each command's part only when that command runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__

#: The room whose `main` runs each command, and what the command does.
COMMANDS = {
    "demo": (
        ".demonstration",
        "train on real digits, draw gradient maps, time fused against eager",
    ),
    "train": (".adaptation", "adapt between two domains: moons, digits, or your own arrays"),
    "explain": (".explaining", "draw what a model sees in an image, for your own model"),
    "bench": (".bench.__main__", "what a modified backward costs here, against what others use"),
}


def parser() -> argparse.ArgumentParser:
    """The commands of this version; all but info read what follows them themselves."""
    made = argparse.ArgumentParser(
        prog="python -m pyrevgrad", description="Change what an activation sends back."
    )
    made.add_argument("--version", action="version", version=f"pyrevgrad {__version__}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="print what is built, what would serve which tensor, and why")
    for name, (_, said) in COMMANDS.items():
        commands.add_parser(name, add_help=False, help=f"{said} ({name} --help)")
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
    if options.command in COMMANDS:
        room, _ = COMMANDS[options.command]
        return importlib.import_module(room, __package__).main(rest)
    if rest:
        reader.error(f"{options.command} takes no options, got {' '.join(rest)}")
    from . import show_config

    show_config()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
