"""The output file: exactly what the official evaluator accepts, and nothing it would refuse."""

from __future__ import annotations

import json
import math
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog.errors import ContractError
from submission.answers import make_answers, official_problems, own_problems, write_answers
from submission.challenge import TRACK2


def entry(**changes):
    return {"class": "normal", "confidence": 0.25} | changes


ACCEPTED = [0.5, 1.0, 0.0, 1e-05, 1.7]
REFUSED = [0, 1, True, None, "0.2", [0.2]]


@pytest.mark.parametrize("value", ACCEPTED)
def test_confidences_the_official_evaluator_takes(value):
    assert official_problems([entry(confidence=value)], 1) == []


@pytest.mark.parametrize("value", REFUSED)
def test_confidences_it_refuses(value):
    assert "not a float" in official_problems([entry(confidence=value)], 1)[0]


@pytest.mark.parametrize("word", ["Atypical", "AMF", "", None, 1, "atypical "])
def test_class_words_it_refuses(word):
    assert "class" in official_problems([entry(**{"class": word})], 1)[0]


def test_extra_keys_and_disagreement_with_the_confidence_are_fine():
    assert official_problems([entry(note="x"), entry(**{"class": "atypical"})], 2) == []


@pytest.mark.parametrize(
    ("content", "pages", "word"),
    [
        ([{"class": "normal"}], 1, "lacks confidence"),
        ([{"confidence": 0.5}], 1, "lacks class"),
        ([{}], 1, "class and confidence"),
        (["normal"], 1, "not an object"),
        ([], 1, "empty"),
        ([entry()], 2, "1 entries for 2"),
        ([entry(), entry()], 1, "2 entries for 1"),
        (entry(), 1, "not a list"),
        (None, 1, "null, not a list"),
    ],
)
def test_shapes_it_refuses(content, pages, word):
    assert any(word in problem for problem in official_problems(content, pages))


@pytest.mark.parametrize("value", [1.7, -0.1, math.nan, math.inf])
def test_what_only_we_refuse(tmp_path, value):
    assert official_problems([entry(confidence=value)], 1) == []
    assert own_problems([entry(confidence=value)])
    with pytest.raises(ContractError):
        write_answers(tmp_path, [entry(confidence=value)], 1)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_any_answers_we_make_pass_and_read_back_exactly(tmp_path_factory, pairs):
    confidence, atypical = np.array([p for p, _ in pairs], np.float32), np.array([a for _, a in pairs])
    folder = tmp_path_factory.mktemp("out")
    path = write_answers(folder, make_answers(confidence, atypical), len(pairs))
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert "NaN" not in text
    assert official_problems(content, len(pairs)) == own_problems(content) == []
    assert [item["confidence"] for item in content] == [float(value) for value in confidence]
    assert [item["class"] == "atypical" for item in content] == atypical.tolist()
    assert all(type(item["confidence"]) is float for item in content)


def test_written_whole_readable_by_all_and_alone(tmp_path):
    path = write_answers(tmp_path, make_answers([0.5], [True]), 1)
    assert [entry.name for entry in tmp_path.iterdir()] == [TRACK2.output_file] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_number_of_pages_is_checked(tmp_path):
    with pytest.raises(ContractError, match="break the challenge's format"):
        write_answers(tmp_path, make_answers([0.5], [True]), 2)


def test_a_folder_that_cannot_be_made_is_a_contract_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ContractError, match="cannot write"):
        write_answers(tmp_path / "file" / "output", make_answers([0.5], [True]), 1)
