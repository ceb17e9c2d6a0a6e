"""Which backend serves a tensor: a strict choice where one is named, the fastest elsewhere.

Imports the tables, pairs and the backends; knows nothing of autograd.
"""

from __future__ import annotations

import copy
import functools
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import triton_backend
from .activations import ACTIVATIONS, CUSTOM, MASK, Activation, find
from .binding import CURE
from .checks import closest
from .pairs import Pair, make_pair
from .reference_backend import REFERENCE, Reference
from .rules import Rule, check_rule

NAMES = ("native", "triton", "reference")
HALF_TYPES = (torch.float16, torch.bfloat16)
BUILD_REPORT = Path(__file__).with_name("_build_report.txt")


class BackendError(RuntimeError):
    """A backend that was asked for is not there, or does not serve what it was given."""


class ValueOf:
    """Another backend whose values are a given function's: PyTorch's own, bit for bit."""

    def __init__(self, function: Callable[[Tensor], Tensor], inner: Any) -> None:
        self.name, self.backward = inner.name, inner.backward
        self.unpacked, self.mask_strides = inner.unpacked, inner.mask_strides
        self._function, self._inner = function, inner

    def value(self, x: Tensor, pair: Pair) -> Tensor:
        return self._function(x)

    def value_and_mask(self, x: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
        like, mask = self._inner.value_and_mask(x, _gate_alone(pair))
        y = self._function(x)
        # The mask is laid out as `like` is, and backward reads it by the strides of y.
        return (y if y.stride() == like.stride() else like.copy_(y)), mask

    def value_(self, x: Tensor, pair: Pair) -> None:
        x.copy_(self._function(x))

    def value_and_mask_(self, x: Tensor, pair: Pair) -> Tensor:
        y = self._function(x)
        mask = self._inner.value_and_mask_(x, _gate_alone(pair))
        x.copy_(y)
        return mask


def _gate_alone(pair: Pair) -> Pair:
    """A pair with the mask of `pair` that is cheaper to compute, if there is one."""
    return pair if pair.bit == "own" else _pair(ACTIVATIONS["identity"], (), pair.rule, False)


_native: Any = None
_native_missing = ""


def _load_native() -> None:
    global _native, _native_missing
    if os.environ.get("PYREVGRAD_DISABLE_NATIVE", "") not in ("", "0"):
        _native_missing = "PYREVGRAD_DISABLE_NATIVE is set. Cure: unset it."
        return
    try:
        _native = importlib.import_module("pyrevgrad.native").Native()
    except ImportError as error:
        report = BUILD_REPORT.read_text().strip() if BUILD_REPORT.exists() else ""
        _native_missing = report or (
            f"the compiled library did not load ({error}). Cure: with a C++ compiler, run {CURE}."
        )


_load_native()


@functools.lru_cache(maxsize=4096)
def _pair(row: Activation, digits: tuple[str, ...], rule: Rule, half: bool) -> Pair:
    # Kept by the numbers' digits: 0.0 equals -0.0.
    pair = make_pair(row, tuple(map(float.fromhex, digits)), rule, half)
    if _native is not None:
        pair.program = _native.program(pair)
    return pair


def _handles(*pairs: Pair) -> tuple[Any, ...]:
    """The pairs as csrc/autograd.cpp reads them; empty where native does not serve them."""
    if any(pair.program is None for pair in pairs):
        return ()
    return tuple((pair.program, pair.exact, pair.passes_through, pair) for pair in pairs)


class Pairs:
    """An activation with a rule, at full width and for half types, and the tensor scale."""

    __slots__ = ("full", "given", "half", "handles", "rule", "tensor")

    def __init__(self, name: str, rule: Rule, params: dict[str, Any]) -> None:
        row = find(name)
        digits = tuple(map(float.hex, row.resolve(params)))
        self.given = params
        self.rule = check_rule(rule)
        self.tensor = rule.tensor
        bare = rule if rule.tensor is None else replace(rule, tensor=None)
        self.full = _pair(row, digits, bare, False)
        # What a half type keeps differs for some rows alone.
        self.half = _pair(row, digits, bare, True) if row.input_in_half else self.full
        self.handles = _handles(self.full, self.half)

    def __reduce__(self) -> Any:
        made = _custom_pairs if self.full.row.own_slope else Pairs
        return made, (self.full.row.name, self.rule, self.given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pairs:
        # Not by name, under which another activation may stand since.
        return self.under(copy.deepcopy(self.rule, memo))

    def under(self, rule: Rule) -> Pairs:
        """The same pairs under `rule`, which differs in its tensor scale alone."""
        made = Pairs.__new__(Pairs)
        made.full, made.half, made.given = self.full, self.half, self.given
        made.handles = self.handles
        made.rule, made.tensor = rule, rule.tensor
        return made


def _custom_pairs(name: str, rule: Rule, params: dict[str, Any]) -> Pairs:
    if name not in CUSTOM:
        raise ValueError(f"{name!r} was made by pyrevgrad.custom: make it before this is loaded")
    return Pairs(name, rule, params)


#: At so many, all are let go: what is used still is made anew once, and not at every call.
MOST_KEPT = 4096
_PAIRS: dict[tuple[Any, ...], Pairs] = {}


def forget(name: str) -> None:
    """Make the pairs of the activation `name` anew when they are next asked for."""
    for key in list(_PAIRS):
        if key[0] == name:
            _PAIRS.pop(key, None)
    forget_compiled()


def forget_compiled() -> None:
    """Compile anew what holds pairs or formulas as constants, which torch.compile does not see."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def pairs_of(name: str, rule: Rule, params: dict[str, Any]) -> Pairs:
    """The pairs of a functional call, made once; under torch.compile, a constant of the graph."""
    if torch.compiler.is_compiling():
        pairs = _constant_pairs(name, check_rule(rule).text, tuple(params.items()))
        return pairs if rule.tensor is None else pairs.under(rule)
    return _cached_pairs(name, rule, params)


def _cached_pairs(name: str, rule: Rule, params: dict[str, Any]) -> Pairs:
    key: tuple[Any, ...] = (name, rule)
    try:
        if params:
            # What is equal and not the same: 1 and True, which is no number here; 0.0 and -0.0.
            key += tuple([(name, n, type(n), n or str(n)) for name, n in params.items()])
        return _PAIRS[key]
    except KeyError:
        pairs = Pairs(name, rule, params)
    except (TypeError, ValueError, RuntimeError):
        # No number: it has no hash, or no truth.
        return Pairs(name, rule, params)
    if rule.tensor is None:
        if len(_PAIRS) >= MOST_KEPT:
            _PAIRS.clear()
        _PAIRS[key] = pairs
    return pairs


def _constant_pairs(name: str, rule: str, params: tuple[tuple[str, Any], ...]) -> Pairs:
    return _cached_pairs(name, Rule.from_text(rule), dict(params))


# What torch.compiler.assume_constant_result sets, without importing the compiler for it (1 s).
_constant_pairs._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_name(name: object) -> str:
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}: {closest(name, NAMES)}")
    return str(name)


# One plain global for all threads: a block holds in the threads that a model starts inside it, and
# torch.compile guards on it, which it does for neither a ContextVar nor a threading.local.
_named_by_environment = os.environ.get("PYREVGRAD_BACKEND") or None
_forced = _named_by_environment and _check_name(_named_by_environment)
# The open blocks, outermost first. Each takes out its own entry, in whatever order threads leave.
_blocks: list[list[str]] = []
_blocks_lock = threading.RLock()


def allows_native() -> bool:
    """Whether neither `backend()` nor PYREVGRAD_BACKEND names another backend than native."""
    return _forced is None or _forced == "native"


def forced() -> str | None:
    """The backend named by `backend()` or PYREVGRAD_BACKEND, or None."""
    return _forced


def backend(name: str) -> _Serving:
    """Serve every call inside the block, in all threads, by the backend `name`, or raise.

    What it returns may be entered again, nested and in several threads, and decorates functions.

    Parameters
    ----------
    name : {"native", "triton", "reference"}

    Raises
    ------
    ValueError
        An unknown name.
    BackendError
        The backend is not there; in the block, a call that it does not serve.

    Examples
    --------
    >>> import torch, pyrevgrad
    >>> with pyrevgrad.backend("reference"):
    ...     pyrevgrad.relu(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    _require(_check_name(name))
    return _Serving(name)


def _this_thread() -> int:
    # torch.compile cannot trace the question.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _one_at_a_time() -> AbstractContextManager[Any]:
    # Nor can it trace a lock.
    return nullcontext() if torch.compiler.is_compiling() else _blocks_lock


class _Serving(ContextDecorator):
    """Blocks in which one backend serves, one after the other, nested or in several threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: list[tuple[int, list[str]]] = []

    def __enter__(self) -> None:
        global _forced
        block = [self._name]
        with _one_at_a_time():
            self._open.append((_this_thread(), block))
            _blocks.append(block)
            _forced = self._name

    def __exit__(self, *error: object) -> None:
        global _forced
        # The innermost that this thread has entered; another's only where it has none.
        here = _this_thread()
        with _one_at_a_time():
            own = [entry for entry in self._open if entry[0] == here] or self._open
            _, block = last = own[-1]
            self._open[:] = [entry for entry in self._open if entry is not last]
            _blocks[:] = [other for other in _blocks if other is not block]
            _forced = _blocks[-1][0] if _blocks else _named_by_environment


def _require(name: str) -> None:
    if name == "native" and _native is None:
        raise BackendError(f"backend 'native' was asked for and is not there: {_native_missing}")
    if name == "triton" and triton_backend.load()[0] is None:
        missing = triton_backend.load()[1]
        raise BackendError(f"backend 'triton' was asked for and is not there: {missing}")


def native() -> Any:
    """The native backend, where one is there."""
    return _native


def native_missing() -> str:
    """Why it is not there, and the cure; nothing where it is."""
    return _native_missing


def reference_for_subclass(x: Tensor) -> Reference:
    """The reference, which serves any subclass of Tensor; BackendError where another is forced."""
    if forced() not in (None, "reference"):
        if type(x) in (Tensor, torch.nn.Parameter):
            # No subclass: what torch.compile goes on with after the refusal in its graph.
            raise _refused_compilation()
        raise BackendError(
            f"backend {forced()!r} was asked for and does not serve {type(x).__name__}, a "
            "subclass of torch.Tensor; the reference does"
        )
    return REFERENCE


def reference_for_batches() -> None:
    """Let the reference serve a batch of gradients; BackendError where Triton is forced."""
    if forced() == "triton":
        raise BackendError(
            "backend 'triton' was asked for and does not serve batched gradients (is_grads_batched "
            "or vmap over a backward); the reference does"
        )


_NOT_THE_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))
#: From so many elements a kernel of ours pays for its two calls in compiled code, some 20 µs.
OPAQUE_FROM = 1 << 14


def choose(x: Tensor, pair: Pair) -> Any:
    """The forced backend or BackendError; else native, on CUDA then Triton, then the reference.

    Under torch.compile the reference, for the compiler to fuse; on the CPU native, as an opaque
    operation, where its code would be slow: where only a mask of x would do, which it would store
    as bytes, and of the activations that are `slow_compiled`.
    """
    name = _forced
    if name is not None:
        return _named(x, pair, name)
    if torch.compiler.is_compiling():
        slow = pair.row.slow_compiled and not _known_below(x.numel(), OPAQUE_FROM)
        slow = slow or (pair.keeps == MASK and pair.by_output is None)
        return _native if slow and pair.program is not None and x.is_cpu else REFERENCE
    if pair.program is not None and x.is_cpu:
        return _native
    if x.is_cuda:
        return _choose_on_cuda(x, pair)
    if _native is None:
        _say_once("pyrevgrad runs", _native_missing)
    return REFERENCE


def _known_below(count: int, bound: int) -> bool:
    """Whether that is known without a guard, which would compile anew where a dynamic size crosses
    `bound`."""
    # Not at the top: it brings SymPy, which only compilers need.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(count < bound)


def _choose_on_cuda(x: Tensor, pair: Pair) -> Any:
    problem = _cuda_problem(x, pair)
    if not problem:
        return _native
    found = triton_backend.backend_for(x, pair)
    if found is not None:
        return found
    missing = triton_backend.load()[1]
    _say_once("pyrevgrad runs CUDA tensors", f"{problem} And {missing}" if missing else problem)
    return REFERENCE


def _named(x: Tensor, pair: Pair, name: str) -> Any:
    """The backend `name`, or BackendError where it does not serve `x`."""
    if name == "triton":
        return _choose_triton(x, pair)
    _require(name)
    if name == "reference":
        return REFERENCE
    if pair.program is not None and x.is_cpu:
        return _native
    problem = _cuda_problem(x, pair) if x.is_cuda else ""
    if x.is_cuda and not problem:
        return _native
    served = f"the rule {pair.rule.custom[0]}" if pair.rule.custom else pair.row.name
    raise BackendError(
        f"backend 'native' was asked for and does not serve {served} on "
        f"{x.device.type} tensors{': ' + problem if problem else ''}; "
        "see pyrevgrad.show_config()"
    )


def _cuda_problem(x: Tensor, pair: Pair) -> str:
    """Why native does not serve a CUDA tensor, or nothing."""
    if _native is None:
        return _native_missing
    if pair.program is None:
        lacks = f"the rule {pair.rule.custom[0]}" if pair.rule.custom else pair.row.name
        return f"the native library lacks {lacks}"
    if torch.compiler.is_compiling():
        # No device is asked while a graph is traced; the operation itself says what is wrong.
        return str(_native.cuda_missing)
    return str(_native.cuda_problem(x.get_device()))


@functools.cache
def _say_once(what: str, problem: str) -> None:
    # It points at the line that called us, by way of PyTorch's layers or not.
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"{what} on its reference backend (plain PyTorch): {problem}",
        RuntimeWarning,
        stacklevel=level,
    )


def _refused_compilation() -> BackendError:
    return BackendError(
        f"backend {forced()!r} was asked for and does not serve torch.compile, which fuses the "
        "reference by itself; compile outside the block"
    )


def _choose_triton(x: Tensor, pair: Pair) -> Any:
    if torch.compiler.is_compiling():
        raise _refused_compilation()
    _require("triton")
    refused = triton_backend.refusal(x, pair)
    if refused:
        raise BackendError(f"backend 'triton' was asked for and does not serve {refused}")
    return triton_backend.backend_for(x, pair)
