from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from midog.data.patches import Patch, PatchTable
from midog.data.pixels import open_pixels, read_image, scan_images, to_rgb
from midog.data.store import RECORD, read_index
from midog.errors import DataError, MidogError

from .conftest import noise, save


def table_of(folder: Path, names: list[str]) -> PatchTable:
    return PatchTable(tuple(Patch(name, name, 1, name) for name in names), folder)


def test_pixels_equal_the_files(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        save(tmp_path / name, i)
    pixels = open_pixels(table_of(tmp_path, names), tmp_path / "cache")
    assert len(pixels) == 5
    np.testing.assert_array_equal(pixels[3], noise(3))
    np.testing.assert_array_equal(pixels[[4, 0, 4]], np.stack([noise(4), noise(0), noise(4)]))
    np.testing.assert_array_equal(pixels[np.array([False, True, False, False, False])], noise(1)[None])
    np.testing.assert_array_equal(pixels[1:3], np.stack([noise(1), noise(2)]))
    assert pixels[[]].shape == (0, 128, 128, 3) and pixels[-1].dtype == np.uint8
    assert pixels.hashes[2] == hashlib.sha256(noise(2).tobytes()).hexdigest()[:16]


def test_what_is_handed_out_is_a_copy(tmp_path: Path) -> None:
    table = table_of(save(tmp_path / "a.png", 0).parent, ["a.png"])
    pixels = open_pixels(table, tmp_path / "cache")
    pixels[0][:] = 0
    np.testing.assert_array_equal(pixels[0], noise(0))


def test_equal_content_is_stored_once_and_a_second_visit_decodes_nothing(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name, 7)
    table = table_of(tmp_path, ["a.png", "b.png"])
    open_pixels(table, tmp_path / "cache")
    store = tmp_path / "cache" / "pixels" / "patches.u8"
    assert store.stat().st_size == RECORD
    before = (tmp_path / "cache" / "pixels" / "index.csv").stat().st_mtime_ns
    open_pixels(table, tmp_path / "cache")
    assert (tmp_path / "cache" / "pixels" / "index.csv").stat().st_mtime_ns == before


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    table = table_of(save(tmp_path / "a.png", 0).parent, ["a.png"])
    old = open_pixels(table, tmp_path / "cache")
    save(tmp_path / "a.png", 1)
    os.utime(tmp_path / "a.png", ns=(1, 1))
    np.testing.assert_array_equal(open_pixels(table, tmp_path / "cache")[0], noise(1))
    np.testing.assert_array_equal(old[0], noise(0))


def bad_files(folder: Path) -> dict[str, str]:
    """A file of each unusable kind, and the words that must be said about it."""
    good = save(folder / "good.png", 0)
    (folder / "cut.png").write_bytes(good.read_bytes()[:-2000])
    flipped = bytearray(good.read_bytes())
    flipped[5000] ^= 255
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    Image.fromarray(noise(1)[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(noise(1)[:, :, 0]).convert("P").save(folder / "palette.png")
    Image.fromarray(noise(1)).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(noise(1)[:, :, 0].astype(np.uint16) * 256).save(folder / "grey16.png")
    import cv2

    cv2.imwrite(str(folder / "rgb16.png"), noise(1).astype(np.uint16) * 256)
    Image.fromarray(noise(1)[:100]).save(folder / "small.png")
    (folder / "folder.png").mkdir()
    return {
        "cut.png": "damaged or cut short",
        "flipped.png": "damaged or cut short",
        "empty.png": "empty file",
        "text.png": "not an image",
        "grey.png": "grey, not 8-bit RGB",
        "palette.png": "palette",
        "rgba.png": "RGBA",
        "grey16.png": "16-bit grey",
        "rgb16.png": "16-bit colour",
        "small.png": "128 × 100 pixels, not 128 × 128",
        "folder.png": "directory",
        "nowhere.png": "no such file",
    }


def test_every_bad_file_is_named_at_once(tmp_path: Path) -> None:
    words = bad_files(tmp_path)
    table = table_of(tmp_path, ["good.png", *words])
    with pytest.raises(DataError, match="12 of 13 images cannot be used") as caught:
        open_pixels(table, tmp_path / "cache")
    assert len(caught.value.details) == 12
    for name, line in zip(words, caught.value.details, strict=True):
        assert name in line and words[name] in line
    again = scan_images(table, tmp_path / "cache")
    assert len(again.faults) == 12 and again.records[0] == 0


def test_padding_is_seen(tmp_path: Path) -> None:
    image = noise(0)
    image[:, :5] = 0
    Image.fromarray(image).save(tmp_path / "edge.png")
    save(tmp_path / "inside.png", 1)
    assert scan_images(table_of(tmp_path, ["edge.png", "inside.png"]), tmp_path / "c").padded.tolist() == [True, False]


def test_a_torn_tail_is_cut_and_a_lost_store_decoded_again(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    save(tmp_path / "b.png", 1)
    open_pixels(table_of(tmp_path, ["a.png"]), tmp_path / "cache")
    store = tmp_path / "cache" / "pixels" / "patches.u8"
    with store.open("ab") as tail:
        tail.write(b"torn" * 1000)
    both = open_pixels(table_of(tmp_path, ["a.png", "b.png"]), tmp_path / "cache")
    np.testing.assert_array_equal(both[1], noise(1))
    assert store.stat().st_size == 2 * RECORD
    store.unlink()
    np.testing.assert_array_equal(open_pixels(table_of(tmp_path, ["b.png"]), tmp_path / "cache")[0], noise(1))


DECODE = """
import sys
from pathlib import Path
from midog.data.patches import Patch, PatchTable
from midog.data.pixels import open_pixels
folder = Path(sys.argv[1])
names = sorted(p.name for p in folder.glob("*.png"))
print("go", flush=True)
print(len(open_pixels(PatchTable(tuple(Patch(n, n, 1, n) for n in names), folder), folder / "cache").hashes))
"""


def test_two_processes_at_once_and_kill_9_leave_a_whole_store(tmp_path: Path) -> None:
    names = [f"{i:03d}.png" for i in range(300)]
    for i, name in enumerate(names):
        save(tmp_path / name, i)
    command = [sys.executable, "-c", DECODE, str(tmp_path)]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert victim.stdout is not None and victim.stdout.readline() == b"go\n"
    time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].split()[-1] for process in running] == ["300", "300"]
    pixels = open_pixels(table_of(tmp_path, names), tmp_path / "cache")
    assert (tmp_path / "cache" / "pixels" / "patches.u8").stat().st_size == 300 * RECORD
    assert all((pixels[i] == noise(i)).all() for i in range(0, 300, 17))


def test_an_unwritable_cache_names_the_way_out(tmp_path: Path) -> None:
    table = table_of(save(tmp_path / "a.png", 0).parent, ["a.png"])
    (tmp_path / "file").write_text("")
    with pytest.raises(MidogError, match="MIDOG_CACHE=FOLDER"):
        open_pixels(table, tmp_path / "file")


def test_a_cache_without_locks_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    table = table_of(save(tmp_path / "a.png", 0).parent, ["a.png"])
    with pytest.raises(MidogError, match="keeps no locks") as caught:
        open_pixels(table, tmp_path / "cache")
    assert "MIDOG_CACHE=FOLDER" in caught.value.fix


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDOG_CACHE", str(tmp_path / "mine"))
    open_pixels(table_of(save(tmp_path / "a.png", 0).parent, ["a.png"]))
    assert len(read_index(tmp_path / "mine" / "pixels").contents) == 1


RAMP = np.arange(0, 65536, 4, dtype=np.uint16).reshape(128, 128)


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.fromarray(RAMP), RAMP >> 8),
        (Image.fromarray(RAMP.astype(np.int32)), RAMP >> 8),
        (Image.fromarray((RAMP >> 8).astype(np.int32)), RAMP >> 8),
        (Image.fromarray(RAMP.astype(np.float32) / 65535), np.rint(RAMP / 65535 * 255)),
        (Image.fromarray(RAMP.astype(np.float32) / 128), np.rint(np.clip(RAMP / 128, 0, 255))),
        (Image.fromarray((RAMP >> 8).astype(np.uint8)), RAMP >> 8),
    ],
)
def test_grey_of_any_depth_becomes_rgb(image: Image.Image, expected: np.ndarray) -> None:
    rgb = to_rgb(image)
    assert rgb.shape == (128, 128, 3) and rgb.dtype == np.uint8
    assert (np.abs(rgb.astype(int) - expected[:, :, None]) <= (image.mode == "F")).all()


def test_alpha_is_dropped_not_blended() -> None:
    rgba = np.dstack([noise(3), np.zeros((128, 128), np.uint8)])
    np.testing.assert_array_equal(to_rgb(Image.fromarray(rgba)), noise(3))


def test_read_image_takes_any_size_and_refuses_damage(tmp_path: Path) -> None:
    Image.fromarray(noise(1)[:50]).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").shape == (50, 128, 3)
    (tmp_path / "b.png").write_bytes(save(tmp_path / "c.png", 0).read_bytes()[:999])
    for name, words in (("b.png", "cut short"), ("d.png", "No such file")):
        with pytest.raises(DataError, match=words):
            read_image(tmp_path / name)


def test_real_patches_decode_like_pillow(real: Path, store: Path) -> None:
    folder = real / "amibr" / "patches" / "atypical"
    names = sorted(p.name for p in folder.iterdir())[:40]
    pixels = open_pixels(table_of(folder, names), store)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(pixels[i], np.asarray(Image.open(folder / name)))
