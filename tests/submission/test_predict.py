"""Whatever `midog predict` is given: tables, folders, stacks, images, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from bundle_fixture import draw_patches
from PIL import Image

from midog.bundle import open_bundle
from midog.errors import DataError, UsageError
from submission.evaluate import evaluate_predictions
from submission.predict import predict_what
from submission.stack import write_stack


@pytest.fixture(scope="module")
def bundle(tiny_folder):
    return open_bundle(tiny_folder, use="fast")


def test_a_table_is_answered_in_its_order_and_scored_with_its_header(bundle, tiny_table, tmp_path):
    table = tiny_table.root / "patches.csv"
    result = predict_what(bundle, table)
    assert result.ids == tiny_table.ids
    assert result.notes == ("seen in training: 9 of 12 patches",)
    found = evaluate_predictions(result.write(tmp_path / "out.csv"), table)
    assert found.seen == 9 and found.header.startswith("seen in training: 9 of 12")
    assert found.held_out is not None and found.held_out.scores.n == 3
    assert "not seen in training: 3 patches" in found.text()


def test_a_split_alone(bundle, tiny_table, tmp_path):
    table = tiny_table.root / "patches.csv"
    result = predict_what(bundle, table, split="test")
    assert result.ids == tuple(patch.patch_id for patch in tiny_table if patch.split == "test")
    assert result.notes == ()
    found = evaluate_predictions(result.write(tmp_path / "out.csv"), table)
    assert found.official and found.seen == 0 and found.scores.n == 3
    with pytest.raises(UsageError, match="did you mean test"):
        predict_what(bundle, table, split="tets")
    with pytest.raises(UsageError, match="no splits"):
        predict_what(bundle, tiny_table.root, split="test")


def test_without_the_second_file_the_bundle_itself_tells_what_was_seen(bundle, tiny_table, tiny_bundle, tmp_path):
    table = tiny_table.root / "patches.csv"
    path = predict_what(bundle, table).write(tmp_path / "out.csv")
    (tmp_path / "out.csv.json").unlink()
    assert evaluate_predictions(path, table).seen is None
    assert evaluate_predictions(path, table, bundle=tiny_bundle).seen == 9


def test_a_table_with_odd_images_is_converted_and_told(bundle, tmp_path):
    images = draw_patches(3, seed=8)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    Image.fromarray(np.pad(images[1], ((10, 10), (4, 4), (0, 0)))).save(tmp_path / "b.png")
    Image.fromarray(images[2]).convert("RGBA").save(tmp_path / "c.png")
    (tmp_path / "t.csv").write_text("path,label\na.png,0\nb.png,1\nc.png,\n")
    result = predict_what(bundle, tmp_path / "t.csv")
    np.testing.assert_allclose(result.logit, bundle.predict(images).logit, rtol=0, atol=1e-5)
    assert len(result.notes) == 1 and result.notes[0].startswith("2 images")


def test_unreadable_images_are_told_together(bundle, tmp_path):
    Image.fromarray(draw_patches(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "t.csv").write_text("path,label\na.png,0\nb.png,1\nmissing.png,1\n")
    with pytest.raises(DataError, match="2 of 3") as caught:
        predict_what(bundle, tmp_path / "t.csv")
    assert "b.png" in str(caught.value) and "missing.png" in str(caught.value)


def test_stack_folder_and_nothing(bundle, tiny_table, tmp_path):
    images = draw_patches(2, seed=6)
    stack = predict_what(bundle, write_stack(tmp_path / "s.tiff", images))
    assert stack.ids == ("0", "1")
    assert stack.logit.tolist() == bundle.predict(images).logit.tolist()
    folder = predict_what(bundle, tiny_table.root)
    assert sorted(folder.ids) == sorted(patch.path for patch in tiny_table)
    with pytest.raises(DataError, match="no such file"):
        predict_what(bundle, tmp_path / "nowhere.csv")
