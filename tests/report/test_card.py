"""The model card: the blend's own numbers, and the same bytes for the same blend."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_fixture import make_run, make_table

from ensemble.crossfit import blend_runs
from ensemble.fit import BlendSettings
from ensemble.predictions import read_scored
from ensemble.result import run_names
from midog import api
from midog.bundle import open_bundle, pack
from midog.errors import DataError
from midog.files import read_json, sha256_bytes, write_json
from midog.report.card import model_card
from midog.report.page import report
from midog.report.text import cell_text


@pytest.fixture(scope="module")
def card(blend: Path) -> str:
    return model_card(blend)


def section(card: str, heading: str) -> str:
    return re.split(r"^#+ ", card.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> dict[str, list[str]]:
    """Lines of a table by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in lines}


def test_it_says_what_it_is_for_and_what_not(card):
    assert card.startswith("# Model card\n\nAn ensemble of 3 members and 6 fold models")
    assert "MIDOG 2025 Track 2" in card and "not a medical device and was never validated\nas one." in card
    headings = re.findall(r"^## (.*)$", card, flags=re.MULTILINE)
    names = ["Data", "Members", "Scores", "Operating points", "Limits", "Licences and citations", "Provenance"]
    assert headings == names


def test_scores_are_those_of_the_blend_with_their_intervals(card, blend):
    content = read_json(blend / "blend.json")
    own = next(e for e in content["scores"] if (e["name"], e["group"]) == ("tuned", "all"))["cross_fitted"]
    full = rows(section(card, "`full`"))
    expected = [
        f"{cell_text(own[name])} ({cell_text((own['intervals'][name]['low'], own['intervals'][name]['high']))})"
        for name in ("balanced_accuracy", "roc_auc", "sensitivity", "specificity", "log_loss")
    ]
    assert full["all"] == ["120", str(own["n_atypical"]), *expected]
    assert [name for name in full if name.startswith("scanner")] == ["scanner: CS2", "scanner: XR"]
    assert sum(int(full[f"scanner: {name}"][0]) for name in ("CS2", "XR")) == 120
    assert "tumour: (unknown)" in full


def test_fast_has_scores_and_a_table_of_its_own(card, blend):
    fast = read_json(blend / "blend.json")["points"]["fast"]
    shown = rows(section(card, "`fast`"))["all"]
    assert shown[2].startswith(cell_text(fast["cross_fitted"]["balanced_accuracy"]))
    assert "good; views `none`; fold models: 1." in section(card, "`fast`") and fast["members"] == ["good"]
    assert read_scored(blend / "oof_fast.csv").table.ids == read_scored(blend / "oof_blend.csv").table.ids
    points = rows(section(card, "Operating points"))
    assert points["`fast`"][2] == "1" and points["`full`"][2] == "6" and "`only:good/1`" not in points


def test_the_worst_domain_is_named_where_there_is_enough_to_say(make, tmp_path, card):
    assert "Fewer than two domains have 30 atypical patches" in card
    table = make.table(tmp_path, n=400)
    run = make.run(tmp_path / "run", table, {"a": make.logits(table, 0.8, 1)})
    blend_runs([run], BlendSettings(kind="equal", trials=5)).write(tmp_path / "blend")
    scored = read_scored(tmp_path / "blend" / "oof_blend.csv")
    lowest = []
    for word in sorted(set(scored.groups("domain"))):
        among = scored.groups("domain") == word
        y, called = scored.table.labels[among], scored.predicted[among]
        lowest.append(((called[y == 1].mean() + (~called[y == 0]).mean()) / 2, word, int(y.sum())))
    value, word, n = min(lowest)
    line = f"Worst of the 2 domains with at least 30 atypical patches: {word} ({n}), BA {cell_text(float(value))}."
    assert line in model_card(tmp_path / "blend")


def test_data_sets_are_counted_by_the_prefix_and_known_ones_cited(make, tmp_path):
    table = make.table(tmp_path)
    named = [
        replace(patch, patch_id=f"{'AMi-Br' if at % 3 else 'MIDOG25'}/{at}", case=f"{at % 24}")
        for at, patch in enumerate(table)
    ]
    table = table.with_patches(named)
    run = make.run(tmp_path / "run", table, {"a": make.logits(table, 1.0, 1)})
    blend_runs([run], BlendSettings(kind="equal", trials=5)).write(tmp_path / "blend")
    text = model_card(tmp_path / "blend")
    counted = rows(section(text, "Data"))
    assert counted["MIDOG25"][:2] == ["40", "8"] and counted["AMi-Br"][0] == "80" and counted["all"][0] == "120"
    licences = section(text, "Licences and citations")
    assert "AMi-Br: licence MIT; cite Bertram et al. 2025" in licences and "Banerjee et al. 2025" in licences
    assert "Zenodo 16044804" in licences


