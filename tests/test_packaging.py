"""What is installed: an install without a compiler, builds that fail, the wheel and its tag.

It may import the package, and runs pip and setup.py on copies of the checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from built import CUDA_LIBRARY, not_built, output
from cuda_objects import cuda_architectures

import pyrevgrad
from pyrevgrad import binding

#: What leaves the CUDA objects of this checkout up to date, or leaves CUDA out where it has none.
AS_BUILT = (
    {"PYREVGRAD_CUDA_ARCHITECTURES": ",".join(cuda_architectures())}
    if CUDA_LIBRARY.is_file()
    else {"PYREVGRAD_CUDA": "0"}
)
SOURCES = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"),
    *("pyrevgrad", "bench", "kernels", "csrc"),
)


@pytest.fixture(scope="module", autouse=True)
def nothing_required():
    """Builds that fail here are meant to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("PYREVGRAD_REQUIRE_NATIVE", raising=False)
        yield


@pytest.fixture(scope="module")
def checkout(repository, tmp_path_factory) -> Path:
    """A copy of what is built from, with the objects that were built but no library."""
    copied = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("*.so", "_build_report.txt", "__pycache__", ".*")
    for name in SOURCES:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, copied / name, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, copied / name)
    return copied


def pip(checkout: Path, *arguments: object, **variables: str) -> str:
    """Run pip on the copy, offline, against the packages that are there."""
    # Before Python 3.12, importing pip, or find_spec for it, leaves this process unable to import
    # setuptools, which torch.compile needs.
    if PathFinder.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    environment = {**os.environ, "PIP_NO_INDEX": "1", **AS_BUILT, **variables}
    given = (*arguments, "--no-deps", "--no-build-isolation", checkout)
    return output(sys.executable, "-m", "pip", *given, env=environment, cwd=checkout)


@pytest.fixture(scope="module")
def without_compiler(checkout, tmp_path_factory) -> Path:
    """A folder that pyrevgrad was installed into on a machine without a compiler."""
    target = tmp_path_factory.mktemp("installed")
    pip(checkout, "install", "--target", target, CXX="/nonexistent/c++")
    return target


def python(installed: Path, *arguments: str) -> str:
    """What Python prints when `installed` comes before all else and no editable install is seen."""
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *packages])}
    environment.pop("PYREVGRAD_BACKEND", None)
    # Without `site`, which would put the finder of an editable install in place.
    return output(sys.executable, "-S", *arguments, env=environment, cwd=installed)


def test_install_without_a_compiler_serves_the_reference_and_warns_once(without_compiler):
    printed = python(
        without_compiler,
        "-c",
        """if True:
        import warnings, torch, pyrevgrad
        x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                y = pyrevgrad.relu(x, pyrevgrad.GUIDED)
        (warning,) = caught
        print(pyrevgrad.__file__)
        print(torch.autograd.grad(y, x, torch.tensor([1.0, -1.0, 1.0]))[0].tolist())
        print(warning.message)
        """,
    )
    place, gradient, message = printed.strip().split("\n", 2)
    assert Path(place).parent == without_compiler / "pyrevgrad"
    assert gradient == "[0.0, 0.0, 1.0]"
    assert "reference backend" in message
    assert "needs a C++ compiler, and /nonexistent/c++" in message
    assert "install g++ or clang++" in message
    assert "pip install --no-build-isolation" in message


def test_info_says_why_the_native_library_is_missing(without_compiler):
    printed = python(without_compiler, "-m", "pyrevgrad", "info")
    assert re.search(r"^native +missing: the native library needs a C\+\+ compiler", printed, re.M)
    assert re.search(r"^cpu tensors +reference", printed, re.M)


def test_install_without_a_compiler_is_pure_python(without_compiler):
    (wheel,) = without_compiler.glob("pyrevgrad-*.dist-info/WHEEL")
    assert "Tag: py3-none-any\n" in wheel.read_text()
    assert "Root-Is-Purelib: true\n" in wheel.read_text()
    assert not list(without_compiler.rglob("*.so"))


def test_what_type_checkers_read_is_installed(without_compiler):
    package = without_compiler / "pyrevgrad"
    assert (package / "py.typed").is_file() and (package / "_named.pyi").is_file()


