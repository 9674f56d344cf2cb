"""How far images are from each other: mean squared error, PSNR and SSIM, one number per image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neural_graphs.errors import UserError

BATCH = 2**17  # values compared at once, to stay in the cache
RADIUS, SIGMA = 5, 1.5  # SSIM's window: 11 x 11 pixels, gaussian
C1, C2 = 0.01**2, 0.03**2  # (K L)^2 of Wang et al. for a data range L of 1


def mse(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean squared error over pixels and channels: ``[n, H, W, C]`` twice to float64 ``[n]``.

    Raises:
        UserError: the shapes differ or are no batch of images.
    """
    errors = np.empty(_length(images, targets))
    for part, one, other in _parts(images, targets):
        errors[part] = np.square(one - other).mean((1, 2, 3))
    return errors


def psnr(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB for white at 1: ``-10 log10(mse)``, float64 ``[n]``; infinite for equal images.

    Raises:
        UserError: as in ``mse``.
    """
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse(images, targets))


def ssim(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Structural similarity, at most 1: ``[n, H, W, C]`` in [0, 1] twice to float64 ``[n]``.

    Wang, Bovik, Sheikh and Simoncelli 2004: gaussian window of 11 x 11 pixels and standard deviation 1.5, K1 = 0.01,
    K2 = 0.03, data range 1, mean over channels and over all pixels whose window lies inside the image. Images with a side
    below 11 have no such pixels: they are mirrored at the border, and the mean is over all pixels.

    Raises:
        UserError: as in ``mse``.
    """
    from scipy.ndimage import gaussian_filter1d

    def smooth(values: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            values = gaussian_filter1d(values, SIGMA, axis, radius=RADIUS)
        return values

    similarity = np.empty(_length(images, targets))
    inside = slice(RADIUS, -RADIUS) if min(images.shape[1:3]) > 2 * RADIUS else slice(None)
    for part, one, other in _parts(images, targets):
        mean_1, mean_2 = smooth(one), smooth(other)
        var_1, var_2 = smooth(one * one) - mean_1 * mean_1, smooth(other * other) - mean_2 * mean_2
        covariance = smooth(one * other) - mean_1 * mean_2
        values = (2 * mean_1 * mean_2 + C1) * (2 * covariance + C2)
        values /= (mean_1 * mean_1 + mean_2 * mean_2 + C1) * (var_1 + var_2 + C2)
        similarity[part] = values[:, inside, inside].mean((1, 2, 3))
    return similarity


def _length(images: np.ndarray, targets: np.ndarray) -> int:
    if images.shape != targets.shape or images.ndim != 4 or 0 in images.shape[1:]:
        raise UserError(
            f"images of shape {list(images.shape)} cannot be compared with {list(targets.shape)}: give [n, height, width, "
            "channels] twice"
        )
    return len(images)


def _parts(images: np.ndarray, targets: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    step = max(1, BATCH // max(1, images[:1].size))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        yield part, images[part].astype(np.float64), targets[part].astype(np.float64)
