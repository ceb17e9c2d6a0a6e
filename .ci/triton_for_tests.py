"""Install Triton for the tests where it is missing; run by the Python of the environment.

Its wheel has 190 MB, which only its own tests need: they run it with no GPU. Where it cannot be
had, those tests are skipped and this says so. A CUDA build of torch brought its own already.
"""

import importlib.util
import platform
import subprocess
import sys

TESTED = "triton==3.7.1"


def main():
    if importlib.util.find_spec("triton") is not None:
        return
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("No Triton for this machine: its tests are skipped", flush=True)
        return
    print(f"pip install {TESTED}, 190 MB, for the tests of its kernels", flush=True)
    # Triton needs nothing else, and must not bring another torch.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", TESTED]
    if subprocess.call(command):
        print("Triton could not be installed: its tests are skipped", flush=True)


if __name__ == "__main__":
    main()
