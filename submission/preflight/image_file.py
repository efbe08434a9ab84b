"""From a scanned archive to its one image: manifest.json, the config, the layers in their order (A1 to A5, A11)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from midog.files import sha256_bytes
from submission.challenge import plain
from submission.preflight.layers import LARGEST_DOCUMENT, Layer, Scan
from submission.preflight.rules import CONFIG, INTACT, MANIFEST, NAME, NAMED, ONE_IMAGE, decide, some, warn
from submission.verdict import Verdict

SUFFIXES = (".tar", ".tar.gz", ".tar.xz")
CONFIG_NAME = re.compile(r"(?:.*/)?(?:sha256:)?([0-9a-f]{64})(?:\.json)?")
SAVED_BY = "Was this created with docker save?"


@dataclass(frozen=True)
class Image:
    """The one image of an archive, as far as it could be opened: without `config` the verdicts tell why."""

    verdicts: tuple[Verdict, ...] = ()
    config: dict[str, Any] | None = None
    digest: str = ""
    layers: tuple[Layer, ...] = ()
    problems: tuple[str, ...] = ()  # of the layers


def read_to_end(scan: Scan) -> Iterator[Verdict]:
    """A1, and A11 where the archive stops in its midst."""
    problem = ""
    if scan.problem:
        problem = f"Could not decompress the container image file. ({plain(scan.problem)})"
    elif not scan.name.endswith(SUFFIXES):
        problem = f"{plain(scan.name)} ends in none of {', '.join(SUFFIXES)}"
    yield decide(NAMED, problem, scan.compression or "not compressed")
    if scan.problem and scan.members:
        yield decide(INTACT, f"stops after {len(scan.members)} members: {plain(scan.problem)}")


def open_image(scan: Scan) -> Image:
    """manifest.json, its one image, that image's config and layers."""
    if scan.problem:
        return Image()
    what = _json(scan, "manifest.json")
    if isinstance(what, str):
        oci = "index.json" in scan.members and "oci-layout" in scan.members
        hint = "an OCI archive; save it with: podman save --format docker-archive" if oci else what
        return Image(
            (decide(MANIFEST, f"Could not find manifest.json in the container image file. {SAVED_BY} ({hint})"),)
        )
    images = what if isinstance(what, list) else [what]
    good = decide(MANIFEST, "")
    if len(images) != 1:
        words = f"The container image file should only have 1 image. This file contains {len(images)}."
        return Image((good, decide(ONE_IMAGE, words)))
    entry = images[0] if isinstance(images[0], dict) else {}
    name = str(entry.get("Config", ""))
    verdicts = [good, decide(ONE_IMAGE, "", ", ".join(map(plain, entry.get("RepoTags") or [])) or "without a tag")]
    config = _json(scan, name)
    if not isinstance(config, dict):
        why = config if isinstance(config, str) else f"{plain(name)} holds no JSON object"
        words = f"Could not find the config file in the container image file. {SAVED_BY} ({why})"
        return Image((*verdicts, decide(CONFIG, words)))
    digest = sha256_bytes(scan.documents[name])
    verdicts += [decide(CONFIG, "", plain(name)), decide(NAME, _name_problem(name, digest))]
    names = entry.get("Layers") or []
    layers, problems = _find_layers(scan, [str(layer) for layer in names], config)
    return Image(tuple(verdicts), config, f"sha256:{digest}", layers, problems)


def _json(scan: Scan, name: str) -> Any:
    """Content of a JSON member, or a text that says why there is none."""
    kind = scan.members.get(name)
    if kind is None:
        return f"no member {plain(name) or 'is named'}"
    if kind != "file":
        return f"{plain(name)} is a {kind}, not a regular member"
    if name not in scan.documents:
        return f"{plain(name)} is no JSON, or larger than {LARGEST_DOCUMENT} bytes"
    try:
        content = json.loads(scan.documents[name])
    except (ValueError, RecursionError) as error:
        return f"{plain(name)} is not JSON: {plain(error)}"
    return content if isinstance(content, (dict, list)) else f"{plain(name)} holds no JSON object"


def _name_problem(name: str, digest: str) -> str:
    named = CONFIG_NAME.fullmatch(name)
    if named is None:
        return f"The container image file does not have a valid sha256 hash. (Config is {plain(name)})"
    return "" if named[1] == digest else f"the config is named {named[1]}, its sha256 is {digest}: it was changed"


def _find_layers(scan: Scan, names: Sequence[str], config: dict[str, Any]) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """The image's layers, lowest first, and what is wrong with them. A link stands for the layer with its diff id."""
    rootfs = config.get("rootfs")
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    ids = [str(value) for value in ids] if isinstance(ids, list) else []
    known = {layer.diff_id: layer for layer in scan.layers.values() if not layer.problem}
    problems = [f"{len(names)} layers, but the config has {len(ids)}"] if ids and len(ids) != len(names) else []
    layers = []
    for n, name in enumerate(names):
        wanted = ids[n] if n < len(ids) else ""
        layer = scan.layers.get(name) or (known.get(wanted) if scan.members.get(name) == "link" else None)
        if layer is None:
            problems.append(f"layer {plain(name)} is missing")
            continue
        layers.append(layer)
        if layer.problem:
            problems.append(f"layer {plain(name)} is damaged: {plain(layer.problem)}")
        elif wanted and layer.diff_id != wanted:
            problems.append(f"layer {plain(name)} is {layer.diff_id}, the config says {plain(wanted)}")
    return tuple(layers), tuple(problems)


def intact(scan: Scan, image: Image) -> Verdict:
    problems = list(image.problems)
    if scan.unended:
        problems.append("the tar has no end mark: it may be cut short between two members")
    if scan.compression and not scan.name.endswith({"gzip": ".gz", "xz": ".xz"}[scan.compression]) and not problems:
        return warn(INTACT, f"{plain(scan.name)} is compressed by {scan.compression}")
    return decide(INTACT, some(problems), f"{len(scan.members)} members, {len(image.layers or scan.layers)} layers")
