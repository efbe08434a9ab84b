"""Which bundle and which operating point the container takes: one precedence, nothing passed over in silence."""

from __future__ import annotations

import shutil
import time

import pytest
from bundle_fixture import draw_patches

from ensemble.blend import OperatingPoint
from midog.bundle import OutOfTime, open_bundle
from midog.errors import UsageError, WeightsError
from submission.model import choose_use, find_model, lighter_points, predict_by


@pytest.fixture
def places(tmp_path):
    uploaded, baked = tmp_path / "ml", tmp_path / "app"
    uploaded.mkdir()
    return uploaded, baked


def put(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def test_the_variable_wins_even_over_good_places(places, tmp_path):
    uploaded, baked = put(places[0]), put(places[1])
    named = {"MIDOG_MODEL_DIR": str(tmp_path / "other")}
    assert find_model(named, uploaded, baked) == tmp_path / "other"


def test_an_uploaded_model_wins_over_the_baked_one(places):
    uploaded, baked = places
    assert find_model({}, uploaded, put(baked)) == baked
    nested = put(uploaded / "bundle")
    assert find_model({}, uploaded, baked) == nested
    shutil.rmtree(nested)
    put(uploaded)
    assert find_model({}, uploaded, baked) == uploaded


def test_foreign_files_in_the_uploaded_place_are_never_passed_over(places):
    uploaded, baked = places
    put(baked)
    (uploaded / ".hidden").write_text("")
    assert find_model({}, uploaded, baked) == baked
    (uploaded / "weights.pth").write_text("")
    with pytest.raises(WeightsError, match=r"weights\.pth") as caught:
        find_model({}, uploaded, baked)
    assert caught.value.exit_code == 4


def test_no_bundle_anywhere_names_both_places_and_the_command(places):
    with pytest.raises(WeightsError) as caught:
        find_model({}, *places)
    text = str(caught.value)
    assert str(places[0]) in text and str(places[1]) in text and "midog bundle" in text


def point(name, members, views="rot4"):
    return OperatingPoint(name, members, tuple(1 / len(members) for _ in members), views, 0.0, 1.0, 0.5)


POINTS = {
    p.name: p
    for p in (
        point("full", ("a", "b")),
        point("full/1", ("a", "b"), "none"),
        point("only:a", ("a",)),
        point("only:a/1", ("a",), "none"),
    )
}


@pytest.mark.parametrize(
    ("environment", "use"),
    [
        ({}, "full"),
        ({"MIDOG_USE": "only:a"}, "only:a"),
        ({"MIDOG_USE": ""}, "full"),
        ({"MIDOG_MEMBERS": "b, a"}, "full"),
        ({"MIDOG_MEMBERS": "a"}, "only:a"),
        ({"MIDOG_VIEWS": "1"}, "full/1"),
        ({"MIDOG_MEMBERS": "a", "MIDOG_VIEWS": "1"}, "only:a/1"),
        ({"MIDOG_USE": "full/1", "MIDOG_VIEWS": "1"}, "full/1"),
    ],
)
def test_variables_translate_to_an_operating_point(environment, use):
    assert choose_use(environment, POINTS) == use


def test_members_that_are_named_answer_with_all_their_fold_models():
    fast = OperatingPoint("fast", ("a",), (1.0,), "none", 0.0, 1.0, 0.5, fold_models=1)
    points = {"full": POINTS["full"], "fast": fast, "only:a": POINTS["only:a"]}
    assert choose_use({"MIDOG_MEMBERS": "a"}, points) == "only:a"
    assert choose_use({"MIDOG_USE": "fast"}, points) == "fast"


def test_looking_once_changes_nothing_where_one_view_is_all_there_is():
    assert choose_use({"MIDOG_VIEWS": "1"}, {"full": point("full", ("a",), "none")}) == "full"


def test_members_that_nobody_calibrated_cannot_be_chosen():
    with pytest.raises(UsageError, match="only:a: a"):
        choose_use({"MIDOG_MEMBERS": "b"}, POINTS)


def test_a_time_budget_walks_down_and_says_so(tiny_folder):
    bundle = open_bundle(tiny_folder)
    pages = list(draw_patches(3))
    relaxed = predict_by(time.monotonic() + 600, bundle, pages)
    assert relaxed.notes == () and relaxed.logit.tolist() == bundle.predict(pages, mpp=None).logit.tolist()
    late = predict_by(time.monotonic() - 1, bundle, pages)
    walked = [point.name for point in lighter_points(bundle.point, bundle.blend.points)]
    assert walked == ["full/1"] and len(late.notes) == 1
    assert late.notes[0].startswith("time budget: full would end") and late.notes[0].endswith("going on with full/1")
    assert late.logit.tolist() == bundle.at("full/1").predict(pages, mpp=None).logit.tolist()


def test_lighter_points_are_parts_of_the_one_that_was_chosen():
    def point(name, *members):
        return OperatingPoint(name, members, (1.0,) * len(members), "none", 0.0, 1.0, 0.5)

    made = [("full", "abc"), ("full/1", "abc"), ("top:2", "ab"), ("top:2/1", "ab"), ("fast", "a"), ("fast/1", "a")]
    points = {name: point(name, *members) for name, members in made} | {"only:c": point("only:c", "c")}
    walk = [lighter.name for lighter in lighter_points(points["full"], points)]
    assert walk == ["full/1", "top:2/1", "fast/1"]
    assert lighter_points(points["only:c"], points) == []


def test_the_deadline_is_projected_from_the_work_that_is_done(tiny_folder):
    bundle = open_bundle(tiny_folder)
    with pytest.raises(OutOfTime) as late:
        bundle.predict(draw_patches(2), deadline=time.monotonic() - 5)
    assert late.value.seconds > 5
    bundle.predict(draw_patches(2), deadline=time.monotonic() + 600)
