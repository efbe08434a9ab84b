"""The generated job folders: what stands in them is what our reader, and Pillow, find there."""

from __future__ import annotations

import json
import resource

import numpy as np
import pytest
from PIL import Image

from midog.errors import ContractError
from submission.challenge import TRACK2
from submission.stack import read_job
from submission.trial.jobs import BASE, COUNT, draw_patches, listing, make_jobs
from submission.trial.odd_tiffs import plain_page, planar_page, tiled_page, write_tiff


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return make_jobs(tmp_path_factory.mktemp("jobs") / "all")


def test_every_job_is_read_as_it_announces(jobs):
    patches, labels = draw_patches()
    for job in jobs:
        if job.pages is None:
            with pytest.raises(ContractError):
                read_job(job.folder)
            continue
        stack = read_job(job.folder)
        assert len(stack) == job.pages, job.name
        assert len(job.shows) == job.pages
        assert not job.warns or stack.notes, job.name
        for page, patch in zip(stack.pages, job.shows, strict=True):
            assert patch < 0 or np.array_equal(page, patches[patch]), job.name
        if job.labels and -1 not in job.shows:
            assert job.labels == tuple(TRACK2.classes[labels[patch]] for patch in job.shows)


def test_the_jobs_cover_every_line_about_inputs(jobs):
    lines = {line for job in jobs for line in job.lines}
    assert {f"B{i}" for i in range(1, 13)} <= lines
    assert {1, 2, 15, 16, 17} <= {job.pages for job in jobs}
    suffixes = {path.suffix for job in jobs for path in job.folder.glob("images/*/*")}
    assert {".tif", ".tiff", ".TIF", ".mha"} <= suffixes
    assert len({job.name for job in jobs}) == len(jobs)
    assert next(job for job in jobs if job.name == BASE).labels


def test_the_same_patches_give_the_same_bytes(tmp_path, jobs):
    again = make_jobs(tmp_path / "again")
    for before, after in zip(jobs, again, strict=True):
        files = [sorted(path for path in job.folder.rglob("*") if path.is_file()) for job in (before, after)]
        assert [a.read_bytes() for a in files[0]] == [b.read_bytes() for b in files[1]], before.name


def test_few_patches_are_repeated_and_unlabelled_ones_have_no_labels(tmp_path):
    made = make_jobs(tmp_path / "few", draw_patches(3)[0])
    base = next(job for job in made if job.name == BASE)
    pages = read_job(base.folder).pages
    assert np.array_equal(pages[0], pages[3]) and not np.array_equal(pages[0], pages[1])
    assert all(job.labels is None for job in made) and COUNT == 17


def test_absurd_pages_cost_a_warning_not_memory(jobs):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stack = read_job(next(job for job in jobs if job.name == "huge").folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert stack.readable == (1,) and len(stack.notes) == 2
    assert grown < 200  # MB; one of the pages would be 1,200


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_odd_tiffs_hold_the_pixels_they_were_given(tmp_path, big, dtype):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 200, (50, 70, 3)).astype(dtype)
    pages = [image, image[..., 0]] if dtype == "uint8" else [image[..., 0]]
    path = write_tiff(tmp_path / "x.tif", [plain_page(page) for page in pages], big)
    with Image.open(path) as found:
        assert found.n_frames == len(pages)
        assert found.info["dpi"] == (101600, 101600)
        for number, page in enumerate(pages):
            found.seek(number)
            np.testing.assert_array_equal(np.asarray(found), page)
    if dtype == "uint8":
        for page in (planar_page(image), tiled_page(image, 32)):
            with Image.open(write_tiff(tmp_path / "y.tif", [page], big)) as found:
                np.testing.assert_array_equal(np.asarray(found), image)


def test_the_three_shapes_differ_in_their_keys():
    keys = [set(listing(shape)[0]) & {"socket", "interface"} for shape in "ABC"]
    assert keys == [{"interface"}, {"socket", "interface"}, {"socket"}]
    assert "kind" not in listing("C")[0]["socket"]
    assert json.loads(json.dumps(listing("B")))[0]["interface"]["slug"] == TRACK2.input_slug
