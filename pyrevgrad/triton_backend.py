"""The Triton backend as the choice of backends sees it: whether it is there, and what it serves.

Imports the table and pairs; pyrevgrad.kernels, and with it triton, only when first asked.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any

import torch
from torch import Tensor

from .activations import CUSTOM, Activation
from .pairs import Pair

INTERPRETER = (
    "set TRITON_INTERPRET=1 before Python starts to run its kernels on CPU tensors under Triton's "
    "interpreter, for tests: slowly"
)


@functools.cache
def load() -> tuple[Any, str]:
    """(The module of the kernels' backend, "") or (None, why it is not there)."""
    if importlib.util.find_spec("triton") is None:
        return None, "the package triton is not installed. Cure: `pip install triton`."
    try:
        module = importlib.import_module("pyrevgrad.kernels.backend")
    except ImportError as error:
        return None, f"its kernels did not load ({error}). Cure: upgrade triton to 3.6 or newer."
    if module.INTERPRETED != module.LANGUAGE_INTERPRETED:
        return None, (
            "TRITON_INTERPRET changed after triton was imported. Cure: set it before Python starts."
        )
    if module.INTERPRETED:
        return module, ""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None, f"there is no CUDA device. Cure: use a machine that has one, or {INTERPRETER}."
    return module, ""


def interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter."""
    module, _ = load()
    return module is not None and module.INTERPRETED


def backend_for(x: Tensor, pair: Pair) -> Any:
    """The backend where it serves `pair` on the device of `x`; else None."""
    return None if refusal(x, pair) else load()[0].TRITON


def refusal(x: Tensor, pair: Pair) -> str:
    """What it does not serve and why, as the end of a sentence; empty where it serves."""
    if pair.row.own_slope and CUSTOM.get(pair.row.name) is not pair.row:
        return f"{pair.row.name}, which has been replaced since; the reference does"
    return _refusal(pair.row.name, pair.rule.custom[:1], x.device)


@functools.lru_cache(maxsize=4096)
def _refusal(name: str, rule: tuple[str, ...], device: torch.device) -> str:
    module, missing = load()
    if module is None:
        return f"{name}: {missing}"
    if not module.serves(name):
        return f"{name}, which has no Triton functions; the reference does"
    if rule and not module.serves_rule(*rule):
        return f"the rule {rule[0]}, which has no Triton function; the reference does"
    if device.type == "cuda":
        return "" if module.INTERPRETED else _refused_device(module, device)
    if device.type == "cpu":
        return "" if module.INTERPRETED else f"{name} on cpu tensors; {INTERPRETER}"
    return f"{name} on {device.type} tensors; the reference does"


def _refused_device(module: Any, device: torch.device) -> str:
    oldest = module.OLDEST_CAPABILITY
    capability = torch.cuda.get_device_capability(device)
    if capability >= oldest:
        return ""
    found, needed = (".".join(map(str, pair)) for pair in (capability, oldest))
    return (
        f"{torch.cuda.get_device_name(device)} of compute capability {found}: Triton needs "
        f"{needed} or newer; the reference serves any device"
    )


def retire(row: Activation) -> None:
    """Keep the functions of a custom activation, if any, for graphs that were recorded with it."""
    formulas = sys.modules.get("pyrevgrad.kernels.formulas")
    if formulas is not None and row.name in formulas.FORMULAS:
        formulas.REPLACED[row] = formulas.FORMULAS.pop(row.name)
    _refusal.cache_clear()


def add(name: str, value: Any, slope: Any) -> None:
    """Serve a custom activation, slope and value in Triton functions of (x, *parameters)."""
    formulas = importlib.import_module("pyrevgrad.kernels.formulas")
    formulas.FORMULAS[name] = formulas.Formula(value, slope)
    _refusal.cache_clear()


def add_rule(name: str, sent: Any) -> None:
    """Serve a custom rule: a Triton function of (g, what it reads, *parameters)."""
    formulas = importlib.import_module("pyrevgrad.kernels.formulas")
    formulas.RULES[name] = sent
    _refusal.cache_clear()
    backend = sys.modules.get("pyrevgrad.kernels.backend")
    if backend is not None:
        # Which holds the function that stood there before.
        backend.backward_arguments.cache_clear()


def description() -> str:
    """What show_config() says of it."""
    module, missing = load()
    if module is None:
        return f"not in use: {missing}"
    where = "interpreted, serves tensors where asked for" if module.INTERPRETED else "CUDA kernels"
    return f"{importlib.import_module('triton').__version__}; {where}"
