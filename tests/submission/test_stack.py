"""The three shapes of inputs.json, every kind of stack the platform can hand over, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from midog.errors import ContractError
from submission.arrays import split_pages
from submission.challenge import TRACK2, plain
from submission.stack import count_directories, read_job, read_stack, write_job, write_stack

SLUG, FOLDER = TRACK2.input_slug, TRACK2.image_folder


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)


def same(stack, images) -> bool:
    return len(stack) == len(images) and all(np.array_equal(a, b) for a, b in zip(stack.pages, images, strict=True))


def shape_a(name="stack_5.tiff"):
    socket = {"slug": SLUG, "kind": "Image", "super_kind": "Image", "relative_path": FOLDER, "example_value": None}
    return {"interface": socket, "file": None, "image": {"name": name}, "value": None}


def shape_b():
    socket = {"title": "Stack", "slug": SLUG, "pk": 611, "relative_path": FOLDER, "overlay_segments": [], "odd": {}}
    return {"socket": socket, "interface": socket, "image": {"pk": "5b", "name": "stack_5.tiff"}, "pk": 90210}


def shape_c():
    socket = {"slug": SLUG, "relative_path": FOLDER, "is_image_kind": True, "is_json_kind": False}
    return {"socket": socket, "file": None, "image": {"name": "stack_5.tiff"}, "value": None}


@pytest.mark.parametrize("shape", [shape_a, shape_b, shape_c])
def test_reads_each_shape_of_inputs_json(tmp_path, images, shape):
    write_job(tmp_path, images)
    (tmp_path / "inputs.json").write_text(json.dumps([shape()]))
    stack = read_job(tmp_path)
    assert same(stack, images)
    assert stack.name == "stack_5.tiff"
    assert stack.notes == ()


def test_reads_the_real_job(real_job):
    stack = read_job(real_job)
    assert [page.shape for page in stack.pages] == [(128, 128, 3)] * 16
    assert (stack.name, stack.notes) == ("stack_5.tiff", ())
    assert len({page.tobytes() for page in stack.pages}) == 16


@pytest.mark.parametrize("content", [None, "{no json"])
def test_without_usable_inputs_json_takes_the_usual_folder_and_warns(tmp_path, images, content):
    write_job(tmp_path, images)
    if content is None:
        (tmp_path / "inputs.json").unlink()
    else:
        (tmp_path / "inputs.json").write_text(content)
    stack = read_job(tmp_path)
    assert same(stack, images)
    assert "inputs.json" in stack.notes[0]


def test_other_items_beside_ours_do_not_matter(tmp_path, images):
    write_job(tmp_path, images)
    other = {"socket": {"slug": "age", "relative_path": "age.json"}, "value": 3, "image": None}
    (tmp_path / "inputs.json").write_text(json.dumps([other, shape_c(), 7]))
    assert same(read_job(tmp_path), images)


def test_a_foreign_slug_with_the_only_image_is_taken_with_a_warning(tmp_path, images):
    item = shape_b()
    item["socket"] = item["socket"] | {"slug": "other-image", "relative_path": "images/other"}
    write_stack(tmp_path / "images/other/x.tif", images)
    (tmp_path / "inputs.json").write_text(json.dumps([item]))
    stack = read_job(tmp_path)
    assert same(stack, images)
    assert "other-image" in stack.notes[0]


def test_no_image_and_two_stacks_are_refused_with_the_slugs(tmp_path, images):
    write_job(tmp_path, images)
    for items in ([], "text", [shape_a(), shape_a()], [{"socket": {"slug": "age"}, "value": 1}]):
        (tmp_path / "inputs.json").write_text(json.dumps(items))
        with pytest.raises(ContractError) as caught:
            read_job(tmp_path)
        assert caught.value.exit_code == 5
        assert SLUG in caught.value.problem
    assert "age" in str(caught.value)


@pytest.mark.parametrize("path", ["/etc", "../elsewhere", "images/../../x"])
def test_a_path_outside_the_input_folder_is_refused(tmp_path, path):
    item = shape_c()
    item["socket"]["relative_path"] = path
    (tmp_path / "inputs.json").write_text(json.dumps([item]))
    with pytest.raises(ContractError, match="outside"):
        read_job(tmp_path)


@pytest.mark.parametrize("name", ["x.tif", "x.tiff", "x.TIF", "x.mha", "x.MHA"])
def test_suffixes_are_compared_case_folded(tmp_path, images, name):
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    if name.lower().endswith("mha"):
        write_mha(folder / "a.mha", images, vector=True).rename(folder / name)
    else:
        write_stack(folder / "a.tiff", images).rename(folder / name)
    assert same(read_job(tmp_path), images)


def test_hidden_files_are_ignored_and_symlinks_followed(tmp_path, images):
    real = write_job(tmp_path / "elsewhere", images)
    (real / FOLDER / ".DS_Store").write_bytes(b"x")
    (real / FOLDER / "._stack.tiff").write_bytes(b"x")
    (tmp_path / "input").symlink_to(real)
    assert same(read_job(tmp_path / "input"), images)


def test_no_file_and_two_files_are_refused_and_listed(tmp_path, images):
    write_job(tmp_path, images)
    write_stack(tmp_path / FOLDER / "second.tif", images)
    with pytest.raises(ContractError, match=r"(?s)2 images.*second\.tif.*stack\.tiff"):
        read_job(tmp_path)
    for entry in (tmp_path / FOLDER).iterdir():
        entry.unlink()
    with pytest.raises(ContractError, match=r"(?s)0 images.*empty"):
        read_job(tmp_path)
    with pytest.raises(ContractError, match="cannot list"):
        read_job(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ kinds of TIFF


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17])
def test_n_pages_come_back_in_order(tmp_path, n):
    images = np.random.default_rng(n).integers(0, 256, (n, 9, 9, 3), dtype=np.uint8)
    assert same(read_stack(write_stack(tmp_path / "s.tiff", images)), images)


def save(path, pages, **options):
    first, *rest = [page if isinstance(page, Image.Image) else Image.fromarray(page) for page in pages]
    first.save(path, "TIFF", save_all=True, append_images=rest, **options)
    return path


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "zstd"])
def test_lossless_compressions_and_big_tiff(tmp_path, images, compression):
    assert same(read_stack(save(tmp_path / "s.tif", images, compression=compression)), images)
    assert same(read_stack(save(tmp_path / "b.tif", images, compression=compression, big_tiff=True)), images)


def test_jpeg_is_read_within_its_loss(tmp_path):
    flat = np.full((2, 32, 32, 3), 120, np.uint8)
    pages = read_stack(save(tmp_path / "s.tif", flat, compression="jpeg", quality=95)).pages
    assert max(np.abs(page.astype(int) - 120).max() for page in pages) <= 2


def test_pages_of_different_size(tmp_path):
    pages = [np.full((h, w, 3), h, np.uint8) for h, w in ((5, 9), (30, 20), (128, 64))]
    assert same(read_stack(save(tmp_path / "s.tif", pages)), pages)


def hand_made(path: Path, pages: np.ndarray, order="<", planar=False, tile=0) -> Path:
    """A TIFF written field by field: what Pillow's writer cannot make (planar, tiled, big-endian)."""
    out = bytearray({"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 0))
    link = 4
    for page in pages:
        height, width = page.shape[:2]
        planes = [page[..., c] for c in range(3)] if planar else [page]
        blocks = []
        for plane in planes:
            if tile:
                pad = [(0, -height % tile), (0, -width % tile)] + [(0, 0)] * (plane.ndim - 2)
                full = np.pad(plane, pad)
                blocks += [
                    full[y : y + tile, x : x + tile].tobytes()
                    for y in range(0, full.shape[0], tile)
                    for x in range(0, full.shape[1], tile)
                ]
            else:
                blocks.append(plane.tobytes())
        offsets = []
        for block in blocks:
            offsets.append(len(out))
            out += block + b"\0" * (len(block) % 2)
        bits = len(out)
        out += struct.pack(order + "HHH", 8, 8, 8) + b"\0\0"
        lists = []
        for values in (offsets, [len(block) for block in blocks]):
            lists.append(values[0] if len(values) == 1 else len(out))
            if len(values) > 1:
                out += struct.pack(order + f"{len(values)}I", *values)
        count = len(blocks)
        fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2)]
        fields += [] if tile else [(273, 4, count, lists[0])]
        fields += [(277, 3, 1, 3)]
        fields += [] if tile else [(278, 4, 1, height), (279, 4, count, lists[1])]
        fields += [(284, 3, 1, 2 if planar else 1)]
        fields += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, count, lists[0]), (325, 4, count, lists[1])] * bool(
            tile
        )
        directory = len(out)
        out[link : link + 4] = struct.pack(order + "I", directory)
        out += struct.pack(order + "H", len(fields))
        for tag, kind, number, value in fields:
            short = kind == 3 and number == 1
            out += struct.pack(order + "HHI", tag, kind, number)
            out += struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
        link = len(out)
        out += b"\0\0\0\0"
    path.write_bytes(bytes(out))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("planar", "tile"), [(False, 0), (True, 0), (False, 16), (True, 16)])
