"""Scores against scikit-image, and intervals that count subjects."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from oasis_lib import metrics


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.rand(3, 1, 70, 90, generator=generator), 7, 1, 3)
    return smooth, (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def reference(x, y, **options):
    x, y = x[0].numpy().astype(float), y[0].numpy().astype(float)
    window = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
    return structural_similarity(x, y, **window, **options)


def test_ssim_equals_scikit_image(pair):
    x, y = pair
    assert metrics.ssim(x, y).numpy() == pytest.approx([reference(a, b) for a, b in zip(x, y)], abs=1e-4)


def test_ssim_map_equals_scikit_image_away_from_the_edge(pair):
    x, y = pair
    wanted = reference(x[0], y[0], full=True)[1]
    assert metrics.ssim_map(x, y).shape == x.shape
    assert metrics.ssim_map(x, y)[0, 0, 5:-5, 5:-5].numpy() == pytest.approx(wanted[5:-5, 5:-5], abs=1e-4)


def test_ssim_inside_a_mask_is_the_mean_of_the_map_there(pair):
    x, y = pair
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, :, 20:40, 30:50] = True
    wanted = metrics.ssim_map(x, y)[mask].view(3, -1).mean(1)
    assert metrics.ssim(x, y, mask).numpy() == pytest.approx(wanted.numpy(), abs=1e-6)
    assert torch.isnan(metrics.ssim(x, y, torch.zeros_like(mask))).all()


def test_psnr_and_mae(pair):
    x, y = pair
    wanted = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.0) for a, b in zip(x, y)]
    assert metrics.psnr(x, y).numpy() == pytest.approx(wanted, abs=1e-3)
    assert metrics.mae(x, y).numpy() == pytest.approx((x - y).abs().mean((1, 2, 3)).numpy())


def test_ms_ssim_is_one_for_equal_images_and_falls_with_noise(pair):
    x, y = pair
    assert metrics.ms_ssim(x, x).numpy() == pytest.approx(1.0, abs=1e-5)
    noisier = (y + 0.1 * torch.randn_like(y)).clamp(0, 1)
    assert (metrics.ms_ssim(x, y) > metrics.ms_ssim(x, noisier)).all()


def test_ssim_under_autocast_keeps_full_precision(pair):
    x, y = pair
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metrics.ssim(x, y), metrics.ssim(*pair))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        metrics.ssim(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 33))
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_brain_mask_fills_holes_and_leaves_out_noise():
    image = np.zeros((1, 40, 40), np.uint8)
    image[0, 10:30, 10:30], image[0, 18:22, 18:22], image[0, 0, 0] = 100, 0, 255
    mask = metrics.brain_mask(image)[0]
    assert mask[12:28, 12:28].all() and mask.sum() == 400 - 4  # opening takes off a square's corners
    assert not mask[0, 0]
    assert np.array_equal(mask, metrics.brain_mask(image / 255.0)[0])


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))))
def test_brain_mask_is_an_opening_with_its_holes_filled(lit):
    """Slice by slice, as scipy has it, though many slices are worked on in one pass."""
    wanted = [ndimage.binary_fill_holes(ndimage.binary_opening(image)) for image in lit]
    assert np.array_equal(metrics.brain_mask(np.uint8(lit) * 200), wanted)


def test_bootstrap_resamples_subjects_not_slices():
    """Two subjects, a thousand slices each: the interval must be as wide as two subjects make it."""
    values = np.concatenate([np.zeros(1000), np.ones(1000)])
    mean, low, high = metrics.bootstrap_by_subject(values, np.repeat(["a", "b"], 1000))
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_bootstrap_weighs_subjects_alike_and_leaves_out_what_is_not_known():
    mean, *_ = metrics.bootstrap_by_subject(np.array([1.0, 1, 1, 3, np.nan]), np.array(list("aaabb")))
    assert mean == 2.0
