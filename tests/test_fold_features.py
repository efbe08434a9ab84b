"""Features of a run's fold models: of patches that they never saw, beside those of the frozen backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import midog
from midog.cli import run as command
from midog.errors import DataError, UsageError, WeightsError
from midog.files import read_json, write_json
from midog.grid import make_grid, write_grid
from midog.robustness.features import read_features


def test_rows_are_the_patches_that_the_fold_model_never_saw(tiny_run: Path) -> None:
    features = midog.member_features(f"{tiny_run}:vit", fold=1)
    # twelve patches: every fourth is `test`, the others are in fold 0 or 1 by turns
    assert features.column("patch_id").tolist() == [f"tiny/{i}" for i in (1, 3, 5, 7, 9, 11)]
    assert features.arrays["frozen"].shape == features.arrays["adapted"].shape == (6, 64)
    assert features.arrays["frozen"].dtype == np.float32
    assert features.column("domain").tolist() == ["dom1"] * 6


def test_a_frozen_member_has_the_features_of_its_backbone_and_a_tuned_one_has_not(tiny_run: Path) -> None:
    probe = midog.member_features(f"{tiny_run}:probe").arrays
    assert np.array_equal(probe["frozen"], probe["adapted"])
    vit = midog.member_features(tiny_run).arrays  # the first member, on the same backbone but another crop
    assert not np.allclose(vit["frozen"], vit["adapted"], atol=1e-3)
    assert not np.allclose(vit["frozen"], probe["frozen"], atol=1e-3)


def test_the_adapted_features_are_what_the_head_is_given(tiny_run: Path) -> None:
    from midog.data.pixels import open_pixels
    from midog.models.classifier import pretrained_state
    from midog.models.inference import Inference
    from midog.models.network import Network
    from midog.models.predict import predict_logits

    folder = tiny_run / "effnet" / "fold_0"
    features = midog.member_features(f"{tiny_run}:effnet")
    network = Network.from_dict(read_json(folder / "done.json")["network"])
    model = Inference(network, pretrained_state(network)).switch(folder / "model.safetensors")
    table = midog.open_run(tiny_run).table()
    rows = np.flatnonzero(np.isin(table.ids, features.column("patch_id").tolist()))
    logits = predict_logits(model, open_pixels(table.subset(rows)))[:, 0]
    weight, bias = (value.numpy() for value in model.head.state_dict().values())
    np.testing.assert_allclose(features.arrays["adapted"] @ weight[0] + bias, logits, atol=1e-4)


def test_the_command_writes_and_measures(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.safetensors"
    assert command(["features", f"{tiny_run}:vit", "-o", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().err and set(read_features(out).arrays) == {"adapted", "frozen"}
    assert command(["features", str(out), "--by", "case", "--only", "paired", "--only", "index", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 9 and "no pair can be compared at k = 11" in found["arrays"]["frozen"]["paired"]["problem"]
    assert command(["features", str(out), "--by", "domain", "--only", "index"]) == 0
    assert "k is 11, and some patch has only 8 patches of other cases" in capsys.readouterr().out
    assert command(["features", str(out)]) == 2
    assert f"midog features {out} --by scanner" in capsys.readouterr().err


def test_what_a_run_cannot_give(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown member: vitt\n.*did you mean vit\?"):
        midog.member_features(f"{tiny_run}:vitt")
    with pytest.raises(UsageError, match="no fold 2"):
        midog.member_features(tiny_run, fold=2)
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    done = copy / "vit" / "fold_0" / "done.json"
    content = read_json(done)
    write_json(done, {**content, "identity": {"pretrained": "random 7"}})
    with pytest.raises(WeightsError, match="from other pretrained weights"):
        midog.member_features(copy)
    write_json(done, {**content, "model_sha256": "0"})
    with pytest.raises(WeightsError, match=r"is not the file that done\.json knows"):
        midog.member_features(copy)
    done.unlink()
    with pytest.raises(DataError, match=r"fold 0 of vit is not trained .*\n.*--member vit"):
        midog.member_features(copy)


def test_several_runs_are_compared_by_one_column_alone(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [f"{tiny_run}:vit", f"{tiny_run}:probe"]
    assert command(["features", *both]) == 2
    assert f"midog features {' '.join(both)} --by scanner" in capsys.readouterr().err
    assert command(["features", *both, "--by", "domain"]) == 3
    assert "confounder has one level" in capsys.readouterr().err
    with pytest.raises(UsageError, match="two runs are called run:vit"):
        midog.compare_features([both[0], both[0]], "domain")


def test_a_grid_stands_for_its_runs_and_the_baseline_comes_first(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = make_grid([("each.harmonise", ["off", "combat"])], [0])
    write_grid(tmp_path, grid)
    for run in grid.runs:
        (tmp_path / run.name).symlink_to(tiny_run)
    assert command(["features", str(tmp_path)]) == 2
    names = [f"{tmp_path}/harmonise={value},seed=0" for value in ("off", "combat")]
    assert f"midog features {' '.join(names)} --by scanner" in capsys.readouterr().err
