"""The PTX of the CUDA kernels, run without a device: every kernel, against the float64 formulas.

nvcc's PTX runs in the interpreter of ptx.py with the parameters that csrc/cuda/table.h launches it
with, told by cuda_launches.cpp: the addresses, the shuffle, the packed masks and the approximate
instructions are the compiler's. Arrays end where they end, so that an access beyond is an error. It
may import the package, grids.py and oracle.py.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import ptx
import pytest
import torch
from built import CUDA_LIBRARY, not_built, output
from grids import (
    DTYPES,
    WHOLE,
    array,
    assert_gradient,
    assert_value,
    grid,
    same_bits,
)
from oracle import (
    FORMULAS,
    SELECTS,
    expected_gradient,
    rule_and_spec,
)
from test_kernels import PARAMETERS, RULE_NAMES

from pyrevgrad import backends, reverse
from pyrevgrad.rules import EXACT

#: In the order of csrc/cpu/storage.h.
NAMES = ("float32", "float64", "bfloat16", "float16")
THREADS = 256
#: Elements that a block takes at most, and some more that are no whole share.
TILES, REST = (4096, 2048, 8192, 8192), 109


class Placement(NamedTuple):
    """Whole tiles before the rest, and by how many elements input, kept and output start off."""

    tiles: int
    off: tuple[int, int, int]
    in_place: bool = False


#: Those of each kernel's launches; with PYREVGRAD_EXHAUSTIVE every rule's call is launched.
PLACEMENTS = (
    Placement(1, (0, 0, 0)),
    Placement(0, (1, 0, 3)),
    Placement(0, (0, 1, 0)),
    Placement(0, (5, 5, 5), True),
)
EXHAUSTIVE = bool(os.environ.get("PYREVGRAD_EXHAUSTIVE"))


class Launch(ctypes.Structure):
    """As in cuda_launches.cpp."""

    _fields_ = (
        ("name", ctypes.c_char * 512),
        ("body", ctypes.c_ubyte * 256),
        ("body_size", ctypes.c_int64),
        ("arrays", ctypes.c_ubyte * 48),
        ("blocks", ctypes.c_int64),
    )


class Device:
    """The kernels' PTX, by dtype and name, and what tells of a call which one is launched."""

    def __init__(self, folder: Path) -> None:
        texts = [(folder / f"{name}.ptx").read_text() for name in NAMES]
        self.kernels = [ptx.kernels(text) for text in texts]
        self._tell = ctypes.CDLL(str(folder / "launches.so")).launch_of
        self._tell.restype = ctypes.c_char_p
        self.known = "release 13.0" in (folder / "version").read_text()

    def launched(self, pair, dtype, forward, addresses, size, scale_dtype=0):
        """(The kernel, its arguments, the blocks) of a call; see `Call` for the addresses."""
        told, code, program = Launch(), DTYPES.index(dtype), pair.program.tolist()
        problem = self._tell(
            (ctypes.c_double * len(program))(*program), code, int(forward),
            (ctypes.c_uint64 * 5)(*addresses), ctypes.c_int64(size), scale_dtype,
            ctypes.byref(told),
        )  # fmt: skip
        assert problem is None, problem
        arguments = [bytes(told.body[: told.body_size]), bytes(told.arrays)]
        return self.kernels[code][told.name.decode()], arguments, told.blocks