def test_members_say_where_they_start(card, blend, tmp_path):
    members = rows(section(card, "Members"))
    assert members["noise"][1] == "random weights" and members["good"][1].startswith("published weights")
    assert members["good"][5] == "2 of 2"
    content = read_json(blend / "blend.json")
    record = {"name": "mobilenetv2_100", "source": "google-coral/test_data", "licence": "Apache-2.0"}
    content["members"][0]["network"] = {"backbone": record, "pretrained": "record", "tune": {"kind": "full"}}
    content["members"][1]["network"]["pretrained"] = "/somewhere/of/mine/weights.safetensors"
    shutil.copytree(blend, tmp_path / "other")
    write_json(tmp_path / "other" / "blend.json", content)
    text = model_card(tmp_path / "other")
    assert "weights of mobilenetv2_100: google-coral/test_data, licence Apache-2.0" in text
    assert "weights of one's own (weights.safetensors)" in text and "/somewhere" not in text


def test_provenance_names_commit_seed_and_hashes(card, blend, table):
    told = section(card, "Provenance")
    for value in ("git commit 0123abc", "seed 7", "seed 0", table.data_hash, table.folds_hash, "torch 2.9.1"):
        assert value in told


def test_runs_of_one_name_are_told_apart(make, table, members, tmp_path):
    """Of the first run one fold of two is blended, of the second both: each counts by its own manifest."""
    for name, member in (("a", "good"), ("b", "fair")):
        run = make.run(tmp_path / name / "r", table, {member: members[member]})
        write_json(run / "manifest.json", {**read_json(run / "manifest.json"), "git": f"commit of {name}"})
    settings = BlendSettings(kind="equal", trials=5, fold_models={"good": 1})
    path = blend_runs([tmp_path / "a" / "r", tmp_path / "b" / "r"], settings).write(tmp_path / "blend")
    runs = read_json(path)["provenance"]["runs"]
    assert {name: manifest["git"] for name, manifest in runs.items()} == {"a/r": "commit of a", "b/r": "commit of b"}
    text = model_card(path)
    assert [rows(section(text, "Members"))[name][5] for name in ("good", "fair")] == ["1 of 2", "2 of 2"]
    told = section(text, "Provenance")
    assert "run a/r: " in told and "commit of a" in told and "commit of b" in told
    page = report(path.parent).read_text(encoding="utf-8")
    assert "commit of a" in page and "commit of b" in page
    earlier = {**read_json(path), "provenance": {"runs": {"r": runs["b/r"]}}}
    write_json(path, earlier)
    assert "commit of b" in model_card(path), "a blend of an earlier release, which kept one of the two"


def test_a_run_is_called_by_the_folders_that_tell_it_from_others(tmp_path):
    paths = [tmp_path / place for place in ("x/a/r", "y/a/r", "b/r", "s")]
    assert list(run_names(paths).values()) == ["x/a/r", "y/a/r", "b/r", "s"]
    assert run_names([paths[0], str(paths[0])]) == {paths[0].resolve(): "r"}


def test_a_blend_without_its_predictions_has_no_card(blend, tmp_path):
    shutil.copy(blend / "blend.json", tmp_path)
    with pytest.raises(DataError, match=r"no oof_blend.csv(.|\n)*fix: midog blend"):
        model_card(tmp_path)


def test_the_card_travels_in_the_bundle_and_equal_blends_give_equal_bundles(tmp_path):
    """A real run, blended into two folders."""
    table = make_table(tmp_path / "patches", 40)
    run = make_run(tmp_path / "run", table)
    settings = BlendSettings(kind="equal", trials=5, fold_models={"vit": 1})
    for name in ("one", "two"):
        blend_runs([run], settings).write(tmp_path / name)
    first, second = (api.pack_bundle(tmp_path / name, tmp_path / f"{name}.tar.gz") for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    bundle = open_bundle(first)
    assert bundle.card == model_card(tmp_path / "two") and str(tmp_path) not in bundle.card
    assert bundle.manifest["files"]["MODEL_CARD.md"]["sha256"] == sha256_bytes(bundle.card.encode())
    assert rows(section(bundle.card, "Members"))["vit"][5:] == [
        "1 of 2",
        f"{(run / 'vit/fold_0/model.safetensors').stat().st_size / 1e6:.1f}",
    ]
    assert open_bundle(pack(tmp_path / "one", tmp_path / "bare.tar.gz")).card == ""
