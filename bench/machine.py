"""What a figure was measured with: versions, processor, commit; no names of people or hosts.

Imports torch, numpy, pyrevgrad and peers for their versions.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch

import pyrevgrad
from pyrevgrad.configuration import configuration

from . import peers

HERE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """The repository's root; None where the suite is installed, and its commit unknown."""
    root = HERE.parent
    return root if HERE.name == "bench" and (root / "csrc").is_dir() else None


def two_checkouts() -> str | None:
    """Why figures would say nothing of this checkout: pyrevgrad is imported from another one."""
    root, package = checkout(), Path(pyrevgrad.__file__).resolve().parent
    if root is None or package.parent == root or not (package.parent / "csrc").is_dir():
        return None
    return (
        f"the suite is that of {HERE}, and pyrevgrad that of {package}: run `python -m bench` at "
        "the root of one checkout, with PYTHONPATH naming it"
    )


def memory() -> int | None:
    """Bytes of this machine's memory, where it tells."""
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not hasattr(os, "sysconf") or not set(names) <= set(os.sysconf_names):
        return None
    return os.sysconf(names[0]) * os.sysconf(names[1])


def holds(elements: int) -> bool:
    """Whether its memory holds x, g, what is expected of them and what a provider makes, in
    float32; true where it does not tell."""
    needed = elements * 10 * 4
    return needed <= (memory() or needed)


def gives_memory_back() -> bool:
    """Whether this is a virtual machine that reports free memory to its host, which takes it, and
    makes it anew where it is touched: feature 5 of virtio's balloon."""
    found = Path("/sys/bus/virtio/drivers/virtio_balloon").glob("virtio*/features")
    with contextlib.suppress(OSError):
        return any(path.read_text()[5:6] == "1" for path in found)
    return False


def last_cache() -> int:
    """Bytes of the largest cache of a processor; 64 MiB, more than most, where it does not tell."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    try:
        texts = [path.read_text() for path in folder.glob("index*/size")]
    except OSError:
        texts = []
    units = {"K": 1 << 10, "M": 1 << 20}
    found = [re.fullmatch(r"(\d+)([KM])", text.strip()) for text in texts]
    return max((int(one[1]) * units[one[2]] for one in found if one), default=64 << 20)


def where_it_runs(package: str) -> Path | None:
    """The folder that a process of ``python -m package.…`` must start in; None for any.

    The suite is `bench` in the repository, and `pyrevgrad.bench` wherever pyrevgrad is installed.
    """
    return HERE.parent if package == HERE.name else None


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"\[(\w+)\]", text)
    return found.group(1) if found else "unknown"


def _git(*arguments: str) -> str | None:
    if checkout() is None:
        return None
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=checkout(),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def load_average() -> float | None:
    """Processes that wanted to run over the last minute; a quiet machine shows less than 1."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def unquiet(load: float | None) -> str | None:
    """A warning, where the load average at the start was no quiet machine's."""
    if load is None or load <= 0.5:
        return None
    return "The machine was not quiet when this run started: expect noise."


def usable_processors() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Everything a reader needs to judge or repeat the figures."""
    # What a run writes does not make its own measurements dirty.
    changes = _git("status", "--porcelain", "--", ".", ":!bench/results", ":!bench/README.md")
    configured = configuration()
    return {
        "processor": _processor(),
        "processors": usable_processors(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "transparent_huge_pages": _huge_pages(),
        "gives_memory_back": gives_memory_back(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "numpy": numpy.__version__,
        "triton": configured["triton"],
        "peers": peers.versions(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "pyrevgrad": pyrevgrad.__version__,
        "native": configured["native"],
        "autograd": configured["autograd"],
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def device_name(processor: str, processors: int) -> str:
    """The folder of a machine's results.

    Examples
    --------
    >>> device_name("Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", 2)
    'intel-xeon-gold-6130-2-processors'
    """
    text = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", " ", processor.lower())
    return f"{folder_name(text)}-{processors}-processors"


def folder_name(text: str) -> str:
    """A name in small letters, digits and dashes.

    Examples
    --------
    >>> folder_name("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"
