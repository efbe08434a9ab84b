"""A container engine, docker or podman: which one is there, how it is called, and running the image under the contract.

Every call is a plain list of words, so that `--dry-run` can print what would be done.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from midog.errors import MidogError, UsageError
from submission.challenge import TRACK2
from submission.trial.enclosure import PROCESSES, SHARED_MEMORY, TMP
from submission.trial.runners import GIB, GPU_TOLERANCE, PROCESSOR_TOLERANCE, Conditions, Outcome, run_command

ENGINES = ("docker", "podman")
PYTHON = "/opt/venv/bin/python"
STDERR = 2
TAG = "midog:latest"
ANSWER_SECONDS = 60
_LOOK = "see the engine's own messages above"


@dataclass(frozen=True)
class Engine:
    """`run` and `output` carry out a command; both raise MidogError with the engine's last words."""

    name: str

    def command(self, *words: object) -> list[str]:
        return [self.name, *map(str, words)]

    def run(self, *words: object) -> None:
        """Carry it out with the engine's own output on stderr."""
        done = subprocess.run(self.command(*words), stdout=STDERR, check=False)
        if done.returncode:
            raise MidogError(f"`{shlex.join(self.command(*words)[:3])} …` ended with status {done.returncode}", _LOOK)

    def output(self, *words: object) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise MidogError(f"`{shlex.join(self.command(*words)[:3])} …` failed", _LOOK, said)
        return done.stdout.strip()

    def config(self, image: str) -> dict[str, Any]:
        """What the Dockerfile set: Labels, Env, Entrypoint, User."""
        found: dict[str, Any] = json.loads(self.output("image", "inspect", "--format", "{{json .Config}}", image))
        return found

    def has_image(self, image: str) -> bool:
        return subprocess.run(self.command("image", "inspect", image), capture_output=True, check=False).returncode == 0


def find_engine(name: str | None = None) -> Engine:
    """The engine to use: the one named, else docker, else podman, whichever answers.

    Raises: UsageError for another name; MidogError when there is none.
    """
    if name is not None and name not in ENGINES:
        raise UsageError(f"unknown engine: {name}", f"--engine {' or --engine '.join(ENGINES)}")
    for candidate in (name,) if name else ENGINES:
        if shutil.which(candidate) and _answers(candidate):
            return Engine(candidate)
    raise MidogError(
        f"no container engine: {name or ' nor '.join(ENGINES)} is not installed, or does not answer",
        "install docker or podman (README, without docker); or test without one: midog container test --no-engine",
    )


def _answers(name: str) -> bool:
    """Whether the engine works: docker's command may be there without its daemon."""
    try:
        done = subprocess.run([name, "info"], capture_output=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def contract_flags(conditions: Conditions, name: str, engine: str) -> list[str]:
    """The platform's limits at their strictest: no network, nothing to write to but /output and /tmp, no rights."""
    memory = conditions.memory or 15 * GIB
    flags = ["--rm", "--name", name, "--pull", "never", "--network", "none", "--read-only"]
    if engine == "podman":  # its --read-only alone leaves /run and /var/tmp writable
        flags.append("--read-only-tmpfs=false")
    flags += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--shm-size", str(SHARED_MEMORY)]
    flags += ["--pids-limit", str(PROCESSES), "--memory", str(memory), "--memory-swap", str(memory)]
    # One --ulimit replaces the engine's defaults, so all are named.
    flags += ["--ulimit", f"data={conditions.data_limit}:{conditions.data_limit}"]
    flags += ["--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096"]
    if conditions.tmp is None:
        flags += ["--tmpfs", f"/tmp:rw,nosuid,nodev,size={TMP}"]
    else:
        flags += ["--volume", f"{conditions.tmp.absolute()}:/tmp"]
    if conditions.model is not None:
        flags += ["--volume", f"{conditions.model.absolute()}:{TRACK2.uploaded_model}:ro"]
    if conditions.workdir is not None:
        flags += ["--workdir", conditions.workdir]
    for key, value in conditions.environment.items():
        flags += ["--env", f"{key}={value}"]
    return flags


@dataclass(frozen=True)
class EngineRunner:
    """Runs the image under the whole contract; a `Runner` of the conformance test.

    `memory`: bytes a job may hold. `gpu`: let the container see the GPUs. `baked`: the image holds weights.
    """

    engine: Engine
    image: str
    baked: bool = True
    memory: int = 15 * GIB
    gpu: bool = False
    folder: Path = field(default_factory=Path.cwd)

    @property
    def name(self) -> str:
        return f"{self.engine.name}, {self.image}"

    @property
    def tolerance(self) -> float:
        return GPU_TOLERANCE if self.gpu else PROCESSOR_TOLERANCE

    def skips(self) -> Mapping[str, str]:
        link = {"B10": "/input cannot be made a link in a read-only image: test --no-engine shows it"}
        return {**link, "D7": "a GPU was asked for"} if self.gpu else link

    def run(self, input_dir: Path, output_dir: Path, conditions: Conditions) -> Outcome:
        output_dir.mkdir(parents=True, exist_ok=True)
        output_dir.chmod(0o777)  # the image's user is not the one who called
        mode = ":ro" if conditions.output_read_only else ""
        volumes = ["--volume", f"{output_dir.absolute()}:{TRACK2.output_dir}{mode}"]
        if input_dir.exists():
            volumes += ["--volume", f"{input_dir.resolve()}:{TRACK2.input_dir}:ro"]
        return self._run(conditions, volumes, [self.image])

    def ask(self, code: str, conditions: Conditions, input_dir: Path | None = None) -> Outcome:
        volumes = ["--tmpfs", f"{TRACK2.output_dir}:mode=1777", "--entrypoint", PYTHON]
        volumes += ["--volume", f"{input_dir.resolve()}:{TRACK2.input_dir}:ro"] if input_dir else []
        return self._run(conditions, volumes, [self.image, "-c", code])

    def _run(self, conditions: Conditions, volumes: Sequence[str], words: Sequence[str]) -> Outcome:
        name = f"midog-{uuid.uuid4().hex[:12]}"
        flags = contract_flags(_with_memory(conditions, self.memory), name, self.engine.name)
        gpu = (
            (["--gpus", "all"] if self.engine.name == "docker" else ["--device", "nvidia.com/gpu=all"])
            if self.gpu
            else []
        )
        outcome = run_command(
            self.engine.command("run", *flags, *gpu, *volumes, *words), conditions.time_limit, workdir=str(self.folder)
        )
        if outcome.timed_out:  # the client is gone, the container may not be
            subprocess.run(self.engine.command("kill", name), capture_output=True, check=False)
        return outcome


def _with_memory(conditions: Conditions, memory: int) -> Conditions:
    return conditions if conditions.memory is not None else replace(conditions, memory=memory)
