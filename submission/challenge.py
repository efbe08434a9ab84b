"""MIDOG 2025 Track 2 as grand-challenge.org runs it: slugs, words, file names, paths and limits in one record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHOWN = 200
"""Characters of foreign text that one log line may hold."""


@dataclass(frozen=True)
class Challenge:
    """What the platform and the official evaluator fix.

    Source: public code of grand-challenge.org and of the challenge's reference and evaluation containers.
    """

    input_slug: str = "stacked-histopathology-roi-cropouts"
    output_slug: str = "multiple-mitotic-figure-classification"
    classes: tuple[str, str] = ("normal", "atypical")  # by label: 0, 1
    class_key: str = "class"
    confidence_key: str = "confidence"  # P(atypical), whatever the class

    inputs_file: str = "inputs.json"
    image_folder: str = "images/stacked-histopathology-roi-cropouts"
    image_suffixes: tuple[str, ...] = (".tif", ".tiff", ".mha")  # compared case-folded
    output_file: str = "multiple-mitotic-figure-classification.json"
    predictions_file: str = "predictions.json"
    metrics_file: str = "metrics.json"

    input_dir: Path = Path("/input")
    output_dir: Path = Path("/output")
    uploaded_model: Path = Path("/opt/ml/model")  # a model tarball, unpacked by the platform
    baked_model: Path = Path("/opt/app/model")  # part of the image
    model_variable: str = "MIDOG_MODEL_DIR"
    use_variable: str = "MIDOG_USE"
    members_variable: str = "MIDOG_MEMBERS"
    views_variable: str = "MIDOG_VIEWS"
    api_variable: str = "MIDOG_API"
    budget_variable: str = "MIDOG_TIME_BUDGET"
    port_variable: str = "MIDOG_PORT"

    api_methods: tuple[str, str] = ("exec", "invoke")
    api_label: str = "org.grand-challenge.api-method"
    submission_label: str = "org.midog.submission"
    commit_label: str = "org.opencontainers.image.revision"
    port: int = 4743  # of the invoke flavour

    pages: int = 16  # usual length of a stack; no limit is enforced
    page_size: int = 128
    mpp: float = 0.25  # µm per pixel
    line_bytes: int = 65536  # longer log lines are dropped by the platform
    stack_seconds: float = 300.0  # our own budget: the shortest time limit a phase may set

    overall_keys: tuple[str, ...] = ("sensitivity", "specificity", "balanced_accuracy", "roc_auc", "accuracy")
    domain_keys: tuple[str, ...] = ("sensitivity", "specificity", "balanced_accuracy", "accuracy", "roc_auc")

    @property
    def normal(self) -> str:
        return self.classes[0]

    @property
    def atypical(self) -> str:
        return self.classes[1]


TRACK2 = Challenge()
"""The one challenge this project is for."""


def plain(text: object) -> str:
    """`text` as one short printable ASCII line: the platform drops or chokes on anything else."""
    line = ascii(str(text))[1:-1]
    return line if len(line) <= SHOWN else line[:SHOWN] + "..."
