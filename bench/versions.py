"""Two versions of the project built side by side in a temporary folder, objects reused by content.

Imports the standard library only; runs git and setup.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / "objects"
NATIVE = ("csrc", "setup.py")
#: What a build leaves in the package: the libraries, and beside them what each was built for.
LIBRARIES = (".so", ".pyd", ".dylib", ".txt")


class InputError(ValueError):
    """What was asked for cannot be compared, and why: a sentence, then perhaps a compiler's."""


def git(*arguments: str, root: Path = ROOT) -> str:
    """What git prints; InputError with its message."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError("git is not there, and the other version is taken from it") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"git {arguments[0]} failed: {last}")
    return done.stdout.strip()


def commit_of(base: str, root: Path = ROOT, said: str = "BASE") -> str:
    """The full name of the commit; InputError, which says who asked, where `base` names none."""
    git("rev-parse", "--git-dir", root=root)
    asked = ("--verify", "--quiet", "--end-of-options", base + "^{commit}")
    try:
        return git("rev-parse", *asked, root=root)
    except InputError:
        shallow = git("rev-parse", "--is-shallow-repository", root=root) == "true"
        cure = " (it is shallow: `git fetch --unshallow` brings the rest)" if shallow else ""
        raise InputError(f"{said}={base} names no commit of this repository{cure}") from None


def native_differs(commit: str, root: Path = ROOT, new: str | None = None) -> bool:
    """Whether anything that is compiled differs between a commit and another or the tree."""
    if new is not None:
        return bool(git("diff", "--name-only", commit, new, "--", *NATIVE, root=root))
    untracked = git("ls-files", "--others", "--exclude-standard", "--", *NATIVE, root=root)
    return bool(untracked or git("diff", "--name-only", commit, "--", *NATIVE, root=root))


@contextlib.contextmanager
def checked_out(commit: str, folder: Path, root: Path = ROOT) -> Iterator[Path]:
    """A git worktree of the commit in `folder`, which git forgets again afterwards."""
    tree = folder / "tree"
    git("worktree", "add", "--detach", "--force", str(tree), commit, root=root)
    try:
        yield tree
    finally:
        with contextlib.suppress(InputError):
            git("worktree", "remove", "--force", str(tree), root=root)
        shutil.rmtree(tree, ignore_errors=True)
        with contextlib.suppress(InputError):
            git("worktree", "prune", root=root)


def dirty(root: Path = ROOT) -> bool:
    """Whether the working tree holds what is not committed."""
    return bool(git("status", "--porcelain", root=root))


def said_of_building(differs: bool, objects: Path = OBJECTS) -> str:
    """How often is built, and what there is to take."""
    there = objects.is_dir() and any(objects.iterdir())
    how = "from the objects in build/objects, of which what is the same is taken: seconds"
    if differs or not there:
        how = "which takes minutes" + ("" if there else ", since build/objects holds no objects")
    return f"compiled sources differ: two builds, {how}" if differs else (
        f"no compiled source differs: one build for both, {how}"
    )  # fmt: skip


def build(
    tree: Path, folder: Path, capability: str, objects: Path = OBJECTS, other: Path | None = None
) -> Path:
    """Build what lies in `tree` outside of it; the folder that a process finds the package in.

    The objects of this checkout are there to start with: setup.py takes one whose compiler,
    flags and sources are the same. Only this machine's kernels are built, and no CUDA. Where the
    compiled sources are those of `other`, a package that is built, its libraries are taken.

    Raises
    ------
    InputError
        It does not build; the message ends with the last lines.
    """
    kept = folder / "build" / "objects"
    kept.mkdir(parents=True)
    for path in sorted(objects.glob("*")) if objects.is_dir() else ():
        if path.is_file() and "cuda" not in path.name:
            shutil.copy2(path, kept / path.name)
    settings = {
        "PYREVGRAD_REQUIRE_NATIVE": "1",
        "PYREVGRAD_CUDA": "0",
        "PYREVGRAD_CAPABILITIES": capability,
    }
    places = ["--build-base", str(folder / "build"), "--build-lib", str(folder / "package")]
    command = [sys.executable, "setup.py", "--quiet", "build", *places]
    if other is not None:
        places = ["--build-lib", str(folder / "package")]
        command = [sys.executable, "setup.py", "--quiet", "build_py", *places]
    try:
        done = subprocess.run(
            command, cwd=tree, env=os.environ | settings, capture_output=True, text=True,
            errors="replace", timeout=1800,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError("it does not build: half an hour was not enough") from None
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()[-12:]
        raise InputError("it does not build; its last lines:\n" + "\n".join(lines))
    for path in () if other is None else sorted((other / "pyrevgrad").iterdir()):
        if path.suffix in LIBRARIES:
            shutil.copy2(path, folder / "package" / "pyrevgrad" / path.name)
    return folder / "package"


def keep(built: Path, objects: Path = OBJECTS) -> None:
    """Leave what was built and this checkout lacks for its next comparison, or its next build.

    What is there stays: it is this checkout's own. The digest, which says that an object is whole,
    comes last.
    """
    for digest in sorted((built / "build" / "objects").glob("*.digest")):
        if (objects / digest.name).exists():
            continue
        objects.mkdir(parents=True, exist_ok=True)
        made = (path for path in digest.parent.glob(f"{digest.stem}.*") if path != digest)
        for path in [*(path for path in made if path.stem == digest.stem), digest]:
            with tempfile.TemporaryDirectory(dir=objects) as name:
                os.replace(shutil.copy2(path, Path(name) / path.name), objects / path.name)


@contextlib.contextmanager
def _built(
    commit: str | None, folder: Path, capability: str, who: str, other: Path | None = None
) -> Iterator[Path]:
    """The package of a commit, or of the working tree where there is none."""
    with contextlib.ExitStack() as stack:
        tree = ROOT if commit is None else stack.enter_context(checked_out(commit, folder))
        try:
            package = build(tree, folder, capability, other=other)
        except InputError as error:
            raise InputError(f"{who}: {error}") from None
        yield package


@contextlib.contextmanager
def both_built(commit: str, capability: str, new: str | None = None) -> Iterator[dict[str, Path]]:
    """The packages of ``base`` (a commit) and ``new`` (one too, or the working tree), by name."""
    with tempfile.TemporaryDirectory(prefix="pyrevgrad-compare-") as name:
        folder = Path(name)
        differs = native_differs(commit, new=new)
        said = "the working tree" if new is None else f"NEW ({new[:10]})"
        with (
            _built(commit, folder / "base", capability, f"BASE ({commit[:10]})") as base,
            _built(new, folder / "new", capability, said, None if differs else base) as other,
        ):
            # The working tree's first, which is built again more often.
            for side in ("new", "base"):
                keep(folder / side)
            yield {"base": base, "new": other}
