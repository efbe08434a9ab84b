"""Grids on disk: names that read well and stay, the order of the runs, and how a grid grows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog.errors import DataError, UsageError
from midog.grid import GRID_FILE, extend_grid, is_grid, make_grid, read_grid, short_names, word, write_grid

FACTORS = (("each.augment.fisheye", ["off", "on"]), ("each.image.crop", [64, 128]))


def test_every_combination_with_the_first_seed_comes_first() -> None:
    grid = make_grid(FACTORS, (3, 4))
    assert [run.name for run in grid.runs[:5]] == [
        "fisheye=off,crop=64,seed=3",
        "fisheye=off,crop=128,seed=3",
        "fisheye=on,crop=64,seed=3",
        "fisheye=on,crop=128,seed=3",
        "fisheye=off,crop=64,seed=4",
    ]
    assert len(grid.runs) == 8


def test_keys_are_as_short_as_they_can_be() -> None:
    keys = ("each.augment.fisheye.p", "each.augment.stain.p", "members.a.training.lr", "each.training.lr", "folds")
    assert short_names(keys) == ("fisheye.p", "stain.p", "a.training.lr", "each.training.lr", "folds")


@pytest.mark.parametrize(
    ("value", "said"), [("off", "off"), (64, "64"), (1e-4, "0.0001"), (-1, "-1"), (True, "true"), ("rslora", "rslora")]
)
def test_a_plain_value_is_its_own_word(value: object, said: str) -> None:
    assert word(value) == said


def test_other_values_stay_readable_and_apart() -> None:
    assert word([0.01, 0.05]).startswith("0.01-0.05-") and word({"targets": "natural"}).startswith("targets-natural-")
    assert len({word([1, 1]), word([1, -1]), word("1-1"), word({"1": 1})}) == 4


@given(st.recursive(st.text() | st.integers() | st.booleans(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_a_word_is_fit_for_a_folder_and_a_command(value: object) -> None:
    said = word(value)
    assert 0 < len(said) <= 40 and not set(said) & set("/:,=* '\"\\\n[]{}")


def test_a_grid_reads_back_equal(tmp_path: Path) -> None:
    grid = make_grid([("each.augment.fourier.beta", [[0.01, 0.05], [0.05, 0.09]]), FACTORS[0]], (0, 1))
    assert read_grid(tmp_path) is None and not is_grid(tmp_path)
    path = write_grid(tmp_path, grid)
    assert is_grid(tmp_path) and is_grid(path)
    again = read_grid(tmp_path)
    assert again is not None and again.factors[1:] == grid.factors[1:] and again.seeds == grid.seeds
    assert [(run.name, run.words, run.seed) for run in again.runs] == [(r.name, r.words, r.seed) for r in grid.runs]
    path.write_text('{"schema_version": 1, "factors": [{"key": "a"}]}')
    with pytest.raises(DataError, match=f"{GRID_FILE} is no grid"):
        read_grid(tmp_path)


def test_a_grid_grows_by_values_and_seeds_and_forgets_none() -> None:
    old = make_grid(FACTORS, (0, 1))
    new = make_grid([FACTORS[0], ("each.image.crop", [128, 96])], (2,))
    grown = extend_grid(old, new)
    assert grown.factors[1].values == (128, 96, 64) and grown.seeds == (2, 0, 1)
    assert {run.name for run in grown.runs} == {run.name for grid in (old, new) for run in grid.runs}
    assert extend_grid(grown, old).runs[: len(old.runs)] == old.runs
    with pytest.raises(UsageError, match=r"over each\.augment\.fisheye, each\.image\.crop, not over each\.image\.crop"):
        extend_grid(old, make_grid(FACTORS[1:], (0,)))
