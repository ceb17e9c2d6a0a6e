"""``python -m pyrevgrad train``: domain adaptation on moons, digits or arrays of one's own."""

from .command import main

__all__ = ["main"]
