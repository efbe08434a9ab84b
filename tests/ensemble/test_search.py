from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.search import Journal, SimplexSampler, objective, open_journal, propose, search
from midog.errors import DataError, MidogError


def draw(n: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Correlated members of unequal worth: the best weights are zero for some."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    sign = 2 * y - 1
    z = (
        sign[:, None] * rng.uniform(0.7, 1.3, m)
        + rng.normal(size=(n, 1))
        + rng.normal(size=(n, m)) * rng.uniform(0.5, 1.5, m)
    )
    return z - 1.0, y, [f"m{i}" for i in range(m)]


@pytest.mark.parametrize(("members", "seed"), [(2, 0), (4, 1), (8, 2)])
def test_optuna_finds_what_scipy_finds(members: int, seed: int) -> None:
    """The log-loss is quasi-convex in the weights, so there is one answer."""
    from scipy.optimize import minimize

    z, y, names = draw(1500, members, seed)
    loss = objective(z, y)
    best = minimize(
        loss,
        np.full(members, 1 / members),
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    found = search(z, y, names, trials=1000)
    assert best.fun - 1e-9 <= found.log_loss <= best.fun + 1e-6
    np.testing.assert_allclose(found.weights, best.x, atol=0.01)
    assert found.weights.sum() == pytest.approx(1) and (found.weights >= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_objective_is_quasi_convex(seed: int, share: float) -> None:
    z, y, _ = draw(80, 5, seed % 7)
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    loss = objective(z, y)
    assert loss(share * a + (1 - share) * b) <= max(loss(a), loss(b)) + 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_what_calibration_leaves(seed: int) -> None:
    """scikit-learn without a penalty has the same slope, intercept and loss; a falling curve counts as a flat one."""
    from sklearn.linear_model import LogisticRegression

    z, y, _ = draw(400, 3, seed)
    weights = np.random.default_rng(seed).dirichlet(np.ones(3))
    x = (z @ weights)[:, None]
    share = (y.sum() + 1) / (y.sum() + 2), 1 / (len(y) - y.sum() + 2)  # Platt's targets as weights of both classes
    target = np.where(y == 1, *share)
    both = np.concatenate([target, 1 - target])
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    model.fit(np.tile(x, (2, 1)), np.repeat([1, 0], len(y)), sample_weight=both)
    log_p = model.predict_log_proba(x)
    expected = -(target * log_p[:, 1] + (1 - target) * log_p[:, 0]).mean()
    assert objective(z, y)(weights) == pytest.approx(expected, abs=1e-9)
    flat = -(target.mean() * np.log(target.mean()) + (1 - target.mean()) * np.log(1 - target.mean()))
    assert objective(-z, y)(weights) == pytest.approx(flat, abs=1e-12)


def test_cooling_others_down_earns_no_weight() -> None:
    """Beside a member whose logits are large, one that knows nothing has smaller ones: a temperature, and worse."""
    rng = np.random.default_rng(0)
    y = (rng.random(3000) < 0.2).astype(int)
    knows = 8 * (2 * y - 1 + 1.5 * rng.normal(size=len(y)))
    knows_nothing = 3 * rng.normal(size=len(y))
    found = search(np.stack([knows, knows_nothing], axis=1), y, ["knows", "knows nothing"], trials=300)
    spread = found.weights * [knows.std(), knows_nothing.std()]
    assert spread[1] / spread.sum() < 0.05  # chance alone; a temperature for all weights gives it .15
    assert found.log_loss <= objective(knows[:, None], y)(np.ones(1))


def test_equal_weights_come_first(tmp_path: Path) -> None:
    z, y, names = draw(200, 4)
    assert np.array_equal(search(z, y, names, trials=1).weights, np.full(4, 0.25))
    with open_journal(tmp_path / "trials.jsonl", {}) as journal:
        search(z, y, names, trials=5, journal=journal)
    first = json.loads((tmp_path / "trials.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert first["masses"] == [0.25] * 4 and first["log_loss"] == objective(z, y)(np.full(4, 0.25))


def test_the_seed_decides_and_the_order_of_members_does_not() -> None:
    z, y, names = draw(300, 5)
    found = search(z, y, names, trials=60, seed=1)
    assert np.array_equal(found.weights, search(z, y, names, trials=60, seed=1).weights)
    assert not np.array_equal(found.weights, search(z, y, names, trials=60, seed=2).weights)
    order = [3, 1, 4, 0, 2]
    turned = search(z[:, order], y, [names[i] for i in order], trials=60, seed=1)
    np.testing.assert_array_equal(turned.weights, found.weights[order])


@pytest.mark.parametrize("kept", [0, 1, 2, 37, 79])
def test_a_search_goes_on_from_where_it_was_killed(tmp_path: Path, kept: int) -> None:
    z, y, names = draw(300, 4)
    path = tmp_path / "trials.jsonl"
    with open_journal(path, {"data": 1}) as journal:
        whole = search(z, y, names, trials=80, journal=journal)
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: kept + 1]) + lines[min(kept + 1, 80)][:25])  # and a torn line
    with open_journal(path, {"data": 1}) as journal:
        assert len(journal.trials("all")) == kept
        again = search(z, y, names, trials=80, journal=journal)
    assert np.array_equal(again.weights, whole.weights) and again.log_loss == whole.log_loss
    assert path.read_bytes() == text


def test_a_finished_search_is_not_repeated(tmp_path: Path) -> None:
    z, y, names = draw(300, 4)
    with open_journal(tmp_path / "t.jsonl", {}) as journal:
        whole = search(z, y, names, trials=50, journal=journal)
    before = (tmp_path / "t.jsonl").read_bytes()
    with open_journal(tmp_path / "t.jsonl", {}) as journal:
        again = search(z, y, names, trials=50, journal=journal)
    assert np.array_equal(again.weights, whole.weights) and (tmp_path / "t.jsonl").read_bytes() == before


def test_a_journal_of_other_data_starts_anew(tmp_path: Path) -> None:
    z, y, names = draw(300, 4)
    with open_journal(tmp_path / "t.jsonl", {"data": 1}) as journal:
        search(z, y, names, trials=5, journal=journal)
    with open_journal(tmp_path / "t.jsonl", {"data": 2}) as journal:
        assert journal.trials("all") == []
    (tmp_path / "t.jsonl").write_bytes(b"\x00\xffnot a journal\n")
    with open_journal(tmp_path / "t.jsonl", {"data": 2}) as journal:
        assert journal.trials("all") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_a_problem_with_a_fix() -> None:
    z, y, names = draw(100, 3)
    full = Path("/dev/full")
    with pytest.raises(MidogError, match="free some space"), full.open("ab", buffering=0) as file:
        search(z, y, names, trials=5, journal=Journal(full, _file=file))


def test_the_sampler_needs_nothing_but_seed_number_and_history() -> None:
    """A new sampler on an old study proposes what the old one would have."""
    z, y, names = draw(300, 3)
    loss = objective(z, y)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def value(trial: optuna.Trial) -> float:
        masses = np.array([trial.suggest_float(name, 0, 1) for name in names])
        return loss(masses / masses.sum())

    straight = optuna.create_study(sampler=SimplexSampler(names, 5))
    straight.optimize(value, n_trials=30)
    storage = optuna.storages.InMemoryStorage()
    for chunk in (7, 11, 12):
        study = optuna.create_study(
            storage=storage, study_name="x", load_if_exists=True, sampler=SimplexSampler(names, 5)
        )
        study.optimize(value, n_trials=chunk)
    assert [t.params for t in study.trials] == [t.params for t in straight.trials]


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_proposals_stay_on_the_simplex(members: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    best = rng.dirichlet(np.ones(members)) * (rng.random(members) < 0.7)
    best = best / best.sum() if best.sum() else np.eye(members)[0]
    found = propose(best, rng)
    assert (found >= 0).all() and (found <= 1).all() and found.sum() == pytest.approx(1)


def test_one_member_needs_no_search() -> None:
    z, y, names = draw(100, 1)
    assert search(z, y, names, trials=500).weights.tolist() == [1.0]


def test_input_that_cannot_be_searched() -> None:
    z, y, names = draw(50, 3)
    with pytest.raises(DataError, match="3\\) for 2 members"):
        search(z, y, names[:2])
    with pytest.raises(DataError, match="all 50 patches are normal"):
        search(z, np.zeros(50), names)
    z[3, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        search(z, y, names)
