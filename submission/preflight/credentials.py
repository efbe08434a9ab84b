"""Files and variables that look like secrets: an image that is handed to others should hold none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

NAMES = {".netrc", "_netrc", ".pypirc", ".git-credentials", ".env", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"}
ENDS = (".aws/credentials", ".docker/config.json", ".kaggle/kaggle.json", "huggingface/token", ".huggingface/token")
KEYS = (".pem", ".key")
PIP = ("pip.conf", "pip.ini")
SYSTEM = ("etc/ssl/", "etc/pki/", "etc/ca-certificates/", "usr/share/", "usr/lib/ssl/", "usr/local/share/")
PASSWORD = re.compile(rb"://[^/\s:@]+:[^/\s@]+@")
VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)


def find_credential(path: str, read: Callable[[], bytes]) -> str:
    """What secret the file at `path` seems to be, "" for none; `read` is called only where the name does not decide.

    A `.pem` or `.key` counts when it holds a private key: certificates are public, and packages bring their own.
    """
    base = path.rpartition("/")[2].lower()
    if base in NAMES or path.endswith(ENDS):
        return "a credential by its name"
    if base.endswith(KEYS) and not path.startswith(SYSTEM) and not _of_tests(path):
        return "a private key" if b"PRIVATE KEY" in read() else ""
    if base in PIP:
        return "an address with a password" if PASSWORD.search(read()) else ""
    return ""


def _of_tests(path: str) -> bool:
    """Python and some packages ship keys for their own tests."""
    parts = path.split("/")
    return "lib" in parts and bool({"test", "tests"} & set(parts))


def find_variables(variables: Iterable[str]) -> list[str]:
    """Names among `NAME=value` that look like secrets and are set, or whose value is an address with a password."""
    pairs = [variable.partition("=") for variable in variables]
    return [
        name
        for name, _, value in pairs
        if value and (VARIABLE.search(name) or PASSWORD.search(value.encode(errors="replace")))
    ]


def has_password(text: str) -> bool:
    """Whether an address in `text`, such as a build command, holds a password."""
    return PASSWORD.search(text.encode(errors="replace")) is not None
