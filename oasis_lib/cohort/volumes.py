"""Folders of volumes (NIfTI, Analyze 7.5, MGZ, MGH) as OASIS, BIDS and FreeSurfer lay them out, to axial slices."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from oasis_lib.cohort import source
from oasis_lib.cohort.source import centred, natural, readable
from oasis_lib.cohort.store import CohortError, Item, Options, Plan, Slices
from oasis_lib.cohort.subjects import assign_splits

VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".img.gz")
LABELS = re.compile(r"(?:^|[_.+-])(aseg|aparc|dseg|probseg|wmparc|ribbon|fseg|seg|mask|labels?)(?:$|[_.+-])")
# Where a subject has several volumes, the first of these that occurs anywhere is taken everywhere.
PREFERRED = ("_t88_masked_gfc", "brain", "brainmask", "norm", "_T1w", "T1")
LEVELS = 32
LOWEST, HIGHEST = 0.44, 0.74  # of the brain's height: from the midbrain to above the ventricles
TALLEST = 160.0  # mm from the top of a head within which the brain lies; below is neck
# Analyze 7.5 has no affine but says in which order its axes run (nibabel leaves this to its reader).
ANALYZE_ORIENT = {1: "LSA", 2: "ASL", 3: "LPS", 4: "LIA", 5: "AIL"}
INTENSITY = "windowed by volume from 0 (or the 1st percentile where values are negative)"
INTENSITY += " to the 99.5th percentile of the rest"


def plan_volumes(root: Path, files: list[Path], sheet: Path | None, how: Options) -> Plan:
    """From names and headers alone; no voxels are read yet."""
    pixels, bad = {}, []
    for file in _choose(files):
        try:
            with readable(file):
                pixels[file] = _pixel(file)
        except CohortError as error:
            bad.append(str(error))
    source.refuse(bad, how.skip_bad and bool(pixels))
    table, warnings = _named(root, list(pixels))
    order = [("derivatives" in Path(file).parts, natural(file)) for file in table["file"]]
    table = table.loc[sorted(table.index, key=order.__getitem__)]
    table = table.drop_duplicates(["subject", "session"])  # of several volumes of a session the first
    subjects, items, told = assign_splits(root, table, sheet, how.seed)
    items = [replace(item, slice_indices=tuple(range(LEVELS))) for item in items]
    pixel = how.mm or Counter(round(pixels[root / file], 3) for file in table["file"]).most_common(1)[0][0]
    return Plan(
        items=items,
        subjects=subjects,
        read=partial(read_volume, root, how.size, pixel),
        info={"intensity": INTENSITY, "mm": pixel, "left_right": "columns"},
        summary=[
            f"{len(table):,} volumes in {root}, such as {items[0].files[0]}, {told}",
            f"{len(files) - len(table) - len(bad):,} other volumes are not used",
            f"{LEVELS} axial slices, {LOWEST:.0%} to {HIGHEST:.0%} of the height; pixels of {pixel:g} mm, anterior up",
        ],
        warnings=warnings,
        left_out=bad,
        parallel=True,
    )


def _choose(files: list[Path]) -> list[Path]:
    """The volumes that show brains."""
    images = [f for f in files if not LABELS.search(source.stem(f.name))]
    for wanted in PREFERRED:
        fits = str.endswith if wanted[0] == "_" else str.__eq__
        if found := [f for f in images if fits(source.stem(f.name), wanted)]:
            return found
    return images


def _pixel(file: Path) -> float:
    """The finer side of an axial pixel in mm, from the header alone."""
    import nibabel  # in functions: a GPU machine that is given a prepared cohort need not have it

    image = _opened(file)
    if any(n != 1 for n in image.shape[3:]) or len(image.shape) < 3 or min(image.shape[:3]) < 2:
        what = f"a {len(image.shape)}-D volume ({' x '.join(map(str, image.shape))})"
        raise CohortError(f"{file}: is {what}; this needs one 3-D volume: take one out (fslroi, nibabel) or remove it")
    if image.get_data_dtype().kind not in "iufb":
        raise CohortError(f"{file}: is a colour or complex volume; convert it to grey or remove it")
    turn = nibabel.io_orientation(image.affine)
    if np.isnan(turn).any():
        raise CohortError(f"{file}: its affine leaves an axis without a direction; mend or remove it")
    return float(min(nibabel.affines.voxel_sizes(image.affine)[turn[:, 0] < 2]))


def _opened(file: Path) -> Any:
    """A volume whose affine is true of an Analyze file's `orient` too."""
    import nibabel

    image = nibabel.load(file)
    if "orient" in image.header:
        code = int.from_bytes(np.asarray(image.header["orient"]).tobytes()[:1], "little")
        if code in ANALYZE_ORIENT:
            turn = nibabel.orientations.axcodes2ornt(ANALYZE_ORIENT[code])
            sides = nibabel.orientations.inv_ornt_aff(turn, image.shape[:3])
            affine = np.linalg.inv(sides) @ np.diag([*image.header.get_zooms()[:3], 1.0])
            image = type(image)(image.dataobj, affine, image.header)
    return image


