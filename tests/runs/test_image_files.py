"""Images as cameras, editors and microscopes write them, read as a person would see them."""

import numpy as np
import pytest
import torch

pytest.importorskip("pytorch_lightning")
pytest.importorskip("omegaconf")
from PIL import Image

from vqct_plugin.runs.config import DataError
from vqct_plugin.runs.datasets import Images, LabeledImages
from vqct_plugin.runs.image_files import list_files, read_image

RAMP = np.linspace(0, 1, 32 * 24).reshape(24, 32)


def pixels_of(path, **options):
    return np.asarray(read_image(path, **options)).astype(int)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_a_photograph_taken_upright_is_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the first row of the file is the right-hand side
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:, :20] = 255
    Image.fromarray(stored).save(tmp_path / f"a{suffix}", exif=exif)
    found = pixels_of(tmp_path / f"a{suffix}")
    assert found.shape == (40, 20, 3)
    assert found[:15].min() > 200
    assert found[25:].max() < 50
    item = Images(tmp_path, 20)[0]["image"]  # the middle: half white, half black
    assert item[:8].min() > 0.5
    assert item[12:].max() < -0.5


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are none
def test_every_orientation_is_turned_as_pil_turns_it(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    stored = np.random.RandomState(0).randint(0, 255, (4, 7, 3)).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png"), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # PIL's
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_an_image_with_damaged_exif_data_is_upright(tmp_path, exif, suffix):
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:, :20] = 255
    Image.fromarray(stored).save(tmp_path / f"a{suffix}", exif=exif)
    found = pixels_of(tmp_path / f"a{suffix}")
    assert found.shape == (20, 40, 3)
    assert found[:, :16].min() > 200


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_read_from_0_to_65535(tmp_path, suffix):
    Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(tmp_path / f"a{suffix}")
    found = pixels_of(tmp_path / f"a{suffix}")
    assert found.shape == (24, 32, 3)
    assert np.abs(found[..., 0] - RAMP * 255).max() <= 0.51
    item = Images(tmp_path, 24)[0]["image"]
    assert item.min() < -0.9
    assert item.max() > 0.9
    assert len(np.unique(item)) > 100


def test_floats_are_read_from_0_to_1(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tif")
    assert np.abs(pixels_of(tmp_path / "a.tif")[..., 1] - RAMP * 255).max() <= 0.51


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (RAMP.astype(np.float32) * 200, r"a\.tif holds floats from 0 to 200; expected 0 to 1: rescale the values"),
        (RAMP.astype(np.float32) - 0.5, r"a\.tif holds floats from -0.5 to 0.5"),
        (np.full((8, 8), np.nan, np.float32), r"a\.tif holds floats from nan to nan"),
        ((RAMP * 1e6).astype(np.int32), r"a\.tif holds integers from 0 to 1e\+06; expected 0 to 65,535"),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path, values, sentence):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=sentence):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_the_background(tmp_path, mode):
    picture = np.zeros((10, 20, 4), np.uint8)  # black that nobody sees on the left, blue on the right
    picture[:, 10:] = (0, 0, 255, 255)
    picture[:, 8:10, 3] = 128
    image = Image.fromarray(picture)
    if mode == "P":
        image = Image.fromarray(np.repeat([[0] * 10 + [1] * 10], 10, axis=0).astype(np.uint8), mode="P")
        image.putpalette([0, 0, 0, 0, 0, 255])
        image.info["transparency"] = 0
    image = image.convert(mode) if mode == "LA" else image
    image.save(tmp_path / "a.png")
    white, red = (pixels_of(tmp_path / "a.png", **more) for more in ({}, {"background": "#ff0000"}))
    assert white[0, 0].tolist() == [255, 255, 255]
    assert red[0, 0].tolist() == [255, 0, 0]
    assert white[0, 15].tolist() == red[0, 15].tolist() != [255, 255, 255]
    if mode == "RGBA":
        assert abs(white[0, 8] - 127).max() <= 1
    item = Images(tmp_path, 10, background="red")[0]["image"]
    assert item[0, 0].tolist() == [1, -1, -1]


def test_a_background_that_is_no_color_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    for wrong in ("whitish", "#ffffff80", [1, 1, 1]):
        with pytest.raises(DataError, match=r"background is .*; expected a color's name, or #rrggbb"):
            Images(tmp_path, 8, background=wrong)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_animations_are_named(tmp_path, name):
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"{name} is 3 of them, an animation or pages; expected a single one"):
        read_image(tmp_path / name)


def test_a_cameras_second_picture_and_a_thumbnail_are_no_animation(tmp_path):
    picture = Image.new("RGB", (40, 30), "red")
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture])
    picture.save(tmp_path / "a.tif", save_all=True, append_images=[picture.resize((8, 6))])
    for name in ("a.jpg", "a.tif"):
        assert pixels_of(tmp_path / name).shape == (30, 40, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 30)])
def test_an_image_of_one_pixel_is_named(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "dot.png")
    with pytest.raises(DataError, match=rf"dot\.png is {size[0]} x {size[1]} pixels; expected 2 or more each way"):
        read_image(tmp_path / "dot.png")


def test_an_image_for_a_list_is_named(tmp_path):
    Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is not a text file; expected a folder of images, or a list"):
        Images(tmp_path / "a.png", 8)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n")  # as Windows' editors write it
    assert Images(tmp_path / "list.txt", 8)[0]["image"].shape == (8, 8, 3)


def test_images_with_labels_are_read_alike(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "images" / "a.png")
    Image.new("L", (8, 8), 1).save(tmp_path / "labels" / "a.png")
    item = LabeledImages(tmp_path / "images", tmp_path / "labels", 2, 8, background="lime")[0]
    assert item["image"][0, 0].tolist() == [-1, 1, -1]


def test_the_files_of_a_data_set(tmp_path):
    for name in ("b.png", "a.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    expected = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert list_files(Images(tmp_path, 8)) == expected
    base = pytest.importorskip("taming.data.base", exc_type=ImportError)
    assert list_files(base.ImagePaths(paths=expected, size=8)) == expected
    assert list_files(torch.utils.data.TensorDataset(torch.zeros(3))) == []
