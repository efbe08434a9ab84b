"""Teachers: members whose fold models other members start from, of the same fold and none other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from midog.errors import LeakError, UsageError, WeightsError, nearest
from midog.files import read_json, sha256_file, sha256_json
from midog.models.classifier import Classifier, pretrained_state
from midog.models.inference import Inference
from midog.models.network import Network
from midog.models.weights import TensorFile
from midog.training.identity import pretrained_identity
from midog.training.start_settings import Distil

if TYPE_CHECKING:
    from midog.settings import Problems
    from midog.training.member import Member

SAME = ("fold", "folds_sha256", "data_sha256", "pixels_sha256")
"""What pupil and teacher must share for the teacher never to have seen the cases that the pupil leaves out."""


def teacher_of(member: Member) -> str:
    """Name of the member it learns from; empty for most."""
    return member.start.teacher if isinstance(member.start, Distil) else ""


def teachers(name: str, members: Mapping[str, Member | None]) -> list[str]:
    """The member's teacher, its teacher's teacher, and so on. A name that comes twice, or is no member, ends it."""
    chain: list[str] = []
    member = members.get(name)
    while member is not None and (above := teacher_of(member)):
        chain.append(above)
        if above == name or chain.count(above) > 1:
            break
        member = members.get(above)
    return chain


def teachers_first(names: Sequence[str], members: Mapping[str, Member]) -> list[str]:
    """The longer the chain of its teachers, the later a member comes; else in the order given."""
    return sorted(names, key=lambda name: len(teachers(name, members)))


def check_teachers(problems: Problems, members: Mapping[str, Member | None]) -> None:
    """Each teacher is a member, and none learns from itself, also not by way of others."""
    for name, member in members.items():
        where, above = f"members.{name}.start.teacher", teacher_of(member) if member is not None else ""
        if above and above not in members:
            guess = nearest(above, [other for other in members if other != name])
            problems.add(where, f"no member {above}" + (f"; did you mean {guess}?" if guess else ""))
        elif above == name:
            problems.add(where, f"{name} cannot teach itself", f"give {name} a `start: off` of its own")
        elif name in (chain := teachers(name, members)):
            problems.add(where, f"learns from itself by way of {', '.join(chain[:-1])}", "give one a `start: off`")


def teacher_folder(member: Member, folder: Path) -> Path | None:
    """Where the teacher's model of the same fold is; `folder` is the fold folder of `member`."""
    return folder.parents[1] / teacher_of(member) / folder.name if teacher_of(member) else None


def teacher_sha256(member: Member, folder: Path) -> str:
    """sha256 of the teacher's model of the same fold; empty while it is not done, and without a teacher."""
    above = teacher_folder(member, folder)
    done = above / "done.json" if above is not None else None
    return str(read_json(done)["model_sha256"]) if done is not None and done.is_file() else ""


def require_teacher(member: Member, fold: str, folder: Path) -> str:
    """As `teacher_sha256`. Raises: UsageError where the teacher's model of fold `fold` is not done."""
    sha256 = teacher_sha256(member, folder)
    if teacher_of(member) and not sha256:
        run = folder.parents[1]
        again = f"midog train {run / 'recipe.yaml'} {run / 'patches.csv'} -o {run}"
        raise UsageError(
            f"{member.name} learns from {teacher_of(member)}, whose model of fold {fold} is not trained",
            f"{again} --member {teacher_of(member)} --fold {fold}",
        )
    return sha256


def load_teacher(
    member: Member, folder: Path, identity: Mapping[str, Any], pretrained: Path | None, device: torch.device
) -> Classifier:
    """The teacher's model of the fold that `member` trains in `folder` and `identity` makes.

    Raises: LeakError when it left out other cases; WeightsError when its file or its pretrained weights are not those
        that done.json knows.
    """
    folder = folder.parents[1] / teacher_of(member) / folder.name
    done, model = read_json(folder / "done.json"), folder / "model.safetensors"
    made = done["identity"]
    other = [f"{key}: {made.get(key)} there, {identity[key]} here" for key in SAME if made.get(key) != identity[key]]
    again = f"remove {folder} and train it again"
    if other:
        problem = f"{folder} holds no model of this fold: it may have seen the cases that are left out here"
        raise LeakError(problem, again, other)
    sha256 = sha256_file(model)
    if sha256 != identity["teacher_sha256"] or TensorFile(model).about.get("identity") != sha256_json(made):
        raise WeightsError(f"{model} is not the file that {folder / 'done.json'} knows", again)
    network = Network.from_dict(done["network"])
    if pretrained_identity(network, pretrained) != made["pretrained"]:
        raise WeightsError(f"{folder} was trained from other pretrained weights than are found now", again)
    return Inference(network, pretrained_state(network, pretrained), device).switch(model)
