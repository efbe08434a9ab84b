"""The whole battery on drawn patches (synthetic): resumable, honest about what did not run, one page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_fixture import SIZE, make_blend, make_run

from midog.audit.battery import audit
from midog.audit.measure import Settings
from midog.audit.opening import open_subject
from midog.audit.parts import PARTS, TRAINING, part
from midog.bundle import pack
from midog.cli import run as command
from midog.data.patches import read_table
from midog.errors import DataError, UsageError
from midog.files import read_json, write_json
from midog.models.backbones import find_backbone
from midog.models.build import build_backbone
from midog.models.cost import predict_memory
from midog.models.network import Network
from midog.models.predict import pick_batch
from midog.models.preprocess import Image
from midog.models.tuning import Full
from midog.models.weights import write_tensors


@pytest.fixture(scope="module")
def folder(drawn: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of the bundle at its lighter point."""
    out = tmp_path_factory.mktemp("battery") / "audit"
    assert command(["audit", str(drawn.bundle), str(drawn.table), "-o", str(out), "--limit", "12"]) == 0
    return out


def test_every_part_is_written_or_says_why_not(folder: Path, drawn: Any) -> None:
    content = read_json(folder / "audit.json")
    asked = set(PARTS) - set(TRAINING)
    assert set(content["parts"]) == asked and content["schema_version"] == 1
    assert {path.stem for path in (folder / "parts").glob("*.json")} == asked
    assert content["provenance"]["versions"]["torch"] and content["subject"]["point"]["name"] == "fast"
    ran = [name for name, found in content["parts"].items() if "found" in found]
    assert set(ran) >= asked - {"robustness"}
    assert content["patches"]["seen_in_training"] == 36 and content["patches"]["once"] == 48


def test_the_page_is_one_file_that_says_what_to_look_for(folder: Path) -> None:
    text = (folder / "audit.html").read_text(encoding="utf-8")
    assert "Seen in training: 36 of 48 patches" in text
    content = read_json(folder / "audit.json")
    for name in PARTS:
        assert part(name).TITLE.replace("&", "&amp;") in text
        if "found" in content["parts"].get(name, {}):
            assert re.search(r"[Gg]ood is|[Gg]ood are|which is good", part(name).TEXT)
    assert "Small network: not asked for; it trains, for minutes: --only small_cnn" in text
    assert "<script" not in text and not re.search(r"https?://|src=\"(?!data:)", text)
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).casefold().split()


