"""The bundle: equal bytes, every promise of its manifest checked, and one way to an answer."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from bundle_fixture import NETWORKS, POINTS, PREVALENCE, draw_patches, make_blend, make_run, make_table
from PIL import Image as Picture

from ensemble.blend import combine, confidence, decide, read_blend
from ensemble.crossfit import blend_runs
from ensemble.fit import BlendSettings
from midog.bundle import Bundle, open_bundle, pack, read_manifest
from midog.data.pixels import open_pixels
from midog.errors import ContractError, DataError, UsageError, WeightsError
from midog.files import read_csv, read_json, sha256_bytes, sha256_file, write_json
from midog.models.backbones import find_backbone
from midog.models.classifier import Network, backbone_state, build_classifier
from midog.models.inference import Inference
from midog.models.predict import predict_logits
from midog.models.preprocess import Image
from midog.models.tuning import Full
from midog.models.weights import TensorFile


@pytest.fixture
def bundle(tiny_folder: Path) -> Bundle:
    return open_bundle(tiny_folder)


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


# ------------------------------------------------------------------------------------------------------------ packing


def test_packing_twice_gives_equal_bytes_and_leaves_nothing_else(tiny_blend, tiny_bundle, tmp_path):
    again = pack(tiny_blend, tmp_path / "other-name.tar.gz")
    assert again.read_bytes() == tiny_bundle.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["other-name.tar.gz"]


def test_archive_holds_plain_files_at_its_top_without_owner_or_time(tiny_bundle):
    with tarfile.open(tiny_bundle) as archive:
        entries = archive.getmembers()
    names = [entry.name for entry in entries]
    assert names[0] == "manifest.json" and names[1:] == sorted(names[1:])
    assert {(e.mtime, e.uid, e.gid, e.uname, e.mode, e.isreg()) for e in entries} == {(0, 0, 0, "", 0o644, True)}
    assert tiny_bundle.read_bytes()[4:8] == b"\0\0\0\0"  # gzip's own time stamp


def test_each_backbone_is_stored_once_and_only_what_is_needed_of_it(tiny_folder):
    manifest = read_manifest(tiny_folder)
    backbone = {member["name"]: member["backbone"] for member in manifest["members"]}
    assert backbone["vit"] == backbone["probe"] != backbone["effnet"]
    assert len(list((tiny_folder / "backbones").iterdir())) == 2
    whole = backbone_state(build_classifier(NETWORKS["effnet"]))
    held = TensorFile(tiny_folder / backbone["effnet"]).names
    moved = TensorFile(tiny_folder / "members/effnet/fold_0.safetensors").names
    assert held == {name for name in whole if f"backbone.{name}" not in moved}
    assert TensorFile(tiny_folder / backbone["vit"]).names == set(backbone_state(build_classifier(NETWORKS["vit"])))


def test_a_member_that_holds_everything_needs_no_backbone_file(tiny_table, tmp_path):
    networks = {"conv": Network(find_backbone("timm/test_convnext"), "random", Image(size=64), Full(), seed=3)}
    run = make_run(tmp_path / "run", tiny_table, networks)
    blend = make_blend(tmp_path / "blend", run, networks, {"full": (("conv",), (1.0,), "none")})
    path = pack(blend, tmp_path / "model.tar.gz")
    manifest = read_manifest(path)
    assert manifest["members"][0]["backbone"] is None
    assert not any(name.startswith("backbones/") for name in manifest["files"])
    assert np.isfinite(open_bundle(path).predict(draw_patches(2)).logit).all()


def test_manifest_tells_where_everything_came_from(tiny_bundle, tiny_blend, tiny_table):
    manifest = read_manifest(tiny_bundle)
    train = tiny_table.subset(tiny_table.folds >= 0)
    assert manifest["training"]["pixels"] == sorted(open_pixels(train).hashes)
    assert all(len(value) == 16 for value in manifest["training"]["pixels"])
    assert manifest["runs"][0]["folds_sha256"] == train.folds_hash
    assert manifest["runs"][0]["data_sha256"] == train.data_hash
    assert manifest["blend_sha256"] == sha256_file(tiny_blend / "blend.json")
    assert manifest["prevalence"] == PREVALENCE
    assert "single fold model" in manifest["calibration"]
    assert {member["name"]: member["network"] for member in manifest["members"]} == {
        name: network.to_dict() for name, network in NETWORKS.items()
    }


def test_manifest_tells_what_trained_each_fold_model(tiny_run, tmp_path):
    """A run may be trained in several places: its own manifest is of whoever prepared it last."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    where = {"git": "abc", "device": "a GPU", "precision": "bfloat16", "versions": {"torch": "2.11.0"}, "seconds": 9.0}
    for done in run.glob("vit/fold_0/done.json"):
        write_json(done, {**read_json(done), **where})
    manifest = read_manifest(pack(make_blend(tmp_path / "blend", run), tmp_path / "model.tar.gz"))
    there = next(of for of in manifest["trained"] if of.get("device") == "a GPU")
    assert there["fold_models"] == ["vit/0"] and there["versions"] == {"torch": "2.11.0"} and "seconds" not in there
    named = [name for of in manifest["trained"] for name in of["fold_models"]]
    assert sorted(named) == sorted(f"{m['name']}/{k}" for m in manifest["members"] for k in m["folds"])


