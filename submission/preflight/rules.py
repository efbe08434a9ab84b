"""The rules an image has to keep to be uploaded and to run, each with its line of the check-list.

A1 to A11 are the platform's and the challenge's, the others our choice. Where the platform has words for a refusal, a
failing line opens with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from submission.challenge import TRACK2, plain
from submission.ledger import Entry, used_before
from submission.preflight.content import Baked, Content, User, file_problem, script_problem
from submission.preflight.credentials import find_variables, has_password
from submission.preflight.layers import SCRIPT
from submission.verdict import Verdict

LIMIT = 10_000_000_000
"""Bytes of an unpacked image that the challenge allows."""
CLOSE = 0.8  # of the limit: warned about
SHOWN_PROBLEMS = 3

NAMED = "named .tar, .tar.gz or .tar.xz, decompresses"
MANIFEST = "manifest.json"
ONE_IMAGE = "exactly one image"
CONFIG = "config is a regular JSON member"
NAME = "config's name is its sha256"
NOT_ROOT = "does not run as root"
AMD64 = "built for amd64"
DIGEST = "image digest and submission id"
API = "api method"
UNPACKED = "unpacked size"
INTACT = "archive and layers intact to the end"
SIZES = "sizes and sha256"
PASSWD_ENTRY = "USER has a passwd entry and a home"
ENTRY_POINT = "absolute ENTRYPOINT"
SCRIPT_THERE = f"/{SCRIPT}"
BUNDLE = "bundle in the image"
TESTED = "bundle is the tested one"
NEW = "not uploaded before"
CLEAN = "/tmp, /input, /output empty, no repository"
SECRETS = "no credentials"

LINES = {
    NAMED: "A1",
    MANIFEST: "A2",
    ONE_IMAGE: "A3",
    CONFIG: "A4",
    NAME: "A5",
    NOT_ROOT: "A6",
    AMD64: "A7",
    DIGEST: "A8",
    API: "A9",
    UNPACKED: "A10",
    INTACT: "A11",
    SIZES: "A12",
    PASSWD_ENTRY: "A13",
    ENTRY_POINT: "A14",
    SCRIPT_THERE: "A14",
    BUNDLE: "A14",
    TESTED: "A15",
    NEW: "A16",
    CLEAN: "A17",
    SECRETS: "A18",
}
"""Every rule, in the order of the table."""


def decide(rule: str, problem: str, detail: str = "") -> Verdict:
    """fail with `problem`, or pass with `detail` where there is none."""
    return Verdict(LINES[rule], rule, "fail" if problem else "pass", problem or detail)


def warn(rule: str, detail: str) -> Verdict:
    return Verdict(LINES[rule], rule, "warn", detail)


def some(problems: Sequence[str]) -> str:
    """The first problems on one line, and how many there are."""
    more = f" and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    return "; ".join(map(plain, problems[:SHOWN_PROBLEMS])) + more


def in_units(size: int) -> str:
    """Bytes for people, in powers of ten."""
    units = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
    return next((f"{size / factor:.1f} {unit}" for factor, unit in units if size >= factor), f"{size} B")


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What Dockerfile instructions set: User, Entrypoint, Env, Labels."""
    settings = config.get("config")
    return settings if isinstance(settings, dict) else {}


def user_of(config: Mapping[str, Any]) -> str:
    return str(settings_of(config).get("User") or "").strip()


def configured(config: Mapping[str, Any], digest: str) -> Iterator[Verdict]:
    """A6 to A9: what the config alone tells."""
    user = user_of(config)
    lowered = user.lower()
    root = lowered in ("", "root", "0") or lowered.startswith(("0:", "root:"))
    words = f"The container runs as root. Please add a user, group and USER instruction (USER is {plain(user)!r})"
    yield decide(NOT_ROOT, words if root else "", plain(user))
    architecture, system = config.get("architecture"), config.get("os", "linux")
    wrong = architecture != "amd64" or system != "linux"
    words = f"Architecture type {architecture!r} is not supported. Please provide one built for 'amd64'"
    yield decide(
        AMD64, (words if architecture != "amd64" else f"built for {plain(system)}, not linux") if wrong else ""
    )
    labels = settings_of(config).get("Labels")
    labels = labels if isinstance(labels, dict) else {}
    submission = plain(labels.get(TRACK2.submission_label) or "none")
    yield Verdict(LINES[DIGEST], DIGEST, "info", f"{digest}, {TRACK2.submission_label}: {submission}")
    yield _api(labels)


