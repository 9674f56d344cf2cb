from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from neural_graphs.errors import UserError
from neural_graphs.zoo import edits
from neural_graphs.zoo._clahe import clahe
from neural_graphs.zoo.edits import edit_images, list_edits, register_edit

NAMES = ["blur", "contrast", "dilate", "erode", "gradient", "invert", "mask", "noise", "rotate", "sharpen"]
SHAPES = [(1, 1), (1, 9), (2, 2), (5, 7), (28, 28)]

OPENCV = [
    [28, 57, 94, 85, 76, 99, 100, 99],
    [85, 142, 146, 128, 147, 151, 142, 147],
    [165, 189, 201, 189, 193, 198, 179, 177],
    [142, 156, 163, 156, 158, 160, 149, 146],
    [137, 161, 172, 160, 165, 175, 170, 180],
    [174, 199, 212, 203, 210, 220, 210, 216],
    [184, 198, 210, 212, 224, 236, 234, 241],
    [207, 232, 251, 255, 43, 64, 62, 75],
]


def levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scaled(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(edits, "_EDITS", dict(edits._EDITS))
    yield


def window(image: np.ndarray, choose: Callable[[list[int]], int]) -> np.ndarray:
    """OpenCV's dilate and erode, pixel by pixel: the window is cut off at the border."""
    height, width, channels = image.shape
    result = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                near = [
                    int(image[v, u, c])
                    for v in range(max(0, y - 1), min(height, y + 2))
                    for u in range(max(0, x - 1), min(width, x + 2))
                ]
                result[y, x, c] = choose(near)
    return result


def test_all_are_registered() -> None:
    assert set(NAMES) <= set(list_edits())
    assert list_edits() == sorted(list_edits())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_dilation_and_erosion_are_opencvs_to_the_bit(shape: tuple[int, int], channels: int) -> None:
    images = levels(2, *shape, channels)
    dilated = np.stack([window(image, max) for image in images])
    eroded = np.stack([window(image, min) for image in images])
    assert np.array_equal(edit_images(scaled(images), "dilate"), scaled(dilated))
    assert np.array_equal(edit_images(scaled(images), "erode"), scaled(eroded))
    assert np.allclose(edit_images(scaled(images), "gradient"), scaled(dilated) - scaled(eroded), atol=1e-7)


@pytest.mark.parametrize(("channels", "shape"), [(1, (28, 28)), (3, (32, 31))])
def test_against_opencv(channels: int, shape: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    images = levels(8, *shape, channels)
    kernel = np.ones((3, 3), np.uint8)
    for name in ("dilate", "erode"):
        expected = np.stack([getattr(cv2, name)(image, kernel).reshape(image.shape) for image in images])
        assert np.array_equal(edit_images(scaled(images), name), scaled(expected))
    equalise = cv2.createCLAHE(1.0, (3, 3))
    for channel in np.moveaxis(images, 3, 0):
        expected = np.stack([equalise.apply(np.ascontiguousarray(image)) for image in channel])
        assert np.array_equal(clahe(channel), expected)


def equalised(image: np.ndarray, clip_limit: float, tiles: int) -> np.ndarray:
    """CLAHE as OpenCV's source has it, one pixel after the other."""
    height, width = image.shape
    tall, wide = height, width
    if height % tiles or width % tiles:
        tall, wide = height + tiles - height % tiles, width + tiles - width % tiles

    def mirrored(place: int, size: int) -> int:
        while size > 1 and not 0 <= place < size:
            place = -place if place < 0 else 2 * size - 2 - place
        return place if size > 1 else 0

    rows, columns = tall // tiles, wide // tiles
    limit = max(1, int(clip_limit * rows * columns / 256))
    scale = np.float32(255) / np.float32(rows * columns)
    maps = {}
    for i in range(tiles):
        for j in range(tiles):
            histogram = [0] * 256
            for y in range(i * rows, (i + 1) * rows):
                for x in range(j * columns, (j + 1) * columns):
                    histogram[image[mirrored(y, height), mirrored(x, width)]] += 1
            excess = sum(max(0, count - limit) for count in histogram)
            histogram = [min(count, limit) + excess // 256 for count in histogram]
            rest, level = excess % 256, 0
            step = max(1, 256 // rest) if rest else 1
            while level < 256 and rest > 0:
                histogram[level] += 1
                level, rest = level + step, rest - 1
            total, maps[i, j] = 0, []
            for count in histogram:
                total += count
                maps[i, j].append(np.rint(np.float32(total) * scale))
    result = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            v = np.float32(y) * (np.float32(1) / np.float32(rows)) - np.float32(0.5)
            u = np.float32(x) * (np.float32(1) / np.float32(columns)) - np.float32(0.5)
            i, j = int(np.floor(v)), int(np.floor(u))
            b, a = v - np.float32(i), u - np.float32(j)
            top, bottom, left, right = max(i, 0), min(i + 1, tiles - 1), max(j, 0), min(j + 1, tiles - 1)
            pixel = image[y, x]
            upper = maps[top, left][pixel] * (1 - a) + maps[top, right][pixel] * a
            lower = maps[bottom, left][pixel] * (1 - a) + maps[bottom, right][pixel] * a
            result[y, x] = np.rint(upper * (1 - b) + lower * b)
    return result


@pytest.mark.parametrize("shape", [*SHAPES, (9, 8), (9, 9), (32, 32)])
@pytest.mark.parametrize(("clip_limit", "tiles"), [(1.0, 3), (40.0, 2)])
def test_clahe_is_opencvs_source(shape: tuple[int, int], clip_limit: float, tiles: int) -> None:
    smooth = np.broadcast_to(np.linspace(40, 200, shape[1]).astype(np.uint8), shape)
    images = np.stack([levels(*shape), smooth, np.full(shape, 17, np.uint8), levels(*shape, seed=1) // 100 * 100])
    expected = np.stack([equalised(image, clip_limit, tiles) for image in images])
    assert np.array_equal(clahe(images, clip_limit, tiles), expected)


def test_clahe_gives_what_opencv_gave() -> None:
    # cv2.createCLAHE(1.0, (3, 3)).apply of OpenCV 5.0, so that the twin above is not the only witness.
    image = (np.add.outer(np.arange(8) ** 2 * 5, np.arange(8) * 3) % 256).astype(np.uint8)
    assert clahe(image[None])[0].tolist() == OPENCV


def test_contrast_changes_the_lightness_alone() -> None:
    from skimage.color import rgb2lab

    images = 0.3 + 0.4 * np.random.default_rng(3).random((4, 32, 32, 3))
    images = images.astype(np.float32)
    edited = edit_images(images, "contrast")
    before, after = rgb2lab(images), rgb2lab(edited)
    shown = (edited > 0).all(3) & (edited < 1).all(3)  # the others were moved to the nearest colour there is
    assert shown.mean() > 0.9
    assert np.abs(before - after)[shown][:, 1:].max() < 0.1
    expected = clahe(np.rint(before[..., 0] * 2.55).astype(np.uint8)) / 2.55
    assert np.abs(expected - after[..., 0])[shown].max() < 0.1
    assert np.abs(expected - before[..., 0]).mean() > 1
    grey = levels(4, 28, 28)
    assert np.array_equal(edit_images(scaled(grey)[..., None], "contrast")[..., 0], scaled(clahe(grey)))


def test_sharpening_is_scikit_images() -> None:
    from skimage.filters import gaussian, unsharp_mask

    images = np.random.default_rng(0).random((3, 17, 12, 3))
    for image, blurred, sharp in zip(images, edit_images(images, "blur"), edit_images(images, "sharpen"), strict=True):
        assert np.allclose(blurred, gaussian(image, 1, mode="reflect", channel_axis=-1), atol=1e-6)
        assert np.allclose(sharp, unsharp_mask(image, 1, 1, channel_axis=2), atol=1e-6)


def test_the_simple_ones() -> None:
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1) / 15
    assert np.allclose(edit_images(image, "invert"), image[:, ::-1, ::-1])
    assert np.array_equal(edit_images(image, "rotate")[0, :, :, 0], np.rot90(image[0, :, :, 0]))
    masked = edit_images(image, "mask")
    assert np.argwhere(masked != image)[:, 1:3].tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert not masked[:, 1:3, 1:3].any()
    with pytest.raises(UserError, match="needs square images, these have 4 x 5"):
        edit_images(np.zeros((1, 4, 5, 1)), "rotate")


def test_noise_is_a_function_of_the_image() -> None:
    image = np.full((1, 64, 64, 1), 0.5)
    noise = edit_images(image, "noise") - 0.5
    assert abs(noise.std() - 0.1) < 0.01
    assert abs(noise.mean()) < 0.01
    other = image.copy()
    other[0, 0, 0, 0] = 0.25
    both = edit_images(np.concatenate([other, image]), "noise") - 0.5
    assert np.array_equal(both[1:], noise)
    assert np.abs(both[0, 1:] - noise[0, 1:]).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_edited_as_if_alone(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "BATCH", 2 * 9 * 9 * channels)  # two images at a time
    images = np.random.default_rng(1).random((5, 9, 9, channels), dtype=np.float32)
    before = images.copy()
    edited = edit_images(images, name)
    assert edited.dtype == np.float32
    assert edited.min() >= 0
    assert edited.max() <= 1
    assert np.array_equal(images, before)
    alone = np.concatenate([edit_images(image[None], name) for image in images[::-1]])[::-1]
    assert np.array_equal(edited, alone)
    assert not np.array_equal(edited, images)


@pytest.mark.parametrize("name", NAMES)
def test_small_and_empty_images(name: str) -> None:
    for channels in (1, 3):
        assert edit_images(np.zeros((0, 28, 28, channels)), name).shape == (0, 28, 28, channels)
        pixel = edit_images(np.full((2, 1, 1, channels), 0.5), name)
        assert pixel.shape == (2, 1, 1, channels)
        assert np.isfinite(pixel).all()
        for value in (0.0, 1.0):
            assert np.isfinite(edit_images(np.full((1, 6, 6, channels), value), name)).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((28, 28, 1)), r"shape \[28, 28, 1\] cannot be edited: give \[n, height, width, channels\]"),
        (np.zeros((2, 28, 28, 2)), "channels 1 \\(grey\\) or 3"),
        (np.zeros((2, 0, 28, 1)), "cannot be edited"),
        (np.zeros((2, 4, 4, 1), np.uint8), "images of uint8 cannot be edited: give floats"),
        (np.full((2, 4, 4, 1), 255.0), r"pixels range from 0 to 255: scale or clip them to \[0, 1\]"),
        (np.full((2, 4, 4, 1), -0.1), "pixels range from -0.1 to 0"),
        (np.full((2, 4, 4, 1), np.inf), "pixels range from 0 to inf"),
        (np.stack([np.zeros((4, 4, 1)), np.full((4, 4, 1), np.nan)]), "image 1 has NaN pixels"),
    ],
)
def test_wrong_images_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        edit_images(images, "dilate")


def test_unknown_edits_are_listed() -> None:
    with pytest.raises(UserError, match="unknown edit 'dilat': choose one of blur, contrast, dilate"):
        edit_images(np.zeros((1, 4, 4, 1)), "dilat")


def test_an_edit_of_ones_own(registry: None) -> None:
    @register_edit("brighter")
    def brighter(image: np.ndarray) -> np.ndarray:
        assert image.shape == (4, 4, 1)
        assert image.dtype == np.float64
        return image + 0.75

    assert "brighter" in list_edits()
    images = np.stack([np.zeros((4, 4, 1)), np.full((4, 4, 1), 0.5)])
    assert edit_images(images, "brighter")[:, 0, 0, 0].tolist() == [0.75, 1.0]
    with pytest.raises(UserError, match="an edit named 'brighter' is registered already"):
        register_edit("brighter")(brighter)


def test_wrong_edits_are_told_apart(registry: None) -> None:
    register_edit("crop")(lambda image: image[:2])
    register_edit("divide", batched=True)(lambda images: images + np.nan)
    with pytest.raises(UserError, match=r"edit crop turned \[4, 4, 1\] into \[2, 4, 1\]"):
        edit_images(np.zeros((1, 4, 4, 1)), "crop")
    with pytest.raises(UserError, match="edit divide returned pixels that are not finite"):
        edit_images(np.zeros((1, 4, 4, 1)), "divide")
