from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ensemble.crossfit import blend_runs
from ensemble.fit import BlendSettings
from midog.errors import DataError
from midog.files import read_json, write_json
from midog.report.card import model_card
from midog.report.page import Section, report

VOID = {"meta", "link", "br", "img", "wbr"}


class Checked(HTMLParser):
    """Every element closed in order; what it would load; its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in {"src", "href", "srcset", "data"} and value]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def read(path: Path) -> tuple[str, Checked]:
    """The page, proved to be one well-formed file that loads nothing."""
    text = path.read_text(encoding="utf-8")
    checked = Checked()
    checked.feed(text)
    checked.close()
    assert checked.open == []
    assert not {"script", "iframe", "object"} & set(checked.tags)
    assert all(load.startswith(("data:", "#")) for load in checked.loads)
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert len(checked.ids) == len(set(checked.ids))
    return text, checked


def headings(checked: Checked) -> list[str]:
    known = ("Scores", "By domain", "How it decides", "Worst errors", "Members", "Learning curves", "Provenance")
    return [word for word in checked.words if word in known]


def test_blend_page_has_every_part_and_the_honest_numbers(blend, blend_page):
    assert blend_page == blend / "report.html"
    text, checked = read(blend_page)
    assert headings(checked) == [
        "Scores", "By domain", "How it decides", "Worst errors", "Members", "Learning curves", "Provenance",
    ]  # fmt: skip
    own = next(e for e in read_json(blend / "blend.json")["scores"] if (e["name"], e["group"]) == ("tuned", "all"))
    for metric in ("balanced_accuracy", "roc_auc"):
        interval = own["cross_fitted"]["intervals"][metric]
        shown = [f"{v:.3f}".removeprefix("0") for v in (own["cross_fitted"][metric], interval["low"], interval["high"])]
        assert f"<b>{shown[0]} <small>{shown[1]}–{shown[2]}</small></b>" in text
    assert "120</b>" in text
    assert "of 24 cases" in text


def test_worst_errors_are_the_most_confident_ones_with_their_votes(blend, blend_page, table):
    from ensemble.predictions import read_scored

    scored = read_scored(blend / "oof_blend.csv")
    missed = np.flatnonzero(~scored.predicted & (scored.table.labels == 1))
    worst = scored.table.patches[missed[np.argmin(scored.confidence[missed])]].patch_id
    text, _ = read(blend_page)
    figures = re.findall(r"<figure><img.*?</figure>", text)
    assert worst.replace("/", "/<wbr>") in figures[0]
    votes = next(patch.votes for patch in table if patch.patch_id == worst)
    assert f"votes: {votes[0]} of 3 atypical" in figures[0]
    assert "label atypical" in figures[0]


def test_members_from_random_weights_are_plumbing(blend_page, run):
    for path in (blend_page, report(run)):
        text, _ = read(path)
        assert "Plumbing, not evidence: noise (1 of 3 members)" in text
        assert 'noise <span class="tag">plumbing, not evidence</span>' in text
        assert 'good <span class="tag">' not in text
        assert "Chance is balanced accuracy .500" in text


def test_report_and_card_say_the_same_of_a_start(make, table, members, tmp_path):
    """Of a run, of its blend, and of the blend when the run is gone; random weights with a start are no plumbing."""
    two = {name: members[name] for name in ("good", "noise")}
    run = make.run(tmp_path / "run", table, two, random=("good", "noise"), pupils=("good",))
    blend_runs([run], BlendSettings(kind="equal", trials=5)).write(tmp_path / "blend")
    shutil.copytree(tmp_path / "blend", tmp_path / "elsewhere" / "blend")
    for source in (run, tmp_path / "blend", tmp_path / "elsewhere" / "blend"):
        text, checked = read(report(source))
        assert "random weights, then distil" in checked.words
        assert "Plumbing, not evidence: noise (1 of 2 members)" in text
        if source != run:
            assert "| good | good | random weights, then distil |" in model_card(source)


def test_a_blend_of_an_earlier_release_asks_its_run_for_the_start(make, table, members, tmp_path):
    run = make.run(tmp_path / "run", table, {"good": members["good"]}, random=("good",), pupils=("good",))
    path = blend_runs([run], BlendSettings(kind="equal", trials=5)).write(tmp_path / "blend")
    content = read_json(path)
    assert content["members"][0].pop("start") == "distil"
    write_json(path, content)
    text, checked = read(report(path.parent))
    assert "random weights, then distil" in checked.words and "Plumbing" not in text


def test_provenance_is_on_the_page(blend_page, table):
    text, _ = read(blend_page)
    for value in (table.data_hash, table.folds_hash, "0123abc", "cpu (2 cores)", "torch 2.9.1"):
        assert value in text


def test_domains_with_few_atypical_patches_are_marked(blend_page):
    text, _ = read(blend_page)
    assert '<td class="free">breast, CS2 <span class="tag">few</span></td>' in text


def test_domains_never_seen_are_on_the_page(blend, blend_page, tmp_path):
    kept = read_json(blend / "blend.json")
    text, checked = read(blend_page)
    assert text.index("<h2>By domain</h2>") < text.index("<h2>Domains that the threshold never saw</h2>")
    row = kept["thresholds"]["domains"][0]
    regret = f"{row['left_out']['across']['regret']:.3f}".removeprefix("0")
    assert row["domain"] in checked.words and regret in checked.words
    shutil.copytree(blend, tmp_path / "one")
    domains = [
        {**row, "domain": f"human breast cancer | Scanner {at} | UMC Utrecht"}
        for at, row in enumerate(kept["thresholds"]["domains"])
    ]
    write_json(tmp_path / "one" / "blend.json", {**kept, "thresholds": {**kept["thresholds"], "domains": domains}})
    text, _ = read(report(tmp_path / "one"))
    for at in range(len(domains)):
        assert text.count(f"Scanner {at}") == 2, "once in the table, once in the figure, where names are cut"
    write_json(tmp_path / "one" / "blend.json", {**kept, "thresholds": {"how": "All patches are of one domain."}})
    assert "All patches are of one domain." in read(report(tmp_path / "one"))[0]
    write_json(tmp_path / "one" / "blend.json", {key: value for key, value in kept.items() if key != "thresholds"})
    assert "Domains that the threshold never saw" not in read(report(tmp_path / "one"))[0]  # an earlier release's blend


def test_run_that_is_still_going_shows_what_is_there(make, table, members, tmp_path):
    run = make.run(tmp_path / "half", table, members, undone=("fair/1", "noise/0", "noise/1"))
    text, checked = read(report(run))
    assert "3 of 6 fold models done" in text
    assert "Not in the mean, because not far enough: fair, noise." in text
    assert headings(checked) == [
        "Scores", "By domain", "How it decides", "Worst errors", "Members", "Learning curves", "Provenance",
    ]  # fmt: skip
    wrong = (members["good"][:, 0] >= 0) != (table.labels == 1)
    shown = set(re.findall(r"set/<wbr>(\d+)", text))
    assert shown
    assert shown <= {table.ids[at].removeprefix("set/") for at in np.flatnonzero(wrong)}


def test_members_that_share_one_finished_fold_are_averaged_on_it(make, table, members, tmp_path):
    run = make.run(tmp_path / "fold0", table, members, undone=("good/1", "fair/1", "noise/1"))
    text, _ = read(report(run))
    first = int((table.folds == 0).sum())
    assert f"Scored so far: {first} of 120 training patches." in text
    assert "mean of members" in text


def test_run_without_a_finished_fold(make, table, members, tmp_path):
    run = make.run(tmp_path / "new", table, {"good": members["good"]}, undone=("good/0", "good/1"))
    text, checked = read(report(run))
    assert "No fold is finished yet" in text
    assert headings(checked) == ["Members", "Learning curves", "Provenance"]


def test_failed_fold_shows_its_first_line(make, table, members, tmp_path):
    run = make.run(tmp_path / "failed", table, members, undone=("good/1",))
    write_json(run / "good" / "fold_1" / "failed.json", {"error": "problem: the loss is <nan>\n  fix: a lower one"})
    text, _ = read(report(run))
    assert "good, fold 1: problem: the loss is &lt;nan&gt;" in text


def test_one_class_only_leaves_the_curves_out(make, table, members, tmp_path):
    from dataclasses import replace

    normal = table.with_patches(replace(patch, label=0) for patch in table)
    text, checked = read(report(make.run(tmp_path / "one", normal, {"good": members["good"]})))
    assert "How it decides" not in headings(checked)
    assert "undefined" in text


def test_blend_whose_runs_are_gone_still_reports(blend, tmp_path):
    alone = tmp_path / "moved" / "blend"
    shutil.copytree(blend, alone)
    text, checked = read(report(alone))
    assert "could not be read" in text
    assert "image not found" in text
    assert {"Scores", "Worst errors", "Provenance"} <= set(headings(checked))


def test_images_that_are_gone_leave_their_ids(make, table, members, tmp_path):
    from dataclasses import replace

    gone = table.with_patches(replace(patch, path=str(tmp_path / "no.png")) for patch in table)
    text, _ = read(report(make.run(tmp_path / "gone", gone, {"fair": members["fair"]})))
    assert "image not found" in text
    assert "set/<wbr>" in text


def test_the_same_folder_gives_the_same_page(blend, blend_page, tmp_path):
    assert report(blend, tmp_path / "again.html").read_bytes() == blend_page.read_bytes()


def test_sections_of_ones_own(blend, tmp_path):
    held_out = Section("Held-out cases", "Scored once.")
    job = Section("Challenge job", html="<p>pages</p>")
    text, _ = read(report(blend, tmp_path / "demo.html", title="midog demo", sections=[job], first=[held_out]))
    order = [text.index(f"<h2>{name}</h2>") for name in ("Held-out cases", "Scores", "Challenge job", "Provenance")]
    assert order == sorted(order)
    assert "<title>midog demo</title>" in text


def test_a_folder_that_is_neither_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="neither a run nor a blend"):
        report(tmp_path)


def test_a_blend_without_its_predictions_says_how_to_make_them(blend, tmp_path):
    shutil.copy(blend / "blend.json", tmp_path)
    with pytest.raises(DataError, match=r"no oof_blend.csv(.|\n)*fix: midog blend"):
        report(tmp_path)


def test_importing_the_page_loads_no_matplotlib_and_no_torch():
    heavy = ("matplotlib", "torch", "optuna", "PIL")
    code = f"import sys, midog.report.page; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
