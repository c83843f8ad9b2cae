"""The way to torchvision: one module, one blur, and class folders read as ImageFolder reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cohort_files import head, save
from scipy import ndimage

from oasis_lib.cohort import prepare
from oasis_lib.vision import blur, torchvision


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_blur_is_a_gaussian_out_to_three_sigma(sigma):
    images = torch.rand(2, 1, 40, 30, generator=torch.Generator().manual_seed(0))
    reach = int(np.ceil(3 * sigma))
    wanted = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=reach)
    np.testing.assert_allclose(blur(images, sigma), wanted, atol=1e-5)


@pytest.mark.parametrize("splits", [("train", "validate", "test"), ("",)])
def test_class_folders_give_the_groups_that_image_folder_gives(tmp_path, splits):
    for split in splits:
        for i in range(12):
            for slice_index in (1, 2):
                name = f"sub-{split}{i:02d}_slice-{slice_index}.png"
                save(tmp_path / "in" / "Data" / split / ("AD", "MCI", "NC")[i % 3] / "scans" / name, head(value=40 + i))
    cohort = prepare(tmp_path / "in", tmp_path / "out", size=32, progress=False)
    tables = [s.table for s in cohort.splits.values()]
    mine = {file: group for table in tables for file, group in zip(table["file"], table["group"])}
    for split in splits:
        theirs = torchvision.datasets.ImageFolder(tmp_path / "in" / "Data" / split)
        for path, number in theirs.samples:
            assert mine.pop(path.removeprefix(f"{tmp_path}/in/")) == theirs.classes[number]
    assert not mine
