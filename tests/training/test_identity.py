"""Which differences count."""

from __future__ import annotations

from typing import Any

import pytest

from midog.training.identity import differences

OLD = {"member": {"training": {"lr": 1e-4, "epochs": 3}, "augment": {"fourier": {"p": 0.5}, "fisheye": None}}}


def changed(path: str, value: Any) -> dict[str, Any]:
    import copy

    new = copy.deepcopy(OLD)
    *way, last = path.split(".")
    place: Any = new
    for key in way:
        place = place[key]
    place[last] = value
    return new


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("member.training.lr", 2e-4, "member.training.lr: 0.0001 made it, 0.0002 is asked for"),
        ("member.augment.fourier", None, "member.augment.fourier: on made it, off is asked for"),
        ("member.augment.fisheye", {"p": 1}, "member.augment.fisheye: off made it, on is asked for"),
        ("member.training.mixup", 0.2, "member.training.mixup: nothing made it, 0.2 is asked for"),
    ],
)
def test_a_difference_names_its_key_and_both_values(path: str, value: Any, line: str) -> None:
    assert differences(OLD, changed(path, value)) == [line]


@pytest.mark.parametrize("value", [None, False, 0, "", "off"])
def test_a_setting_of_a_later_release_that_is_off_is_no_difference(value: Any) -> None:
    assert differences(OLD, changed("member.training.new", value)) == []


def test_what_an_earlier_release_did_without_saying_so_is_no_difference() -> None:
    assert differences(OLD, changed("member.training.optimizer", "adamw")) == []
    assert differences(OLD, changed("member.training.optimizer", "adam")) == [
        "member.training.optimizer: adamw made it, adam is asked for"
    ]


def test_tuples_and_lists_are_one() -> None:
    assert differences({"beta": [0.01, 0.09]}, {"beta": (0.01, 0.09)}) == []
