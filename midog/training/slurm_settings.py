"""What `--slurm` may say: what each fold's job asks the cluster for."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import asdict, dataclass, fields

from midog.errors import UsageError, unknown


@dataclass(frozen=True)
class Slurm:
    """What a fold's job asks the cluster for.

    Attributes:
        time: minutes after which a job is stopped, requeued and continued.
        partition: of the cluster; empty is its default one. So are account, qos and constraint.
        cpus: processors, and torch's threads.
        gpus: 1, or 0 to train on the processor. A fold trains on one GPU.
        mem: memory, such as "32G"; empty is the partition's default.
    """

    time: int
    partition: str = ""
    cpus: int = 4
    gpus: int = 1
    mem: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""

    def __str__(self) -> str:
        said = {key: value for key, value in asdict(self).items() if value != ""}
        words = [f"{key}={value}" for key, value in said.items() if key != "time"]
        return f"{', '.join(words)}; requeued and continued after {self.time} min"


def parse_slurm(text: str) -> Slurm:
    """ "partition=gpu,time=8:00:00,mem=32G" as settings.

    Raises: UsageError where there is no SLURM, for a key that does not exist, naming the nearest, or for a value that
        cannot be read.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            "--slurm: there is no sbatch on this machine",
            "type the command on a login node of the cluster, or leave --slurm out to train on this machine",
        )
    known = tuple(field.name for field in fields(Slurm))
    words: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UsageError(f"--slurm {part}: KEY=VALUE is expected", "--slurm partition=gpu,time=8:00:00")
        if key not in known:
            raise unknown("key of --slurm", key, known)
        words[key] = value
    if "time" not in words:
        raise UsageError(
            "--slurm says no time limit",
            "add time=8:00:00 (hours:minutes:seconds): a fold that needs longer is requeued and goes on",
        )
    gpus = _whole("gpus", words.get("gpus", "1"))
    if gpus > 1:
        raise UsageError(f"--slurm gpus={gpus}: a fold trains on one GPU", "gpus=1; folds run side by side")
    return Slurm(
        time=_minutes(words["time"]),
        cpus=max(1, _whole("cpus", words.get("cpus", "4"))),
        gpus=gpus,
        mem=_memory(words["mem"]) if "mem" in words else "",
        **{key: words.get(key, "") for key in ("partition", "account", "qos", "constraint")},
    )


def _whole(key: str, value: str) -> int:
    if not value.isdigit():
        raise UsageError(f"--slurm {key}={value} is no whole number", f"{key}=1")
    return int(value)


def _minutes(value: str) -> int:
    """ "90", "1:30:00" or "2-12:00:00" in whole minutes, rounded up."""
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d))|(\d+)", value)
    if found is None:
        fix = "minutes (90), hours:minutes:seconds (1:30:00) or days-hours:minutes:seconds (2-12:00:00)"
        raise UsageError(f"--slurm time={value} is no time limit", fix)
    days, hours, minutes, seconds, plain = (int(group or 0) for group in found.groups())
    whole = plain + days * 1440 + hours * 60 + minutes + math.ceil(seconds / 60)
    if not whole:
        raise UsageError(f"--slurm time={value}", "at least one minute")
    return whole


def _memory(value: str) -> str:
    if not re.fullmatch(r"\d+[MGT]", value):
        raise UsageError(f"--slurm mem={value} is no amount of memory", "mem=32G, or M or T")
    return value
