"""`crisscross demo` on images that serve: the picture, the table, and kinds of image."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from PIL import Image
from skimage import data

from crisscross.cli import main
from crisscross.cli.files import read_image, scale_down
from crisscross.cli.picture import overlay


def read_rows(text: str) -> dict[str, list[str]]:
    """The cells of the table, by the first one."""
    rows = [re.split(r"\s*[│|]\s*", line)[1:-1] for line in text.splitlines()]
    return {row[0].strip(): row[1:] for row in rows if len(row) == 4}


def test_the_demo_writes_a_picture_and_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--max-side", "96"]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "crisscross-demo.png"
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 1200 <= picture.width <= 3000 and 800 <= picture.height <= 3000
        colours = np.asarray(picture.convert("RGB"))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 1000

    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    rows = read_rows(out)
    once, again = (f"criss-cross attention, R = {number}" for number in (1, 2))
    (reference,) = [name for name in rows if name.startswith("scikit-image NL-means")]
    assert set(rows) == {"noisy", once, again, reference}
    psnr = {name: float(cells[0].removesuffix(" dB")) for name, cells in rows.items()}
    assert psnr["noisy"] == pytest.approx(20.4, abs=0.3)
    # Whoever loses several decibels here is not denoised but broken: the reference, too.
    for name in (once, again, reference):
        assert psnr[name] > psnr["noisy"] + 3, name
        assert rows[name][1].endswith(" s") and float(rows[name][2].split()[0]) > 0
    assert "Scaled down from 512 x 512 to 96 x 96 pixels" in out
    assert "9216 x 9216 in float32, would need 324.0 MiB" in out


def test_the_reference_is_given_its_due():
    """What scikit-image reaches on the default input; a worse figure means a wrong call."""
    from crisscross.cli.demo import _measure_reference
    from crisscross.cli.denoise import add_noise

    clean = data.camera()[..., None].astype(np.float32) / 255
    measured = _measure_reference(clean, add_noise(clean, 0.1, 0), 0.1, 0.6)
    assert measured.image.shape == clean.shape
    assert measured.psnr == pytest.approx(29.12, abs=0.05)
    assert measured.peak > clean.nbytes


def test_the_picture_replaces_an_older_one_and_may_be_read(small_photograph, out_folder):
    path = out_folder / "picture.png"
    path.write_text("older")
    link = out_folder / "link.png"
    link.symlink_to(path)
    assert main(["demo", str(small_photograph), "--out", str(link)]) == 0
    assert link.is_symlink()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(out_folder.iterdir()) == [link, path]
    other = out_folder / "other"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


@pytest.mark.parametrize(
    "options", [["--mark", "0", "0"], ["--mark", "47", "63"], ["--patch", "3"]]
)
def test_options_at_their_limits(small_photograph, out_folder, options):
    path = out_folder / "a.png"
    assert main(["demo", str(small_photograph), "--out", str(path), *options]) == 0
    assert list(out_folder.iterdir()) == [path]


def test_the_mark_counts_in_pixels_of_the_file():
    from crisscross.cli.demo import _find_pixel

    photograph = scale_down(Image.new("L", (1000, 400)), max_side=100)
    assert photograph.image.shape == (40, 100, 1)
    assert _find_pixel(photograph, [399, 999]) == (39, 99)
    assert _find_pixel(photograph, [100, 500]) == (10, 50)


GREY = data.camera()[100:148, 200:264]
COLOUR = data.astronaut()[:48, 200:264]


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def read_array(path: Path) -> np.ndarray:
    return scale_down(read_image(path), 512).image


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("L", "png", 1),
        ("1", "png", 1),
        ("LA", "png", 1),
        ("RGB", "png", 3),
        ("RGBA", "png", 3),
        ("P", "png", 3),
        ("CMYK", "jpg", 3),
        ("F", "tif", 1),
    ],
)
def test_images_of_every_mode_are_read(tmp_path, mode, suffix, channels):
    image = Image.fromarray(COLOUR).convert(mode)
    array = read_array(save(image, tmp_path / f"image.{suffix}"))
    assert array.shape == (48, 64, channels) and array.dtype == np.float32
    assert array.min() >= 0 and array.max() <= 1 and np.ptp(array) > 0.3


def test_eight_bits_are_read_exactly(tmp_path):
    array = read_array(save(Image.fromarray(COLOUR), tmp_path / "a.png"))
    np.testing.assert_allclose(array, COLOUR / 255, atol=1e-6)


def test_sixteen_bits_are_not_cut_to_eight(tmp_path):
    deep = GREY.astype(np.uint16) * 257 // 2 + 3
    array = read_array(save(Image.fromarray(deep), tmp_path / "a.png"))
    np.testing.assert_allclose(array[..., 0], deep / 65535, atol=1e-6)


def test_what_is_transparent_is_white(tmp_path):
    rgba = np.dstack([np.zeros((8, 9, 3), np.uint8), np.full((8, 9), 255, np.uint8)])
    rgba[:, :4, 3] = 0
    array = read_array(save(Image.fromarray(rgba), tmp_path / "a.png"))
    assert (array[:, :4] == 1).all() and (array[:, 4:] == 0).all()


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    path = save(Image.fromarray(GREY), tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(read_array(path)[..., 0], np.rot90(GREY, -1) / 255, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 5), (200, 6)])
def test_the_smallest_images_are_drawn(tmp_path, out_folder, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path = save(Image.fromarray(noise), tmp_path / "image.png")
    assert main(["demo", str(path), "--out", str(out_folder / "a.png")]) == 0
    with Image.open(out_folder / "a.png") as picture:
        assert picture.width >= 1200 and 300 <= picture.height <= 3000


def test_heat_is_where_the_weights_are():
    backdrop, weights = np.full((300, 600), 0.25), np.zeros((300, 600))
    weights[100], weights[:, 200] = 1e-30, 1.0
    drawn = overlay(backdrop, weights, LogNorm(1e-9, 1.0))
    bare = (drawn == 0.25).all(axis=-1)
    # Lines are three pixels wide, the faintest ones, too; all else is the photograph.
    expected = np.ones((300, 600), bool)
    expected[99:102], expected[:, 199:202] = False, False
    assert np.array_equal(bare, expected)
    assert drawn[50, 200].sum() > drawn[100, 50].sum() + 0.5
