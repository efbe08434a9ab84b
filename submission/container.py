"""Build the image of a bundle and save it for upload.

The build context is staged in a temporary folder: the Dockerfile, the lean lock, the four packages and, where weights
are baked in, the unpacked bundle. So what is in the image is what is named here, whatever else lies in the checkout.
"""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import numpy as np

from midog.archive import MANIFEST_FILE
from midog.bundle import Bundle
from midog.errors import MidogError, UsageError
from midog.files import atomic
from midog.progress import steps
from submission.challenge import TRACK2
from submission.engine import Engine
from submission.trial.runners import PACKAGES, ROOT

DEFAULT_BUNDLES = "midog/bundles"
"""The bundle that ships with the package: an image holds the one it is built for, under model/, and no other."""
FILES = ("Dockerfile", ".dockerignore", "LICENSE", "requirements-container.txt")
WEIGHTS = ("baked", "none")
TORCH = ("base", "index")
BLOCK = 1 << 20


@dataclass(frozen=True)
class Build:
    """How the image is built; what is None keeps the Dockerfile's own default.

    weights: baked into the image, or none, because they are uploaded as a tarball. base, digest: the base image and the
    sha256 that pins it. torch: the base's own, or the pinned pair from the package index; cuda: the CUDA build that it
    must be ("none" for a CPU build). api: exec or invoke. submission: changes the image's digest, which the platform
    accepts only once. arguments: for the engine's build command.
    """

    weights: str = "baked"
    base: str | None = None
    digest: str | None = None
    torch: str | None = None
    cuda: str | None = None
    api: str | None = None
    time_budget: float | None = None
    submission: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"))
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises: UsageError for a word that is none of those allowed, or a time budget that is no positive number."""
        for option, value, allowed in (
            ("--weights", self.weights, WEIGHTS),
            ("--torch", self.torch, TORCH),
            ("--api", self.api, TRACK2.api_methods),
        ):
            if value is not None and value not in allowed:
                raise UsageError(f"{option} {value}", f"{option} {' or '.join(allowed)}")
        if self.time_budget is not None and not 0 < self.time_budget < math.inf:
            raise UsageError(f"--time-budget {self.time_budget:g}", "--time-budget 240, or leave it out: no budget")


def build_command(engine: Engine, context: Path | str, tag: str, build: Build, commit: str) -> list[str]:
    """The engine's command that builds `context`."""
    arguments = {
        "BASE": build.base,
        "DIGEST": build.digest,
        "WEIGHTS": build.weights,
        "TORCH": build.torch,
        "CUDA": build.cuda,
        "API": build.api,
        # Digits and a point: the entry point reads no exponent.
        "TIME_BUDGET": None if build.time_budget is None else np.format_float_positional(build.time_budget, trim="-"),
        "SUBMISSION": build.submission,
        "COMMIT": commit,
    }
    words = ["build", "--platform", "linux/amd64", "--tag", tag, *build.arguments]
    for name, value in arguments.items():
        words += [] if value is None else ["--build-arg", f"{name}={value}"]
    return engine.command(*words, context)


def build_image(engine: Engine, bundle: Bundle, tag: str, build: Build, from_git: str | None = None) -> str:
    """Build the image; returns its digest, sha256:….

    from_git: a tag or commit: the image is built from `git archive` of it alone, as the platform does it for a linked
    repository; uncommitted work plays no part.

    Raises: MidogError when there is no checkout, or the engine fails; UsageError for an unknown tag.
    """
    with stage(bundle, build.weights, from_git) as context:
        commit = _commit(from_git)
        engine.run(*build_command(engine, context, tag, build, commit)[1:])
    return image_digest(engine, tag)


def image_digest(engine: Engine, tag: str) -> str:
    """The image's config digest, which names it in an archive. Raises: MidogError when there is no such image."""
    if not engine.has_image(tag):
        raise MidogError(f"no image {tag} in {engine.name}", "midog container build BUNDLE")
    found = engine.output("image", "inspect", "--format", "{{.Id}}", tag)
    return found if found.startswith("sha256:") else f"sha256:{found}"


@contextmanager
def stage(bundle: Bundle, weights: str = "baked", from_git: str | None = None) -> Iterator[Path]:
    """A build context in a temporary folder, readable for every user."""
    with tempfile.TemporaryDirectory(prefix="midog-context-") as holder:
        context = Path(holder)
        if from_git is None:
            _copy_sources(context)
        else:
            _export(from_git, context)
        shutil.rmtree(context / DEFAULT_BUNDLES, ignore_errors=True)
        (context / "model").mkdir(exist_ok=True)
        if weights == "baked":
            _copy_bundle(bundle, context / "model")
        for path in context.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield context


def _copy_sources(context: Path) -> None:
    absent = [name for name in (*FILES, *PACKAGES) if not (ROOT / name).exists()]
    if absent:
        raise MidogError(f"no Dockerfile beside the package: {', '.join(absent)} missing", "work in a clone of midog")
    for name in FILES:
        shutil.copyfile(ROOT / name, context / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _export(revision: str, context: Path) -> None:
    """`git archive`: what the platform would see of this commit."""
    with tempfile.TemporaryFile() as archive:
        command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision, "--"]
        done = subprocess.run(command[:-1], stdout=archive, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UsageError(f"git archive {revision}: {done.stderr.strip()}", "name a tag or commit of this checkout")
        archive.seek(0)
        with tarfile.open(fileobj=archive) as contents:
            contents.extractall(context, filter="data")


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    for name in (MANIFEST_FILE, *bundle.manifest["files"]):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, target)


def _commit(from_git: str | None) -> str:
    """The commit built from, with -dirty where the working tree differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    if from_git is not None:
        return git("rev-parse", f"{from_git}^{{commit}}") or from_git
    head = git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and git("status", "--porcelain") else head or "unknown"


def save_command(engine: Engine, tag: str) -> list[str]:
    """The engine's command that writes the image to stdout as docker does, which is what the platform reads."""
    words = ["save", "--format", "docker-archive"] if engine.name == "podman" else ["save"]
    return engine.command(*words, tag)


def save_image(engine: Engine, tag: str, out: Path) -> Path:
    """Write the image as .tar.gz, whole or not at all, with progress.

    Compressed at level 1 by gzip: a CUDA library hardly shrinks further, and takes minutes.
    Raises: UsageError for another suffix; MidogError when the engine or the disk fails.
    """
    if not out.name.endswith(".tar.gz"):
        raise UsageError(f"{out} does not end in .tar.gz", f"-o {out.stem}.tar.gz")
    size = int(engine.output("image", "inspect", "--format", "{{.Size}}", tag))
    with atomic(out) as temporary, temporary.open("wb") as file, steps("save", max(1, size >> 20)) as step:
        saving = subprocess.Popen(save_command(engine, tag), stdout=subprocess.PIPE)
        packing = subprocess.Popen(["gzip", "-n", "-1"], stdin=subprocess.PIPE, stdout=file)
        assert saving.stdout is not None and packing.stdin is not None
        try:
            _pump(saving.stdout, packing.stdin, step)
        finally:
            packing.stdin.close()
            states = packing.wait(), saving.wait()
        if any(states):
            raise MidogError(f"`{shlex.join(save_command(engine, tag))}` or gzip failed", "see their messages above")
    return out


def _pump(source: IO[bytes], target: IO[bytes], step: Callable[[str], None]) -> None:
    while block := source.read(BLOCK):
        target.write(block)
        step("")
