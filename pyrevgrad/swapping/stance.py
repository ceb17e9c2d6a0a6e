"""The stance of torch.compile while a swapped model runs: what the model compiles itself runs too,
uncompiled, where the swap sees each call. Imports torch.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch

_lock = threading.Lock()
_holders = 0
_held: Any = None


class uncompiled:
    """A block in which PyTorch compiles nothing in any thread.

    Not where a compiler runs this block itself, which may not change its stance, and whom the swap
    refuses; nor before anything was compiled, since PyTorch takes a second to import its compiler.
    """

    def __enter__(self) -> None:
        global _holders, _held
        self._holds = "torch._dynamo" in sys.modules and not _inside_compiler()
        if not self._holds:
            return
        with _lock:
            if not _holders:
                _held = torch.compiler.set_stance("force_eager")
            _holders += 1

    def __exit__(self, *_: object) -> None:
        global _holders, _held
        if not self._holds:
            return
        with _lock:
            _holders -= 1
            # One that the user took since then stays.
            if not _holders and torch._dynamo.eval_frame._stance is _held.stance:
                _held.__exit__(None, None, None)


def _inside_compiler() -> bool:
    return torch._C._dynamo.eval_frame.get_eval_frame_callback() not in (None, False)
