"""Install the libraries that the benchmarks measure beside ours; run by the environment's Python.

Without their requirements, which would bring another torch: what is timed needs captum's alone,
and these are small. What cannot be had is named, by this and by the benchmarks, and left out.
"""

import importlib.util
import subprocess
import sys

#: By the name that each is imported under.
TESTED = {
    "captum": "captum==0.9.0",
    "zennit": "zennit==0.5.1",
    "pytorch_grad_cam": "grad-cam==1.5.7",
    "pytorch_revgrad": "pytorch-revgrad==0.2.0",
    # captum imports them.
    "packaging": "packaging",
    "tqdm": "tqdm",
}


def main():
    for module, wanted in TESTED.items():
        if importlib.util.find_spec(module) is None:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", wanted]
            if subprocess.call(command):
                print(f"{wanted} could not be installed: the benchmarks skip it", flush=True)


if __name__ == "__main__":
    main()
