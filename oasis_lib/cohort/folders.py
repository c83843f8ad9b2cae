"""Folders of slice images: the course set, split folders, class folders, or all of this without a person in any name."""

from __future__ import annotations

import hashlib
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

from oasis_lib.cohort.people import assign_splits, describe_splits, natural
from oasis_lib.cohort.plan import CohortError, Item, Plan, Slices, centred, cut_share, examples, refuse
from oasis_lib.cohort.store import SPLITS

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validate", "valid": "validate", "validate": "validate"} | {
    "validation": "validate", "dev": "validate", "test": "test", "testing": "test"}  # fmt: skip
SEGMENTATION = {0: 0, 85: 1, 170: 2, 255: 3}  # the course set's greys: background, CSF, grey matter, white matter

PERSON = re.compile(r"(sub-[A-Za-z0-9]+|(?:case|seg)_\d+|OAS[12]_\d{4}|OAS3\d{4})")
SESSION = re.compile(r"(ses-[A-Za-z0-9]+|(?<=_)MR\d+|(?<=_)d\d{4}(?=\D))")
LEVEL = re.compile(r"(?:slice|level|z)[-_]?(\d+)|[-_](\d+)$")
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)  # as Pillow tells it
NUMBERS = re.compile(r"(\d+)_(\d+)$")  # person and slice as bare numbers


@dataclass(frozen=True)
class Name:
    """What a file's path says of it. `level` as written: whether it counts from 0 or 1 is told by all of them together."""

    subject: str
    session: str
    level: int


