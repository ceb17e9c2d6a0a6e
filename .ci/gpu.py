"""Build, test and measure on a machine with a GPU: python .ci/gpu.py [--quick] [--only PART].

Runs under the Python that has torch >= 2.10, with no network and nothing installed into it: the
package is put into build/gpu/package by pip. Writes bench/results/DEVICE/gpu.json with the device,
the driver, the versions, the commit, what the tests and compute-sanitizer said, and the figures.
Ends with 1 if anything failed, could not run or missed its target. Where a command may only take
minutes, --only runs one part of it; the last part that is missing writes the file. Standard library
alone.
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
PARTS = ("native", "triton", *TOOLS, "figures")

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


def tests(variables, file, *before, options=()):
    """pytest's last line over one file, and whether it passed; under `before` if given."""
    command = [*before, sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(ROOT), "-p", "no:cacheprovider", "-q", str(ROOT / "tests" / file)]
    # Warnings of a torch that no test has seen are told, and no failure, from the first import on.
    command += ["-W", "default", *options]
    done = subprocess.run(command, env=variables, cwd=PACKAGE, text=True, capture_output=True)
    print(done.stdout + done.stderr, flush=True)
    return outcome(done.stdout + done.stderr, done.returncode)


def compiled_in_parallel():
    """What has pytest share Triton's kernels, whose compilation takes the time, over processes."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", str(min(os.cpu_count() or 1, 12)))


def outcome(text, status):
    """A run of the tests in a row of the record; passed only if some test ran."""
    summary = re.findall(r"^=*\s*((?:\d+ \w+,? ?)+in [\d.]+s.*?)\s*=*$", text, re.MULTILINE)
    errors = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    counted = [int(first or second) for first, second in errors]
    last = summary[-1] if summary else "no summary"
    passed = status == 0 and re.search(r"\b[1-9]\d* passed", last) is not None
    return {"summary": last, "passed": passed and not any(counted), "errors": sum(counted)}


def sanitized(variables, name):
    """One tool of compute-sanitizer over a part of the tests, as a row."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if tool is None:
        return {"summary": "compute-sanitizer is not installed", "passed": False, "errors": 0}
    # The caching allocator would hide a kernel that reads beyond its tensor.
    bare = {**variables, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = (tool, "--tool", name, *TOOLS[name], "--error-exitcode", "9")
    return tests(bare, "test_cuda.py", *command, options=("-k", WATCHED))


def measured(variables, quick):
    """The figures of bench.gpu, or None if it failed."""
    file = WORK / "figures.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu", str(file), *(["--quick"] if quick else [])]
    if subprocess.call(command, env=variables, cwd=PACKAGE) or not file.is_file():
        return None
    return json.loads(file.read_text())


def part_file(name, quick):
    return WORK / f"{name}{'-quick' if quick else ''}.json"


def run_part(name, variables, quick):
    """Run one part and leave what it found, with the commit that it was found for."""
    if name in TOOLS:
        found = sanitized(variables, name)
    elif name == "figures":
        # No speed is told of kernels that give wrong results.
        native = parts_of(quick).get("native")
        found = measured(variables, quick) if native and native["passed"] else None
    else:
        options = compiled_in_parallel() if name == "triton" else ()
        file = {"native": "test_cuda.py", "triton": "test_triton_gpu.py"}[name]
        found = tests(variables, file, options=options)
    kept = {"commit": said("git", "rev-parse", "HEAD"), "found": found}
    part_file(name, quick).write_text(json.dumps(kept))


def parts_of(quick):
    """What each part found, of those that ran for the commit that is checked out."""
    commit, made = said("git", "rev-parse", "HEAD"), {}
    for name in PARTS:
        file = part_file(name, quick)
        kept = json.loads(file.read_text()) if file.is_file() else None
        if kept and kept["commit"] == commit:
            made[name] = kept["found"]
    return made


def record(found, parts):
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
        "tests": {name: parts[name] for name in ("native", "triton")},
        "sanitizer": {name: parts[name] for name in TOOLS},
        **(parts["figures"] or {"missed": ["the benchmark failed, or the tests before it"]}),
    }


def folder_of(device):
    """The folder of a device's results, such as nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"


def failures(run):
    """Why a run is not a success, a sentence each."""
    rows = {f"the tests of {name}": row for name, row in run["tests"].items()} | run["sanitizer"]
    return [f"{what}: {row['summary']}" for what, row in rows.items() if not row["passed"]] + run[
        "missed"
    ]


def main():
    parser = argparse.ArgumentParser(prog="make gpu")
    parser.add_argument("--quick", action="store_true", help="small tensors, a first look")
    parser.add_argument("--only", choices=PARTS, help="build, and run this part alone")
    options = parser.parse_args()
    found = survey()
    variables = environment(found)
    build(variables)
    for name in [options.only] if options.only else PARTS:
        run_part(name, variables, options.quick)
    parts = parts_of(options.quick)
    missing = [name for name in PARTS if name not in parts]
    if missing:
        print(f"still to run: {', '.join(f'--only {name}' for name in missing)}")
        return 0 if (parts[options.only] or {}).get("passed", True) else 1
    run = record(found, parts)
    folder = WORK if options.quick else ROOT / "bench" / "results" / folder_of(found["devices"][0])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {folder / 'gpu.json'}")
    for sentence in failures(run):
        print(f"failed: {sentence}")
    return 1 if failures(run) else 0


if __name__ == "__main__":
    sys.exit(main())
