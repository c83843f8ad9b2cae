"""Folders of volumes (NIfTI, Analyze 7.5, MGZ, MGH) as OASIS, BIDS and FreeSurfer lay them out, to axial slices."""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from oasis_lib.cohort.folders import LICENCE, Name, by_split, centred, cut_share, parse_name, unreadable
from oasis_lib.cohort.store import SPLITS, CohortError, Item, Options, Plan, Slices
from oasis_lib.cohort.subjects import assign_splits, examples, natural, refuse

VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".img.gz", ".hdr")
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
    chosen, bad = _choose(files)
    heads: dict[Path, float] = {}
    for file in chosen:
        try:
            heads[file] = _pixel(file)
        except CohortError as error:
            bad.append(str(error))
    refuse(bad, how.skip_bad)
    if not heads:
        raise CohortError(f"{root}: no volume in it can be read; first: {bad[0]}")
    names, warnings = _names(root, list(heads))
    sessions = defaultdict(list)
    for file in sorted(heads, key=lambda f: ("derivatives" in f.parts, natural(str(f)))):
        sessions[names[file].subject, names[file].session].append(file)
    taken, again = [of[0] for of in sessions.values()], [f.name for of in sessions.values() for f in of[1:]]
    owners = {f: names[f].subject for f in taken}
    subjects, splits, told = assign_splits(root, by_split(root, taken, "volumes"), owners, sheet, how, slices=LEVELS)
    pixel = how.mm or Counter(round(heads[f], 3) for f in taken).most_common(1)[0][0]
    items = [
        Item(split, names[f].subject, (str(f.relative_to(root)),), tuple(range(LEVELS)), names[f].session)
        for split in SPLITS
        for f in sorted(splits[split], key=lambda f: (natural(names[f].subject), natural(names[f].session)))
    ]
    tissue = tuple(s for s in SPLITS if splits[s] and all(_segmentation(f) for f in splits[s]))
    unused = f"{len(files) - len(taken) - len(bad):,} other volume files are not used"
    return Plan(
        items=items,
        subjects=subjects,
        read=partial(read_volume, root, how.size, pixel, frozenset(tissue)),
        info={"synthetic": False, "intensity": INTENSITY, "mm": pixel, "licence": LICENCE, "left_right": "columns"},
        summary=[
            f"{len(taken):,} volumes in {root}, such as {items[0].files[0]}",
            unused + (f"; repeats: {examples(again)}" if again else ""),
            told,
            f"{LEVELS} axial slice indices, {LOWEST:.0%} to {HIGHEST:.0%} of the height; pixels of {pixel:g} mm, anterior up",
            *([f"tissue from FSL_SEG for {', '.join(tissue)}"] if tissue else []),
        ],
        tissue=tissue,
        warnings=warnings,
        left_out=bad,
        parallel=True,
    )


def _choose(files: list[Path]) -> tuple[list[Path], list[str]]:
    """The volumes that show brains. Analyze headers and images without their other half are bad."""
    present, bad, images = set(files), {}, []
    for file in files:
        if file.suffix == ".hdr":
            if not {file.with_suffix(".img"), file.with_suffix(".img.gz")} & present:
                bad[file] = f"{file}: an Analyze header without its image; put {file.stem}.img beside it or remove it"
        elif file.name.endswith((".img", ".img.gz")) and _stem(file).with_suffix(".hdr") not in present:
            bad[file] = f"{file}: an Analyze image without its header; put {_stem(file).name}.hdr beside it"
        elif not LABELS.search(_stem(file).name):
            images.append(file)
    for wanted in PREFERRED:
        fits = str.endswith if wanted[0] == "_" else str.__eq__
        if found := [f for f in images if fits(_stem(f).name, wanted)]:
            return found, [told for file, told in bad.items() if fits(_stem(file).name, wanted) or wanted[0] != "_"]
    return images, list(bad.values())


def _pixel(file: Path) -> float:
    """The finer side of an axial pixel in mm, from the header alone."""
    image = _load(file)
    if any(n != 1 for n in image.shape[3:]) or len(image.shape) < 3 or min(image.shape[:3]) < 2:
        what = f"a {len(image.shape)}-D volume ({' x '.join(map(str, image.shape))})"
        raise CohortError(f"{file}: is {what}; this needs one 3-D volume: take one out (fslroi, nibabel) or remove it")
    if image.get_data_dtype().kind not in "iufb":
        raise CohortError(f"{file}: is a colour or complex volume; convert it to grey or remove it")
    return float(min(_orientation(image)[1][:2]))


