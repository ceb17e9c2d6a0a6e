"""Build the native library, or leave the reason why it is not there in the package.

Finds torch without importing it, and imports nothing of pyrevgrad.
"""

import filecmp
import hashlib
import importlib.util
import itertools
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

try:
    import setuptools
except ImportError:
    # Python's own environments come without it from 3.12 on.
    sys.exit(
        "pyrevgrad is built by setuptools 70.1 or newer, and this Python has none: "
        "pip install setuptools"
    )

if tuple(map(int, re.findall(r"\d+", setuptools.__version__)[:2])) < (70, 1):
    sys.exit(
        "pyrevgrad is built by setuptools 70.1 or newer, and this is "
        f"{setuptools.__version__}: pip install --upgrade setuptools"
    )

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
REPORT = "_build_report.txt"
# Beside the nodes of each Python: the torch and Python that they are for, or why there are none.
NODES_RECORD = Path(f"_autograd{sysconfig.get_config_var('EXT_SUFFIX')}").with_suffix(".txt").name
CUDA_REPORT = "_build_report_cuda.txt"
INSTALL = "`pip install --no-build-isolation --no-deps --force-reinstall .` in the checkout"
OLDEST_TORCH = (2, 10)
FLAGS = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
# GCC 12 takes the undefined values of its own vector headers for mistakes.
FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized"]
# What values depend on. They follow the user's flags and undo fast math there, part by part:
# GCC's -fno-fast-math leaves alone a part that was asked for by name.
EXACT = ["-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-finite-math-only"]
EXACT += ["-fno-associative-math", "-fno-reciprocal-math", "-fsigned-zeros", "-ffp-contract=off"]
# Linked with -Ofast, a library would round denormal numbers to zero in the whole process.
EXACT_LINK = ["-O2", *EXACT]
SOURCES = ("csrc/cpu/dispatch.cpp", "csrc/library.cpp")
NODES = "csrc/autograd.cpp"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mbmi2 -mprfchw"
# What is built with another has its name before the underscore.
KERNELS = {
    "portable": "",
    "avx512": AVX512,
    "avx2": "-mavx2 -mfma -mf16c -mprfchw",
    "avx512_bf16": f"{AVX512} -mavx512bf16",
}
CUDA_SOURCES = [
    f"csrc/cuda/kernels_{name}.cu" for name in ("bfloat16", "float16", "float32", "float64")
]
CUDA_SOURCES += ["csrc/cuda/runtime.cu", "csrc/cuda/library.cpp"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"]
# Without -fmad=false a product would be fused into the sum after it, which the CPU's is not.
EXACT_NVCC = ["-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"]
EXACT_NVCC += [f"-Xcompiler={','.join(EXACT)}"]
# What may stand before the compiler in CXX.
LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")
# A cubin for each generation in wide use, and PTX that the driver compiles for later ones.
CUDA_ARCHITECTURES = "sm_80,sm_90,compute_90"


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


def host_compiler(words):
    """What nvcc is told of the C++ compiler's command: nvcc takes one program, which a launcher is
    not, and options apart from it."""
    compiler, *options = itertools.dropwhile(lambda word: Path(word).name in LAUNCHERS, words)
    # The standard is nvcc's own option, and at a bare comma it takes one option for two.
    options = [word.replace(",", "\\,") for word in options if not word.startswith("-std=")]
    return ["-ccbin", compiler, *(f"-Xcompiler={option}" for option in options)]


def find_nvcc():
    """The path of nvcc: CUDACXX, CUDA_HOME's, the path's or the usual one."""
    if os.environ.get("PYREVGRAD_CUDA") == "0":
        raise NotBuilt("PYREVGRAD_CUDA=0 left the CUDA kernels out of the build", "unset it")
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    names = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home)]
    for name in [*names, "nvcc", "/usr/local/cuda/bin/nvcc"]:
        found = name and shutil.which(name)
        if found:
            return found
    raise NotBuilt(
        "the CUDA kernels need nvcc, and none is on the path",
        "install the CUDA toolkit, or set CUDA_HOME to where it is",
    )


