"""Build, test and measure on a machine with a GPU: python .ci/gpu.py [--quick] [--only PART...].

Runs under the Python that has torch >= 2.10, with no network and nothing installed into it: the
package is put into build/gpu/package by pip. Each part leaves PART.json as soon as it ends, and
all that was printed is in gpu.log, in build/gpu and in the folder of --out; gpu.json holds what
there is of the run so far, and goes to bench/results/DEVICE, with its page, once no part is
missing. Where a command may only take minutes, --minutes ends it in time and --only chooses its
parts; --assemble puts what several commands left together, where there need be no GPU. Ends with
1 if anything failed, could not run or missed its target. Standard library alone.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
PACKAGE = WORK / "package"
#: What the sanitizer runs: every kind of kernel, head, tail and misaligned start, in minutes.
WATCHED = "neither_on_size or layouts or tensor_scale_gives"
#: torch asks the driver for what a version may lack, and memcheck would count each refusal.
#: racecheck is asked of our kernels alone: the tests' comparisons run PyTorch's.
TOOLS = {
    "memcheck": ("--leak-check", "no", "--report-api-errors", "no"),
    "racecheck": ("--kernel-name", "kernel_substring=pyrevgrad"),
}
PARTS = ("native", "figures", "triton", *TOOLS)
FILES = {"native": "test_cuda.py", "triton": "test_triton_gpu.py"}
#: The tests of more than 2^31 elements take 20 GB of the device each, and so run by themselves.
LARGE = "more_"
#: Enough failures to learn from; a systematic one would take the minutes of the other parts.
ENOUGH = "40"

ASK = """
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda,
                  "there": torch.cuda.is_available(),
                  "devices": [torch.cuda.get_device_properties(i).name
                              for i in range(torch.cuda.device_count())],
                  "capability": torch.cuda.get_device_capability()
                  if torch.cuda.is_available() else None}))
"""


class Clock:
    """How long the command may take, and the file of what it prints."""

    def __init__(self, minutes, folders):
        self.end = time.monotonic() + 60 * minutes if minutes else None
        self.logs = [folder / "gpu.log" for folder in folders]

    def left(self):
        return None if self.end is None else max(self.end - time.monotonic(), 0.0)

    def say(self, text):
        print(text, end="", flush=True)
        for log in self.logs:
            with log.open("a", encoding="utf-8", errors="replace") as stream:
                stream.write(text)

    def run(self, command, **options):
        """(Everything that the command printed, told as it comes; its status, None out of time)."""
        self.say(f"$ {' '.join(map(str, command))}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            preexec_fn=os.setpgrp, **options,
        )  # fmt: skip
        told = []

        def read():
            with process.stdout as lines:
                for line in lines:
                    told.append(line)
                    self.say(line)

        # A process that outlives the command may hold the pipe open, so nobody waits for its end.
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            status = process.wait(self.left())
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            reader.join(20)
        return "".join(told), status


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
    paths = [str(PACKAGE), str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        "MAX_JOBS": os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1),
        "PYREVGRAD_CUDA": "1",
        "PYREVGRAD_REQUIRE_NATIVE": "1",
        "PYREVGRAD_CUDA_ARCHITECTURES": f"sm_{major}{minor}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }


def build(variables, clock):
    """Put the package into a folder of its own; exits if the CUDA kernels cannot be built."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-index", "--no-build-isolation"]
    command += ["--no-deps", "--target", str(PACKAGE), str(ROOT)]
    if clock.run(command, env=variables, cwd=ROOT)[1] != 0:
        sys.exit("the CUDA kernels could not be built; the reason is above")


