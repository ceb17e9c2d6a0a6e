"""The same work in several places of memory, of which every round takes the next.

Imports the standard library only. On which pages buffers lie, and how to each other, makes a copy
of the same bytes up to half as fast again in the caches; one place for all rounds would time its
luck, and no interval over the rounds would tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Generic, TypeVar

Work = TypeVar("Work")

#: As many places as rounds visit, and the bytes that all of them may take. What does not fit the
#: caches is read from memory wherever it lies.
_MOST, _BYTES = 8, 1 << 26


def places(nbytes: int) -> int:
    """How many sets of buffers of `nbytes` each are made.

    Examples
    --------
    >>> [places(1 << power) for power in (10, 23, 25, 28)]
    [8, 8, 2, 1]
    """
    return max(1, min(_MOST, _BYTES // nbytes))


class Turns(Generic[Work]):
    """One thing after another, round and round.

    Examples
    --------
    >>> turns = Turns("ab")
    >>> found = [turns.now]
    >>> for _ in range(2):
    ...     turns.next()
    ...     found.append(turns.now)
    >>> found
    ['a', 'b', 'a']
    """

    def __init__(self, each: Sequence[Work]) -> None:
        self._each = itertools.cycle(each)
        self.next()

    def next(self) -> None:
        """Take the next as `now`."""
        self.now = next(self._each)
