"""What a training saves and continues from: weights, optimizer, schedules, random states, history.

Imports torch and NumPy alone. A file is written beside the old one, then takes its place, so that a
crash while saving leaves the old one whole; it holds nothing but tensors, numbers and text.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

FORMAT = 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Python's, NumPy's and torch's random numbers from `seed`; afterwards as they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all generators, as tensors and tuples."""
    # NumPy's versions type it differently.
    drawn: Any = numpy.random.get_state(legacy=True)
    name, keys, *rest = drawn
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), *rest),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue all generators from `state`."""
    torch.set_rng_state(state["torch"].cpu())
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def write(path: Path, content: dict[str, Any]) -> None:
    """Save `content` so that `path` always holds a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Load what `write` saved, for a training with the same `settings`.

    Raises
    ------
    ValueError
        A file that is none of ours, or of a training with other settings.
    """
    try:
        # On the CPU, where the random states belong; load_state_dict moves the rest.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint that can be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of pyrevgrad's fit")
    saved = content["settings"]
    other = [name for name in settings if saved.get(name) != settings[name]]
    if other:
        listed = ", ".join(f"{name} {saved.get(name)!r} (now {settings[name]!r})" for name in other)
        raise ValueError(
            f"{path} is of a training with {listed}: the same training cannot continue"
        )
    return content
