from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.blend import OperatingPoint, combine, confidence, decide, parse_blend, read_blend
from midog.errors import DataError, UsageError
from midog.files import write_json


def point(weights: list[float], shift: float = 0.0, temperature: float = 1.0, threshold: float = 0.5) -> OperatingPoint:
    names = tuple(f"m{i}" for i in range(len(weights)))
    return OperatingPoint("full", names, tuple(weights), "none", shift, temperature, threshold)


weights_of_three = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3).map(lambda w: [x / sum(w) for x in w])


def log_loss(z: np.ndarray, y: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(y == 1, -z, z)).mean())


def test_one_member_is_itself() -> None:
    z = np.random.default_rng(0).normal(size=50) * 10
    assert np.array_equal(combine(point([1.0]), z[:, None]), z)


@given(weights_of_three)
def test_identical_members_make_any_weights_equal(weights: list[float]) -> None:
    z = np.random.default_rng(1).normal(size=20)
    np.testing.assert_allclose(combine(point(weights), np.stack([z] * 3, axis=1)), z, rtol=1e-12)


@given(weights_of_three, st.permutations([0, 1, 2]))
def test_the_order_of_members_is_free(weights: list[float], order: list[int]) -> None:
    z = np.random.default_rng(2).normal(size=(20, 3))
    shuffled = combine(point([weights[i] for i in order]), z[:, order])
    np.testing.assert_allclose(shuffled, combine(point(weights), z), rtol=1e-10, atol=1e-12)


@given(weights_of_three, st.integers(0, 1000))
def test_the_blend_loses_no_more_than_its_members_on_average(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, z = rng.integers(0, 2, 40), rng.normal(size=(40, 3)) * 3
    members = sum(w * log_loss(z[:, i], y) for i, w in enumerate(weights))
    assert log_loss(combine(point(weights), z), y) <= members + 1e-12


def test_a_logit_that_is_not_finite_leaves_its_member_out() -> None:
    z = np.array([[1.0, 3.0], [np.nan, 3.0], [1.0, np.inf], [np.nan, -np.inf]])
    found = combine(point([0.25, 0.75]), z)
    assert found[:3].tolist() == [2.5, 3.0, 1.0] and math.isnan(found[3])


def test_a_stack_may_have_negative_weights() -> None:
    stack = point([0.75, -0.25])
    assert combine(stack, [[2.0, 4.0]]).tolist() == [0.5]
    assert combine(stack, [[2.0, np.nan]])[0] == pytest.approx(2.0 * 0.5)
    assert math.isnan(combine(stack, [[np.nan, 4.0]])[0])  # what is left points the wrong way: damaged


def test_a_patch_has_the_same_bits_alone_and_in_a_batch() -> None:
    z = np.random.default_rng(3).normal(size=(33, 5))
    p = point([0.1, 0.3, 0.2, 0.15, 0.25])
    alone = np.concatenate([combine(p, z[i : i + 1]) for i in range(33)])
    assert np.array_equal(alone, combine(p, z))


def test_confidence_and_class() -> None:
    p = point([1.0], shift=-1.0, temperature=2.0, threshold=0.5)
    z = np.array([-1.0, np.nextafter(-1.0, -2.0), 1.0, -1e9, 1e9, np.nan])
    found = confidence(p, z)
    assert found[0] == 0.5 and found[2] == pytest.approx(1 / (1 + math.exp(-1))) and math.isnan(found[5])
    assert 0 <= found[3] < 1e-300 and found[4] == 1.0
    assert decide(p, found).tolist() == [True, False, True, False, True, False] or found[1] == 0.5
    assert decide(p, [0.5, np.nextafter(0.5, 0), 1.0]).tolist() == [True, False, True]


def test_logits_must_fit_the_point() -> None:
    with pytest.raises(DataError, match="2 members of operating point full"):
        combine(point([0.5, 0.5]), np.zeros((4, 3)))


def content() -> dict[str, Any]:
    fold = {"path": "../runs/a/uni/fold_0/model.safetensors", "sha256": "00"}
    return {
        "members": [{"name": "uni", "run": "../runs/a", "member": "uni", "folds": {"0": fold}, "network": {}}],
        "points": {"full": point([1.0]).to_dict() | {"members": ["uni"]}},
        "prevalence": 0.2,
    }


def test_read_a_blend(tmp_path: Path) -> None:
    write_json(tmp_path / "blend" / "blend.json", content())
    for where in (tmp_path / "blend", tmp_path / "blend" / "blend.json"):
        blend = read_blend(where)
        assert blend.point().members == ("uni",) and blend.prevalence == 0.2
        model = Path(blend.member("uni").folds["0"]["path"])
        assert model.resolve() == (tmp_path / "runs/a/uni/fold_0/model.safetensors").resolve()


def test_how_many_fold_models_answer_is_read_and_absent_in_older_blends(tmp_path: Path) -> None:
    written = content()
    written["points"]["full"] |= {"fold_models": 1}
    assert parse_blend(written, tmp_path / "blend.json").point().fold_models == 1
    del written["points"]["full"]["fold_models"]
    assert parse_blend(written, tmp_path / "blend.json").point().fold_models == 0
    written["points"]["full"] |= {"fold_models": -1}
    with pytest.raises(DataError, match="-1 fold models"):
        parse_blend(written, tmp_path / "blend.json")


def test_unknown_names_get_the_nearest_one(tmp_path: Path) -> None:
    blend = parse_blend(content(), tmp_path / "blend.json")
    with pytest.raises(UsageError, match="did you mean full"):
        blend.point("ful")
    with pytest.raises(UsageError, match="did you mean uni"):
        blend.member("uno")


def test_a_damaged_blend_says_all_that_is_wrong(tmp_path: Path) -> None:
    bad = content()
    bad["points"]["full"] |= {"temperature": 0.0, "views": "d8", "members": ["uni", "virchow"]}
    bad["prevalence"] = 2
    with pytest.raises(DataError) as error:
        parse_blend(bad, tmp_path / "blend.json")
    for words in ("temperature 0.0", "unknown views d8", "not there: virchow", "one weight per member", "prevalence"):
        assert words in str(error.value)


@pytest.mark.parametrize("key", ["members", "points", "prevalence"])
def test_a_key_that_is_missing(tmp_path: Path, key: str) -> None:
    bad = content()
    del bad[key]
    with pytest.raises(DataError, match=key):
        parse_blend(bad, tmp_path / "blend.json")


def test_no_blend_and_a_newer_blend(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no blend: it holds no blend\.json"):
        read_blend(tmp_path)
    (tmp_path / "blend.json").write_text(json.dumps({"schema_version": 99, **content()}), encoding="utf-8")
    with pytest.raises(UsageError, match="schema version 99"):
        read_blend(tmp_path)


def test_the_container_part_needs_numpy_alone() -> None:
    """Also what the recipe imports: settings must load without the search."""
    code = (
        "import sys, ensemble.blend, ensemble.crossfit, ensemble.compare\n"
        "bad = {'optuna', 'scipy', 'sklearn', 'torch', 'pandas', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(bad)}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
