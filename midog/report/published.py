"""Published scores on this task, each with the protocol behind it: numbers to look up to, not to compare blindly."""

from __future__ import annotations

from typing import Any

CHALLENGE = "MIDOG 2025 Track 2, hidden test"
AMIBR = "AMi-Br, fixed split"

PROTOCOLS = {
    CHALLENGE: (
        "3,800 hidden patches (646 atypical) of 12 tumour types, each entry as a whole at the threshold it shipped "
        "with; ensembles and averaged views are among them. The standard error of balanced accuracy is about .007."
    ),
    AMIBR: (
        "Trained on the 2,894 training patches of AMi-Br alone in five folds by slide; each fold's single model is "
        "scored on the same test set at threshold 0.5 and the mean of the five is reported: no ensemble, no views, no "
        "tuned threshold. Test sets: AMi-Br 826 patches, AtNorM-Br 746, AtNorM-MD 2,107. The sampling error of "
        "balanced accuracy on 826 patches is about .016."
    ),
}
SOURCES = {CHALLENGE: "leaderboard and methods of MIDOG 2025", AMIBR: "arXiv 2506.21444"}

_ENTRIES: tuple[tuple[str, str, float, float], ...] = (
    ("1", "DINOv3-H+ with LoRA, domain-weighted focal loss, four rotations", 0.9079, 0.9703),
    ("2", "Virchow2-type ViT, averaged views", 0.9006, 0.9668),
    ("3", "ConvNeXt V2 base, 60 % centre crop, mean of five folds", 0.8999, 0.9715),
    ("5", "UNI2-h with visual prompts, eight views, stain-normalised views", 0.8960, 0.9624),
    ("8", "UNI, Virchow, Virchow2 with LoRA and ConvNeXt V2 (arXiv 2509.02591, the method here)", 0.8842, 0.9457),
    ("–", "organisers' EfficientNetV2-M container", 0.8272, 0.9068),
)
# Balanced accuracy and AUROC on AMi-Br's test side, then balanced accuracy on AtNorM-Br and AtNorM-MD.
_SINGLE_MODELS: tuple[tuple[str, float, float, float, float], ...] = (
    ("EfficientNetV2-M, from scratch", 0.7474, 0.8315, 0.7283, 0.6975),
    ("ViT-L/16, fully fine-tuned", 0.7899, 0.8872, 0.7788, 0.7494),
    ("Swin-B, fully fine-tuned", 0.8052, 0.9029, 0.7752, 0.7723),
    ("UNI, LoRA", 0.7952, 0.8839, 0.7183, 0.7069),
    ("Virchow, LoRA", 0.7878, 0.8891, 0.7696, 0.7705),
    ("Virchow2, LoRA", 0.8135, 0.9026, 0.7632, 0.7424),
    ("H-optimus-0, LoRA", 0.7846, 0.8721, 0.7044, 0.6549),
    ("UNI2-h, LoRA", 0.7138, 0.8153, 0.7301, 0.6914),
)


def published_table() -> list[dict[str, Any]]:
    """One row per (benchmark, method): balanced accuracy and AUROC as published, None where not, with the protocol.

    Keys: benchmark, rank, method, balanced_accuracy, roc_auc, atnorm_br and atnorm_md (balanced accuracy there),
    protocol, source.
    """
    rows = [_row(CHALLENGE, rank, method, accuracy, auroc) for rank, method, accuracy, auroc in _ENTRIES]
    return rows + [
        _row(AMIBR, "", method, accuracy, auroc, br, md) for method, accuracy, auroc, br, md in _SINGLE_MODELS
    ]


def _row(
    benchmark: str,
    rank: str,
    method: str,
    accuracy: float,
    auroc: float,
    br: float | None = None,
    md: float | None = None,
) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "rank": rank,
        "method": method,
        "balanced_accuracy": accuracy,
        "roc_auc": auroc,
        "atnorm_br": br,
        "atnorm_md": md,
        "protocol": PROTOCOLS[benchmark],
        "source": SOURCES[benchmark],
    }
