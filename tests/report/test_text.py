"""Tables as plain text."""

from __future__ import annotations

from midog.report.text import cell_text, text_table


def test_numbers_intervals_and_nothing() -> None:
    assert cell_text(0.8123) == ".812" and cell_text(1.0) == "1.000" and cell_text(-0.25) == "-.250"
    assert cell_text(None) == "–" and cell_text(3) == "3" and cell_text("uni") == "uni"
    assert cell_text((0.8, 0.871)) == ".800–.871"
    assert cell_text((-0.378, 0.132)) == "-.378 to .132"  # a dash would be read as a minus


def test_words_stand_left_and_numbers_right() -> None:
    lines = text_table([{"name": "a", "BA": 0.5}, {"name": "longer", "BA": None}]).splitlines()
    assert lines == ["name      BA", "------  ----", "a       .500", "longer     –"]
    assert text_table([]) == "(nothing to show)"
