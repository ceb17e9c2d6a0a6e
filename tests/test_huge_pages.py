"""Large results of the native kernels lie in huge pages, where Linux gives them to who asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from grids import needs_native
from subprocesses import in_subprocess

MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = [
    needs_native,
    pytest.mark.skipif(
        not (MODES.is_file() and "[madvise]" in MODES.read_text()),
        reason="Linux gives huge pages here to everybody or nobody",
    ),
]

# Which of three results asked: forward, backward, and forward in place.
FOUND = """
import sys, torch, pyrevgrad

def asked(tensor):
    start = tensor.data_ptr()
    inside = False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            first, last = (int(part, 16) for part in words[0].split("-"))
            inside = first <= start < last
        elif inside and words[0] == "VmFlags:":
            return "hg" in words
    raise AssertionError("no such mapping")

torch.set_num_threads(int(sys.argv[3]))
x = torch.ones(int(sys.argv[1]), dtype=getattr(torch, sys.argv[2])).requires_grad_()
y = pyrevgrad.relu(x, pyrevgrad.reverse(0.5))
(gx,) = torch.autograd.grad(y, x, torch.ones_like(y))
assert (y == 1).all() and (gx == -0.5).all()
print(asked(y), asked(gx), asked(pyrevgrad.relu(x.detach(), inplace=True)))
"""


@pytest.mark.parametrize(
    "elements, dtype, threads, setting, wanted",
    [
        (1 << 20, "float32", 1, "", True),
        (1 << 20, "float32", 1, "1", True),
        (1 << 20, "float32", 1, "0", False),
        ((1 << 20) - 1, "float32", 1, "", False),
        (1 << 20, "float32", 2, "", False),
        (1 << 21, "float32", 2, "", True),
        (1 << 21, "float32", 3, "", False),
        (1 << 21, "bfloat16", 1, "", True),
        (1 << 20, "bfloat16", 1, "", False),
        (1 << 19, "float64", 1, "", True),
    ],
)
def test_results_of_four_mebibytes_a_thread_ask(elements, dtype, threads, setting, wanted):
    ended = in_subprocess(
        FOUND, elements, dtype, threads,
        PYREVGRAD_HUGE_PAGES=setting, MALLOC_MMAP_THRESHOLD_="131072", THP_MEM_ALLOC_ENABLE="0",
    )  # fmt: skip
    assert ended.stdout.split() == [str(wanted), str(wanted), "False"], ended.stderr


def test_the_configuration_says_so():
    code = "import pyrevgrad; pyrevgrad.show_config()"
    lines = [in_subprocess(code, PYREVGRAD_HUGE_PAGES=set).stdout for set in ("", "0")]
    assert "kernels; huge pages for results of 4 MiB a thread or more" in lines[0]
    assert "huge pages" not in lines[1]


def test_another_setting_is_an_error():
    ended = in_subprocess("import pyrevgrad", PYREVGRAD_HUGE_PAGES="yes")
    assert ended.returncode != 0
    assert "PYREVGRAD_HUGE_PAGES=yes: 0 leaves large results to the system" in ended.stderr