@pytest.fixture(scope="module")
def device(repository) -> Device:
    """Compiled anew only where csrc or the launcher has changed."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = next(filter(None, map(shutil.which, ("nvcc", f"{home}/bin/nvcc"))), None)
    if nvcc is None or not CUDA_LIBRARY.is_file():
        pytest.skip("no nvcc, or no CUDA library in this checkout")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or backends.native() is None:
        not_built("there is no compiler, or the native library was not built in this checkout")
    launcher = repository / "tests" / "cuda_launches.cpp"
    sources = sorted(path for path in (repository / "csrc").rglob("*") if path.is_file())
    version = output(nvcc, "--version")
    digest = hashlib.sha256(version.encode())
    for path in (launcher, *sources):
        digest.update(path.read_bytes())
    folder = repository / "build" / "cuda_ptx"
    folder.mkdir(parents=True, exist_ok=True)
    # Other processes of the tests wait for the first.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = folder / "digest"
        if not told.is_file() or told.read_text() != digest.hexdigest():
            told.unlink(missing_ok=True)
            compile_into(folder, nvcc, compiler, repository)
            (folder / "version").write_text(version)
            told.write_text(digest.hexdigest())
    return Device(folder)


def compile_into(folder: Path, nvcc: str, compiler: str, repository: Path) -> None:
    headers = Path(sys.modules["torch"].__file__).parent / "include"
    words = ("-std=c++17", "-isystem", headers)
    commands = [
        (nvcc, *words, "-O3", "-fmad=false", "-arch=sm_90", "-ptx",
         repository / "csrc" / "cuda" / f"kernels_{name}.cu", "-o", folder / f"{name}.ptx")
        for name in NAMES
    ]  # fmt: skip
    source, library = repository / "tests" / "cuda_launches.cpp", folder / "launches.so"
    commands.append((compiler, *words, "-O0", "-fPIC", "-shared", source, "-ldl", "-o", library))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: output(*command), commands))


def stored(tensor) -> bytes:
    return tensor.contiguous().view(WHOLE[tensor.itemsize]).numpy().tobytes()


class Call:
    """Arrays in the device's memory for one call of a pair, forward or backward."""

    def __init__(self, pair, forward, given, kept, placement):
        self.pair, self.forward, self.given = pair, forward, given
        self.memory, dtype = ptx.Memory(), given.dtype
        input_off, kept_off, output_off = (count * dtype.itemsize for count in placement.off)
        self.mask_size = (len(given) + 7) // 8
        if placement.in_place:
            source = self.output = self.memory.put(stored(given), ptx.READ | ptx.WRITE, input_off)
        else:
            source = self.memory.put(stored(given), ptx.READ, input_off)
            self.output = self.memory.put(bytes(len(stored(given))), ptx.WRITE, output_off)
        kept_at = self.mask = 0
        if pair.keeps == "mask":
            bits = bytes(self.mask_size) if forward else kept.numpy().tobytes()
            self.mask = self.memory.put(bits, ptx.WRITE if forward else ptx.READ)
        elif kept is not None and not forward:
            kept_at = self.memory.put(stored(kept), ptx.READ, kept_off)
        self.addresses = [source, kept_at, self.output, self.mask, 0]

    def launched(self, device, scale_dtype=0):
        dtype, size = self.given.dtype, len(self.given)
        return device.launched(self.pair, dtype, self.forward, self.addresses, size, scale_dtype)

    def run(self, kernel, arguments, blocks, threads=THREADS, known=True):
        """(The result, the mask's bytes) of a launch; `known`: the compiler is of our version."""
        try:
            ptx.run(kernel, arguments, blocks, threads, self.memory)
        except ptx.Unread as error:
            if known:
                raise
            pytest.skip(f"the interpreter does not read {error}, of another compiler")
        dtype, size = self.given.dtype, len(self.given)
        held = bytearray(self.memory.get(self.output, size * dtype.itemsize))
        return torch.frombuffer(held, dtype=dtype), self.memory.get(self.mask, self.mask_size)


def pair_of(name, rule, dtype, params=None):
    pairs = backends.Pairs(name, rule, params or {})
    return pairs.half if dtype.itemsize == 2 else pairs.full


def forward_of(x, pair):
    """(y, what is kept) by the CPU's kernels."""
    native = backends.native()
    if pair.keeps == "mask":
        return native.value_and_mask(x, pair)
    y = native.value(x, pair)
    return y, {"output": y, "input": x}.get(pair.keeps)


