from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from midog.report.markup import (
    Marked,
    Section,
    Thumbnail,
    Value,
    job_figure,
    png_uri,
    section_html,
    table_html,
    thumbnails,
)


def test_thumbnails_hold_the_patch_pixel_for_pixel():
    patch = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    content = base64.b64decode(png_uri(patch).removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), patch)


def test_thumbnail_without_image_still_names_its_patch():
    text = thumbnails([Thumbnail(None, "set/1.png", True, "label atypical", ("confidence .010",))])
    assert "image not found" in text
    assert "set/<wbr>1.png" in text


def test_everything_from_data_is_escaped():
    evil = "<script>alert(1)</script>"
    text = section_html(Section(evil, f"{evil}\n\n- {evil}", html=table_html([{evil: Marked(evil, evil)}]), note=evil))
    assert "<script" not in text
    assert "<script" not in thumbnails([Thumbnail(None, evil, False, evil, (evil,))])


def test_table_shows_intervals_marks_counts_and_what_is_undefined():
    text = table_html(
        [{"name": Marked("uni", "few"), "BA": Value(0.8123, 0.7, 1.0), "n": 12345, "w": -0.25, "x": None}]
    )
    for cell in (".812 <small>.700–1.000</small>", '<span class="tag">few</span>', "12,345", "−.250", "–"):
        assert cell in text
    assert Value(None) == Value(None, None, None)


def test_job_figure_shows_each_page_with_class_and_confidence():
    pages = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    text = job_figure(pages, [0.25, 0.75, 1.0], [False, True, True])
    assert [text.index(f"page {at}<br>") for at in range(3)] == sorted(text.index(f"page {at}<br>") for at in range(3))
    assert "normal .250" in text
    assert "atypical .750" in text
    assert "atypical 1.000" in text
