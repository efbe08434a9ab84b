"""Case aggregator with early exit: gated attention over the patch features of a case.

After the idea of EXAONE Path 2.0 (Pyeon et al. 2025, arXiv:2507.06639), which answers for slides and whose first stage
is used alone downstream; attention as in Ilse et al. 2018; the rest is our choice. A case's vector is z = Σ a_i h_i,
its answer the share of atypical figures, σ(wᵀz + b). A patch that leaves early (`exit="patch"`) gets wᵀh_i + b: the
answer of a case that holds it alone.

It needs a table with cases. A bundle cannot hold it: the platform asks page by page and never says which pages are one
case's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from midog.errors import DataError, WeightsError, unknown
from midog.models.heads.attention import GatedAttention
from midog.models.weights import TensorFile, write_tensors

EXITS = ("patch", "case")
CONTENT = "case aggregator"
FLAT = 1e-6
SLOW = 0.03
"""The attention's share of the learning rate: with the whole of it, attention learns some dozen cases by heart."""


class CaseAggregator(nn.Module):
    """Bags (n, m, width) with a mask (n, m) to logits (n,) of each case's share of atypical figures.

    Features are standardised by buffers `mean` and `scale` (width,), so that they train alike whatever the backbone.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.attention = GatedAttention(width)
        nn.init.zeros_(self.attention.score.weight)  # the mean of its patches, until something else does better
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, bags: Tensor, mask: Tensor, exit: str = "case") -> Tensor:
        """(n,) with `exit="case"`; (n, m) patch logits with `exit="patch"`, 0 where the mask is False.

        Raises: UsageError for another exit.
        """
        if exit not in EXITS:
            raise unknown("exit", exit, EXITS)
        if exit == "patch":
            logits: Tensor = self.linear(self._standard(bags)).squeeze(-1)
            return logits * mask
        return self.linear(self.pool(bags, mask)[0]).squeeze(-1)  # type: ignore[no-any-return]

    def pool(self, bags: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Case vectors (n, width) of standardised features, and the attention (n, m) that made them."""
        h = self._standard(bags)
        a = self.attention(h, mask)
        return torch.einsum("nm,nmd->nd", a, h), a

    def _standard(self, bags: Tensor) -> Tensor:
        return (bags - self.mean) / self.scale


@dataclass(frozen=True)
class CaseAnswers:
    """`cases` in order of their names; `share` (n,) of atypical figures as answered and `truth` (n,) as labelled (NaN
    where nothing is labelled); `patch_logits` (m,) and `attention` (m,) in the order of the patches."""

    cases: tuple[str, ...]
    share: NDArray[np.float64]
    truth: NDArray[np.float64]
    patch_logits: NDArray[np.float64]
    attention: NDArray[np.float64]


def bags_of(features: ArrayLike, cases: Sequence[str]) -> tuple[Tensor, Tensor, tuple[str, ...], NDArray[np.int64]]:
    """Patches by case, padded with zeros.

    Returns: bags (n, m, width) float32, mask (n, m), the cases' names, and each patch's place (k, 2) in the mask.

    Raises: DataError for features that are not finite, or that are not one row per patch.
    """
    x = np.asarray(features, dtype=np.float32)
    if x.ndim != 2 or len(x) != len(cases) or not len(x):
        raise DataError(f"features of shape {x.shape} for {len(cases)} patches", "one row per patch")
    if not np.isfinite(x).all():
        bad = [f"row {row}" for row in np.flatnonzero(~np.isfinite(x).all(axis=1))]
        raise DataError("features that are not finite", "leave these patches out", bad)
    names, index = np.unique(np.asarray(cases, dtype=str), return_inverse=True)
    places = np.zeros((len(x), 2), dtype=np.int64)
    filled = np.zeros(len(names), dtype=np.int64)
    for row, case in enumerate(index):
        places[row] = case, filled[case]
        filled[case] += 1
    bags, mask = torch.zeros(len(names), int(filled.max()), x.shape[1]), torch.zeros(len(names), int(filled.max()))
    bags[places[:, 0], places[:, 1]] = torch.from_numpy(x)
    mask[places[:, 0], places[:, 1]] = 1
    return bags, mask.bool(), tuple(map(str, names)), places