def _named(root: Path, files: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """A row a volume with its subject and session; FreeSurfer's subjects are the folders above `mri`."""
    table = source.describe(root, files)
    nameless, folders = table["subject"] == "", table["file"].str.extract(r"([^/]+)/mri/[^/]+$")[0]
    if folders.nunique() == len(table):
        return table.assign(subject=table["subject"].mask(nameless, folders)), []
    if not nameless.any():
        return table, []
    subjects, warning = source.each_alone(table["file"], "volume", "sub-001_ses-1_T1w.nii.gz")
    return table.assign(subject=table["subject"].mask(nameless, subjects)), [warning]


def read_volume(root: Path, size: int, pixel: float, item: Item) -> Slices:
    """A session's LEVELS slices at size x size from one volume, or the reason why there are none."""
    file, maps = root / item.files[0], None
    try:
        values, zooms = _canonical(file)
        values = _window(values, file)
        planes = _planes(values, zooms[2])
        if segmentation := _segmentation(file):
            tissue = _canonical(segmentation)[0]
            maps = np.stack([centred(_square(tissue[:, :, k], zooms, pixel, order=0), size) for k in planes])
            maps = np.clip(maps + 0.5, 0, 3).astype(np.uint8)
    except CohortError as error:
        empty = np.zeros((0, size, size), np.uint8)
        return Slices(empty, [], empty, left_out=[str(error)])
    square = [_square(values[:, :, k], zooms, pixel, order=1) for k in planes]
    images = np.stack([centred((np.clip(s, 0, 1) * 255 + 0.5).astype(np.uint8), size) for s in square])
    notes = source.cut_note([s > 0.1 for s in square], size)
    if len(set(planes.tolist())) < LEVELS:
        notes.append(f"volumes with slices of {zooms[2]:.1f} mm give the same slice for neighbouring slice indices")
    return Slices(images, list(range(LEVELS)), maps, notes=notes)


def _canonical(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values as (right, anterior, superior) float32, and the voxel's mm."""
    import nibabel

    with readable(file):
        image = nibabel.as_closest_canonical(_opened(file))
        values = np.asanyarray(image.dataobj).astype(np.float32).reshape(image.shape[:3])
    return np.nan_to_num(values, posinf=0, neginf=0), nibabel.affines.voxel_sizes(image.affine)


def _window(values: np.ndarray, file: Path) -> np.ndarray:
    """Values with 0 and 1 at the window's ends."""
    low = 0.0 if values.min() >= 0 else float(np.percentile(values, 1))
    above = values[values > low]
    if not len(above):
        raise CohortError(f"{file}: is all black; remove it")
    return np.maximum(values - low, 0) / max(float(np.percentile(above, 99.5)) - low, 1e-12)


def _planes(values: np.ndarray, height: float) -> np.ndarray:
    """The plane of each slice index, at fixed shares of the brain's height: the same anatomy in every subject."""
    share = (values > 0.1).mean((0, 1))
    there = np.flatnonzero(share > 0.02 * share.max())
    top, bottom = there[-1], max(there[0], there[-1] - TALLEST / height)
    return np.round(bottom + np.linspace(LOWEST, HIGHEST, LEVELS) * (top - bottom)).astype(int)


def _square(plane: np.ndarray, zooms: np.ndarray, pixel: float, order: int) -> np.ndarray:
    """(right, anterior) -> rows front to back, columns left to right, resampled so that both are `pixel` mm."""
    image = plane.T[::-1]
    factors = np.array([zooms[1], zooms[0]]) / pixel
    if np.allclose(factors, 1, atol=0.01):
        return image
    if order and factors.min() < 0.8:
        image = ndimage.gaussian_filter(image, np.maximum(0, 0.4 / factors - 0.3))
    return ndimage.zoom(image, factors, order=order, mode="grid-constant", grid_mode=True)


def _segmentation(file: Path) -> Path | None:
    """OASIS-1 carries FAST's tissue classes (1 CSF, 2 grey, 3 white) beside its atlas images."""
    path = file.parent.parent / "FSL_SEG" / f"{source.stem(file.name)}_fseg.img"
    return path if path.is_file() and path.with_suffix(".hdr").is_file() else None
