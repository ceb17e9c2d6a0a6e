"""What a training saves and continues from: weights, optimizer, schedules, random states, history.

Imports torch and NumPy alone. A file is written beside the old one, then takes its place, so that a
crash while saving leaves the old one whole; it holds nothing but tensors, numbers and text.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

FORMAT = 4


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


def check_writable(path: Path) -> None:
    """OSError, before anything is trained, where no file could be written at `path`."""
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint {path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(path)
        with open(partial, "wb"):
            pass
        partial.unlink()
    except OSError as error:
        raise OSError(f"checkpoint {path} cannot be written: {error}") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write(path: Path, content: dict[str, Any]) -> None:
    """Save `content` so that `path` always holds a whole file, and one that can be read.

    Raises
    ------
    ValueError
        It holds something that `read` would refuse; the file of before stays.
    """
    content = {"format": FORMAT, **content}
    _check_readable(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check_readable(path: Path, content: dict[str, Any]) -> None:
    """ValueError where `read` would refuse what is saved; tried without the tensors' values."""
    file = io.BytesIO()
    try:
        torch.save(_emptied(content), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"{named[1]} is none" if named else error
        raise ValueError(
            f"a checkpoint holds tensors, numbers and text, so that {path} could not be read "
            "again: look at what after_epoch adds to its record, and at the state of the "
            f"optimizer and the scheduler ({reason})"
        ) from error


def _emptied(content: Any) -> Any:
    if type(content) in (torch.Tensor, torch.nn.Parameter):
        return torch.empty(0)
    if type(content) in (dict, OrderedDict):
        return {key: _emptied(part) for key, part in content.items()}
    if type(content) in (list, tuple):
        return type(content)(_emptied(part) for part in content)
    return content


def without_numpy(content: Any) -> Any:
    """NumPy's scalars as Python's, in lists and dicts of any depth."""
    if isinstance(content, numpy.generic):
        return content.item()
    if type(content) is dict:
        return {without_numpy(key): without_numpy(part) for key, part in content.items()}
    if type(content) in (list, tuple):
        return type(content)(without_numpy(part) for part in content)
    return content


def read(path: Path) -> dict[str, Any]:
    """Load what `write` saved.

    Raises
    ------
    ValueError
        A file that is none of ours.
    """
    try:
        # On the CPU, where the random states belong; load_state_dict moves the rest.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint that can be read: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} is no checkpoint of pyrevgrad's fit")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} is a checkpoint of another version of pyrevgrad, and cannot be continued "
            f"(format {content['format']}, here {FORMAT})"
        )
    return content