def wanted_architectures():
    """What to compile for, from PYREVGRAD_CUDA_ARCHITECTURES: sm_90 is a cubin, compute_90 PTX."""
    asked = os.environ.get("PYREVGRAD_CUDA_ARCHITECTURES") or CUDA_ARCHITECTURES
    names = [name.strip() for name in asked.split(",")]
    wrong = [name for name in names if not re.fullmatch(r"(sm|compute)_\d+[af]?", name)]
    if wrong:
        sys.exit(
            f"PYREVGRAD_CUDA_ARCHITECTURES={asked}: {wrong[0]!r} is no architecture; "
            f"name some like {CUDA_ARCHITECTURES}"
        )
    return names


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
    families = {name.partition("_")[0] for name in names}
    return [name for name in there if name.partition("_")[0] in families]


def wanted_jobs():
    """How many compilers run at once: MAX_JOBS, or four where there are as many cores."""
    asked = os.environ.get("MAX_JOBS") or str(min(os.cpu_count() or 1, 4))
    if not re.fullmatch(r"0*[1-9]\d*", asked.strip(), re.ASCII):
        sys.exit(f"MAX_JOBS={asked} is no number of compilers to run at once: give 1 or more")
    return int(asked)


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


def flags_from(variable):
    """The user's flags for a compiler or the linker."""
    return shlex.split(os.environ.get(variable, ""))


