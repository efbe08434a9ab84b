"""A root of its own for a plain process: what a container engine would set up, by mounts and limits alone.

No network, read-only root, fresh /tmp, 128 MiB of shared memory, no devices but the harmless ones, no capabilities,
another user; the system's programs and the Python that runs this are bound in. Needs root, or user namespaces.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

USER = 47430
"""Numeric id of the user that the process becomes; it owns nothing."""
HOME = "/home/user"
SYSTEM = ("bin", "etc", "lib", "lib32", "lib64", "libx32", "nix", "sbin", "usr")
DEVICES = ("null", "zero", "full", "random", "urandom")
PROCESSES = 256
SHARED_MEMORY = 128 << 20
"""Bytes of /dev/shm: below the platform's, so that nothing leans on it."""
TMP = 1 << 30
"""Bytes of /tmp."""
LOOPBACK = """
import fcntl, socket, struct
with socket.socket() as probe:  # SIOCSIFFLAGS: interface lo is up, as in a container without a network
    fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
"""
FLAGS = {os.ST_NOSUID: "nosuid", os.ST_NODEV: "nodev", os.ST_NOEXEC: "noexec", os.ST_NOATIME: "noatime"}


@dataclass(frozen=True)
class Enclosure:
    """How far this system lets a process be shut in. `user`: it becomes another user; `namespace`: without root."""

    namespace: bool
    user: bool

    def command(
        self,
        stage: Path,
        binds: Sequence[tuple[Path, str, bool]],
        links: Mapping[str, str],
        environment: Mapping[str, str],
        workdir: str,
        data_limit: int,
        arguments: Sequence[str],
    ) -> list[str]:
        """The command that runs `arguments` inside.

        Args:
            stage: empty folder of the host on which the root is put together; it stays empty outside.
            binds: what is seen where, and whether it may be written.
            links: symbolic links, name → target.
            data_limit: RLIMIT_DATA in bytes.
        """
        lines = [
            "set -e",
            shlex.join([sys.executable, "-c", LOOPBACK]),
            f"mount -t tmpfs -o mode=755,size=16m root {shlex.quote(str(stage))}",
        ]
        lines += _system(stage) + _devices(stage)
        if not any(target == "/tmp" for _, target, _ in binds):
            lines.append(_make(stage, "/tmp"))
            lines.append(f"mount -t tmpfs -o mode=1777,nosuid,nodev,size={TMP} tmp {_at(stage, '/tmp')}")
        # Outer folders first, so that what lies inside them is not hidden.
        for source, target, writable in sorted(binds, key=lambda bind: bind[1].count("/")):
            lines += _bind(stage, source, target, writable)
        for name, target in links.items():
            lines += [_make(stage, str(Path(name).parent)), f"ln -s {shlex.quote(target)} {_at(stage, name)}"]
        lines += [_make(stage, HOME), f"mount -o remount,bind,ro {shlex.quote(str(stage))}"]
        inside = ["env", "-i", "-C", workdir, *(f"{name}={value}" for name, value in environment.items()), *arguments]
        lines.append("exec " + shlex.join([*self._limits(data_limit), "chroot", str(stage), *self._drop(), *inside]))
        unshare = ["unshare", "--net", "--mount", *(["--user", "--map-root-user"] if self.namespace else [])]
        return [*unshare, "sh", "-c", "\n".join(lines)]

    def _limits(self, data_limit: int) -> list[str]:
        # The number of processes is counted per user, so it can only be limited for one that nobody else is.
        return ["prlimit", f"--data={data_limit}", *([f"--nproc={PROCESSES}"] if self.user else [])]

    def _drop(self) -> list[str]:
        become = ["--reuid", str(USER), "--regid", str(USER), "--clear-groups"] if self.user else []
        return ["setpriv", *become, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def interpreter() -> list[tuple[Path, str, bool]]:
    """What this Python needs beside the system's folders: its own, its base's."""
    found = {str(Path(prefix)) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    found |= {str(Path(name).resolve()) for name in found}
    outside = [name for name in sorted(found) if Path(name).parts[1] not in SYSTEM]
    return [(Path(name), name, False) for name in outside]


def own_in_tmp() -> list[str]:
    """Names in /tmp that have to be there because this Python lies below it, as a clone made for a trial may."""
    return sorted({Path(name).parts[2] for _, name, _ in interpreter() if Path(name).parts[1] == "tmp"})


def _at(stage: Path, inside: str) -> str:
    return shlex.quote(f"{stage}{inside}")


def _make(stage: Path, inside: str) -> str:
    return f"mkdir -p {_at(stage, inside)}"


def _bind(stage: Path, source: Path, target: str, writable: bool) -> list[str]:
    """Bind a file or folder; the folders on the way are the stage's own, so a closed home above it does not matter."""
    at = _at(stage, target)
    prepare = _make(stage, target)
    if not source.is_dir():
        prepare = f"[ -e {at} ] || {{ {_make(stage, str(Path(target).parent))}; touch {at}; }}"
    lines = [prepare, f"mount --bind {shlex.quote(str(source))} {at}"]
    if not writable:
        have = os.statvfs(source).f_flag
        kept = [word for flag, word in FLAGS.items() if have & flag]  # a user namespace may not take them away
        lines.append(f"mount -o {','.join(['remount', 'bind', 'ro', *kept])} {at}")
    return lines


def _system(stage: Path) -> list[str]:
    lines: list[str] = []
    for name in SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            lines.append(f"ln -s {shlex.quote(str(path.readlink()))} {_at(stage, f'/{name}')}")
        elif path.is_dir():
            lines += _bind(stage, path, f"/{name}", False)
    lines += [_make(stage, "/proc"), f"mount --rbind /proc {_at(stage, '/proc')}"]
    return [*lines, _make(stage, "/sys"), f"mount --rbind /sys {_at(stage, '/sys')}"]


def _devices(stage: Path) -> list[str]:
    lines = [_make(stage, "/dev/shm"), f"ln -s /proc/self/fd {_at(stage, '/dev/fd')}"]
    lines.append(f"mount -t tmpfs -o mode=1777,size={SHARED_MEMORY} shm {_at(stage, '/dev/shm')}")
    for name in DEVICES:
        lines += _bind(stage, Path("/dev", name), f"/dev/{name}", True)
    return lines
