"""Build, test and measure on a machine with a GPU: python .ci/gpu.py [--quick].

Runs under the Python that has torch >= 2.10, with no network and nothing installed into it: the
package is put into build/gpu/package by pip. Writes bench/results/DEVICE/gpu.json with the device,
the driver, the versions, the commit, what the tests and compute-sanitizer said, and the figures.
Ends with 1 if anything failed, could not run or missed its target. Standard library alone.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
PACKAGE = WORK / "package"
#: What the sanitizer runs: every kind of kernel, head, tail and misaligned start, in minutes.
WATCHED = "neither_on_size or layouts or tensor_scale_gives"
TOOLS = {"memcheck": ("--leak-check", "no"), "racecheck": ()}

ASK = """
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda,
                  "there": torch.cuda.is_available(),
                  "devices": [torch.cuda.get_device_properties(i).name
                              for i in range(torch.cuda.device_count())],
                  "capability": torch.cuda.get_device_capability()
                  if torch.cuda.is_available() else None}))
"""


def said(*command, **options):
    """What a command prints, or None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def survey():
    """The machine, or an exit with a sentence on what it lacks."""
    missing = [name for name in ("torch", "numpy", "pytest", "hypothesis", "pip", "setuptools")
               if importlib.util.find_spec(name) is None]  # fmt: skip
    if missing:
        sys.exit(f"{sys.executable} lacks {', '.join(missing)}; name another by make PYTHON=...")
    answer = said(sys.executable, "-c", ASK)
    found = json.loads(answer) if answer else sys.exit("torch does not import in this Python")
    version = tuple(map(int, re.match(r"(\d+)\.(\d+)", found["torch"]).groups()))
    if version < (2, 10):
        sys.exit(f"make gpu needs torch 2.10 or newer, and this is {found['torch']}")
    if not found["there"]:
        sys.exit("torch sees no CUDA device here; `make test` proves what can be proven without")
    return found


def environment(found):
    """Variables of the build and of what runs from it."""
    major, minor = found["capability"]
    return {
        **os.environ,
        "PYREVGRAD_CUDA": "1",
        "PYREVGRAD_REQUIRE_NATIVE": "1",
        "PYREVGRAD_CUDA_ARCHITECTURES": f"sm_{major}{minor}",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT / "tests"), str(ROOT)]),
    }


def build(variables):
    """Put the package into a folder of its own; exits if the CUDA kernels cannot be built."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation"]
    command += ["--no-deps", "--target", str(PACKAGE), str(ROOT)]
    if subprocess.call(command, env=variables, cwd=ROOT):
        sys.exit("the CUDA kernels could not be built; the reason is above")


def tests(variables, *before, selected=None):
    """pytest's last line over the GPU tests, and whether it passed; under `before` if given."""
    command = [*before, sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(ROOT), "-p", "no:cacheprovider", "-q"]
    # Triton's are run beside the native ones, and left out of the sanitizer's slow selection.
    files = ["test_cuda.py"] if selected else ["test_cuda.py", "test_triton_gpu.py"]
    command += [str(ROOT / "tests" / file) for file in files]
    command += ["-k", selected] if selected else []
    done = subprocess.run(command, env=variables, cwd=PACKAGE, text=True, capture_output=True)
    print(done.stdout + done.stderr, flush=True)
    return outcome(done.stdout + done.stderr, done.returncode)


def outcome(text, status):
    """A run of the tests in a row of the record; passed only if some test ran."""
    summary = re.findall(r"^=*\s*((?:\d+ \w+,? ?)+in [\d.]+s.*?)\s*=*$", text, re.MULTILINE)
    errors = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    counted = [int(first or second) for first, second in errors]
    last = summary[-1] if summary else "no summary"
    passed = status == 0 and re.search(r"\b[1-9]\d* passed", last) is not None
    return {"summary": last, "passed": passed and not any(counted), "errors": sum(counted)}


def sanitized(variables):
    """compute-sanitizer over a part of the tests; a row for each tool."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if tool is None:
        return {name: {"summary": "compute-sanitizer is not installed", "passed": False}
                for name in TOOLS}  # fmt: skip
    # The caching allocator would hide a kernel that reads beyond its tensor.
    bare = {**variables, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return {
        name: tests(bare, tool, "--tool", name, *options, "--error-exitcode", "9", selected=WATCHED)
        for name, options in TOOLS.items()
    }


def measured(variables, quick):
    """The figures of bench.gpu, or None if it failed."""
    file = WORK / "figures.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu", str(file), *(["--quick"] if quick else [])]
    if subprocess.call(command, env=variables, cwd=PACKAGE) or not file.is_file():
        return None
    return json.loads(file.read_text())


def record(found, tested, checked, figures):
    """All of it as one table for the result file."""
    smi = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    nvcc = said(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version") or ""
    changes = said("git", "status", "--porcelain", "--", ".", ":!bench/results")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "devices": found["devices"],
        "driver": smi.splitlines()[0] if smi else None,
        "nvcc": (re.findall(r"release ([\d.]+)", nvcc) or [None])[0],
        "torch": found["torch"],
        "torch_cuda": found["cuda"],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": said("git", "rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "tests": tested,
        "sanitizer": checked,
        **(figures or {"missed": ["the benchmark failed"]}),
    }


def folder_of(device):
    """The folder of a device's results, such as nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"


def failures(run):
    """Why a run is not a success, a sentence each."""
    made = [] if run["tests"]["passed"] else [f"the GPU tests: {run['tests']['summary']}"]
    made += [f"{name}: {row['summary']}" for name, row in run["sanitizer"].items()
             if not row["passed"]]  # fmt: skip
    return made + run["missed"]


def main():
    parser = argparse.ArgumentParser(prog="make gpu")
    parser.add_argument("--quick", action="store_true", help="small tensors, a first look")
    options = parser.parse_args()
    found = survey()
    variables = environment(found)
    build(variables)
    tested = tests(variables)
    checked = sanitized(variables)
    # No speed is told of kernels that give wrong results.
    figures = measured(variables, options.quick) if tested["passed"] else None
    run = record(found, tested, checked, figures)
    folder = WORK if options.quick else ROOT / "bench" / "results" / folder_of(found["devices"][0])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {folder / 'gpu.json'}")
    for sentence in failures(run):
        print(f"failed: {sentence}")
    return 1 if failures(run) else 0


if __name__ == "__main__":
    sys.exit(main())
