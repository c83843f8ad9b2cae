"""Folders of slice images: the course set, split folders and class folders, with or without subjects in the names."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from oasis_lib.cohort.store import SPLITS, CohortError, Item, Options, Plan, Slices
from oasis_lib.cohort.subjects import assign_splits, examples, natural, refuse

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SPLIT_NAMES = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validate")
LICENCE = "the source's own terms hold; keep these images where its agreement allows"
DEEP = "windowed by subject from 0 to the 99.8th percentile of what is above 0 (16-bit images)"

PERSON = re.compile(r"(sub-[A-Za-z0-9]+|(?:case|seg)_\d+|OAS[12]_\d{4}|OAS3\d{4})")
SESSION = re.compile(r"(ses-[A-Za-z0-9]+|(?<=_)MR\d+|(?<=_)d\d{4}(?=\D))")
LEVEL = re.compile(r"(?:slice|slice index|z)[-_]?(\d+)|[-_](\d+)$")
NUMBERS = re.compile(r"(\d+)_(\d+)$")  # subject and slice as bare numbers
# What Pillow raises for damaged files.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Name:
    """What a file's path says. `slice_index` as written: whether it counts from 0 or 1 is seen from all names together."""

    subject: str
    session: str
    slice_index: int


def plan_folder(root: Path, files: list[Path], sheet: Path | None, how: Options) -> Plan:
    """From names and image headers alone; no pixels are read yet."""
    masks = {f for f in files if _is_mask(root, f)}
    found = by_split(root, [f for f in files if f not in masks], "images")
    heads, left_out = _headers(root, [f for of in found.values() for f in of], how.skip_bad)
    names, warnings, misnamed = _names(root, list(heads), how.skip_bad)
    found = {split: [f for f in of if f in names] for split, of in found.items()}
    owners = {f: name.subject for f, name in names.items()}
    subjects, splits, told = assign_splits(root, found, owners, sheet, how, _groups(root, found, names))
    modes = Counter(heads[f][1] for f in names)
    if modes["colour"]:
        warnings.append(f"{modes['colour']:,} colour images are turned grey (luminance)")
    items = [item for split in SPLITS for item in _items(root, split, splits[split], names)]
    mask_of, tissue = _masks(root, masks, splits)
    if mask_of and tissue != SPLITS:
        warnings.append(f"tissue masks are used in {', '.join(tissue) or 'no split'} only: other slices have none")
    slice_indices = 1 + max(slice_index for item in items for slice_index in item.slice_indices)
    width, height = next(iter(heads.values()))[0]
    intensity = DEEP if modes["deep"] else "8-bit values as they are"
    return Plan(
        items=items,
        subjects=subjects,
        read=partial(read_images, root, how.size, mask_of, frozenset(tissue)),
        info={"synthetic": False, "source": str(root), "intensity": intensity, "mm": None, "licence": LICENCE},
        summary=[
            f"{len(names):,} images of {width} x {height} pixels in {root}",
            told,
            f"{slice_indices} slice indices a head" if slice_indices else "no slice indices in the names",
            *([f"tissue masks for {', '.join(tissue)}"] if tissue else []),
        ],
        tissue=tissue,
        warnings=warnings,
        left_out=left_out + misnamed,
    )


def split_of(folder: str) -> str:
    """The split that a folder is named after, or "": train, val, testing, keras_png_slices_validate ..."""
    return SPLIT_NAMES.get(folder.lower().removeprefix("keras_png_slices_").removeprefix("seg_"), "")


def by_split(root: Path, files: list[Path], what: str) -> dict[str, list[Path]]:
    """Files per split; under "" where no folder is named after a split."""
    splits = defaultdict(list)
    for file in files:
        splits[_split_in(root, file)].append(file)
    below = [p for p in root.glob("**/") if p != root and not _is_mask(root, p / "")]
    folders = {split_of(p.name): p for p in below if split_of(p.name)}
    if not folders:
        return {"": splits[""]}
    for name in SPLITS:
        if name not in folders:
            raise CohortError(
                f"{root}: has {' and '.join(sorted(folders))} but no {name} folder; add one with subjects of its own, or"
                f" put all {what} into one folder to have them split by subject"
            )
        if not splits[name]:
            do = "fill it, or take the split folders away to have the split made by subject"
            raise CohortError(f"{folders[name]}: holds no {what}; {do}")
    return {name: splits[name] for name in SPLITS}


def _split_in(root: Path, file: Path) -> str:
    return next(filter(None, map(split_of, file.relative_to(root).parts[:-1])), "")


