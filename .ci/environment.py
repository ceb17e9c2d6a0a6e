"""Make the environment that every make target runs in: python environment.py FOLDER.

Runs under the Python that is asked for, with its standard library alone. A Python that has torch
>= 2.10 lends it to the environment, with whatever else it has; otherwise torch comes in at the
version that pyrevgrad is tested with. Made anew only when that Python has changed.
"""

import importlib.util
import json
import os
import re
import site
import subprocess
import sys
import sysconfig

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
TESTED_TORCH = "torch==2.13.0"
SETUPTOOLS = "setuptools>=70.1"


def torch_version():
    """The version of this Python's torch, or None."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "version.py")) as file:
            found = re.search(r"__version__ = ['\"](\d+)\.(\d+)", file.read())
    except OSError:
        return None
    return None if found is None else (int(found.group(1)), int(found.group(2)))


def check_python():
    name = sys.executable or "this Python"
    if sys.version_info < OLDEST_PYTHON:
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"pyrevgrad needs Python 3.10 or newer, and {name} is {version}: "
            "name a newer one by make PYTHON=..."
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            sys.exit(
                f"{name} cannot make an environment: its module {module} is missing. Install it "
                "(Debian and Ubuntu: apt install python3-venv), or name another Python by "
                "make PYTHON=..."
            )


def lent_folders(sees):
    """Folders of an environment that lends its packages; the system's need no naming."""
    if not sees or sys.prefix == sys.base_prefix:
        return []
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def python_of(folder):
    inner = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(folder, *inner)


def create(folder, sees):
    """An empty environment with pip, which sees this Python's packages if it lends them."""
    import venv

    system = set(site.getsitepackages([sys.base_prefix])) & set(sys.path)
    print(f"Making {folder} from {sys.executable}", flush=True)
    venv.create(folder, system_site_packages=sees and bool(system), clear=True, with_pip=True)
    lent = lent_folders(sees)
    if lent:
        query = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = subprocess.check_output([python_of(folder), "-c", query], text=True).strip()
        with open(os.path.join(packages, "lent.pth"), "w") as file:
            file.write("\n".join(lent) + "\n")


def install(folder, *arguments):
    # What pip tells of a download is drawn for a terminal.
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [python_of(folder), "-m", "pip", "install", *quiet, *arguments]
    print("pip install {}".format(" ".join(arguments)), flush=True)
    status = subprocess.call(command)
    if status:
        sys.exit(
            "pip could not install what pyrevgrad needs; its message is above. Without a network, "
            "name by make PYTHON=... a Python that has it all, or, on a machine with a GPU, take "
            "make gpu, which installs nothing"
        )


def build(folder):
    """Compile what the install then finds made: pip would hide what is told of it for minutes."""
    print("Compiling the native library takes minutes the first time", flush=True)
    command = [python_of(folder), "setup.py", "--quiet", "build_ext", "--inplace"]
    if subprocess.call(command):
        sys.exit("pyrevgrad could not be built; the reason is above")


def main(folder):
    check_python()
    sees = (torch_version() or (0, 0)) >= OLDEST_TORCH
    origin = {"python": sys.executable, "version": sys.version, "lends torch": sees}
    note = os.path.join(folder, "origin.json")
    try:
        with open(note) as file:
            same = json.load(file) == origin
    except (OSError, ValueError):
        same = False
    if not same:
        create(folder, sees)
    install(folder, SETUPTOOLS, *([] if sees else [TESTED_TORCH]))
    with open(note, "w") as file:
        json.dump(origin, file)
    # One architecture, which halves the time; a release has more.
    os.environ.setdefault("PYREVGRAD_CUDA_ARCHITECTURES", "sm_90")
    build(folder)
    install(folder, "--no-build-isolation", "--editable", ".[demo,test,dev]")


if __name__ == "__main__":
    main(*sys.argv[1:])
