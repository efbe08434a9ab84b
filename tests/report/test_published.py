from __future__ import annotations

from midog.report.markup import section_html
from midog.report.page import published_section
from midog.report.published import AMIBR, CHALLENGE, published_table


def test_every_published_number_has_a_protocol_and_a_source():
    rows = published_table()
    assert {row["benchmark"] for row in rows} == {CHALLENGE, AMIBR}
    for row in rows:
        assert row["protocol"] and row["source"]
        assert 0.5 < row["balanced_accuracy"] < row["roc_auc"] < 1


def test_numbers_of_the_papers():
    found = {(row["benchmark"], row["method"].split(",")[0]): row for row in published_table()}
    paper = found[CHALLENGE, "UNI"]
    assert (paper["rank"], paper["balanced_accuracy"], paper["roc_auc"]) == ("8", 0.8842, 0.9457)
    virchow2 = found[AMIBR, "Virchow2"]
    assert (virchow2["balanced_accuracy"], virchow2["atnorm_br"], virchow2["atnorm_md"]) == (0.8135, 0.7632, 0.7424)


def test_section_shows_the_protocol_beside_the_numbers():
    text = section_html(published_section())
    assert ".9079" in text
    assert "no tuned threshold" in text
    assert "not to subtract" in text
