"""Which bundle and which operating point the container uses, and the line that says so."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.blend import OperatingPoint
from midog.archive import locate
from midog.errors import UsageError, WeightsError
from midog.result import Result
from submission.challenge import TRACK2, plain

if TYPE_CHECKING:
    from midog.bundle import Bundle

MAKE = "midog bundle BLEND -o model.tar.gz"


def find_model(
    environment: Mapping[str, str], uploaded: Path = TRACK2.uploaded_model, baked: Path = TRACK2.baked_model
) -> Path:
    """Folder of the bundle to use.

    `MIDOG_MODEL_DIR`, then the uploaded model tarball, then the one baked into the image. Only the first place that
    holds anything counts: weights are never passed over in silence.

    Raises: WeightsError when that place holds no bundle, or none of them holds anything.
    """
    named = environment.get(TRACK2.model_variable)
    if named:
        return Path(named)
    folder = locate(uploaded)
    if folder is not None:
        return folder
    visible = _visible(uploaded)
    if visible:
        raise WeightsError(
            f"{uploaded} holds files but no bundle",
            f"upload a model tarball made by: {MAKE}; or remove the one that is attached",
            [plain(name) for name in visible],
        )
    folder = locate(baked)
    if folder is not None:
        return folder
    raise WeightsError(
        f"no bundle: neither in {uploaded} (an uploaded model) nor in {baked} (part of the image)",
        f"make one with: {MAKE}; upload it, or build it into the image",
    )


def _visible(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def choose_use(environment: Mapping[str, str], points: Mapping[str, OperatingPoint]) -> str:
    """Name of the operating point: `MIDOG_USE`, or what `MIDOG_MEMBERS` and `MIDOG_VIEWS=1` translate to.

    Raises: UsageError for members without an operating point of their own: a set that nobody calibrated cannot be used.
    """
    use = environment.get(TRACK2.use_variable) or "full"
    names = [name.strip() for name in environment.get(TRACK2.members_variable, "").split(",") if name.strip()]
    if names:
        fitting = [name for name, point in points.items() if set(point.members) == set(names)]
        if not fitting:
            sets = [f"{name}: {', '.join(point.members)}" for name, point in points.items()]
            problem = f"{TRACK2.members_variable}={','.join(names)} has no operating point"
            raise UsageError(problem, f"choose one of these with {TRACK2.use_variable}", sets)
        fitting.sort(key=lambda name: points[name].fold_models != 0)  # members named are meant with all fold models
        use = next((name for name in fitting if not name.endswith("/1")), fitting[0])
    if environment.get(TRACK2.views_variable) == "1" and not use.endswith("/1") and points_have_one(use, points):
        use = f"{use}/1"
    return use


def points_have_one(use: str, points: Mapping[str, OperatingPoint]) -> bool:
    """Whether `use` needs its `/1` variant to look once: a point without views looks once already."""
    return use not in points or points[use].views != "none"


def lighter_points(point: OperatingPoint, points: Mapping[str, OperatingPoint]) -> list[OperatingPoint]:
    """What a time budget may walk down to from `point`, in this order: fewer views, fewer members, fewer of both.

    Only points whose members are among its own; `fast/1`, a single fold model, ends the walk.
    """
    one_view = f"{point.name.removesuffix('/1')}/1"
    tops = sorted((name for name in points if name.startswith("top:")), key=lambda name: -int(name[4:].split("/")[0]))
    order = [one_view, *(name for name in tops if name.endswith("/1")), "fast/1"]
    found = [points[name] for name in dict.fromkeys(order) if name in points and name != point.name]
    return [lighter for lighter in found if set(lighter.members) <= set(point.members)]


def predict_by(deadline: float, bundle: Bundle, pages: Sequence[Any]) -> Result:
    """Predict at the richest operating point that is ready by `deadline`, a time of the monotonic clock.

    The projected end is looked at after every fold model. The last point of the walk runs whatever the clock says:
    a late answer is better than none. The result's first notes tell what was given up.
    """
    from midog.bundle import OutOfTime

    notes: list[str] = []
    points = [bundle.point, *lighter_points(bundle.point, bundle.blend.points)]
    for point, lighter in zip(points, [*points[1:], None], strict=True):
        try:
            result = bundle.at(point.name).predict(pages, mpp=None, deadline=None if lighter is None else deadline)
        except OutOfTime as late:
            assert lighter is not None
            notes.append(f"time budget: {point.name} would end {late.seconds:.0f} s late, going on with {lighter.name}")
        else:
            break
    return replace(result, notes=(*notes, *result.notes))


def import_heavy() -> None:
    """Import what inference needs and nothing has imported yet, so that it can be timed apart.

    The collector of cyclic garbage finds nothing in two and a half thousand modules and looks through them again and
    again; switched off meanwhile, and told to leave them alone later, it saves a fifth of the start.
    """
    gc.disable()
    try:
        import torch  # noqa: F401

        import midog.models.classifier
        import midog.models.predict  # noqa: F401
        from midog.models.allocator import keep_freed_memory
        from midog.models.timm_import import import_timm

        keep_freed_memory()
        import_timm()
    finally:
        gc.freeze()
        gc.enable()


def banner(bundle: Bundle, model: Path) -> str:
    """One line: versions, device, bundle, operating point."""
    import timm
    import torch

    about = bundle.about()
    parts = [f"midog {about['midog']}", f"timm {timm.__version__}", f"torch {torch.__version__}"]
    parts.append(f"CUDA build {torch.version.cuda or 'none'}")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        built = "" if f"sm_{major}{minor}" in torch.cuda.get_arch_list() else " not"
        parts.append(f"device {plain(torch.cuda.get_device_name())} sm_{major}{minor}{built} in this build")
    else:
        parts.append(f"device cpu, {torch.get_num_threads()} threads")
    parts += [f"model {plain(model)}", f"sha256 {bundle.digest}"]
    answering = f"{len(bundle.point.members)} members, views {bundle.point.views}, {about['fold_models']} fold models"
    parts.append(f"use {plain(bundle.point.name)}: {answering}")
    return "; ".join(parts)


def warn_of_processor() -> str:
    """A warning where torch was built for a GPU and sees none; "" otherwise."""
    import torch

    if torch.version.cuda is None or torch.cuda.is_available():
        return ""
    return "no GPU is visible, working on the processor: tick GPU in the algorithm's settings if one was meant"
