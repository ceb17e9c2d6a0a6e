"""Attributions take turns on modules that they share: a swap of one holds in all threads.

Imports what lists a model's modules.
"""

from __future__ import annotations

import threading

from torch import nn

from ..swapping.leaving import modules_once

_turn = threading.Condition()
#: The blocks that are entered.
_entered: list[alone] = []


class alone:
    """A block in which no other thread is in such a block of a model that shares a module.

    It gives the model's modules. A thread takes all of them at once, so that no two wait for each
    other's, and may enter again. Neither a generator nor a lock for each module: those made the
    saliency of three layers 3 % slower, and this 0.3 %.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = modules_once(model)

    def __enter__(self) -> list[nn.Module]:
        self.thread = threading.get_ident()
        with _turn:
            while any(map(self._waits_for, _entered)):
                _turn.wait()
            _entered.append(self)
        return self.modules

    def _waits_for(self, other: alone) -> bool:
        return other.thread != self.thread and not set(self.modules).isdisjoint(other.modules)

    def __exit__(self, *_: object) -> None:
        with _turn:
            _entered.remove(self)
            _turn.notify_all()