def test_a_source_archive_holds_every_file_of_the_checkout(repository, tmp_path):
    if not (repository / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no git checkout")
    tracked = output("git", "ls-files", "-z", cwd=repository).rstrip("\0").split("\0")
    output(sys.executable, "setup.py", "egg_info", "--egg-base", tmp_path, cwd=repository)
    (listed,) = tmp_path.glob("*.egg-info/SOURCES.txt")
    held = set(listed.read_text(encoding="utf-8").splitlines())
    assert not [name for name in tracked if name not in held and (repository / name).exists()]


def test_requiring_the_native_library_makes_a_missing_compiler_fatal(checkout, tmp_path):
    command = [sys.executable, "setup.py", "build", "--build-base", tmp_path]
    variables = {"CXX": "/nonexistent/c++", "PYREVGRAD_REQUIRE_NATIVE": "1"}
    done = subprocess.run(
        command, cwd=checkout, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "PYREVGRAD_REQUIRE_NATIVE is set: the native library needs a C++" in done.stderr


@pytest.mark.parametrize(
    ("required", "outcome"), [("1", pytest.fail.Exception), ("0", pytest.skip.Exception)]
)
def test_a_test_of_what_was_not_built_fails_where_that_is_required(required, outcome, monkeypatch):
    monkeypatch.setenv("PYREVGRAD_REQUIRE_NATIVE", required)
    with pytest.raises(outcome, match="no objects"):
        not_built("no objects")


@pytest.fixture(scope="module")
def fake_compiler(tmp_path_factory) -> Path:
    """A compiler that refuses whatever it is given, as one too old does."""
    path = tmp_path_factory.mktemp("compiler") / "c++"
    path.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && exit 0\n'
        "echo 'In file included from somewhere:' >&2\n"
        "echo 'x.h:3: error: this is beyond me.' >&2\n"
        "exit 1\n"
    )
    path.chmod(0o755)
    return path


def test_failed_compilation_is_reported_and_leaves_no_stale_library(
    checkout, fake_compiler, tmp_path
):
    package = tmp_path / "pyrevgrad"
    package.mkdir()
    stale = package / "_native.abi3.so"
    stale.write_text("of another time")
    command = (sys.executable, "setup.py", "build", "--build-base", tmp_path)
    output(
        *command,
        "--build-lib",
        tmp_path,
        cwd=checkout,
        env={**os.environ, "CXX": str(fake_compiler)},
    )
    report = (package / "_build_report.txt").read_text()
    assert re.match(r"compiling csrc/\S+\.cpp failed: x\.h:3: error: this is beyond me\.", report)
    assert "Cure: mend what it names" in report
    assert not stale.exists()


def test_nodes_that_do_not_compile_leave_the_library_and_a_reason(checkout, objects, tmp_path):
    built = tmp_path / "built"
    shutil.copytree(objects[0].parent, built / "objects")
    package = tmp_path / "pyrevgrad"
    package.mkdir()
    stale = package / f"_autograd{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.write_text("of another time")
    source = checkout / "csrc" / "autograd.cpp"
    content = source.read_text()
    source.write_text(f"#error beyond me\n{content}")
    try:
        command = (sys.executable, "setup.py", "build", "--build-base", built)
        environment = {**os.environ, **AS_BUILT}
        output(*command, "--build-lib", tmp_path, cwd=checkout, env=environment)
    finally:
        source.write_text(content)
    assert (package / "_native.abi3.so").is_file() and not stale.exists()
    assert re.match(
        r"compiling csrc/autograd\.cpp failed: .*error beyond me.* Cure: mend what it names",
        package.joinpath(binding.RECORD.name).read_text(),
    )


def test_missing_setuptools_gets_a_sentence(repository, tmp_path):
    """As in the environments of Python 3.12 and later, whose setup sees no package at all."""
    (tmp_path / "setuptools.py").write_text("raise ImportError\n")
    command = [sys.executable, repository / "setup.py", "--version"]
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "this Python has none: pip install setuptools" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_old_torch_is_named_in_the_report(checkout, tmp_path):
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "version.py").write_text("__version__ = '2.4.1+cpu'\n")
    command = (sys.executable, "setup.py", "build", "--build-base", tmp_path / "build")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    output(*command, "--build-lib", tmp_path, cwd=checkout, env=environment)
    report = (tmp_path / "pyrevgrad" / "_build_report.txt").read_text()
    assert "needs torch 2.10 or newer, and this is 2.4.1+cpu. Cure: upgrade it" in report