def _load(file: Path, read: Callable = lambda image: image) -> Any:
    """What `read` makes of nibabel's image."""
    import nibabel

    try:
        return read(nibabel.load(file))
    except (OSError, EOFError, ValueError, KeyError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise CohortError(unreadable(file, error)) from error


def _names(root: Path, files: list[Path]) -> tuple[dict[Path, Name], list[str]]:
    """Subject and session of every volume; FreeSurfer's subjects are the folders above `mri`."""
    names = {f: parse_name(f.relative_to(root)) for f in files}
    if all(names.values()):
        return names, []
    folders = {f: f.parents[1].name if f.parent.name == "mri" else "" for f in files}
    if all(folders.values()) and len(set(folders.values())) == len(files):
        return {f: names[f] or Name(folders[f], "", -1) for f in files}, []
    stems = {f: _stem(f).name for f in files}
    if len(set(stems.values())) < len(files):
        stems = {f: str(_stem(f).relative_to(root)) for f in files}
    warning = (
        f"no subject can be told from the names (such as {files[0].name}): each volume counts as a subject of its own, so"
        " two scans of one subject may stand in two splits (a leak); name files sub-001_ses-1_T1w.nii.gz then"
    )
    return {f: names[f] or Name(stems[f], "", -1) for f in files}, [warning]


def read_volume(root: Path, size: int, pixel: float, with_tissue: frozenset[str], item: Item) -> Slices:
    """A session's LEVELS slices at size x size from one volume, or the reason why there are none."""
    file = root / item.files[0]
    labels, maps = item.split in with_tissue, None
    try:
        values, zooms = _canonical(file)
        values = _window(values, file)
        planes = _planes(values, zooms[2])
        if labels:
            tissue = _canonical(_segmentation(file))[0]
            maps = [centred(_square(tissue[:, :, k].T[::-1], zooms, pixel, order=0), size) for k in planes]
            maps = np.clip(np.stack(maps) + 0.5, 0, 3).astype(np.uint8)
        square = [_square(values[:, :, k].T[::-1], zooms, pixel, order=1) for k in planes]
    except CohortError as error:
        empty = np.zeros((0, size, size), np.uint8)
        return Slices(empty, [], empty if labels else None, left_out=[str(error)])
    images = np.stack([centred((np.clip(s, 0, 1) * 255 + 0.5).astype(np.uint8), size) for s in square])
    notes = []
    if max(cut_share(s > 0.1, size) for s in square) > 0.01:
        keep = "a larger size (--size) or coarser pixels (--mm) keep them whole"
        notes.append(f"{size} pixels of {pixel:g} mm cut heads; {keep}")
    if len(set(planes.tolist())) < LEVELS:
        notes.append(f"volumes with slices of {zooms[2]:.1f} mm give the same slice for neighbouring slice indices")
    return Slices(images, list(range(LEVELS)), maps, notes=notes)


def _canonical(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values as (right, anterior, superior) float32, and the voxel's mm."""
    from nibabel.orientations import apply_orientation

    image, values = _load(file, lambda image: (image, np.asanyarray(image.dataobj).astype(np.float32)))
    turn, zooms = _orientation(image)
    values = apply_orientation(values.reshape(image.shape[:3]), turn)
    return np.nan_to_num(values, posinf=0, neginf=0), zooms


def _orientation(image) -> tuple[np.ndarray, np.ndarray]:
    """How its axes turn into (right, anterior, superior), and the voxel's mm along those."""
    from nibabel import AnalyzeImage
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation

    affine = image.affine
    if isinstance(image, AnalyzeImage) and "orient" in image.header and "NIFTI" not in type(image).__name__.upper():
        code = int.from_bytes(np.asarray(image.header["orient"]).tobytes()[:1], "little")
        if code in ANALYZE_ORIENT:
            sides = inv_ornt_aff(axcodes2ornt(ANALYZE_ORIENT[code]), image.shape[:3])
            affine = np.linalg.inv(sides) @ np.diag([*image.header.get_zooms()[:3], 1.0])
    turn = io_orientation(affine)
    if np.isnan(turn).any():
        raise CohortError(f"{image.get_filename()}: its affine leaves an axis without a direction; mend or remove it")
    return turn, voxel_sizes(affine)[np.argsort(turn[:, 0])]


def _window(values: np.ndarray, file: Path) -> np.ndarray:
    """Values with 0 and 1 at the window's ends."""
    low = 0.0 if values.min() >= 0 else float(np.percentile(values, 1))
    above = values[values > low]
    if not len(above):
        raise CohortError(f"{file}: is all black; remove it")
    return np.maximum(values - low, 0) / max(float(np.percentile(above, 99.5)) - low, 1e-12)


def _planes(values: np.ndarray, height: float) -> np.ndarray:
    """The planes of the slice indices, at fixed shares of the brain's height: the same anatomy in every subject."""
    share = (values > 0.1).mean((0, 1))
    there = np.flatnonzero(share > 0.02 * share.max())
    top, bottom = there[-1], max(there[0], there[-1] - TALLEST / height)
    return np.round(bottom + np.linspace(LOWEST, HIGHEST, LEVELS) * (top - bottom)).astype(int)


def _square(image: np.ndarray, zooms: np.ndarray, pixel: float, order: int) -> np.ndarray:
    """Rows run back to front, columns left to right: resampled so that both are `pixel` mm."""
    factors = np.array([zooms[1], zooms[0]]) / pixel
    if np.allclose(factors, 1, atol=0.01):
        return image
    if order and factors.min() < 0.8:
        image = ndimage.gaussian_filter(image, np.maximum(0, 0.4 / factors - 0.3))
    return ndimage.zoom(image, factors, order=order, mode="grid-constant", grid_mode=True)


def _segmentation(file: Path) -> Path | None:
    """OASIS-1 carries FAST's tissue classes (1 CSF, 2 grey, 3 white) beside its atlas images."""
    path = file.parent.parent / "FSL_SEG" / f"{_stem(file).name}_fseg.img"
    return path if path.is_file() and path.with_suffix(".hdr").is_file() else None


def _stem(file: Path) -> Path:
    return file.with_name(re.sub(r"\.(nii|img|mgz|mgh|hdr)(\.gz)?$", "", file.name))