def _api(labels: Mapping[str, Any]) -> Verdict:
    for key, value in labels.items():
        if str(key).lower().strip() == TRACK2.api_label:
            method = str(value).lower().replace("'", "").replace('"', "").strip()
            words = f"The label {TRACK2.api_label} must be one of {list(TRACK2.api_methods)}, instead we found "
            return decide(API, "" if method in TRACK2.api_methods else f"{words}'{plain(value)}'.", method)
    return decide(API, "", f"no label: {TRACK2.api_methods[0]}")


def sized(unpacked: int, limit: int) -> Verdict:
    """A10."""
    text = f"{in_units(unpacked)} of the {in_units(limit)} that are allowed"
    if unpacked >= limit:
        return decide(UNPACKED, f"The container image is too large: {text}")
    return warn(UNPACKED, text) if unpacked >= CLOSE * limit else decide(UNPACKED, "", text)


def contained(config: Mapping[str, Any], content: Content, user: User, baked: Baked) -> Iterator[Verdict]:
    """A13, A14, A17 and A18: what the layers tell."""
    name = user_of(config)
    if name.lower().partition(":")[0] in ("", "root", "0"):
        yield Verdict(LINES[PASSWD_ENTRY], PASSWD_ENTRY, "skip", "it is root")
    else:
        yield decide(PASSWD_ENTRY, plain(user.problem), f"{plain(name)}: uid {user.uid}, home {plain(user.home)}")
    settings = settings_of(config)
    entry, command = settings.get("Entrypoint"), settings.get("Cmd")
    yield _entry_point(entry, command)
    yield decide(SCRIPT_THERE, plain(file_problem(SCRIPT, content, user)), "readable by USER")
    if baked.problems:
        yield decide(BUNDLE, some(baked.problems))
    elif not baked.digest:
        yield warn(BUNDLE, "none: weights must come as a model tarball, and a re-run off the platform has none")
    else:
        yield decide(BUNDLE, "", f"{baked.files} files as its manifest says, sha256 {baked.digest}")
    yield _clean(content)
    yield _secrets(config, content)


def _entry_point(entry: Any, command: Any) -> Verdict:
    problem = script_problem(entry, command)
    if problem:
        return decide(ENTRY_POINT, plain(problem))
    words = [str(word) for word in [*entry, *(command if isinstance(command, list) else [])]]
    if SCRIPT_THERE not in words:
        return warn(ENTRY_POINT, f"{plain(' '.join(words))} does not run {SCRIPT_THERE}, which organisers mount over")
    return decide(ENTRY_POINT, "", plain(" ".join(words)))


def _clean(content: Content) -> Verdict:
    own = [path for path in content.repositories if path.startswith("opt/app/")]
    bad = [f"/{path} ({in_units(size)})" for path, size in content.leftovers.items()] + [f"/{path}" for path in own]
    if bad:
        return decide(CLEAN, f"{some(bad)}: remove them in the layer that makes them")
    other = [f"/{path}" for path in (*content.repositories, *content.bytecode)]
    return warn(CLEAN, some(other)) if other else decide(CLEAN, "")


def _secrets(config: Mapping[str, Any], content: Content) -> Verdict:
    found = [f"/{path}: {what}" for path, what in content.credentials.items()]
    history = config.get("history")
    commands = (
        [str(step.get("created_by")) for step in history if isinstance(step, dict)] if isinstance(history, list) else []
    )
    if any(map(has_password, commands)):
        found.append("a build command in the image's history holds an address with a password")
    if found:
        return decide(SECRETS, f"{some(found)}; a file that a later layer deletes is still part of the archive")
    variables = settings_of(config).get("Env")
    names = find_variables(map(str, variables)) if isinstance(variables, list) else []
    return (
        warn(SECRETS, f"variables that may hold a secret: {', '.join(map(plain, names))}")
        if names
        else decide(SECRETS, "")
    )


def tested_bundle(baked: Baked, tested: str | None) -> Verdict:
    """A15."""
    if tested is None or not baked.digest:
        why = "no tested bundle was given" if tested is None else "the image holds no bundle"
        return Verdict(LINES[TESTED], TESTED, "skip", why)
    return decide(TESTED, "" if baked.digest == tested else f"it is {baked.digest}, tested was {tested}", tested)


def new_digest(digest: str, entries: Sequence[Entry] | None) -> Verdict:
    """A16."""
    if entries is None:
        return Verdict(LINES[NEW], NEW, "skip", "no ledger was given")
    used = used_before(entries, digest)
    if used is None:
        return decide(NEW, "", f"not among {len(entries)} entries of the ledger")
    words = "This container image has already been uploaded."
    fix = f"build it with another {TRACK2.submission_label} label"
    return decide(
        NEW, f"{words} ({used.event} on {used.date}, submission {plain(used.submission or 'unknown')}; {fix})"
    )