def nvcc_flags():
    """The user's flags for nvcc, which has none to undo --use_fast_math."""
    for variable in ("NVCCFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        if any(word.lstrip("-") == "use_fast_math" for word in flags_from(variable)):
            raise NotBuilt(
                f"{variable} asks for --use_fast_math, with which the CUDA kernels' values would "
                "be wrong",
                f"take it out of {variable}",
            )
    return flags_from("NVCCFLAGS")


def run(command, what):
    """Run a compiler; its first error line goes into the reason, all of it to the terminal.

    Returns what ptxas tells of registers, which is for a test and not for the terminal.
    """
    print(f"pyrevgrad: {what}", flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    said = done.stdout + done.stderr
    figures = re.compile(r"ptxas info|\s+\d+ bytes stack frame")
    print("".join(li for li in said.splitlines(True) if not figures.match(li)), end="", flush=True)
    if done.returncode:
        lines = said.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise NotBuilt(
            f"{what} failed: {first.strip().rstrip('.')}",
            "mend what it names (`pip install -v` shows all of the compiler's output)",
        )
    return "".join(line for line in said.splitlines(True) if figures.match(line))


class Toolchain:
    """The compiler with torch and Python as it finds them, and the folder of its objects."""

    #: What is left beside a library that was built; nothing for most.
    record = ""

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
        return [*flags, *flags_from("CXXFLAGS"), *EXACT]

    def make(self, target, command, contents, what):
        """Run the command unless nothing it depends on has changed since it made `target`."""
        # Without the folder of the objects, which may be copied to another checkout.
        words = [word.replace(str(self.objects), "objects") for word in command]
        digest = hashlib.sha256(json.dumps([words, self.identity]).encode())
        for content in contents:
            digest.update(hashlib.sha256(content).digest())
        note, text = target.with_suffix(".digest"), digest.hexdigest()
        if target.is_file() and note.is_file() and note.read_text() == text:
            return target
        note.unlink(missing_ok=True)
        figures = run([*command, "-o", str(target)], what)
        if figures:
            target.with_suffix(".ptxas").write_text(figures)
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
        command += [*flags_from("LDFLAGS"), *EXACT_LINK]
        contents = [path.read_bytes() for path in objects]
        return self.make(self.objects / name, command, contents, f"linking {name}")

    def compile_all(self, sources, jobs):
        pool = ThreadPoolExecutor(jobs)
        try:
            return list(pool.map(self.compile, sources))
        finally:
            pool.shutdown(cancel_futures=True)

    def build(self, name, jobs):
        # The longest compilation first: it would otherwise run alone at the end.
        sources = [f"csrc/cpu/kernels_{kind}.cpp" for kind in self.kernels] + list(SOURCES)
        return self.link(self.compile_all(sources, jobs), name)


class NodesToolchain(Toolchain):
    """For PyTorch's own C++ interface: what it makes is this torch's and this Python's alone."""

    def __init__(self, objects):
        super().__init__(objects)
        self.record = f"torch {self.version} and Python {sysconfig.get_python_version()}"

    def build(self, name, jobs):
        flags = [flag for flag in FLAGS if not flag.startswith("-std=")]
        # NDEBUG as torch itself was built: its headers change with it.
        flags += ["-std=c++20", "-DNDEBUG"]
        include = self.torch / "include"
        for folder in (include, include / "torch/csrc/api/include", self.python):
            flags += [f"-ffile-prefix-map={folder}=include", "-isystem", str(folder)]
        flags += [*flags_from("CXXFLAGS"), *EXACT]
        target = self.objects / "autograd.o"
        command = [*self.compiler, *flags, "-c", NODES]
        made = self.make(target, command, included(NODES), f"compiling {NODES}")
        return self.link([made], name, ["-ltorch_python", "-ltorch_cpu", "-lc10"])


class CudaToolchain(Toolchain):
    """nvcc beside the C++ compiler. The torch that is there need not be one with CUDA."""

    def __init__(self, objects):
        super().__init__(objects)
        self.nvcc = find_nvcc()
        self.architectures = wanted_architectures()
        said = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True)
        self.identity.append(said.stdout)

    def compile(self, source):
        target = self.objects / f"cuda_{Path(source).stem}.o"
        if source.endswith(".cpp"):
            command = [*self.compiler, *self.flags_of(source), "-c", source]
        else:
            command = [self.nvcc, *host_compiler(self.compiler), *NVCC_FLAGS]
            for name in self.architectures:
                virtual = "compute_" + name.partition("_")[2]
                command += ["-gencode", f"arch={virtual},code={name}"]
            command += [f'-DPYREVGRAD_CUDA_CODE="{",".join(self.architectures)}"']
            command += [*nvcc_flags(), *EXACT_NVCC, "-c", source]
        return self.make(target, command, included(source), f"compiling {source}")

    def runtime_folder(self):
        """Where nvcc itself would find the static CUDA runtime."""
        command = [self.nvcc, "-dryrun", "-c", CUDA_SOURCES[0], "-o", os.devnull]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        for folder in re.findall(r"-L([^\"\s]+)", said.stdout + said.stderr):
            if Path(folder, "libcudart_static.a").is_file():
                return folder
        raise NotBuilt(
            "the CUDA kernels need libcudart_static.a, and nvcc knows of none",
            "install it (the toolkit's package cuda-cudart-dev)",
        )

    def link(self, objects, name):
        # Not by nvcc, which would link device code that needs none, and name our paths in it.
        script = self.objects / "exported_cuda"
        script.write_text("{ global: PyInit__native_cuda; local: *; };\n")
        command = [*self.compiler, "-shared", f"-Wl,--version-script={script}", "-Wl,--as-needed"]
        command += [*map(str, objects), f"-L{self.runtime_folder()}", "-lcudart_static"]
        command += ["-lrt", "-lpthread", "-ldl", "-lstdc++", "-lm"]
        # Nothing of libtorch.so is used, but it leads to libtorch_cuda.so, which has the stream.
        command += [f"-L{self.torch / 'lib'}", "-ltorch_cpu", "-Wl,--no-as-needed", "-ltorch"]
        command += [*flags_from("LDFLAGS"), *EXACT_LINK]
        contents = [path.read_bytes() for path in objects]
        return self.make(self.objects / name, command, contents, f"linking {name}")

    def build(self, name, jobs):
        return self.link(self.compile_all(CUDA_SOURCES, jobs), name)


def put(made, target):
    """Copy in one step: a process that has the old library open keeps it whole."""
    if target.is_file() and filecmp.cmp(made, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy2(made, waiting)
    os.replace(waiting, target)


class BuildModules(build_py):
    """Removes modules of an earlier build that are gone: what lies there is installed."""

    def run(self):
        if not self.editable_mode:
            kept = {Path(name) for name in self.get_outputs(include_bytecode=False)}
            for path in Path(self.build_lib, "pyrevgrad").rglob("*.py*"):
                if path.suffix in (".py", ".pyi") and path not in kept:
                    path.unlink()
        super().run()


class BuildNative(build_ext):
    """Builds each library, or installs the reason instead.

    PYREVGRAD_REQUIRE_NATIVE makes it fatal that the native library is missing, PYREVGRAD_CUDA=1
    that the CUDA kernels are.
    """

    def run(self):
        base = ROOT / self.get_finalized_command("build").build_base / "objects"
        native, nodes, cuda = self.extensions
        required = os.environ.get("PYREVGRAD_REQUIRE_NATIVE", "0") != "0"
        reason = self.attempt(native, lambda: Toolchain(base), REPORT)
        if reason and required:
            sys.exit(f"PYREVGRAD_REQUIRE_NATIVE is set: {reason}")
        if reason:
            print(f"pyrevgrad: the reference backend alone is installed: {reason}", flush=True)
        without = reason
        reason = self.attempt(nodes, lambda: NodesToolchain(base), NODES_RECORD, without)
        if reason and not without:
            print(f"pyrevgrad: autograd in Python alone is installed: {reason}", flush=True)
        reason = self.attempt(cuda, lambda: CudaToolchain(base), CUDA_REPORT, without)
        if reason and (os.environ.get("PYREVGRAD_CUDA") or "0") != "0":
            sys.exit(f"PYREVGRAD_CUDA is set: {reason}")
        if reason and not without:
            print(f"pyrevgrad: no CUDA kernels are installed: {reason}", flush=True)
        if not self.extensions:
            # Nothing compiled is left to install: the wheel's tag follows from this.
            self.distribution.ext_modules = None

    def attempt(self, extension, toolchain, report_name, reason=None):
        """Put the library in place, or the reason why there is none; return the reason."""
        package, name = os.path.split(self.get_ext_filename(extension.name))
        folder = ROOT / package if self.inplace else Path(self.build_lib, package)
        library, report = folder / name, folder / report_name
        jobs = self.parallel or wanted_jobs()
        try:
            if reason:
                raise OSError(reason)
            tools = toolchain()
            put(tools.build(name, jobs), library)
            report.unlink(missing_ok=True)
            if tools.record:
                report.write_text(f"{tools.record}\n", encoding="utf-8")
        except (NotBuilt, OSError) as error:
            reason = str(error)
            folder.mkdir(parents=True, exist_ok=True)
            library.unlink(missing_ok=True)
            report.write_text(f"{reason}\n", encoding="utf-8")
            self.extensions = [other for other in self.extensions if other is not extension]
        return reason


class HonestWheel(bdist_wheel):
    """Builds before it chooses the tag: pure Python if the library could not be built."""

    def run(self):
        self.run_command("build")
        self.skip_build = True
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


setuptools.setup(
    license="MIT",
    ext_modules=[
        setuptools.Extension("pyrevgrad._native", list(SOURCES), py_limited_api=True),
        setuptools.Extension("pyrevgrad._autograd", [NODES]),
        setuptools.Extension("pyrevgrad._native_cuda", CUDA_SOURCES, py_limited_api=True),
    ],
    cmdclass={"build_ext": BuildNative, "build_py": BuildModules, "bdist_wheel": HonestWheel},
    options={
        "bdist_wheel": (
            {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp310"}
        )
    },
)