@pytest.mark.parametrize("typed", ["defualt", "Default"])
def test_a_misspelt_default_gets_the_nearest_name(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"no such bundle: {typed}\n  fix: did you mean default"):
        open_bundle(typed)
    with pytest.raises(WeightsError, match=r"no such bundle: model\.tar\.gz\n  fix: check the path, or make one"):
        open_bundle("model.tar.gz")


def test_no_path_of_this_machine_travels(tiny_folder, tiny_run):
    for name in ("manifest.json", "blend.json"):
        assert str(tiny_run.parent) not in (tiny_folder / name).read_text()
    assert set(read_blend(tiny_folder).points) == set(POINTS)


def test_a_fold_model_that_changed_since_it_was_blended_is_refused(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    blend = make_blend(tmp_path / "blend", run)
    shutil.copy(run / "vit/fold_0/model.safetensors", run / "vit/fold_1/model.safetensors")
    (run / "effnet/fold_0/model.safetensors").unlink()
    with pytest.raises(WeightsError) as caught:
        pack(blend, tmp_path / "model.tar.gz")
    assert "vit fold 1" in str(caught.value) and "effnet fold 0" in str(caught.value)
    assert not (tmp_path / "model.tar.gz").exists()


def test_pretrained_weights_must_be_those_of_training(tiny_table, tmp_path):
    from midog.models.weights import write_tensors

    record = find_backbone("timm/test_vit")
    state = {k: v.float() for k, v in backbone_state(build_classifier(NETWORKS["vit"])).items()}
    file = write_tensors(tmp_path / "weights.safetensors", state)
    networks = {"vit": Network(record, str(file), Image(size=64), NETWORKS["vit"].tune, seed=1)}
    run = make_run(tmp_path / "run", tiny_table, networks)
    blend = make_blend(tmp_path / "blend", run, networks, {"full": (("vit",), (1.0,), "none")})
    done = read_json(run / "vit/fold_0/done.json")
    for sha, fits in ((sha256_file(file), True), ("0" * 64, False)):
        done["identity"]["pretrained"] = sha
        for k in range(2):
            (run / f"vit/fold_{k}/done.json").write_text(json.dumps(done))
        if fits:
            assert pack(blend, tmp_path / "model.tar.gz").is_file()
        else:
            with pytest.raises(WeightsError, match="not those it was trained from"):
                pack(blend, tmp_path / "other.tar.gz")


def test_the_name_must_end_as_the_platform_asks(tiny_blend, tmp_path):
    with pytest.raises(UsageError, match=r"\.tar\.gz"):
        pack(tiny_blend, tmp_path / "model.zip")


def test_a_failed_write_leaves_what_was_there(tiny_blend, tmp_path):
    out = tmp_path / "model.tar.gz"
    out.write_bytes(b"before")
    blend = tmp_path / "blend"
    shutil.copytree(tiny_blend, blend)
    content = json.loads((blend / "blend.json").read_text())
    content["members"][0]["network"]["pretrained"] = str(tmp_path / "nowhere.safetensors")
    (blend / "blend.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError):
        pack(blend, out)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["blend", "model.tar.gz"]
    assert out.read_bytes() == b"before"


def test_killed_at_any_moment_it_leaves_the_old_file_or_the_new_one(tiny_blend, tiny_bundle, tmp_path):
    out = tmp_path / "model.tar.gz"
    out.write_bytes(b"before")
    for seconds in (0.005, 0.03, 0.08, 0.2):
        child = os.fork()
        if not child:
            pack(tiny_blend, out)
            os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert out.read_bytes() in (b"before", tiny_bundle.read_bytes())
    pack(tiny_blend, out)
    assert out.read_bytes() == tiny_bundle.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tar.gz"]


def test_a_blend_fitted_by_the_ensemble_packs_and_answers_at_every_point(tmp_path):
    table = make_table(tmp_path / "patches", 40)
    run = make_run(tmp_path / "run", table)
    blend_runs([str(run)], BlendSettings(trials=20, views="rot4")).write(tmp_path / "blend")
    bundle = open_bundle(pack(tmp_path / "blend", tmp_path / "model.tar.gz"))
    assert {"full", "full/1", "fast", "only:vit", "without:probe/1"} <= set(bundle.blend.points)
    answers = {use: bundle.at(use).predict(draw_patches(2)).confidence for use in bundle.blend.points}
    assert all(np.isfinite(values).all() for values in answers.values())
    assert answers["full"].tolist() != answers["only:vit"].tolist() != answers["only:vit/1"].tolist()
    assert str(tmp_path) not in (bundle.folder / "blend.json").read_text()


def test_a_bundle_of_few_fold_models_holds_and_asks_only_these(tmp_path):
    table = make_table(tmp_path / "patches", 40)
    run = make_run(tmp_path / "run", table)
    blend_runs([str(run)], BlendSettings(kind="equal", trials=5, fold_models={"vit": 1, "probe": 1})).write(
        tmp_path / "b"
    )
    bundle = open_bundle(pack(tmp_path / "b", tmp_path / "model.tar.gz"))
    held = sorted(name for name in bundle.manifest["files"] if name.startswith("members/"))
    assert held == [
        f"members/{name}.safetensors" for name in ("effnet/fold_0", "effnet/fold_1", "probe/fold_0", "vit/fold_0")
    ]
    assert bundle.about()["fold_models"] == 4 and np.isfinite(bundle.predict(draw_patches(2)).logit).all()


# ------------------------------------------------------------------------------------------------------------ opening


def test_archive_folder_and_nested_folder_open_as_the_same_bundle(tiny_bundle, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "outer/inner")
    (tmp_path / "outer/.DS_Store").write_bytes(b"x")
    opened = [open_bundle(path) for path in (tiny_bundle, tiny_folder, tmp_path / "outer")]
    assert len({bundle.digest for bundle in opened}) == 1
    assert opened[0].digest == sha256_bytes((tiny_folder / "manifest.json").read_bytes())
    images = draw_patches(3, seed=9)
    logits = [bundle.predict(images).logit.tobytes() for bundle in opened]
    assert len(set(logits)) == 1


def test_the_unpacked_copy_goes_with_the_bundle(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    folder = bundle.folder
    assert folder.is_dir()
    del bundle
    assert not folder.exists()


def test_an_archive_packed_by_hand_opens_too(tiny_folder, tmp_path):
    for arcname in (".", "model"):
        path = tmp_path / "hand.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tiny_folder, arcname=arcname)
        assert open_bundle(path).digest == open_bundle(tiny_folder).digest
        assert read_manifest(path) == read_manifest(tiny_folder)


def test_everything_wrong_with_the_files_is_told_at_once(copied):
    (copied / "members/vit/fold_1.safetensors").unlink()
    (copied / "extra.bin").write_bytes(b"x")
    file = copied / "members/effnet/fold_0.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(WeightsError) as caught:
        open_bundle(copied)
    text = str(caught.value)
    for part in ("missing: members/vit/fold_1", "foreign: extra.bin", "wrong size: members/effnet/fold_0"):
        assert part in text
    assert caught.value.exit_code == 4 and "midog bundle" in caught.value.fix


def test_one_flipped_bit_is_a_wrong_hash(copied):
    file = copied / "members/vit/fold_0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="wrong hash: members/vit/fold_0"):
        open_bundle(copied)


def repack(path: Path, folder: Path, change=None, extra=()) -> Path:
    """A tar.gz of `folder`; `extra` are hostile entries (TarInfo, content)."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=".")
        for entry, content in extra:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        hostile("../escaped.txt"),
        hostile("/tmp/absolute-midog-test.txt"),
        hostile("members/../../escaped.txt"),
        hostile("link", tarfile.SYMTYPE, "/etc/passwd"),
        hostile("hard", tarfile.LNKTYPE, "manifest.json"),
        hostile("device", tarfile.CHRTYPE),
        hostile("pipe", tarfile.FIFOTYPE),
        hostile("./blend.json"),
    ],
    ids=lambda entry: entry.name,
)
def test_an_unsafe_archive_is_refused_and_writes_nothing_outside(tiny_folder, tmp_path, entry):
    path = repack(tmp_path / "model.tar.gz", tiny_folder, extra=[(entry, b"")])
    with pytest.raises(ContractError) as caught:
        open_bundle(path)
    assert caught.value.exit_code == 5 and caught.value.fix
    assert [e.name for e in tmp_path.iterdir()] == ["model.tar.gz"]
    assert not Path("/tmp/absolute-midog-test.txt").exists()


def test_a_foreign_file_inside_an_archive_is_refused(tiny_folder, tmp_path):
    path = repack(tmp_path / "model.tar.gz", tiny_folder, extra=[(hostile("run.sh"), b"echo")])
    with pytest.raises(WeightsError, match=r"foreign: run\.sh"):
        open_bundle(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_cut_archive_is_damaged_not_a_crash(tiny_bundle, tmp_path, share):
    content = tiny_bundle.read_bytes()
    path = tmp_path / "model.tar.gz"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError) as caught:
        open_bundle(path)
    assert caught.value.fix


def test_what_is_no_bundle_is_told_apart(tmp_path):
    with pytest.raises(WeightsError, match="no such bundle"):
        open_bundle(tmp_path / "nowhere.tar.gz")
    with pytest.raises(WeightsError, match=r"holds no manifest\.json"):
        open_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text('[{"Config": "x.json"}]')
    with pytest.raises(WeightsError, match="another program's"):
        open_bundle(tmp_path)


def edit_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_newer_schema_names_the_release_to_install(copied):
    edit_manifest(copied, schema_version=99, midog="7.3.0")
    with pytest.raises(WeightsError, match=r"schema version 99") as caught:
        open_bundle(copied)
    assert "7.3.0" in caught.value.fix


@pytest.mark.parametrize("changes", [{"files": {}}, {"members": None}, {"training": {}}, {"files": {"a": 1}}])
def test_a_manifest_that_contradicts_itself_is_refused(copied, changes):
    edit_manifest(copied, **changes)
    with pytest.raises(WeightsError, match="manifest"):
        open_bundle(copied)


def test_an_operating_point_without_calibration_cannot_be_chosen(tiny_folder):
    with pytest.raises(UsageError, match=r"did you mean only:vit"):
        open_bundle(tiny_folder, use="only:vitt")
    with pytest.raises(UsageError):
        open_bundle(tiny_folder).at("only:effnet")
    assert open_bundle(tiny_folder, use="fast").point.members == ("vit",)


# --------------------------------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("use", POINTS)
def test_an_answer_is_the_blend_of_its_fold_models(tiny_folder, use):
    images = draw_patches(5, seed=3)
    bundle = open_bundle(tiny_folder, use=use)
    result = bundle.predict(images)
    from augment.views import VIEW_SETS

    columns = []
    for name in bundle.point.members:
        network = NETWORKS[name]
        inference = Inference(network, backbone_state(build_classifier(network)))
        folds = [
            predict_logits(
                inference.switch(tiny_folder / f"members/{name}/fold_{k}.safetensors"),
                images,
                VIEW_SETS[bundle.point.views],
                "cpu",
            )
            for k in range(1 if use == "fast" else 2)
        ]
        columns.append(np.mean([fold.mean(axis=1) for fold in folds], axis=0))
    z = combine(bundle.point, np.stack(columns, axis=1))
    np.testing.assert_allclose(result.logit, z, rtol=0, atol=1e-6)
    assert np.array_equal(result.confidence, confidence(bundle.point, result.logit))
    assert np.array_equal(result.atypical, decide(bundle.point, result.confidence))
    assert len(set(np.round(result.logit, 6))) == 5


def test_fast_asks_one_fold_model_and_says_so(tiny_folder, copied):
    fast = open_bundle(tiny_folder, use="fast")
    assert fast.fold_files() == {"vit": ["members/vit/fold_0.safetensors"]}
    assert fast.about()["fold_models"] == 1 and open_bundle(tiny_folder).about()["fold_models"] == 6
    # The other fold model may be anything: it is not even opened.
    alone = fast.predict(draw_patches(3)).logit
    replaced = open_bundle(copied, use="fast")
    (copied / "members/vit/fold_1.safetensors").write_bytes(b"nothing")
    assert replaced.predict(draw_patches(3)).logit.tobytes() == alone.tobytes()


def test_permuted_images_permute_the_answers_and_company_does_not_matter(bundle):
    images = draw_patches(9, seed=4)
    whole = bundle.predict(images).logit
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_allclose(bundle.predict(images[order]).logit, whole[order], rtol=0, atol=1e-5)
    alone = [bundle.predict(image[None]).logit[0] for image in images[:3]]
    np.testing.assert_allclose(alone, whole[:3], rtol=0, atol=1e-5)
    assert bundle.predict(images).logit.tobytes() == whole.tobytes()


def test_an_unreadable_image_gets_the_training_prevalence(bundle):
    images = [*draw_patches(2), None]
    result = bundle.predict([images[0], None, images[1]], mpp=None)
    assert result.confidence[1] == PREVALENCE
    assert bool(result.atypical[1]) is (bundle.point.threshold <= PREVALENCE)
    assert confidence(bundle.point, result.logit[1:2])[0] == pytest.approx(PREVALENCE)
    np.testing.assert_allclose(result.logit[[0, 2]], bundle.predict(draw_patches(2)).logit, atol=1e-5)
    assert bundle.predict([None], mpp=None).confidence.tolist() == [PREVALENCE]
    assert len(bundle.predict([], mpp=None)) == 0


def test_flat_images_give_finite_answers(bundle):
    images = np.stack([np.full((128, 128, 3), value, np.uint8) for value in (0, 255, 0, 128)])
    result = bundle.predict(images)
    assert np.isfinite(result.logit).all()
    assert result.logit[0] == pytest.approx(result.logit[2], abs=1e-6)


def test_any_size_is_cut_or_mirrored_when_taken_as_it_comes(bundle):
    big = np.zeros((200, 300, 3), np.uint8)
    patch = draw_patches(1)[0]
    big[36:164, 86:214] = patch
    result = bundle.predict([big, patch, patch[:50, :90]], mpp=None)
    assert result.logit[0] == pytest.approx(result.logit[1], abs=1e-5)
    assert np.isfinite(result.logit[2])


def test_another_resolution_is_resampled_and_centre_cropped(bundle):
    patch = np.asarray(Picture.fromarray(draw_patches(1)[0]).resize((128, 128), Picture.Resampling.BOX))
    fine = np.repeat(np.repeat(patch, 2, axis=0), 2, axis=1)
    framed = np.zeros((400, 300, 3), np.uint8)
    framed[72:328, 22:278] = fine
    smooth = bundle.predict(patch[None]).logit[0]
    found = bundle.predict([framed], mpp=0.125).logit[0]
    assert found == pytest.approx(smooth, abs=0.05)
    assert bundle.predict(patch[None], mpp=0.2489).logit[0] == smooth
    assert len(bundle.predict(np.zeros((1, 64, 64, 3), np.uint8), mpp=0.5)) == 1


def test_too_little_context_and_foreign_arrays_are_told_together(bundle):
    with pytest.raises(DataError, match="less than 32"):
        bundle.predict(np.zeros((1, 127, 64, 3), np.uint8))
    with pytest.raises(DataError, match="less than 32"):
        bundle.predict(np.zeros((1, 128, 128, 3), np.uint8), mpp=0.2)
    good = draw_patches(1)[0]
    with pytest.raises(DataError, match="3 of 4 images") as caught:
        bundle.predict([good, good.astype(float), good[..., 0], "text"])
    assert "float64" in str(caught.value) and "str" in str(caught.value)
    with pytest.raises(DataError, match=r"image\[None\]"):
        bundle.predict(good)
    for mpp in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="mpp"):
            bundle.predict(good[None], mpp=mpp)


def test_patches_of_training_are_recognised(bundle, tiny_table):
    expected = tiny_table.folds >= 0
    assert np.array_equal(bundle.predict(open_pixels(tiny_table), ids=tiny_table.ids).seen, expected)
    assert np.array_equal(bundle.predict(draw_patches(12)).seen, expected)
    assert not bundle.predict(draw_patches(4, seed=77)).seen.any()


def test_a_member_without_a_finite_logit_is_left_out_and_told(bundle, monkeypatch):
    images = draw_patches(2)
    whole = bundle.predict(images)
    logits = bundle._member_logits(images)
    logits[1, 0] = np.nan
    monkeypatch.setattr(Bundle, "_member_logits", lambda self, patches, deadline: logits)
    result = bundle.predict(images)
    assert result.logit[0] == whole.logit[0]
    assert result.logit[1] == pytest.approx((0.3 * logits[1, 1] + 0.2 * logits[1, 2]) / 0.5)
    assert result.notes == ("patch 1: no finite logit from vit, answered without",)
    logits[1] = np.nan
    result = bundle.predict(images)
    assert result.confidence[1] == PREVALENCE
    assert "training prevalence" in result.notes[0]


# ------------------------------------------------------------------------------------------------------------- result


def test_result_is_written_in_input_order_and_reads_back_exactly(bundle, tiny_table, tmp_path):
    result = bundle.predict(open_pixels(tiny_table), ids=tiny_table.ids)
    path = result.write(tmp_path / "out.csv")
    header, rows = read_csv(path)
    assert header == ["patch_id", "logit", "confidence", "class"]
    assert [row[0] for row in rows] == list(tiny_table.ids)
    assert [float(row[1]) for row in rows] == result.logit.tolist()
    assert [float(row[2]) for row in rows] == result.confidence.tolist()
    assert [row[3] == "atypical" for row in rows] == result.atypical.tolist()
    about = read_json(tmp_path / "out.csv.json")
    assert about["bundle_sha256"] == bundle.digest and about["use"] == "full"
    assert about["seen_in_training"] == [p.patch_id for p in tiny_table if p.split == "train"]
    assert about["sha256"] == sha256_file(path)
    assert [row["patch_id"] for row in result.table()] == list(tiny_table.ids)


def test_a_notebook_shows_figure_and_table(bundle):
    result = bundle.predict(draw_patches(26, seed=8), ids=[f"<{at}>" for at in range(26)])
    html = result._repr_html_()
    assert html.startswith(f"<p>26 patches, {int(result.atypical.sum())} atypical; operating point full</p>")
    picture = html.split("base64,", 1)[1].split('"', 1)[0]
    assert np.asarray(Picture.open(io.BytesIO(base64.b64decode(picture)))).std() > 10
    assert html.count("<tr>") == 1 + 24 and "and 2 more" in html
    assert "<td>&lt;0&gt;</td>" in html and f"<td>{result.confidence[0]:.3f}</td>" in html
    assert Picture.open(io.BytesIO(result.figure()._repr_png_())).format == "PNG"
    assert "0 patches" in bundle.predict([], mpp=None)._repr_html_()


def test_figure_shows_the_patches(bundle, tmp_path):
    result = bundle.predict([*draw_patches(3), None], mpp=None)
    result.figure().savefig(tmp_path / "figure.png")
    assert np.asarray(Picture.open(tmp_path / "figure.png")).std() > 10
