"""The Hugging Face hub, as far as one weight file needs it: what is published, and its bytes, resumed.

huggingface_hub brings the token (HF_TOKEN, or the login it stored), the address (HF_ENDPOINT), proxies and retries. Its
`hf_hub_download` deletes what came before an interruption, so the transfer itself is its `http_get`, which continues.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from midog.errors import MidogError, WeightsError
from midog.files import sha256_bytes, sha256_file, write_problem
from midog.models.backbones import TIMM_PREFIX, Backbone
from midog.models.weights import PICKLED

HUB = "https://huggingface.co"
SHA256 = re.compile(r"[0-9a-f]{64}")
"""The tag of a large file on the hub is its sha256."""


@dataclass(frozen=True)
class Published:
    """A file on the hub at one commit. `size` in bytes, None where not announced; `sha256` is "" where not known."""

    url: str
    commit: str
    tag: str
    size: int | None

    @property
    def sha256(self) -> str:
        return self.tag if SHA256.fullmatch(self.tag) else ""


def file_stem(record: Backbone) -> str:
    """What a model's file is called in a folder of weights, without its ending."""
    return record.name.removeprefix(TIMM_PREFIX)


def page(record: Backbone) -> str:
    """Where a person reads the card of a model, and asks for access."""
    return f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{record.source}"


def ask(record: Backbone) -> Published:
    """What the hub has under the record's source, revision and file.

    Raises: WeightsError, each with its own fix: gated, missing, offline, or another file than the record describes.
    """
    _quietly()
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _explained(record):
        url = hf_hub_url(record.source, record.file, revision=record.revision)
        found = get_hf_file_metadata(url)
        if not found.commit_hash or not found.etag:
            raise WeightsError(
                f"{url} is not answered by a hub: no commit, no tag", "check HF_ENDPOINT and the proxy settings"
            )
        # At its commit, so that every part of a resumed transfer is of the same file.
        url = hf_hub_url(record.source, record.file, revision=found.commit_hash)
    published = Published(url, found.commit_hash, found.etag, found.size)
    if record.sha256 and published.sha256 and record.sha256 != published.sha256:
        raise WeightsError(
            f"{record.source} has another {record.file} by now than the one that the record of {record.name} describes",
            f"if you trust it, download it from {page(record)} and name it: pretrained: FILE",
            [f"sha256 {published.sha256} at commit {published.commit}", f"expected {record.sha256}"],
        )
    return published


def fetch(record: Backbone, published: Published, folder: Path) -> Path:
    """Download a file into `folder` under a hidden name, continuing what an earlier call left; checked, and complete.

    Raises: WeightsError when it broke off (what came is kept) or is damaged (deleted); MidogError without enough space.
    """
    _quietly()
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there

    stem = file_stem(record)
    part = folder / f".{stem}.{sha256_bytes(published.tag.encode())[:16]}.part"
    for other in folder.glob(f".{stem}.{'?' * 16}.part"):  # halves of another version of the file
        if other != part:
            other.unlink()
    held = part.stat().st_size if part.is_file() else 0
    if published.size is not None:
        _check_space(record, published.size, held, folder)
    try:
        with _explained(record, part), part.open("ab") as out:
            headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
            http_get(
                published.url,
                out,
                resume_size=held,
                headers=headers,
                expected_size=published.size,
                displayed_filename=record.name,
            )
            os.fsync(out.fileno())
    except OSError as error:
        raise write_problem(part, error) from error
    actual = sha256_file(part)
    expected = published.sha256 or record.sha256
    if expected and actual != expected:
        part.unlink()
        raise WeightsError(
            f"what came as {record.file} of {record.source} is not the file that was announced; it was deleted",
            "repeat the same command; if it happens again, a proxy or a mirror (HF_ENDPOINT) changes files",
            [f"sha256 {actual}", f"expected {expected}"],
        )
    return part


def _quietly() -> None:
    """No telemetry, also where something else has imported huggingface_hub before."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True


def _check_space(record: Backbone, size: int, held: int, folder: Path) -> None:
    # A pickled file lies beside its conversion for a moment.
    needed = size - held + (size if record.file.endswith(PICKLED) else 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MidogError(
            f"{record.name} needs {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free",
            "free some space, or name a folder on another disk",
        )


@contextmanager
def _explained(record: Backbone, part: Path | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into a problem and its fix. `part` is the file that a transfer fills."""
    import httpx2  # what huggingface_hub talks with, and whose errors it lets through
    from huggingface_hub import errors, get_token

    what = f"{record.file} of {record.source}"
    by_hand = f"midog models pull {record.name} DIR --file FILE takes a file that you brought yourself"
    try:
        yield
    except errors.GatedRepoError as error:
        if get_token() is None:
            raise WeightsError(
                f"{record.source} is gated, and no token was found",
                f"ask for access at {page(record)}, then `hf auth login` (or export HF_TOKEN=…) and repeat the command",
            ) from error
        raise WeightsError(
            f"{record.source} is gated, and your token has no access to it",
            f"ask for access at {page(record)} with the account of the token (a fine-grained token must also be "
            "allowed to read gated repositories), then repeat the command",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{record.source} has no revision {record.revision}", f"see {page(record)}/commits/main; or {by_hand}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(
            f"{record.source} has no file {record.file} at revision {record.revision}",
            f"see {page(record)}/tree/{record.revision}; {by_hand}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{record.source} is not on the hub, or hidden from you",
            f"see {page(record)}: a private one needs `hf auth login` or HF_TOKEN; otherwise {by_hand}",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise WeightsError(
            f"{what} cannot be fetched: HF_HUB_OFFLINE is set",
            f"unset HF_HUB_OFFLINE, or copy the file to DIR/{file_stem(record)}.safetensors; {by_hand}",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or error.response.reason_phrase
        fix = "try again later: the same command continues" if status >= 500 or status == 429 else f"see {page(record)}"
        if status == 401:
            fix = "the token is wrong or expired: `hf auth login`, or set HF_TOKEN anew"
        raise WeightsError(f"{what} was refused: {status} {said}", fix, _kept(part)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        if part is not None:
            raise _broken(what, str(error) or type(error).__name__, part) from error
        raise WeightsError(
            f"the hub cannot be reached: {str(error) or type(error).__name__} ({page(record)})",
            f"check the network, the proxy settings and HF_ENDPOINT; without network, copy the file to "
            f"DIR/{file_stem(record)}.safetensors: {by_hand}",
        ) from error
    except OSError as error:
        if part is None or not str(error).startswith("Consistency check failed"):
            raise
        raise _broken(what, "fewer bytes came than were announced", part) from error


def _broken(what: str, why: str, part: Path) -> WeightsError:
    return WeightsError(f"{what}: the transfer broke off: {why}", "repeat the same command: it continues", _kept(part))


def _kept(part: Path | None) -> list[str]:
    held = part.stat().st_size if part is not None and part.is_file() else 0
    return [f"{held / 1e6:.1f} MB are here and are kept"] if held else []