@functools.cache
def data(dtype, huge, size):
    return tuple(part.repeat(size // len(part) + 1)[:size] for part in grid(dtype, huge))


def check(device, name, params, rule_name, dtype, forward, placement):
    """One launch against the formulas; what only selects and scales has the CPU's bits."""
    rule, spec = rule_and_spec(rule_name)
    pair = pair_of(name, rule, dtype, params)
    size = placement.tiles * TILES[DTYPES.index(dtype)] + REST
    x, g = data(dtype, name in SELECTS, size)
    y, kept = forward_of(x, pair)
    if rule.gradient_gate == "output" and not forward:
        # The gate asks for y as the device returns it, which may be off by a place or flushed.
        call = Call(pair, True, x, None, PLACEMENTS[0])
        y, _ = call.run(*call.launched(device), known=device.known)
        kept = y if pair.keeps == "output" else kept
    call = Call(pair, forward, x if forward else g, kept, placement)
    found, mask = call.run(*call.launched(device), known=device.known)
    about = f"of {name} under {rule} in {dtype} at {placement}"
    if forward:
        assert_value(found, x, name, params)
        assert pair.keeps != "mask" or mask == kept.numpy().tobytes(), f"the mask {about}"
        wanted = y
    else:
        columns = {"x": array(x), "g": array(g), "y": array(y)}
        numbers = expected_gradient(name, spec, dtype, *columns.values(), params)
        assert_gradient(found, numbers, about, **columns)
        wanted = backends.native().backward(g, kept, pair, None)
    assert name not in SELECTS or same_bits(found, wanted), f"the bits {about}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kernel_gives_the_oracle_s_numbers(device, dtype):
    runs: Counter[str] = Counter()
    for name, params in [*((name, {}) for name in FORMULAS), *PARAMETERS]:
        for rule_name in RULE_NAMES:
            pair = pair_of(name, rule_and_spec(rule_name)[0], dtype, params)
            for forward in (True, False):
                addresses = (16, 16, 16, 16 * (pair.keeps == "mask"), 0)
                kernel, _, _ = device.launched(pair, dtype, forward, addresses, 1)
                if EXHAUSTIVE or runs[kernel.name] < len(PLACEMENTS):
                    placement = PLACEMENTS[runs[kernel.name] % len(PLACEMENTS)]
                    check(device, name, params, rule_name, dtype, forward, placement)
                    runs[kernel.name] += 1
    # What is left are the plain gradients by what no plan of theirs keeps.
    left = device.kernels[DTYPES.index(dtype)].keys() - runs.keys()
    assert len(left) <= 7 and all("Backward" in name and "Lb1E" in name for name in left)


@pytest.mark.parametrize("scale_dtype", range(len(NAMES)), ids=NAMES)
def test_scale_is_read_from_the_device(device, scale_dtype):
    """−0.375, a number of every dtype, times the number that the rule has of its own."""
    scale = torch.tensor([-0.375], dtype=DTYPES[scale_dtype])
    for dtype in DTYPES:
        x, g = data(dtype, True, REST)
        for name in ("relu", "identity"):
            pair, scaled = (pair_of(name, EXACT.scaled(by), dtype) for by in (4.0, -1.5))
            _, kept = forward_of(x, pair)
            call = Call(pair, False, g, kept, PLACEMENTS[0])
            call.addresses[4] = call.memory.put(stored(scale), ptx.READ)
            found, _ = call.run(*call.launched(device, scale_dtype), known=device.known)
            assert same_bits(found, backends.native().backward(g, kept, scaled, None))


def test_interpreter_tells_what_a_device_would_not_forgive(device):
    """An array that is short, a start that is said to be aligned, and no shuffle."""
    x, _ = data(torch.float32, True, REST)
    pair = pair_of("relu", reverse(0.5), torch.float32)

    def call(given=x, placement=PLACEMENTS[0]):
        made = Call(pair, True, given, None, placement)
        made.given = x
        return made

    right = call()
    value, mask = right.run(*right.launched(device), known=device.known)
    assert same_bits(value, forward_of(x, pair)[0])
    for given, said in ((x[:-1], "a load beyond its array"), (x[:0], "a load beyond its array")):
        short = call(given)
        with pytest.raises(ptx.Fault, match=said):
            short.run(*short.launched(device))
    moved = call(placement=Placement(0, (1, 0, 0)))
    kernel, (body, arrays), blocks = moved.launched(device)
    with pytest.raises(ptx.Fault, match="an access of 16 bytes is misaligned"):
        moved.run(kernel, [body, arrays[:40] + b"\1" + arrays[41:]], blocks)
    still = call()
    kernel, arguments, blocks = still.launched(device)
    shuffles = [given for given in kernel.instructions if given.operation.startswith("shfl")]
    assert shuffles
    apart = [
        ptx.Instruction("mov.b32", (given.operands[0].partition("|")[0], given.operands[1]))
        if given in shuffles else given
        for given in kernel.instructions
    ]  # fmt: skip
    alone = ptx.Kernel(kernel.name, kernel.parameters, apart, kernel.labels)
    assert still.run(alone, arguments, blocks)[1] != mask
