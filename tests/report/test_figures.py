from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from midog.report import figures
from midog.report.drawing import ACCENT, sheet
from midog.report.figures import Dot

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 2, 80)
CONFIDENCE = np.clip(0.3 * LABEL + 0.7 * RNG.random(80), 0, 1)

DRAWN: dict[str, Callable[[], str]] = {
    "learning": lambda: figures.learning_curve("uni", [([1, 2, 3], [0.7, 0.5, 0.4]), ([1], [0.6])], 3, 0.7),
    "intervals": lambda: figures.interval_plot(
        [Dot("a", 0.8, 0.7, 0.9, 0.85, strong=True), Dot("b", None)], "AUROC", 0.5
    ),
    "roc": lambda: figures.roc(LABEL, CONFIDENCE, "tuned", {"a": CONFIDENCE**2}, (0.2, 0.7)),
    "reliability": lambda: figures.reliability(LABEL, CONFIDENCE),
    "threshold": lambda: figures.threshold_curve(LABEL, CONFIDENCE, 0.4),
    "correlation": lambda: figures.correlation(
        ["a", "b", "c"], np.array([[1, 0.5, np.nan], [0.5, 1, 0.2], [np.nan, 0.2, 1]])
    ),
    "weights": lambda: figures.weights(["a", "b"], [1.2, -0.2], [[1.0, 0.0], [0.9, 0.1]]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_the_same_bytes_twice_and_well_formed(name):
    first = DRAWN[name]()
    assert first == DRAWN[name]()
    assert ElementTree.fromstring(first).tag == "svg"
    assert "http" not in first
    assert "font-family" not in first
    assert 'aria-label="' in first


def test_colours_are_variables_of_the_page_and_ids_are_unique_to_their_drawing():
    drawing = DRAWN["roc"]()
    assert f"var(--accent, {ACCENT})" in drawing
    assert drawing.count(ACCENT) == drawing.count(f"var(--accent, {ACCENT})")
    assert "#000000" not in drawing

    def ids(text: str) -> set[str]:
        return {element.get("id") for element in ElementTree.fromstring(text).iter()} - {None}

    assert ids(drawing)
    assert not ids(drawing) & ids(DRAWN["threshold"]())


def test_labels_and_numbers_are_text():
    drawing = DRAWN["threshold"]()
    assert "chosen .400" in drawing
    assert "balanced accuracy" in drawing
    assert "undefined" in DRAWN["intervals"]()


def test_chance_is_drawn_only_where_it_is_near():
    assert "chance .500" in figures.interval_plot([Dot("a", 0.6, 0.5, 0.7)], "AUROC", 0.5)
    assert "chance" not in figures.interval_plot([Dot("a", 0.9, 0.88, 0.92)], "AUROC", 0.5)


def test_reliability_counts_every_patch_once():
    drawing = figures.reliability([0, 1, 1], [0.0, 1.0, 0.95])
    texts = [element.text for element in ElementTree.fromstring(drawing).iter("text")]
    assert [t for t in texts if t in {"1", "2"}].count("2") == 1


def test_names_that_are_markup_stay_text():
    drawing = figures.learning_curve('<b>"&', [([1], [0.5])], 1, 1.0)
    assert "<b>" not in drawing
    ElementTree.fromstring(drawing)


def test_short_names_keep_both_ends():
    assert figures.short("abc") == "abc"
    assert figures.short("breast | XR | Utrecht centre 3", 11) == "breas…tre 3"


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with sheet("x") as drawn:
        drawn.axes()
    assert dict(matplotlib.rcParams) == before


def test_domains_are_called_by_the_fewest_parts_that_tell_them_apart():
    names = ["breast | CS2 | A", "mast cell | CS2 | B", "breast | XR | A", "lung | XR | A", "breast | S360 | A"]
    assert figures.domain_names(names) == ["CS2 | A", "CS2 | B", "breast | XR", "lung | XR", "S360"]
    assert figures.domain_names(["here", "there"]) == ["here", "there"]