def _is_mask(root: Path, file: Path) -> bool:
    """The course set keeps tissue masks in folders keras_png_slices_seg_*."""
    parts = file.relative_to(root).parts[:-1]
    return any(part.lower().removeprefix("keras_png_slices_").startswith("seg_") for part in parts)


def _masks(root: Path, masks: set[Path], splits: dict[str, list[Path]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The mask of every image that has one, and the splits in which all have."""
    by_name = {(_split_in(root, m), re.sub(r"^seg_", "case_", m.name)): str(m) for m in masks}
    found = {s: {str(f.relative_to(root)): by_name.get((s, f.name), "") for f in files} for s, files in splits.items()}
    whole = tuple(s for s in SPLITS if all(found[s].values()))
    return {f: m for of in found.values() for f, m in of.items() if m}, whole


def _headers(root: Path, files: list[Path], skip_bad: bool) -> tuple[dict[Path, tuple], list[str]]:
    """(size, "deep", "grey" or "colour") of every image. One of another size than most, or that is no image, is bad."""
    heads, bad = {}, []
    for file in files:
        try:
            with Image.open(file) as image:
                deep = image.mode.startswith("I") or image.mode == "F"
                heads[file] = (image.size, "deep" if deep else "grey" if image.mode in ("L", "1") else "colour")
        except DAMAGED as error:
            bad.append(unreadable(file, error))
    most = Counter(size for size, _ in heads.values()).most_common(1)
    for file in [f for f, (size, _) in heads.items() if size != most[0][0]]:
        (width, height), (w, h) = heads.pop(file)[0], most[0][0]
        bad.append(f"{file}: is {width} x {height} pixels where most images are {w} x {h}; bring all to one size")
    refuse(bad, skip_bad)
    if not heads:
        raise CohortError(f"{root}: no image in it can be read; first: {bad[0]}")
    return heads, bad


def unreadable(file: Path, error: Exception) -> str:
    """One line on a file that Pillow or nibabel could not read."""
    if isinstance(error, PermissionError):
        return f"{file}: no permission to read it; ask its owner, or chmod u+r"
    if isinstance(error, UnidentifiedImageError):
        what = "is not an image, whatever its extension says" if file.stat().st_size else "is empty"
        return f"{file}: {what}; replace or remove it"
    why = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return f"{file}: is damaged or of another kind ({why}); copy it again or remove it"


def _names(root: Path, files: list[Path], skip_bad: bool) -> tuple[dict[Path, Name], list[str], list[str]]:
    """Subject, session and slice index from every path, warnings, and misnamed files."""
    found = {file: parse_name(file.relative_to(root)) for file in files}
    numbers = {file: NUMBERS.fullmatch(_stem(file)) for file in files}
    if not any(found.values()) and all(numbers.values()) and len({m[1] for m in numbers.values()}) * 2 <= len(files):
        found = {file: Name(m[1], "", int(m[2])) for file, m in numbers.items()}
    known = {file: name for file, name in found.items() if name}
    if len(known) < 0.9 * len(files):
        warning = (
            f"no subject can be told from the names (such as {files[0].name}): each image counts as a subject of its own,"
            " so slices of one head may stand in two splits (a leak that flatters every score); name files"
            " sub-001_slice-01.png, or give split folders by subject"
        )
        alone = {f: re.sub(r"[,\t\n\"]", "_", str(f.relative_to(root).with_suffix(""))) for f in files}
        return {f: Name(name, "", -1) for f, name in alone.items()}, [warning], []
    odd = [f for f in files if not found[f]]
    odd = [f"{f}: its name tells no subject where others do (sub-001_slice-01); rename or remove it" for f in odd]
    refuse(odd, skip_bad)
    lowest = min(name.slice_index for name in known.values())
    slice_indices = {f: n.slice_index - lowest if lowest >= 0 else -1 for f, n in known.items()}
    warnings = [] if lowest >= 0 else ["the names tell no slice index: it is -1"]
    return {f: Name(n.subject, n.session, slice_indices[f]) for f, n in known.items()}, warnings, odd


def parse_name(path: Path) -> Name | None:
    """Name("sub-007", "", 5) for sub-007_slice-05.jpg; None where the path names no subject."""
    subject = PERSON.search(str(path))
    if not subject:
        return None
    session = SESSION.search(str(path), subject.end())
    slice_index = LEVEL.search(_stem(path).replace(subject[0], "", 1))
    return Name(subject[0], session[0] if session else "", int(slice_index[1] or slice_index[2]) if slice_index else -1)


def _stem(path: Path) -> str:
    return re.sub(r"\.nii$", "", path.stem)  # case_001_slice_0.nii.png


def _groups(root: Path, found: dict[str, list[Path]], names: dict[Path, Name]) -> dict[str, str] | None:
    """The group of every subject from class folders, as torchvision's ImageFolder reads them; None for one group."""
    groups = defaultdict(set)
    for split, files in found.items():
        top = Path(os.path.commonpath([f.parent for f in files]))
        if split:  # a split of one class only: its folder, not that class
            top = next((p for p in (top, *top.parents) if root in p.parents and split_of(p.name)), top)
        if all(f.parent == top for f in files):
            continue
        from oasis_lib.vision import torchvision  # takes seconds, and most layouts do without it

        reader = torchvision.datasets.folder
        classes = [c for c in reader.find_classes(top)[0] if not PERSON.search(c) and not split_of(c)]
        numbers = {c: i for i, c in enumerate(classes)}
        for path, number in reader.make_dataset(top, numbers, IMAGES, allow_empty=True) if classes else ():
            if name := names.get(Path(path)):
                groups[name.subject].add(classes[number])
    joined = {subject: "+".join(sorted(of)) for subject, of in groups.items()}
    return joined if len(set(joined.values())) > 1 else None


def _items(root: Path, split: str, files: list[Path], names: dict[Path, Name]) -> list[Item]:
    heads = defaultdict(list)
    for file in files:
        heads[natural(names[file].subject), natural(names[file].session)].append(file)
    items = []
    for key in sorted(heads):
        mine = sorted(heads[key], key=lambda f: (names[f].slice_index, natural(f.name)))
        first, paths = names[mine[0]], tuple(str(f.relative_to(root)) for f in mine)
        items.append(Item(split, first.subject, paths, tuple(names[f].slice_index for f in mine), first.session))
    return items


def read_images(root: Path, size: int, masks: dict[str, str], with_tissue: frozenset[str], item: Item) -> Slices:
    """One session's slices at size x size; a slice that can't be read is left out with its reason."""
    found, kept, bad, tissue = [], [], [], []
    for k, name in enumerate(item.files):
        try:
            with Image.open(root / name) as image:
                values = np.asarray(image if image.mode[0] in "IFL" and image.mode != "LA" else image.convert("L"))
            values = np.nan_to_num(values, posinf=0, neginf=0)
            if not values.any():
                raise CohortError(f"{root / name}: is all black; remove it")
            if item.split in with_tissue:
                tissue.append(centred(_tissue(Path(masks[name]), values.shape), size))
            found.append(values)
            kept.append(k)
        except CohortError as error:
            bad.append(str(error))
        except DAMAGED as error:
            bad.append(unreadable(root / name, error))
    if any(values.dtype != np.uint8 for values in found):  # deeper than 8 bits: one window for all slices of a session
        above = np.concatenate([v[v > 0].ravel() for v in found])
        high = float(np.percentile(above, 99.8)) if len(above) else 1.0
        found = [np.clip(v * (255 / high) + 0.5, 0, 255).astype(np.uint8) for v in found]
    images = np.array([centred(v, size) for v in found], np.uint8).reshape(-1, size, size)
    maps = np.array(tissue, np.uint8).reshape(images.shape) if item.split in with_tissue else None
    cut = max((cut_share(v > 30, size) for v in found if max(v.shape) > size), default=0.0)
    notes = [f"{size} pixels cut heads; a size of {max(found[0].shape)} keeps them whole"] if cut > 0.01 else []
    return Slices(images, kept, maps, left_out=bad, notes=notes)


def _tissue(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mask as 0 background, 1 CSF, 2 grey matter, 3 white matter; the course set writes 0, 85, 170, 255."""
    with Image.open(path) as image:
        values = np.asarray(image.convert("L"))
    if values.shape != shape:
        raise CohortError(f"{path}: this mask is {values.shape} where its image is {shape}; replace or remove it")
    present = set(np.unique(values).tolist())
    if present <= {0, 1, 2, 3}:
        return values
    if present <= {0, 85, 170, 255}:
        return values // 85
    has = examples(sorted(present), 6)
    raise CohortError(f"{path}: this mask has values {has}; only 0 to 3 or 0, 85, 170, 255 are understood")


def centred(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W) to (size, size): zero-padded or cropped about the centre, so a pixel keeps its size in mm."""
    out = np.zeros((size, size), image.dtype)
    both = [min(length, size) for length in image.shape]
    source = tuple(slice((n - b) // 2, (n - b) // 2 + b) for n, b in zip(image.shape, both))
    target = tuple(slice((size - b) // 2, (size - b) // 2 + b) for b in both)
    out[target] = image[source]
    return out


def cut_share(image: np.ndarray, size: int) -> float:
    """The share of the pixels above zero that `centred` cuts off."""
    total = np.count_nonzero(image)
    return 1 - np.count_nonzero(centred(image, size)) / total if total else 0.0
