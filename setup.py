"""Build the native library, or leave the reason why it is not there in the package.

Finds torch without importing it, and imports nothing of pyrevgrad.
"""

import filecmp
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        "pyrevgrad is built by setuptools 77.0.3 or newer, and this is "
        f"{setuptools.__version__}: pip install --upgrade setuptools"
    )

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REPORT = "_build_report.txt"
# "torch " and the version that the nodes are for, or why there are none.
NODES_RECORD = "_autograd.txt"
INSTALL = "`pip install --no-build-isolation --no-deps --force-reinstall .` in the checkout"
OLDEST_TORCH = (2, 10)
FLAGS = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
# GCC 12 takes the undefined values of its own vector headers for mistakes.
FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized"]
SOURCES = ("csrc/cpu/dispatch.cpp", "csrc/library.cpp")
NODES = "csrc/autograd.cpp"
KERNELS = {
    "portable": "",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mbmi2 -mprfchw",
    "avx2": "-mavx2 -mfma -mf16c -mprfchw",
}


EXTENSION_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class NotBuilt(Exception):
    """Why the native library cannot be built here, and the cure."""

    def __init__(self, reason, cure):
        super().__init__(f"{reason}. Cure: {cure}, then run {INSTALL}.")


def torch_folders():
    """Where torch is: for the build itself, then for this Python outside an isolated build."""
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        yield Path(spec.origin).parent
    # pip hides the environment by variables of Python's, and -E ignores these.
    query = "import importlib.util as u; spec = u.find_spec('torch'); print(spec and spec.origin)"
    said = subprocess.run([sys.executable, "-E", "-c", query], capture_output=True, text=True)
    if os.path.isabs(said.stdout.strip()):
        yield Path(said.stdout.strip()).parent


def find_torch():
    """The folder and version of the torch that is there, without importing it."""
    for folder in torch_folders():
        text = (folder / "version.py").read_text()
        found = re.search(r"__version__ = ['\"]((\d+)\.(\d+)[^'\"]*)", text)
        if found is None:
            continue
        if (int(found[2]), int(found[3])) >= OLDEST_TORCH:
            return folder, found[1]
        raise NotBuilt(
            f"the native library needs torch 2.10 or newer, and this is {found[1]}",
            'upgrade it (`pip install "torch>=2.10"`)',
        )
    raise NotBuilt(
        "the native library is built against torch, and the build saw none",
        'install it first (`pip install "torch>=2.10"`)',
    )


def find_compiler():
    """The words of the C++ compiler's command: CXX, CC's sibling, Python's own, or a usual name."""
    names = {"gcc": "g++", "clang": "clang++", "cc": "c++"}
    sibling = re.sub(r"\b(gcc|clang|cc)\b(?!\+)", lambda m: names[m[1]], os.environ.get("CC", ""))
    asked = os.environ.get("CXX") or sibling
    usual = [sysconfig.get_config_var("CXX") or "", "c++", "g++", "clang++"]
    for command in [asked] if asked else usual:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    missing = f"{asked}, which CXX or CC names, is not there" if asked else "none is on the path"
    raise NotBuilt(
        f"the native library needs a C++ compiler, and {missing}",
        "install g++ or clang++, or set CXX to one",
    )