def plan_folder(root, files, sheet, *, size: int, seed: int, fractions, skip_bad: bool) -> Plan:
    """Look at every name and every image header; read no pixels yet."""
    masks = {f for f in files if _is_mask(root, f)}
    found = by_split(root, [f for f in files if f not in masks], "images")
    heads, left_out = _headers(root, [f for fs in found.values() for f in fs], skip_bad)
    names, warnings, misnamed = _names(root, list(heads), skip_bad)
    found = {split: [f for f in fs if f in names] for split, fs in found.items()}
    subjects = {f: name.subject for f, name in names.items()}
    people, splits, made = assign_splits(root, found, subjects, sheet, seed, fractions, _groups(root, found, names))
    modes = Counter(heads[f][1] for f in names)
    if modes["colour"]:
        warnings.append(f"{modes['colour']:,} colour images are turned grey (luminance)")
    items = [item for split in SPLITS for item in _items(root, split, splits[split], names)]
    mask_of, tissue = _masks(root, masks, splits)
    if mask_of and tissue != SPLITS:
        warnings.append(f"tissue masks are used in {', '.join(tissue) or 'no split'} only: other slices have none")
    levels = 1 + max(level for item in items for level in item.levels)
    width, height = next(iter(heads.values()))[0]
    deep = "windowed by person from 0 to the 99.8th percentile of what is above 0 (16-bit images)"
    return Plan(
        items=items,
        people=people,
        read=partial(read_images, root, size, mask_of, frozenset(tissue)),
        info={
            "synthetic": False,
            "source": str(root),
            "intensity": deep if modes["deep"] else "8-bit values as they are",
            "mm": None,
            "licence": LICENCE,
        },
        summary=[
            f"{len(names):,} images of {width} x {height} pixels in {root}",
            f"split ({made}): {describe_splits(people, splits)}",
            f"{levels} levels a head" if levels else "no levels in the names",
            *([f"tissue masks for {', '.join(tissue)}"] if tissue else []),
        ],
        fingerprint=fingerprint(root, files),
        tissue=tissue,
        warnings=warnings + _cut_warning(root / items[0].files[len(items[0].files) // 2], size),
        left_out=left_out + misnamed,
    )


def is_image(file: Path) -> bool:
    return file.name.lower().endswith(IMAGES)


LICENCE = "the source's own terms hold; keep these images where its agreement allows"


def fingerprint(root: Path, files: list[Path]) -> str:
    """Names and sizes of the files: enough to see that a source changed since."""
    text = "\n".join(f"{os.path.relpath(f, root)} {f.stat().st_size if f.exists() else 0}" for f in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_of(folder: str) -> str:
    """The split that a folder is named after, or "": train, val, testing, keras_png_slices_validate ..."""
    return SPLIT_NAMES.get(folder.lower().removeprefix("keras_png_slices_").removeprefix("seg_"), "")


def by_split(root: Path, files: list[Path], what: str) -> dict[str, list[Path]]:
    """Files under their split; "" holds them all where no folder is named after a split."""
    splits = defaultdict(list)
    for file in files:
        splits[next(filter(None, map(split_of, file.relative_to(root).parts[:-1])), "")].append(file)
    folders = {split_of(p.name): p for p in root.glob("**/") if p != root and split_of(p.name) and not _is_mask(root, p / "")}
    if not folders:
        return {"": splits[""]}
    for name in SPLITS:
        if name not in folders:
            has = " and ".join(sorted(folders))
            raise CohortError(
                f"{root}: has {has} but no {name} folder; add one with people of its own, or put all {what} into one folder to have"
                " them split by person"
            )
        if not splits[name]:
            raise CohortError(
                f"{folders[name]}: holds no {what}; fill it, or take the split folders away to have the split made by person"
            )
    return {name: splits[name] for name in SPLITS}


def _is_mask(root: Path, file: Path) -> bool:
    """The course set keeps tissue masks in folders keras_png_slices_seg_*."""
    return any(part.lower().removeprefix("keras_png_slices_").startswith("seg_") for part in file.relative_to(root).parts[:-1])


def _masks(root: Path, masks: set[Path], splits: dict[str, list[Path]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The mask of every image that has one, and the splits in which all have."""
    by_name = {}
    for mask in masks:
        split = next(filter(None, map(split_of, mask.relative_to(root).parts[:-1])), "")
        by_name[split, re.sub(r"^seg_", "case_", mask.name)] = str(mask)
    found = {s: {str(f.relative_to(root)): by_name.get((s, f.name), "") for f in files} for s, files in splits.items()}
    return {f: m for of in found.values() for f, m in of.items() if m}, tuple(s for s in SPLITS if all(found[s].values()))


def _headers(root: Path, files: list[Path], skip_bad: bool) -> tuple[dict[Path, tuple], list[str]]:
    """Size and kind of every image. One of another size than most, or that is no image, is bad."""
    heads, bad = {}, []
    for file in files:
        try:
            with Image.open(file) as image:
                deep = image.mode.startswith("I") or image.mode == "F"
                heads[file] = (image.size, "deep" if deep else "grey" if image.mode in ("L", "1") else "colour")
        except DAMAGED as error:
            bad.append(unreadable(file, error))
    sizes = Counter(size for size, _ in heads.values())
    if sizes:
        usual = sizes.most_common(1)[0][0]
        for file in [f for f, (size, _) in heads.items() if size != usual]:
            size = heads.pop(file)[0]
            bad.append(
                f"{file}: is {size[0]} x {size[1]} pixels where most images are {usual[0]} x {usual[1]}; bring all to one size"
            )
    refuse(bad, skip_bad)
    if not heads:
        raise CohortError(f"{root}: no image in it can be read; first: {bad[0]}")
    return heads, bad


def unreadable(file: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{file}: no permission to read it; ask its owner, or chmod u+r"
    if isinstance(error, UnidentifiedImageError):
        with open(file, "rb") as head:
            empty = not head.read(1)
        return f"{file}: {'is empty' if empty else 'is not an image, whatever its extension says'}; replace or remove it"
    return f"{file}: is damaged ({str(error).splitlines()[0]}); copy it again from its source or remove it"


def _names(root: Path, files: list[Path], skip_bad: bool) -> tuple[dict[Path, Name], list[str], list[str]]:
    """Person, session and level out of every path; without them each file stands for itself, and that is said."""
    found = {file: parse_name(file.relative_to(root)) for file in files}
    numbers = {file: NUMBERS.fullmatch(_stem(file)) for file in files}
    if not any(found.values()) and all(numbers.values()) and len({m[1] for m in numbers.values()}) * 2 <= len(files):
        found = {file: Name(m[1], "", int(m[2])) for file, m in numbers.items()}
    known = {file: name for file, name in found.items() if name}
    if len(known) >= 0.9 * len(files):
        odd = [
            f"{f}: its name tells no person where others do (sub-001_slice-01); rename or remove it" for f in files if not found[f]
        ]
        refuse(odd, skip_bad)
        if all(name.level >= 0 for name in known.values()):
            lowest = min(name.level for name in known.values())
            return {f: Name(n.subject, n.session, n.level - lowest) for f, n in known.items()}, [], odd
        return {f: Name(n.subject, n.session, -1) for f, n in known.items()}, ["the names tell no slice level: level is -1"], odd
    warning = (
        f"no person can be told from the names (such as {files[0].name}): each image counts as a person of its own, so slices"
        " of one head may stand in two splits (a leak that flatters every score); name files sub-001_slice-01.png, or give split"
        " folders by person"
    )
    return {f: Name(re.sub(r"[,\t\n\"]", "_", str(f.relative_to(root).with_suffix(""))), "", -1) for f in files}, [warning], []


def parse_name(path: Path) -> Name | None:
    """Name("sub-007", "", 5) out of sub-007_slice-05.jpg; None where the path names no person."""
    person = PERSON.search(str(path))
    if not person:
        return None
    session = SESSION.search(str(path), person.end())
    rest = _stem(path)
    rest = rest.replace(person[0], "", 1)
    level = LEVEL.search(rest)
    return Name(person[0], session[0] if session else "", int(level[1] or level[2]) if level else -1)


def _stem(path: Path) -> str:
    return re.sub(r"\.nii$", "", path.stem)  # case_001_slice_0.nii.png


def _groups(root: Path, found: dict[str, list[Path]], names: dict[Path, Name]) -> dict[str, str] | None:
    """Class folders as torchvision's ImageFolder reads them: the group of every subject, where there are several groups."""
    groups = defaultdict(set)
    for split, files in found.items():
        top = Path(os.path.commonpath([f.parent for f in files]))
        if split and top != root:  # a split of one class only: its folder, not that class
            top = next((p for p in (top, *top.parents) if split_of(p.name)), top)
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
        mine = sorted(heads[key], key=lambda f: (names[f].level, natural(f.name)))
        first = names[mine[0]]
        paths = tuple(str(f.relative_to(root)) for f in mine)
        items.append(Item(split, first.subject, paths, tuple(names[f].level for f in mine), first.session))
    return items


def read_images(root: Path, size: int, masks: dict[str, str], with_tissue: frozenset[str], item: Item) -> Slices:
    """One person's slices, sized; a slice that can't be read is left out with its reason."""
    found, kept, bad, tissue = [], [], [], []
    for k, name in enumerate(item.files):
        try:
            with Image.open(root / name) as image:
                values = np.asarray(image if image.mode[0] in "IFL" and image.mode != "LA" else image.convert("L"))
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
    if any(values.dtype != np.uint8 for values in found):
        found = _windowed(found)
    images = np.stack([centred(v, size) for v in found]) if found else np.zeros((0, size, size), np.uint8)
    maps = (np.stack(tissue) if tissue else np.zeros_like(images)) if item.split in with_tissue else None
    return Slices(images, kept, maps, left_out=bad)


def _windowed(slices: list[np.ndarray]) -> list[np.ndarray]:
    """Deeper than 8 bits: one window for all slices of a person."""
    values = np.concatenate([s[s > 0].ravel() for s in slices])
    high = float(np.percentile(values, 99.8)) if len(values) else 1.0
    return [np.clip(s * (255 / high) + 0.5, 0, 255).astype(np.uint8) for s in slices]


def _tissue(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(path) as image:
        values = np.asarray(image.convert("L"))
    if values.shape != shape:
        raise CohortError(f"{path}: this mask is {values.shape} where its image is {shape}; replace or remove it")
    present = set(np.unique(values).tolist())
    if present <= set(range(4)):
        return values
    if present <= set(SEGMENTATION):
        return values // 85
    raise CohortError(f"{path}: this mask has values {examples(sorted(present), 6)}; only 0 to 3 or 0, 85, 170, 255 are understood")


def _cut_warning(file: Path, size: int) -> list[str]:
    try:
        with Image.open(file) as image:
            share = cut_share(np.asarray(image.convert("L")) > 30, size)
    except DAMAGED:
        return []  # it is told when its turn comes
    return (
        [f"{size} pixels cut {share:.0%} off the head of {file.name}; a size of {max(image.size)} keeps all of it"]
        if share > 0.01
        else []
    )
