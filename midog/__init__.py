"""Ensembles for MIDOG 2025 Track 2: is a mitotic figure atypical (the positive class) or normal?

The names below are `midog.api`'s; they load when first used, so that `import midog` costs nothing.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "blend_runs",
    "compare_features",
    "compare_grid",
    "compare_results",
    "load_bundle",
    "member_features",
    "open_run",
    "read_patches",
    "train_grid",
    "train_recipe",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from midog import api

        return getattr(api, name)
    raise AttributeError(f"module 'midog' has no attribute {name!r}; it offers {', '.join(__all__)}")
