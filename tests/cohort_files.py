"""Small files of every kind that a cohort is prepared from, with values that a test knows."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image


def head(height: int = 20, width: int = 16, value: int = 100, dtype=np.uint8) -> np.ndarray:
    """A block with a bright corner at the anterior left, black around it."""
    image = np.zeros((height, width), dtype)
    image[4:-4, 4:-4] = value
    image[4:7, 4:6] = 2 * value
    return image


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def flat_splits(root: Path, subjects=(4, 2, 2), slice_indices: int = 3, suffix: str = ".png", first: int = 1) -> Path:
    """train/sub-001_slice-01.png ..., each with a grey of its own."""
    subject = 0
    for split, count in zip(("train", "validate", "test"), subjects):
        for _ in range(count):
            subject += 1
            for slice_index in range(slice_indices):
                name = f"sub-{subject:03d}_slice-{slice_index + first:02d}{suffix}"
                save(root / split / name, head(value=10 + (5 * subject + slice_index) % 100))
    return root


def brain(shape=(24, 30, 40), spacing: int = 1) -> np.ndarray:
    """Right-anterior-superior: a box that grows brighter to the top, brightest at the right and at the front."""
    values = np.zeros(shape, np.float32)
    x, y, z = shape
    values[4 : x - 4, 4 : y - 4, 2 : z - 2] = 40 + np.arange(z - 4)
    values[x - 8 : x - 4, 4 : y - 4, 2 : z - 2] += 20  # right
    values[4 : x - 4, y - 10 : y - 4, 2 : z - 2] += 60  # front
    return values[:, :, ::spacing]


def nifti(path: Path, values: np.ndarray, axes: str = "RAS", zooms=(1.0, 1.0, 1.0), kind=nib.Nifti1Image) -> Path:
    """Right-anterior-superior values, stored in another order of axes (as scanners do), with the affine that says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*zooms, 1.0])
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    stored = nib.orientations.apply_orientation(values, turn)
    kind(stored, affine @ nib.orientations.inv_ornt_aff(turn, values.shape)).to_filename(path)
    return path


def analyze(path: Path, values: np.ndarray, big_endian: bool = True, axes: str = "LAS", code: int = 0) -> Path:
    """An Analyze 7.5 pair (no affine): values given as right-anterior-superior, stored as `axes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    stored = nib.orientations.apply_orientation(values, turn).astype(np.int16)
    header = nib.AnalyzeHeader(endianness=">" if big_endian else "<")
    header.set_data_shape(stored.shape)
    header.set_data_dtype(np.int16)
    header.set_zooms((1.0,) * stored.ndim)
    header["orient"] = bytes([code])
    nib.AnalyzeImage(stored, None, header).to_filename(path)
    return path
