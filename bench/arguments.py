"""What a command's options may be: counts, and places to write, checked before minutes are spent.

Types for argparse, which reports what is wrong. Imports nothing of the suite.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def folder(text: str | Path) -> Path:
    """A folder in which files can be written; it need not be there yet."""
    path = Path(text)
    _check_writable(path, path)
    return path


#: What the suite writes into a folder, and how each begins.
PAGES = {"README.md": "# What a modified backward costs", "TABLES.md": "# Every table"}


def pages_folder(text: str | Path) -> Path:
    """A folder in which files can be written, none of whose pages is another's than the suite's."""
    path = folder(text)
    for name, title in PAGES.items():
        page = path / name
        if page.is_file() and not page.read_text("utf-8", errors="replace").startswith(title):
            raise ArgumentTypeError(f"{page} was not written by the suite; name another folder")
    return path


def file(text: str) -> Path:
    """A file that can be written; its folder need not be there yet."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a folder, not a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise ArgumentTypeError(f"{path} cannot be written")
    if path.is_char_device():
        _check_device(path)
    _check_writable(path, path.parent)
    return path


def _check_device(path: Path) -> None:
    """ArgumentTypeError for a device that opens, and takes nothing."""
    try:
        with path.open("wb", buffering=0) as stream:
            stream.write(b"\n")
    except OSError as error:
        raise ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from None


def _check_writable(path: Path, place: Path) -> None:
    """ArgumentTypeError unless the first folder above that is there takes what is missing."""
    there = place.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ArgumentTypeError(f"{path} cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ArgumentTypeError(f"{path} cannot be written: {there} lets nobody here write")