def fit_aggregator(
    features: ArrayLike,
    cases: Sequence[str],
    labels: ArrayLike,
    epochs: int = 200,
    lr: float = 3e-2,
    weight_decay: float = 0.1,
    seed: int = 0,
) -> CaseAggregator:
    """Train on the share of atypical figures of each case, all cases at once; the values are our choice.

    Args:
        features: (k, width) of the patches, those of the cases that it is fitted on and none other.
        cases: (k,) names. labels: (k,) 0 or 1.

    Raises: DataError as `bags_of` does, for labels that are not 0 or 1, and where there is one case only.
    """
    bags, mask, names, places = bags_of(features, cases)
    y = np.asarray(labels, dtype=np.float64)
    if y.shape != (len(places),) or not np.isin(y, (0, 1)).all():
        raise DataError("labels of an aggregator are 0 or 1, one per patch", "leave out patches without a label")
    if len(names) < 2:
        raise DataError("a single case says nothing about others", "a table with more cases")
    target = torch.from_numpy(_shares(places, y, len(names))).float()
    rows = torch.from_numpy(np.asarray(features, dtype=np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CaseAggregator(bags.shape[2])
    model.mean.copy_(rows.mean(dim=0))
    model.scale.copy_(rows.std(dim=0).clamp_min(FLAT))
    groups: list[dict[str, Any]] = [
        {"params": model.linear.parameters()},
        {"params": model.attention.parameters(), "lr": lr * SLOW},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    for _ in range(epochs):
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(model(bags, mask), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def answer_cases(
    model: CaseAggregator, features: ArrayLike, cases: Sequence[str], labels: ArrayLike | None = None
) -> CaseAnswers:
    """Both exits for every case and patch. Raises: DataError as `bags_of` does, and for features of another width."""
    bags, mask, names, places = bags_of(features, cases)
    if bags.shape[2] != len(model.mean):
        raise DataError(f"features {bags.shape[2]} wide, the aggregator was fitted on {len(model.mean)}")
    with torch.inference_mode():
        share = torch.sigmoid(model(bags, mask)).double().numpy()
        single = model(bags, mask, exit="patch").double().numpy()[places[:, 0], places[:, 1]]
        attention = model.pool(bags, mask)[1].double().numpy()[places[:, 0], places[:, 1]]
    known = np.full(len(places), np.nan) if labels is None else np.asarray(labels, dtype=np.float64)
    return CaseAnswers(names, share, _shares(places, known, len(names)), single, attention)


def cross_fit_cases(
    features: ArrayLike, cases: Sequence[str], labels: ArrayLike, folds: int = 5, seed: int = 0, **fitting: Any
) -> CaseAnswers:
    """As `answer_cases`, every case answered by an aggregator that never saw it; cases are dealt to `folds` at random.

    Raises: DataError as `fit_aggregator` does, and for fewer cases than folds.
    """
    x, y, of = np.asarray(features, dtype=np.float32), np.asarray(labels), np.asarray(cases, dtype=str)
    names = np.unique(of)
    if not 2 <= folds <= len(names):
        raise DataError(f"{len(names)} cases for {folds} folds", "fewer folds, at least 2")
    dealt = np.random.default_rng(seed).permutation(len(names)) % folds
    share, truth = np.zeros(len(names)), np.zeros(len(names))
    single, attention = np.zeros(len(of)), np.zeros(len(of))
    for fold in range(folds):
        out = np.isin(of, names[dealt == fold])
        model = fit_aggregator(x[~out], of[~out].tolist(), y[~out], seed=seed, **fitting)
        found = answer_cases(model, x[out], of[out].tolist(), y[out])
        share[dealt == fold], truth[dealt == fold] = found.share, found.truth
        single[out], attention[out] = found.patch_logits, found.attention
    return CaseAnswers(tuple(map(str, names)), share, truth, single, attention)


def save_aggregator(model: CaseAggregator, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write it to a safetensors file, atomically."""
    return write_tensors(path, dict(model.state_dict()), {**(metadata or {}), "content": CONTENT})


def load_aggregator(path: Path | str) -> CaseAggregator:
    """Raises: WeightsError for a file that is missing, damaged or something else."""
    file = TensorFile(path)
    if file.about.get("content") != CONTENT or "mean" not in file:
        raise WeightsError(f"{path} is no case aggregator", "save_aggregator writes one")
    model = CaseAggregator(file.shape("mean")[0])
    state = {name: file[name] for name in file.names}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} is a damaged case aggregator: {error}") from error
    return model.eval()


def _shares(places: NDArray[np.int64], labels: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Mean label of each case."""
    totals = np.bincount(places[:, 0], weights=labels, minlength=count)
    return np.asarray(totals / np.bincount(places[:, 0], minlength=count))