def test_the_same_command_measures_nothing_again(folder: Path, drawn: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.json")}
    said: list[str] = []
    found = audit(drawn.bundle, drawn.table, folder, ["domains", "cost"], settings=Settings(limit=12), say=said.append)
    assert said == [] and set(found.parts) >= {"domains", "cost"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # another limit is another measurement, of the parts that were asked for alone
    found = audit(drawn.bundle, drawn.table, folder, ["calibration"], settings=Settings(limit=24), say=said.append)
    assert [line.split()[0] for line in said] == ["calibration"] and set(found.parts) == {"calibration"}


def test_a_run_is_answered_out_of_fold_and_a_part_that_cannot_run_says_why(drawn: Any, tmp_path: Path) -> None:
    found = audit(drawn.run, drawn.table, tmp_path / "a", only=["domains", "leakage", "calibration"])
    assert found.about["patches"]["seen_in_training"] == 0
    page = (tmp_path / "a" / "audit.html").read_text(encoding="utf-8")
    assert "Seen in training" not in page and "not calibrated" in page
    assert "Not run" in page and "Cost: not asked for" in page


def test_what_lacked_weights_runs_again_once_they_are_there(
    drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle whose fold models replaced the whole backbone: its start lies outside, where `--pretrained` says."""
    network = Network(find_backbone("test_vit"), "record", Image(size=64), Full(), seed=1)
    weights = write_tensors(tmp_path / "weights" / "test_vit.safetensors", build_backbone("test_vit").state_dict())
    monkeypatch.setenv("MIDOG_WEIGHTS", str(weights.parent))
    run = make_run(tmp_path / "run", read_table(drawn.table), {"vit": network})
    blend = make_blend(tmp_path / "blend", run, {"vit": network}, {"full": (("vit",), (1.0,), "none")})
    bundle = pack(blend, tmp_path / "model.tar.gz")
    for name in ("MIDOG_WEIGHTS", "MIDOG_DATA"):
        monkeypatch.delenv(name, raising=False)
    words = ["audit", str(bundle), str(drawn.table), "-o", str(tmp_path / "a"), "--limit", "12"]
    words += ["--only", "baselines", "--only", "leakage", "--only", "calibration"]

    def measured(*more: str) -> set[str]:
        """The parts that were measured, not taken from the folder."""
        capsys.readouterr()
        assert command([*words, *more]) == 0
        return {line.split()[0] for line in capsys.readouterr().err.splitlines() if line.endswith(" s]")}

    def lacking() -> list[bool]:
        parts = read_json(tmp_path / "a" / "audit.json")["parts"]
        probe = parts["baselines"]["found"]["rows"]["linear probe"]
        return ["problem" in probe, bool(parts["leakage"]["found"]["frozen_problem"])]

    assert measured() == {"baselines", "leakage", "calibration"} and lacking() == [True, True]
    assert measured() == set(), "nothing has changed"
    assert measured("--pretrained", str(weights.parent)) == {"baselines", "leakage"} and lacking() == [False, False]
    assert measured("--pretrained", str(weights.parent)) == set()


def test_thresholds_of_unseen_domains_come_from_the_run(drawn: Any, tmp_path: Path) -> None:
    found = audit(drawn.run, drawn.table, tmp_path / "a", only=["domains"]).parts["domains"]["found"]
    assert {row["domain"] for row in found["thresholds"]["domains"]} == {"T0 | S0", "T0 | S1", "T1 | S0", "T1 | S1"}


def test_thresholds_are_shown_by_the_rule_that_was_chosen() -> None:
    cost = {rule: {"balanced_accuracy": ba, "regret": 0.9 - ba} for rule, ba in (("pooled", 0.8), ("across", 0.875))}
    domain = {"domain": "T | S", "n": 40, "atypical": 20, "best": 0.9, "left_out": cost, "by_case": cost}
    thresholds = {"domains": [domain], **dict.fromkeys(("all", "mean", "worst"), domain)}
    for rule, lost in (("pooled", ".100"), ("across", ".025")):
        found = part("domains").section({"rows": [], "thresholds": thresholds, "rule": rule})
        assert f"Threshold ({rule})" in found.figures[-1].caption
        assert f"A threshold ({rule}) that never saw the domain loses {lost}" in found.note


def test_the_rule_is_that_of_the_blend_or_of_the_run_s_recipe(drawn: Any, tmp_path: Path) -> None:
    assert open_subject(drawn.run).rule == open_subject(drawn.bundle).rule == "pooled"
    content = read_json(drawn.blend / "blend.json")
    write_json(tmp_path / "blend.json", {**content, "settings": {"threshold": "across"}})
    assert open_subject(tmp_path).rule == "across"


def test_a_table_without_scanners_leaves_out_what_needs_them(
    tiny_bundle: Path, tiny_table: Any, tmp_path: Path
) -> None:
    table = tiny_table.root / "patches.csv"
    found = audit(tiny_bundle, table, tmp_path / "a", only=["leakage", "robustness", "domains", "low_data"])
    assert "no confounder can be asked for" in found.parts["leakage"]["not_run"]
    assert "no row has both label and scanner" in found.parts["leakage"]["not_run"].replace("\n", " ")
    assert "not_run" in found.parts["robustness"] and "found" in found.parts["domains"]
    assert "not run: " in found.text()


def test_what_cannot_be_audited(drawn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"unknown part: simmetry\n.*did you mean symmetry\?"):
        audit(drawn.bundle, drawn.table, tmp_path, only=["simmetry"])
    assert command(["audit", str(drawn.table), str(drawn.bundle), "-o", str(tmp_path)]) == 2
    assert "swapped" in capsys.readouterr().err
    lines = drawn.table.read_text().splitlines()
    normal = [line for line in lines[1:] if line.split(",")[lines[0].split(",").index("label")] == "0"]
    one = drawn.table.with_name("normal.csv")
    one.write_text("\n".join([lines[0], *normal]))
    with pytest.raises(DataError, match="all 32 patches are normal"):
        audit(drawn.bundle, one, tmp_path)


def test_json_on_the_command_line(drawn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["audit", str(drawn.blend), str(drawn.table), "-o", str(tmp_path / "a"), "--only", "cost", "--json"]
    assert command(words) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)["parts"]["cost"]["found"]
    assert found["out_of_fold"] is True
    batch = pick_batch(torch.device("cpu"))
    peaks = [predict_memory(m.network.backbone, batch, torch.float32, SIZE) for m in open_subject(drawn.blend).members]
    assert [row["peak_bytes"] for row in found["rows"]] == peaks, "what an answer on a processor takes"
    assert f"peak MB, batch of {batch}" in (tmp_path / "a" / "audit.html").read_text(encoding="utf-8")
    assert f"wrote {tmp_path / 'a' / 'audit.html'}" in printed.err