def tests(variables, clock, file, *before, options=()):
    """pytest's last line over one file, and whether it passed; under `before` if given."""
    command = [*before, sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(ROOT), "-p", "no:cacheprovider", "-q", str(ROOT / "tests" / file)]
    # Warnings of a torch that no test has seen are told, and no failure, from the first import on.
    command += ["-W", "default", "--tb=short", "--maxfail", ENOUGH, "--durations=8"]
    # What hangs says where.
    command += ["-o", "faulthandler_timeout=150", *options]
    # Each of many processes would start as many compilers as there are processors.
    variables = {**variables, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return outcome(*clock.run(command, env=variables, cwd=PACKAGE))


def in_parallel(most):
    """What has pytest share its tests over processes, whose CPU sides take the time."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", str(min(os.cpu_count() or 1, most)), "--dist", "worksteal")


def tests_of(name, variables, clock):
    """The whole matrix, shared over processes, then what takes most of the device's memory."""
    small = tests(variables, clock, FILES[name],
                  options=("-k", f"not {LARGE}", *in_parallel(12)))  # fmt: skip
    large = tests(variables, clock, FILES[name], options=("-k", LARGE, "-rs"))
    return {
        "summary": f"{small['summary']}; beyond 2^31 elements: {large['summary']}",
        "passed": small["passed"] and large["passed"] and "skipped" not in large["summary"],
        "errors": small["errors"] + large["errors"],
    }


def outcome(text, status):
    """A run of the tests in a row of the record; passed only if some test ran."""
    summary = re.findall(r"^=*\s*((?:\d+ \w+,? ?)+in [\d.]+s.*?)\s*=*$", text, re.MULTILINE)
    errors = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    counted = [int(first or second) for first, second in errors]
    last = summary[-1] if summary else "no summary"
    if status is None:
        last = "stopped: the minutes of the command were over"
    passed = status == 0 and re.search(r"\b[1-9]\d* passed", last) is not None
    return {"summary": last, "passed": passed and not any(counted), "errors": sum(counted)}


def sanitizer():
    """The path of compute-sanitizer, or None."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", *Path("/opt/nvidia").glob("*")]
    folders = [
        f"{home}/{inner}" for home in homes if home for inner in ("bin", "compute-sanitizer")
    ]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(folders)
    )


def sanitized(variables, clock, name):
    """One tool of compute-sanitizer over a part of the tests, as a row."""
    tool = sanitizer()
    if tool is None:
        return {"summary": "compute-sanitizer is not installed", "passed": False, "errors": 0}
    # The caching allocator would hide a kernel that reads beyond its tensor.
    bare = {**variables, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = (tool, "--tool", name, *TOOLS[name], "--error-exitcode", "9")
    return tests(bare, clock, "test_cuda.py", *command, options=("-k", WATCHED))


def measured(variables, clock, quick):
    """The figures of bench.gpu, or None if it failed."""
    file = WORK / "measured.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu", str(file), *(["--quick"] if quick else [])]
    # Idle compilers would take processors from the host's side of what is measured.
    alone = {**variables, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    clock.run(command, env=alone, cwd=PACKAGE)
    # It writes what it has after each table; the list of what was missed is its last.
    return json.loads(file.read_text()) if file.is_file() else None


def part_file(name, quick):
    return WORK / f"{name}{'-quick' if quick else ''}.json"


def run_part(name, variables, clock, options, machine):
    """Run one part and leave what it found, with the machine and the commit."""
    native = parts_of(options.quick, machine["commit"]).get("native")
    proven = bool(native and native["found"]["passed"])
    if name in TOOLS:
        found = sanitized(variables, clock, name)
    elif name == "figures":
        # No speed is told of kernels that give wrong results, unless asked for, and then said.
        found = measured(variables, clock, options.quick) if proven or options.anyway else None
        if found:
            found["proven"] = proven
    else:
        found = tests_of(name, variables, clock)
    kept = json.dumps({"machine": machine, "found": found}, ensure_ascii=False)
    for folder in folders_of(options):
        (folder / part_file(name, options.quick).name).write_text(kept, encoding="utf-8")


def folders_of(options):
    return [WORK, *([options.out] if options.out else [])]


def parts_of(quick, commit, folders=None):
    """What each part left, of those that ran for `commit`."""
    made = {}
    for name in PARTS:
        for folder in folders or [WORK]:
            file = folder / part_file(name, quick).name
            kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            if kept and kept["machine"]["commit"] == commit:
                made[name] = kept
    return made


def machine_of(found, commit):
    """What the figures are of: the device, the driver, the versions, the commit."""
    smi = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    nvcc = said(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version") or ""
    # A copy of a checkout without its history takes them from --commit.
    own = said("git", "rev-parse", "HEAD")
    changes = own and said("git", "status", "--porcelain", "--", ".", ":!bench/results")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "devices": found["devices"],
        "driver": smi.splitlines()[0] if smi else None,
        "nvcc": (re.findall(r"release ([\d.]+)", nvcc) or [None])[0],
        "torch": found["torch"],
        "torch_cuda": found["cuda"],
        "triton": said(sys.executable, "-c", "import triton; print(triton.__version__)"),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": own or commit,
        "dirty": bool(changes) if own else None,
    }


def record(machine, parts):
    """All of it as one table for the result file; what has not run says so."""
    absent = {"summary": "has not run", "passed": False, "errors": 0}
    found = {name: kept["found"] for name, kept in parts.items()}
    figures = found.get("figures") or {"missed": ["the benchmark failed, or the tests before it"]}
    return {
        **machine,
        "tests": {name: found.get(name) or absent for name in FILES},
        "sanitizer": {name: found.get(name) or absent for name in TOOLS},
        **figures,
    }


def folder_of(device):
    """The folder of a device's results, such as nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"


def failures(run):
    """Why a run is not a success, a sentence each."""
    rows = {f"the tests of {name}": row for name, row in run["tests"].items()} | run["sanitizer"]
    told = [f"{what}: {row['summary']}" for what, row in rows.items() if not row["passed"]]
    if run.get("proven") is False:
        told.append("the figures are of kernels whose tests have not passed")
    return told + run.get("missed", ["the benchmark stopped before its end"])


def write(run, folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run, indent=1, ensure_ascii=False) + "\n"
    (folder / "gpu.json").write_text(text, encoding="utf-8")
    return folder / "gpu.json"


def assembled(folders, quick):
    """The record of what several commands left in `folders`; written with its page."""
    files = [folder / part_file(name, quick).name for folder in folders for name in PARTS]
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    machines = [part["machine"] for part in kept]
    for key in ("commit", "devices", "torch"):
        there = {json.dumps(machine[key]) for machine in machines}
        if len(there) != 1:
            sys.exit(f"the parts are of {len(there)} different {key}: {', '.join(sorted(there))}")
    parts = parts_of(quick, machines[0]["commit"], folders)
    if (parts.get("figures") or {}).get("found"):
        # The tests may have run on another machine of the kind, or after the figures.
        parts["figures"]["found"]["proven"] = (
            "native" in parts and parts["native"]["found"]["passed"]
        )
    return parts.get("figures", kept[-1])["machine"], parts


#: In the place of a part that has not run.
GOOD = {"found": {"passed": True, "missed": []}}


def finish(machine, parts, options):
    """Write the record, or what there is of it, and say what failed; the exit status."""
    run = record(machine, parts)
    missing = [name for name in PARTS if name not in parts]
    kept = ROOT / "bench" / "results" / folder_of(machine["devices"][0])
    folders = [] if options.assemble else folders_of(options)
    if not missing and not options.quick:
        folders.append(kept)
    for folder in folders:
        print(f"written: {write(run, folder)}")
    if missing:
        print(f"still to run: {', '.join(f'--only {name}' for name in missing)}")
    elif not options.quick:
        said(sys.executable, "-m", "bench.cuda_page", str(kept / "gpu.json"))
    told = failures(run)
    if missing:
        # What has not run is no failure of what has.
        told = failures(record(machine, {**dict.fromkeys(missing, GOOD), **parts}))
    for sentence in told:
        print(f"failed: {sentence}")
    return 1 if told else 0


def main():
    parser = argparse.ArgumentParser(prog="make gpu")
    add = parser.add_argument
    add("--quick", action="store_true", help="small tensors, a first look")
    add("--only", nargs="+", choices=PARTS, help="build, and run these parts alone")
    add("--out", type=Path, metavar="DIR", help="a folder that gets a copy of what is left")
    add("--minutes", type=float, help="when to stop what still runs, the build included")
    add("--commit", help="what this is a copy of, where git cannot say")
    add("--anyway", action="store_true", help="take figures even where the tests have not passed")
    add("--assemble", nargs="+", type=Path, metavar="DIR", help="put together what --out got")
    options = parser.parse_args()
    if options.assemble:
        return finish(*assembled(options.assemble, options.quick), options)
    for folder in folders_of(options):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.log").unlink(missing_ok=True)
    clock = Clock(options.minutes, folders_of(options))
    found = survey()
    machine = machine_of(found, options.commit)
    variables = environment(found)
    build(variables, clock)
    for name in options.only or PARTS:
        run_part(name, variables, clock, options, machine)
    return finish(machine, parts_of(options.quick, machine["commit"]), options)


if __name__ == "__main__":
    sys.exit(main())