def build(checkout: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Build into `folder` from a copy of the objects that are there, which a failure spoils."""
    base = folder / "build"
    shutil.copytree(checkout / "build" / "objects", base / "objects")
    command = [sys.executable, "setup.py", "build", "--build-base", str(base)]
    command += ["--build-lib", str(folder)]
    environment = {**os.environ, **AS_BUILT, **variables}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def test_build_without_nvcc_has_the_native_library_and_says_why_no_cuda(wheel, checkout, tmp_path):
    nowhere = str(tmp_path / "nvcc")
    usual = Path("/usr/local/cuda/bin/nvcc").exists()
    folders = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if not Path(folder, "nvcc").exists())
    switch = {"PYREVGRAD_CUDA": "0" if usual else "", "CUDACXX": nowhere, "CUDA_HOME": nowhere}
    done = build(checkout, tmp_path, PATH=path, **switch)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pyrevgrad" / "_native.abi3.so").is_file()
    assert not (tmp_path / "pyrevgrad" / "_native_cuda.abi3.so").exists()
    report = (tmp_path / "pyrevgrad" / "_build_report_cuda.txt").read_text()
    reason = "PYREVGRAD_CUDA=0 left the CUDA kernels out" if usual else "need nvcc, and none is on"
    assert reason in report and "Cure: " in report
    assert "no CUDA kernels are installed" in done.stdout
    assert "compiling" not in done.stdout


def test_failed_nvcc_leaves_the_native_library_whole(wheel, checkout, fake_compiler, tmp_path):
    stale = tmp_path / "pyrevgrad" / "_native_cuda.abi3.so"
    stale.parent.mkdir()
    stale.write_text("of another time")
    done = build(checkout, tmp_path, CUDACXX=str(fake_compiler), PYREVGRAD_CUDA="")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "pyrevgrad" / "_build_report_cuda.txt").read_text()
    assert re.match(
        r"compiling csrc/cuda/\S+\.cu failed: x\.h:3: error: this is beyond me\.", report
    )
    assert (tmp_path / "pyrevgrad" / "_native.abi3.so").is_file() and not stale.exists()


def test_requiring_cuda_makes_a_failed_nvcc_fatal(wheel, checkout, fake_compiler, tmp_path):
    done = build(checkout, tmp_path, CUDACXX=str(fake_compiler), PYREVGRAD_CUDA="1")
    assert done.returncode == 1
    assert "PYREVGRAD_CUDA is set: compiling csrc/cuda/" in done.stderr


@pytest.mark.parametrize("asked", ["all", "0", "-1", "2.5", "²"])
def test_max_jobs_that_is_no_number_of_jobs_ends_the_build_in_a_sentence(checkout, tmp_path, asked):
    command = [sys.executable, "setup.py", "build", "--build-base", str(tmp_path)]
    variables = {**os.environ, "MAX_JOBS": asked}
    done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"MAX_JOBS={asked} is no number of compilers" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not CUDA_LIBRARY.is_file(), reason="no nvcc here")
def test_unknown_architecture_is_refused(wheel, checkout, tmp_path):
    done = build(checkout, tmp_path, PYREVGRAD_CUDA_ARCHITECTURES="sm_90,hopper")
    assert done.returncode == 1
    assert "PYREVGRAD_CUDA_ARCHITECTURES=sm_90,hopper: 'hopper' is no architecture" in done.stderr


@pytest.fixture(scope="module")
def wheel(checkout, repository, objects, tmp_path_factory) -> Path:
    """A wheel from the objects that are there; compiled again only where they are out of date."""
    shutil.copytree(
        repository / "build" / "objects", checkout / "build" / "objects", dirs_exist_ok=True
    )
    folder = tmp_path_factory.mktemp("wheel")
    pip(checkout, "wheel", "--wheel-dir", folder, PYREVGRAD_REQUIRE_NATIVE="1")
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_is_tagged_for_every_python_from_3_10(wheel):
    platform = re.escape(re.sub(r"[-.]", "_", sysconfig.get_platform()))
    version = re.escape(pyrevgrad.__version__)
    assert re.fullmatch(rf"pyrevgrad-{version}-cp310-abi3-{platform}\.whl", wheel.name)


def test_wheel_holds_every_package_the_library_and_no_report(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {name.split("/")[1] for name in names if name.count("/") == 2}
    assert {"reference", "demonstration", "kernels", "bench"} <= folders
    assert "pyrevgrad/_native.abi3.so" in names
    assert "pyrevgrad/_build_report.txt" not in names
    assert ("pyrevgrad/_native_cuda.abi3.so" in names) == CUDA_LIBRARY.is_file()
    assert ("pyrevgrad/_build_report_cuda.txt" in names) != CUDA_LIBRARY.is_file()
    if binding.NODES is not None:
        nodes = Path(binding.NODES.__file__)
        assert {f"pyrevgrad/{nodes.name}", f"pyrevgrad/{binding.RECORD.name}"} <= names
    assert not [name for name in names if name.startswith(("csrc", "tests", "kernels", "bench"))]


def test_unchanged_tree_compiles_nothing_again(wheel, checkout, tmp_path):
    command = (sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path)
    printed = output(*command, cwd=checkout, env={**os.environ, **AS_BUILT})
    assert "compiling" not in printed and "linking" not in printed
    assert (tmp_path / "pyrevgrad" / "_native.abi3.so").is_file()


def test_kernels_import_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import pyrevgrad.kernels as k; print(k.__name__)"
    )
    assert output(sys.executable, "-c", code) == "pyrevgrad.kernels\n"


def test_disabled_library_is_not_loaded_and_the_reference_serves():
    code = (
        "import sys, torch, pyrevgrad; pyrevgrad.show_config(); "
        "print(pyrevgrad.relu(torch.tensor([-1.0, 2.0])).tolist()); "
        "print('pyrevgrad._native' in sys.modules)"
    )
    environment = {**os.environ, "PYREVGRAD_DISABLE_NATIVE": "1"}
    printed = output(sys.executable, "-W", "ignore", "-c", code, env=environment)
    assert "missing: PYREVGRAD_DISABLE_NATIVE is set" in printed
    assert printed.splitlines()[-2:] == ["[0.0, 2.0]", "False"]
