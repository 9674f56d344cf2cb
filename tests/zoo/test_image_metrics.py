from __future__ import annotations

import numpy as np
import pytest

from neural_graphs.errors import UserError
from neural_graphs.zoo import _image_metrics
from neural_graphs.zoo._image_metrics import mse, psnr, ssim


def pair(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.random(shape, dtype=np.float32)
    return images, (images + 0.2 * rng.standard_normal(shape, dtype=np.float32)).clip(0, 1)


@pytest.mark.parametrize("shape", [(5, 28, 28, 1), (3, 11, 17, 3), (4, 32, 32, 3)])
def test_scikit_image_says_the_same(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

    monkeypatch.setattr(_image_metrics, "BATCH", 2 * np.prod(shape[1:]))  # two images at a time
    images, targets = pair(*shape)
    both = list(zip(images.astype(float), targets.astype(float), strict=True))
    expected = [
        structural_similarity(
            one, other, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for one, other in both
    ]
    assert np.allclose(mse(images, targets), [mean_squared_error(*each) for each in both], rtol=1e-12)
    assert np.allclose(psnr(images, targets), [peak_signal_noise_ratio(*each, data_range=1) for each in both])
    assert np.allclose(ssim(images, targets), expected, rtol=1e-10)
    assert {mse(images, targets).dtype, ssim(images, targets).dtype} == {np.dtype(np.float64)}


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 1, 1, 3), (2, 10, 40, 1)])
def test_images_smaller_than_the_window(shape: tuple[int, ...]) -> None:
    """Pixel by pixel, with the image mirrored at its border."""
    images, targets = pair(*shape)
    distance = np.arange(-5, 6)
    weights = np.exp(-(distance**2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2

    def slow(one: np.ndarray, other: np.ndarray) -> float:
        values = []
        for c in range(one.shape[2]):
            x, y = (np.pad(image[..., c], 5, mode="symmetric").astype(float) for image in (one, other))
            for i in range(one.shape[0]):
                for j in range(one.shape[1]):
                    a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                    cov = (weights * (a - mean_a) * (b - mean_b)).sum()
                    top = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
                    values.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
        return float(np.mean(values))

    expected = [slow(one, other) for one, other in zip(images, targets, strict=True)]
    assert np.allclose(ssim(images, targets), expected, rtol=1e-10)


def test_equal_images() -> None:
    images, _ = pair(3, 12, 12, 1)
    assert mse(images, images).tolist() == [0, 0, 0]
    assert psnr(images, images).tolist() == [np.inf] * 3
    assert np.allclose(ssim(images, images), 1, rtol=1e-12)


def test_empty_and_wrong_shapes() -> None:
    empty = np.zeros((0, 8, 8, 1))
    for metric in (mse, psnr, ssim):
        assert metric(empty, empty).shape == (0,)
        with pytest.raises(UserError, match=r"shape \[2, 8, 8, 1\] cannot be compared with \[2, 8, 8, 3\]"):
            metric(np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 3)))
        with pytest.raises(UserError, match="cannot be compared"):
            metric(np.zeros((8, 8)), np.zeros((8, 8)))
        assert np.isnan(metric(np.full((1, 8, 8, 1), np.nan), np.zeros((1, 8, 8, 1)))).all()
