"""`python -m pyrevgrad explain`: a map of an image for a user's own model, or a built-in one.

Imports attribution; matplotlib, Pillow and scikit-learn only when the command runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import attribution
from ..checks import make_folder, missing

if TYPE_CHECKING:
    from .images import Image

NOT_DONE = 2
NEEDED = {"matplotlib": "matplotlib", "PIL": "pillow"}
METHODS: dict[str, Callable[..., Any]] = {
    "guided": attribution.GuidedBackprop,
    "deconvnet": attribution.Deconvolution,
    "rectgrad": attribution.RectGrad,
    "guided-gradcam": attribution.GuidedGradCam,
    "saliency": attribution.Saliency,
}


class ExplainError(Exception):
    """Something of the user's that is missing or broken, in a sentence."""


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not (numbers and all(map(math.isfinite, numbers))):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number, nor one for each channel as 0.485,0.456,0.406"
        )
    return numbers


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of ``python -m pyrevgrad explain``; exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pyrevgrad explain",
        description="Draw an image, the map of what a model sees in it, and both on each other. "
        "Without --model, a small network is trained on scikit-learn's digits first.",
    )
    add = parser.add_argument
    add("--model", metavar="FILE.py:FUNCTION", help="returns the model, or (model, preprocess)")
    add("--weights", type=Path, help="a file with a state_dict, loaded with weights_only=True")
    add("--image", type=Path, help="any format of Pillow's; a digit of the data if not given")
    add("--method", choices=METHODS, default="guided", help="default: %(default)s")
    add("--target", type=int, help="the output to explain; the highest if not given")
    add("--layer", help="the layer of guided-gradcam, by its dotted name")
    where = "which activations; default: relu"
    add("--where", choices=["relu", "rectifiers", "all"], help=where)
    add("--size", type=int, help="resize the image to SIZE × SIZE pixels")
    add(
        "--mean", type=_numbers, help="subtracted from each channel in [0, 1]: one or three numbers"
    )
    add("--std", type=_numbers, help="each channel is divided by it")
    add("--gray", action="store_true", help="one channel")
    add("--out", type=Path, default=Path("map.png"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.size is not None and options.size < 1:
        parser.error(f"--size must be at least 1, got {options.size}")
    if options.out.is_dir():
        parser.error(f"--out must be a file, and {options.out} is a folder")
    if options.out.suffix.lower() != ".png":
        parser.error(f"--out must end in .png, which is what is written, got {options.out}")
    if (options.method == "guided-gradcam") != (options.layer is not None):
        parser.error("--method guided-gradcam and --layer belong together")
    if options.weights is not None and options.model is None:
        parser.error("--weights needs --model")
    if options.model is not None and options.image is None:
        parser.error("--model needs --image")
    if options.model is None and (idle := _given(options)):
        parser.error(f"{idle} without --model: the built-in network takes 8 × 8 grey pixels as is")
    if options.method == "saliency" and options.where is not None:
        parser.error("--where says nothing to --method saliency, which replaces no activation")
    options.where = options.where or "relu"
    return options


def _given(options: argparse.Namespace) -> str:
    """The options given that say how an image is prepared, or nothing."""
    names = ("size", "mean", "std", "gray")
    return ", ".join(f"--{name}" for name in names if getattr(options, name) not in (None, False))


def load_model(place: str, weights: Path | None) -> tuple[nn.Module, Callable[..., Any] | None]:
    """The model that FILE.py:FUNCTION returns, in eval mode, and its preprocess if it has one."""
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise ExplainError(f"--model is FILE.py:FUNCTION, got {place!r}")
    if not path.is_file():
        raise ExplainError(f"--model: there is no file {path}")
    spec = importlib.util.spec_from_file_location("explained_model", path)
    if spec is None or spec.loader is None:
        raise ExplainError(f"--model: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # It may import its neighbours, as a script does, also when its function runs.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ExplainError(f"--model: {path} does not run: {_sentence(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ExplainError(f"--model: {path} has no function {name!r}")
    try:
        made = function()
    except Exception as error:
        raise ExplainError(f"--model: {name}() failed: {_sentence(error)}") from error
    model, preprocess = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ExplainError(
            f"--model: {name}() must return a torch.nn.Module, or one and a function, not "
            f"{type(made).__name__}"
        )
    if weights is not None:
        from .weights import load

        load(model, weights)
    return model.eval(), preprocess


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def explained(model: nn.Module, x: Tensor, options: argparse.Namespace) -> tuple[Tensor, str, Any]:
    """The map of one image (1, …), what it explains in words, and the swap's report."""
    with torch.no_grad():
        try:
            y = model(x)
        except Exception as error:
            raise ExplainError(
                f"the model does not take an input of shape {tuple(x.shape)} in {x.dtype}: "
                f"{_sentence(error)}"
            ) from error
    if not isinstance(y, Tensor) or y.dim() not in (1, 2) or len(y) != 1:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ExplainError(f"the model must return (1, outputs) for one image, got {shape}")
    target = options.target
    if target is None and y.dim() == 2:
        target = int(y.argmax())
    where = {"relu": attribution.is_relu, "rectifiers": None, "all": "all"}[options.where]
    if options.method == "saliency":
        method: Any = attribution.Saliency(model)
        found = method.attribute(x, target, False)
    elif options.method == "guided-gradcam":
        method = attribution.GuidedGradCam(model, options.layer, where=where)
        found = method.attribute(x, target)
    else:
        method = METHODS[options.method](model, where=where)
        found = method.attribute(x, target)
    title = options.method if options.layer is None else f"{options.method} at {options.layer}"
    score = float(y[0] if target is None else y[0, target])
    title += f", output {'' if target is None else f'{target} '}= {score:.4g}"
    return found, title, getattr(method, "report", None)


def run(options: argparse.Namespace) -> int:
    """Explain one image and leave the picture; returns the exit status."""
    from . import images, pictures

    shown: Tensor | None
    if options.model is None:
        from .digits import trained_network

        print(
            "Without --model: a small network trained on scikit-learn's digits, which sees the "
            "image as 8 × 8 grey pixels."
        )
        model = trained_network()
        picture = images.read(options.image) if options.image else images.a_digit()
        grey = images.resized(picture, 8, True)
        prepared, shown = grey[None], grey
    else:
        model, preprocess = load_model(options.model, options.weights)
        picture = images.read(options.image)
        prepared, shown = _prepared(picture, model, preprocess, options)
    found, title, report = explained(model, prepared, options)
    if not found.isfinite().all():
        raise ExplainError("the map has numbers that are not finite, so there is nothing to draw")
    make_folder(options.out.parent)
    shown = pictures.stretched(prepared[0]) if shown is None else shown
    pictures.draw(options.out, shown, found[0], title)
    if report is not None:
        print(report)
    print(f"{title}: {options.out}")
    if not found.any():
        print("The map is zero everywhere: no gradient arrives at the image by this method.")
    print("Such a map may say little about the decision: attribution.sanity_check tests it.")
    return 0


def _prepared(
    picture: Image, model: nn.Module, preprocess: Any, options: argparse.Namespace
) -> tuple[Tensor, Tensor | None]:
    """What the model is given, in the dtype of its first parameter or as preprocess makes it; and
    the same in [0, 1], where no preprocess hides it."""
    from . import images

    if preprocess is None:
        shown = images.resized(picture, options.size, options.gray)
        x = images.normalised(shown, options.mean, options.std)
        kinds = (p.dtype for p in model.parameters() if p.is_floating_point())
        return x.to(next(kinds, x.dtype)), shown
    if idle := _given(options):
        raise ExplainError(f"{idle}: --model returns a preprocess, which alone prepares the image")
    try:
        x = preprocess(picture.as_pillow())
    except Exception as error:
        raise ExplainError(f"preprocess failed on the image: {_sentence(error)}") from error
    if not isinstance(x, Tensor):
        raise ExplainError(f"preprocess must return a tensor, not {type(x).__name__}")
    return x[None] if x.dim() == 3 else x, None


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str
        What follows ``python -m pyrevgrad explain``.

    Returns
    -------
    int
        0, or 2 and a sentence on standard error.
    """
    options = parse(arguments)
    needed = NEEDED if options.model else {**NEEDED, "sklearn": "scikit-learn"}
    if absent := missing("demo", needed):
        print(f"explain {absent}", file=sys.stderr)
        return NOT_DONE
    try:
        return run(options)
    except (ExplainError, ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"explain: {_advised(str(error))}", file=sys.stderr)
        return NOT_DONE


def _advised(sentence: str) -> str:
    """`sentence` with the cure that attribution names as an option of this command."""
    said, _, cure = sentence.partition("\npass where=")
    if not cure:
        return sentence
    if cure.startswith("None"):
        return f"{said}\npass --where rectifiers to take every rectifier"
    return f"{said}\nthis command cannot leave them plain; in Python, pass where={cure}"