def test_planar_tiled_and_both_byte_orders(tmp_path, images, order, planar, tile):
    path = hand_made(tmp_path / "s.tif", images, order, planar, tile)
    assert same(read_stack(path), images)
    assert count_directories(path) == 3


def test_modes_become_rgb(tmp_path):
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    rgba = Image.fromarray(np.dstack([rgb, grey]), "RGBA")
    wide = Image.fromarray((grey.astype(np.uint16) << 8) + 77)
    real = Image.fromarray((grey / 255).astype(np.float32))
    palette = Image.fromarray(grey).convert("P")
    pages = [rgba, Image.fromarray(grey), wide, real, palette]
    stack = read_stack(save(tmp_path / "s.tif", pages))
    assert stack.notes == ()
    triple = np.repeat(grey[..., None], 3, axis=2)
    assert same(stack, [rgb, triple, triple, triple, np.asarray(palette.convert("RGB"))])


def test_float_rgb_tiff_goes_through_simpleitk(tmp_path, images):
    import SimpleITK

    image = SimpleITK.GetImageFromArray((images / 255).astype(np.float32), isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "s.tiff"))
    assert same(read_stack(tmp_path / "s.tiff"), images)


def test_a_reduced_resolution_page_is_kept_with_a_warning(tmp_path, images):
    from PIL import TiffImagePlugin

    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[254] = 1
    path = tmp_path / "s.tif"
    with TiffImagePlugin.AppendingTiffWriter(path, True) as writer:
        for page, tags in zip(images, (None, None, info), strict=True):
            Image.fromarray(page).save(writer, "TIFF", **({"tiffinfo": tags} if tags else {}))
            writer.newFrame()
    stack = read_stack(path)
    assert same(stack, images)
    assert len(stack.notes) == 1 and "page 2" in stack.notes[0]


