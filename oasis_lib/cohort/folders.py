"""Folders of slice images: the course set, split folders and class folders, with or without subjects in the names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from oasis_lib.cohort import source
from oasis_lib.cohort.source import centred, readable, split_of
from oasis_lib.cohort.store import CohortError, Item, Options, Plan, Slices
from oasis_lib.cohort.subjects import assign_splits

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
INTENSITY = "8-bit values as they are; 16-bit ones by subject, from 0 to the 99.8th percentile of what is above"
NUMBERS = r"^(\d+)_(\d+)$"  # subject and slice as bare numbers


def plan_folder(root: Path, files: list[Path], sheet: Path | None, how: Options) -> Plan:
    """From names alone; no pixels are read yet."""
    table, warnings, bad = _named(root, [f for f in files if not _is_mask(root, f)], how.skip_bad)
    if groups := _groups(table):
        table["group"] = table["subject"].map(groups)
    subjects, items, told = assign_splits(root, table, sheet, how.seed)
    shape = next(filter(None, map(_shape, (root / file for file in table["file"]))), None)
    slice_indices = 1 + max(index for item in items for index in item.slice_indices)
    indices = f"{slice_indices} slice indices a brain" if slice_indices else "no slice indices in the names"
    return Plan(
        items=items,
        subjects=subjects,
        read=partial(read_images, root, how.size, shape),
        info={"intensity": INTENSITY, "mm": None},
        summary=[f"{len(table):,} images in {root}, {told}", indices],
        warnings=warnings,
        left_out=bad,
    )


def _shape(file: Path) -> tuple[int, int] | None:
    """Height and width from the header; None where it can't be read."""
    with suppress(Exception), Image.open(file) as image:
        return image.height, image.width


def _is_mask(root: Path, file: Path) -> bool:
    """The course set keeps tissue masks in folders keras_png_slices_seg_*."""
    folders = file.relative_to(root).parts[:-1]
    return any(re.match(r"(keras_png_slices_)?seg_", name.lower()) for name in folders)


def _mask_of(image: Path) -> Path | None:
    """keras_png_slices_seg_train/seg_001_slice_0.nii.png for keras_png_slices_train/case_001_slice_0.nii.png."""
    folder = image.parent.with_name(re.sub(r"^(keras_png_slices_)?", r"\1seg_", image.parent.name))
    names = image.name, re.sub(r"^case_", "seg_", image.name)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _named(root: Path, files: list[Path], skip_bad: bool) -> tuple[pd.DataFrame, list[str], list[str]]:
    """A row a file with its subject, session and slice index; warnings, and misnamed files."""
    table = source.describe(root, files)
    numbers = table["file"].map(lambda file: source.stem(Path(file).name)).str.extract(NUMBERS)
    if (table["subject"] == "").all() and numbers[1].notna().all() and numbers[0].nunique() * 2 <= len(table):
        table["subject"], table["slice_index"] = numbers[0], numbers[1].astype(int)
    nameless = table["subject"] == ""
    if nameless.mean() > 0.1:
        better = "sub-001_slice-01.png, or give split folders by subject"
        subjects, warning = source.each_alone(table["file"], "image", better)
        return table.assign(subject=subjects, session="", slice_index=-1), [warning], []
    told = ": its name tells no subject (sub-001_slice-01); rename or remove it"
    odd = [f"{root / file}{told}" for file in table["file"][nameless]]
    source.refuse(odd, skip_bad)
    lowest, table = table["slice_index"][~nameless].min(), table[~nameless]
    table = table.assign(slice_index=table["slice_index"] - lowest if lowest >= 0 else -1)
    return table, [] if lowest >= 0 else ["the names tell no slice index: it is -1"], odd


def _groups(table: pd.DataFrame) -> dict[str, str] | None:
    """The group of every subject from class folders, as torchvision's ImageFolder reads them; None for one group."""
    groups = defaultdict(set)
    for split, own in table.groupby("split"):
        folders = [Path(file).parent for file in own["file"]]
        top = Path(os.path.commonpath(folders))
        if split:  # a split of one class only: its folder, not that class
            top = next((p for p in (top, *top.parents) if split_of([p.name])), top)
        for folder, subject in zip(folders, own["subject"]):
            below = folder.relative_to(top).parts[:1]
            if below and not source.SUBJECT.search(below[0]) and not split_of(below):
                groups[subject].add(below[0])
    joined = {subject: "+".join(sorted(of)) for subject, of in groups.items()}
    return joined if len(set(joined.values())) > 1 else None


def read_images(root: Path, size: int, shape: tuple[int, int], item: Item) -> Slices:
    """One session's slices at size x size; a slice that can't be read is left out with its reason."""
    found, kept, bad, tissue, notes = [], [], [], [], []
    for k, file in enumerate(root / name for name in item.files):
        try:
            with readable(file), Image.open(file) as image:
                plain = image.mode in ("L", "F") or image.mode[0] == "I"
                values = np.asarray(image if plain else image.convert("L"))
            if not plain and image.mode != "1":
                notes = ["colour images are turned grey (luminance)"]
            values = np.nan_to_num(values, posinf=0, neginf=0)
            if not values.any():
                raise CohortError(f"{file}: is all black; remove it")
            if values.shape != shape:
                raise CohortError(f"{file}: has {values.shape} pixels where others have {shape}; bring all to one size")
            if mask := _mask_of(file):
                tissue.append(centred(_tissue(mask, shape), size))
            found.append(values)
            kept.append(k)
        except CohortError as error:
            bad.append(str(error))
    if any(values.dtype != np.uint8 for values in found):  # deeper than 8 bits: one window for all slices of a session
        above = np.concatenate([v[v > 0].ravel() for v in found])
        high = float(np.percentile(above, 99.8)) if len(above) else 1.0
        found = [np.clip(v * (255 / high) + 0.5, 0, 255).astype(np.uint8) for v in found]
    images = np.array([centred(v, size) for v in found], np.uint8).reshape(-1, size, size)
    maps = np.array(tissue, np.uint8).reshape(images.shape) if len(tissue) == len(found) else None
    return Slices(images, kept, maps, left_out=bad, notes=notes + source.cut_note([v > 30 for v in found], size))


def _tissue(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mask as 0 background, 1 CSF, 2 grey matter, 3 white matter; the course set writes 0, 85, 170, 255."""
    with readable(path), Image.open(path) as image:
        values = np.asarray(image.convert("L"))
    if values.shape != shape:
        raise CohortError(f"{path}: this mask is {values.shape} where its image is {shape}; replace or remove it")
    present = set(np.unique(values).tolist())
    if present <= {0, 1, 2, 3}:
        return values
    if present <= {0, 85, 170, 255}:
        return values // 85
    has = source.examples(sorted(present), 6)
    raise CohortError(f"{path}: this mask has values {has}; only 0 to 3 or 0, 85, 170, 255 are understood")