def wanted_kernels():
    """The instruction sets to build for: all of this machine's kind, or PYREVGRAD_CAPABILITIES."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    there = list(KERNELS) if x86 else ["portable"]
    asked = os.environ.get("PYREVGRAD_CAPABILITIES")
    if not asked:
        return there
    names = {"portable", *(name.strip() for name in asked.split(","))}
    if not names <= set(there):
        sys.exit(f"PYREVGRAD_CAPABILITIES={asked} names more than {', '.join(there)}")
    return [name for name in there if name in names]


def included(path):
    """A source and every header of ours that it includes, itself or through another."""
    found, open_paths = {}, [ROOT / path]
    while open_paths:
        current = open_paths.pop()
        if current in found or not current.is_file():
            continue
        found[current] = current.read_bytes()
        for name in re.findall(rb'^\s*#include "([^"]+)"', found[current], re.MULTILINE):
            beside, above = current.parent / name.decode(), ROOT / "csrc" / name.decode()
            open_paths.append((beside if beside.is_file() else above).resolve())
    return [found[key] for key in sorted(found)]


def run(command, what):
    """Run a compiler; its first error line goes into the reason, all of it to the terminal."""
    print(f"pyrevgrad: {what}", flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    print(done.stdout + done.stderr, end="", flush=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise NotBuilt(
            f"{what} failed: {first.strip().rstrip('.')}",
            "mend what it names (`pip install -v` shows all of the compiler's output)",
        )


class Toolchain:
    """The compiler with torch and Python as it finds them, and the folder of its objects."""

    def __init__(self, objects):
        if sys.platform == "win32":
            raise NotBuilt("the native library is for Linux and macOS", "use one of these")
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise NotBuilt(
                "this Python runs without the GIL, and its limited API loads no such library",
                "use an ordinary build of Python",
            )
        self.objects = objects
        self.objects.mkdir(parents=True, exist_ok=True)
        self.torch, self.version = find_torch()
        self.compiler = find_compiler()
        self.kernels = wanted_kernels()
        said = subprocess.run([*self.compiler, "--version"], capture_output=True, text=True)
        self.identity = [self.version, said.stdout]
        self.python = sysconfig.get_path("include")
        if not Path(self.python, "Python.h").is_file():
            raise NotBuilt(
                "the native library needs Python's headers, and Python.h is not there",
                "install them (Debian and Ubuntu: `apt install python3-dev`)",
            )
        self.for_library = [
            "-DTORCH_TARGET_VERSION=0x020a000000000000",
            "-DPy_LIMITED_API=0x030a0000",
            f"-I{self.python}",
        ]

    def flags_of(self, source):
        """What this source is compiled with, paths of this machine mapped out of the result."""
        include = self.torch / "include"
        flags = [*FLAGS, f"-ffile-prefix-map={include}=torch", "-isystem", str(include)]
        name = Path(source).stem
        if name == "library":
            flags += self.for_library
        elif name == "dispatch":
            absent = [kind for kind in KERNELS if kind not in self.kernels]
            flags += [f"-DPYREVGRAD_WITHOUT_{kind.upper()}" for kind in absent]
        else:
            flags += KERNELS[name.removeprefix("kernels_")].split()
        return flags + shlex.split(os.environ.get("CXXFLAGS", ""))

    def make(self, target, command, contents, what):
        """Run the command unless nothing it depends on has changed since it made `target`."""
        digest = hashlib.sha256(json.dumps([command, self.identity]).encode())
        for content in contents:
            digest.update(hashlib.sha256(content).digest())
        note, text = target.with_suffix(".digest"), digest.hexdigest()
        if target.is_file() and note.is_file() and note.read_text() == text:
            return target
        note.unlink(missing_ok=True)
        run([*command, "-o", str(target)], what)
        note.write_text(text)
        return target

    def compile(self, source):
        target = self.objects / f"{Path(source).stem}.o"
        command = [*self.compiler, *self.flags_of(source), "-c", source]
        return self.make(target, command, included(source), f"compiling {source}")

    def link(self, objects, name, libraries=("-ltorch_cpu",)):
        """One module that exports its init function alone and has no path of this machine in it."""
        module = name.partition(".")[0]
        if sys.platform == "darwin":
            kind = ["-bundle", "-undefined", "dynamic_lookup"]
            kind += [f"-Wl,-exported_symbol,_PyInit_{module}"]
        else:
            script = self.objects / f"exported{module}"
            script.write_text(f"{{ global: PyInit_{module}; local: *; }};\n")
            kind = ["-shared", f"-Wl,--version-script={script}", "-Wl,--as-needed"]
        # libstdc++ comes before torch, which exports copies of some of its symbols.
        libraries = ["-lstdc++", "-lm", f"-L{self.torch / 'lib'}", *libraries]
        command = [*self.compiler, *kind, *map(str, objects), *libraries]
        command += shlex.split(os.environ.get("LDFLAGS", ""))
        contents = [path.read_bytes() for path in objects]
        return self.make(self.objects / name, command, contents, f"linking {name}")

    def build_nodes(self, name):
        """The nodes of csrc/autograd.cpp, for this torch and this Python alone."""
        flags = [flag for flag in FLAGS if not flag.startswith("-std=")]
        # NDEBUG as torch itself was built: its headers change with it.
        flags += ["-std=c++20", "-DNDEBUG"]
        include = self.torch / "include"
        for folder in (include, include / "torch/csrc/api/include", self.python):
            flags += [f"-ffile-prefix-map={folder}=include", "-isystem", str(folder)]
        flags += shlex.split(os.environ.get("CXXFLAGS", ""))
        target = self.objects / "autograd.o"
        command = [*self.compiler, *flags, "-c", NODES]
        made = self.make(target, command, included(NODES), f"compiling {NODES}")
        return self.link([made], name, ["-ltorch_python", "-ltorch_cpu", "-lc10"])

    def build(self, name, jobs):
        # The longest compilation first: it would otherwise run alone at the end.
        sources = [f"csrc/cpu/kernels_{kind}.cpp" for kind in self.kernels] + list(SOURCES)
        pool = ThreadPoolExecutor(jobs)
        try:
            objects = list(pool.map(self.compile, sources))
        finally:
            pool.shutdown(cancel_futures=True)
        return self.link(objects, name)


def put(made, target):
    """Copy in one step: a process that has the old library open keeps it whole."""
    if target.is_file() and filecmp.cmp(made, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy2(made, waiting)
    os.replace(waiting, target)


class BuildNative(build_ext):
    """Builds the library, or installs the reason instead (fatal if PYREVGRAD_REQUIRE_NATIVE)."""

    def run(self):
        (extension,) = self.extensions
        package, name = os.path.split(self.get_ext_filename(extension.name))
        folder = ROOT / package if self.inplace else Path(self.build_lib, package)
        library, report = folder / name, folder / REPORT
        base = ROOT / self.get_finalized_command("build").build_base
        jobs = int(self.parallel or os.environ.get("MAX_JOBS") or min(os.cpu_count() or 1, 4))
        try:
            toolchain = Toolchain(base / "objects")
            with ThreadPoolExecutor(1) as beside:
                nodes = beside.submit(toolchain.build_nodes, "_autograd" + EXTENSION_SUFFIX)
                put(toolchain.build(name, jobs), library)
            self.install_nodes(folder, nodes, toolchain.version)
            report.unlink(missing_ok=True)
        except (NotBuilt, OSError) as reason:
            if os.environ.get("PYREVGRAD_REQUIRE_NATIVE", "0") != "0":
                sys.exit(f"PYREVGRAD_REQUIRE_NATIVE is set: {reason}")
            print(f"pyrevgrad: the reference backend alone is installed: {reason}", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            library.unlink(missing_ok=True)
            report.write_text(f"{reason}\n", encoding="utf-8")
            self.remove_nodes(folder)
            # Nothing compiled is left to install: the wheel's tag follows from this.
            self.extensions, self.distribution.ext_modules = [], None

    def remove_nodes(self, folder):
        for stale in (*folder.glob("_autograd.*.so"), folder / NODES_RECORD):
            stale.unlink(missing_ok=True)

    def install_nodes(self, folder, nodes, version):
        """The optional part: without it every call works, and show_config() says why it is not."""
        self.remove_nodes(folder)
        try:
            made = nodes.result()
        except NotBuilt as reason:
            print(f"pyrevgrad: autograd in Python alone is installed: {reason}", flush=True)
            (folder / NODES_RECORD).write_text(f"{reason}\n", encoding="utf-8")
            return
        put(made, folder / made.name)
        (folder / NODES_RECORD).write_text(f"torch {version}\n", encoding="utf-8")


class HonestWheel(bdist_wheel):
    """Builds before it chooses the tag: pure Python if the library could not be built."""

    def run(self):
        self.run_command("build")
        self.skip_build = True
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


setuptools.setup(
    ext_modules=[setuptools.Extension("pyrevgrad._native", list(SOURCES), py_limited_api=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": HonestWheel},
    options={
        "bdist_wheel": (
            {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp310"}
        )
    },
)