def test_one_damaged_page_is_none_and_the_others_stay_right(tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    path = write_stack(tmp_path / "s.tiff", images)
    with Image.open(path) as image:
        image.seek(1)
        at = image.tag_v2[273][0]
    content = bytearray(path.read_bytes())
    content[at : at + 200] = b"\xff" * 200
    path.write_bytes(content)
    stack = read_stack(path)
    assert stack.readable == (0, 2, 3, 4)
    assert stack.pages[1] is None
    assert all(np.array_equal(stack.pages[i], images[i]) for i in stack.readable)
    assert len(stack.notes) == 1 and "page 1" in stack.notes[0]


def test_a_file_cut_anywhere_never_gives_a_shorter_stack(tmp_path):
    images = np.random.default_rng(3).integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    for whole in (write_stack(tmp_path / "a.tiff", images), hand_made(tmp_path / "b.tif", images)):
        content = whole.read_bytes()
        path = tmp_path / f"cut{whole.suffix}"
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            try:
                assert len(read_stack(path)) == 4, f"{whole.name} cut to {length} of {len(content)}"
            except ContractError as error:
                assert error.exit_code == 5 and error.fix


def test_a_file_that_is_no_image_is_refused(tmp_path):
    for name in ("s.tif", "s.mha"):
        (tmp_path / name).write_bytes(b"not an image at all, but long enough to look at")
        with pytest.raises(ContractError, match="cannot be counted"):
            read_stack(tmp_path / name)


def test_written_stacks_carry_a_resolution(tmp_path, images):
    with Image.open(write_stack(tmp_path / "s.tiff", images)) as image:
        assert image.tag_v2[296] == 2
        assert 25400 / float(image.tag_v2[282]) == pytest.approx(0.25)


# ------------------------------------------------------------------------------------------------ MHA and arrays


def write_mha(path, array, vector):
    import SimpleITK

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=vector), str(path), True)
    return path


def test_mha_vector_and_scalar(tmp_path, images):
    grey = images[..., 0]
    triple = np.repeat(grey[..., None], 3, axis=-1)
    cases = [
        (images, True, images),
        (images[0], True, images[:1]),
        (images[0], False, images[:1]),
        (grey, False, triple),
        (grey[0], False, triple[:1]),
        (grey.astype(np.uint16) << 8, False, triple),
        ((grey / 255).astype(np.float64), False, triple),
        (np.concatenate([images, images[..., :1]], axis=-1), True, images),
    ]
    for number, (array, vector, expected) in enumerate(cases):
        stack = read_stack(write_mha(tmp_path / f"{number}.mha", array, vector))
        assert same(stack, expected), number


def test_a_cut_mha_is_refused(tmp_path, images):
    path = write_mha(tmp_path / "s.mha", images, True)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ContractError, match="cannot be counted"):
        read_stack(path)


def test_split_pages_by_shape():
    assert len(split_pages(np.zeros((5, 8, 9, 3)), vector=False)) == 5
    assert len(split_pages(np.zeros((8, 9, 4)), vector=False)) == 1
    assert len(split_pages(np.zeros((5, 8, 9)), vector=False)) == 5
    with pytest.raises(ContractError):
        split_pages(np.zeros(7), vector=False)


def test_foreign_names_become_one_short_ascii_line():
    line = plain("a\nb\udcff\u2603" + "x" * 1000)
    assert line.isascii() and "\n" not in line and len(line) < 300
