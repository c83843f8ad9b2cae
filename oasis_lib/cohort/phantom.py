"""Synthetic subjects who differ in shape, folding, ventricles, atrophy, contrast, bias field and noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy import ndimage

from oasis_lib.cohort.anatomy import grow_warp, on_lattice, smooth_noise, template
from oasis_lib.cohort.source import centred
from oasis_lib.cohort.store import SPLITS, CohortError, Item, Options, Plan, Slices
from oasis_lib.cohort.subjects import split_subjects

VERSION = 1  # of the generator: a cohort made by another version is another cohort
FINGERPRINT = f"phantom generator {VERSION}"
LEVELS = 32
HEIGHTS = -3.0 + 1.25 * np.arange(LEVELS)  # mm: from the midbrain to above the ventricles
FIELD = 256.0  # mm across an image, whatever its pixels
CENTRE = -18.0  # mm: the brain's middle, front to back
FLUID, WHITE = 0.54, 0.8  # whiteness below which it is fluid, above which white matter
LESION = 0.33  # brightness, between fluid and grey matter


@dataclass(frozen=True)
class Person:
    """A synthetic subject, as kept in participants.tsv."""

    subject: str
    age: float
    sex: str
    cdr: float
    atrophy: float  # 0 (none) to about 1
    ventricles: float  # mm that their walls stand further out than the template's
    widening: float  # of sulci, in whiteness


def draw_subjects(count: int, seed: int) -> list[Person]:
    """A study of ageing: a quarter with CDR 0.5 and a seventh with 1, who lost more tissue than age explains."""
    random = np.random.default_rng([seed, VERSION, 0])
    cdrs = np.repeat([1.0, 0.5, 0.0], np.diff([0, round(0.14 * count), round(0.4 * count), count]))
    subjects = []
    for i, cdr in enumerate(random.permutation(cdrs)):
        age = random.uniform(60, 92) if cdr else random.choice([random.uniform(20, 60), random.uniform(60, 90)])
        loss = {0.0: 0.0, 0.5: 0.2, 1.0: 0.42}[float(cdr)] + 0.5 * ((age - 20) / 70) ** 1.6
        atrophy = float(np.clip(loss + 0.06 * random.standard_normal(), 0, 1.1))
        sex = str(random.choice(["F", "M"]))
        ventricles = round(-2.0 + 13 * atrophy + 1.2 * random.standard_normal(), 3)
        widening = round(0.15 * atrophy + 0.015 * random.standard_normal(), 4)
        age, cdr, atrophy = round(age, 1), float(cdr), round(atrophy, 3)
        subjects.append(Person(f"sub-{i + 1:03d}", age, sex, cdr, atrophy, ventricles, widening))
    return subjects


def plan_phantom(how: Options) -> Plan:
    if how.subjects < 6:
        raise CohortError(f"subjects={how.subjects} is too few for three splits of a phantom; at least 6")
    drawn = draw_subjects(how.subjects, how.seed)
    table = pd.DataFrame([asdict(p) for p in drawn])
    chosen = split_subjects(table, how.seed, (0.15, 0.15))
    table.insert(1, "split", table["subject"].map(chosen))
    every = tuple(range(LEVELS))
    items = [Item(s, p.subject, ("phantom",), every) for s in SPLITS for p in drawn if chosen[p.subject] == s]
    test = [i.subject for i in items if i.split == "test"]
    if not 0 <= how.lesions <= len(test):
        raise CohortError(f"lesions={how.lesions} must be from 0 to {len(test)}, the subjects in test")
    items += [Item("lesion", s, ("phantom with a planted lesion",), every) for s in test[: how.lesions]]
    template()  # read before processes are forked: they share it
    return Plan(
        items=items,
        subjects=table,
        read=partial(render, {p.subject: (i, p) for i, p in enumerate(drawn)}, how.size, how.seed),
        info={
            "synthetic": True,
            "intensity": "simulated T1 weighting; 0 outside the brain",
            "licence": "synthetic; grown from the MNI152 templates that nilearn carries",
            "mm": FIELD / how.size,
            "left_right": "columns",
        },
        summary=[f"{how.subjects} SYNTHETIC subjects, {LEVELS} slices each"],
        parallel=True,
    )


def render(subjects: dict[str, tuple[int, Person]], size: int, seed: int, item: Item) -> Slices:
    """All slices of one subject. Every effect has its own random stream, so that a lesion changes nothing else."""
    index, subject = subjects[item.subject]
    streams = [np.random.default_rng([seed, VERSION, 1 + index, k]) for k in range(5)]
    fine = 2 if size <= 128 else 1  # small pixels are means over finer ones, as a scanner's are
    points, shape, small = _points(size, fine)
    warped, inside, near = _warp(streams[0], subject, points)
    brain = _tissues(streams[1], subject, warped)
    lesion = _lesion(streams[4], brain, points, inside, near) if item.split == "lesion" else None
    signal = _signal(streams[2], subject, brain, points[:, inside], lesion)

    def image(values: np.ndarray) -> np.ndarray:
        out = np.zeros(inside.shape, np.float32)
        out[inside] = values
        return out.reshape(LEVELS, *shape).reshape(LEVELS, small[0], fine, small[1], fine).mean((2, 4))

    share = image(np.ones(np.count_nonzero(inside)))
    parts = np.stack([image(brain[name]) for name in ("fluid", "grey", "white")])
    tissue = np.where(share < 0.5, 0, 1 + parts.argmax(0)).astype(np.uint8)
    values = _scanned(streams[3], image(signal)) * (tissue > 0)
    values = np.clip(255 * values + 0.5, 0, 255).astype(np.uint8)
    values[(tissue > 0) & (values == 0)] = 1  # so that 0 means background
    arrays = {"images": values, "tissue": tissue}
    if lesion is not None:
        arrays["lesion"] = ((image(lesion) > 0.5) & (tissue > 0)).astype(np.uint8)
    arrays = {k: np.stack([centred(slice_, size) for slice_ in v]) for k, v in arrays.items()}
    return Slices(kept=list(range(LEVELS)), **arrays)


def _points(size: int, fine: int) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Places in mm of the pixels that a brain can reach, (3, n), anterior first; shapes in fine and in final pixels."""
    pixel = FIELD / size
    small = tuple(min(size, size % 2 + 2 * int(np.ceil(mm / pixel / 2))) for mm in (208, 168))
    rows, columns = ((np.arange(n * fine) - (n * fine - 1) / 2) * pixel / fine for n in small)
    z, y, x = np.meshgrid(HEIGHTS, CENTRE - rows, columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), z.ravel()]), (len(rows), len(columns)), small


def _warp(random: np.random.Generator, subject: Person, points: np.ndarray) -> tuple[np.ndarray, ...]:
    """The places of the template at the points inside this brain, those points, and their depth."""
    mni = template()
    turn = np.deg2rad(random.normal(0, [1.2, 0.7, 1.0]))
    size = 1 / (random.normal(1.0 if subject.sex == "M" else 0.965, 0.015) * random.normal(1, [0.02, 0.02, 0.02]))
    affine = _rotation(turn) * size
    middle = np.array([0.0, CENTRE, 10.0])[:, None]
    pull = subject.ventricles * mni.towards_ventricles
    displacement, _ = grow_warp(random, {34.0: 4.0, 14.0: 3.0, 7.0: 2.8}, pull)
    moved = points + np.stack([on_lattice(d, points) for d in displacement])
    moved = affine @ (moved - middle) + middle + random.normal(0, [[0.5], [1.0], [1.2]])
    depth = mni.sample(mni.depth, moved)
    inside = depth > random.uniform(-0.5, 1.0)
    return moved[:, inside], inside, depth[inside]


def _tissues(random: np.random.Generator, subject: Person, at: np.ndarray) -> dict[str, np.ndarray]:
    """Shares of CSF, grey and white matter: the template's, folded in this subject's way and thinned by atrophy."""
    mni = template()
    depth, lateral = mni.sample(mni.depth, at), mni.sample(mni.lateral, at)
    fold = smooth_noise(random, 4.5) - 0.7 * smooth_noise(random, 8.0)
    # Sampled with the depth compressed, the noise reaches inwards from the surface, as sulci do.
    middle = np.array([0.0, CENTRE, 5.0])[:, None]
    radius = np.linalg.norm((at - middle) / np.array([[66.0], [84.0], [70.0]]), axis=0) + 1e-3
    folds = on_lattice(fold, middle + (at - middle) * radius**-0.6)
    cortex = np.clip((34 - depth) / 16, 0, 1) * np.clip((lateral - 6) / 8, 0, 1)
    change = cortex * (random.uniform(0.07, 0.11) * np.maximum(folds, -1.3) - subject.widening)
    below = depth - 0.4 - 20 * max(subject.widening, 0)  # mm below the cortex; CSF fills what a shrunken brain leaves
    rim = 0.4 * np.clip(-below, 0, 1)
    crown = 0.66 + 0.1 * np.clip(below - 1.8, 0, None)  # a gyrus is grey on its crown too
    values = np.minimum(mni.sample(mni.tissue, at) + change, crown) - rim
    seen = mni.sample(mni.whiteness, at) + change - rim
    not_fluid = _step(values, FLUID, 0.035)
    white = not_fluid * _step(values, WHITE, 0.035)
    shares = {"white": white, "grey": not_fluid - white, "fluid": 1 - not_fluid}
    return shares | {"seen": seen, "lateral": lateral, "depth": depth}


def _signal(random, subject: Person, brain: dict, points: np.ndarray, lesion: np.ndarray | None) -> np.ndarray:
    """T1 brightness with this subject's contrast, bias field and the paler white matter of age."""
    fluid, grey, white = random.uniform(0.07, 0.14), random.uniform(0.5, 0.58), random.uniform(0.8, 0.86)
    signal = fluid * brain["fluid"] + grey * brain["grey"] + white * brain["white"]
    deep = np.clip((brain["depth"] - 24) / 10, 0, 1) * (1 - brain["fluid"])
    shade = grey + (white - grey) * np.clip((brain["seen"] - 0.64) / 0.23, -0.3, 1.1)
    signal += 0.6 * deep * (shade - signal)  # thalamus and pallidum lie between grey and white
    patches = on_lattice(smooth_noise(random, 6.0), points)
    caps = np.clip(1 - brain["lateral"] / (4 + 10 * subject.atrophy), 0, 1) * np.clip(0.6 * patches + 0.6, 0, 1.5)
    signal -= 0.45 * subject.atrophy * caps * brain["white"]
    signal *= 1 + 0.015 * patches
    if lesion is not None:
        signal += lesion * (LESION - signal)
    bias = 0.05 * on_lattice(smooth_noise(random, 30.0), points)
    return signal * np.exp(bias) * random.uniform(0.88, 1.08)


def _scanned(random: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Rician noise, as magnitudes of a noisy complex signal have, seen through the blur of a scanner."""
    sigma = random.uniform(0.015, 0.035)
    real, imaginary = random.standard_normal((2, *images.shape), dtype=np.float32)
    return ndimage.gaussian_filter(np.hypot(images + sigma * real, sigma * imaginary), (0, 0.45, 0.45))


def _lesion(random, brain: dict, points: np.ndarray, inside: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """A dark, ragged spot of 7 to 14 mm radius, somewhere in the tissue well below the surface."""
    mine = points[:, inside]
    fit = np.flatnonzero((depth > 10) & (brain["lateral"] > 8) & (brain["white"] > 0.5) & (np.abs(mine[2] - 15) < 14))
    centre = mine[:, random.choice(fit)][:, None]
    radius = random.uniform(7, 14)
    distance = np.linalg.norm(mine - centre, axis=0)
    ragged = distance - radius * (1 + 0.25 * on_lattice(smooth_noise(random, 5.0), mine))
    return _step(-ragged, 0, 0.5) * (distance < 2 * radius)


def _step(values: np.ndarray, at: float, softness: float) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh((values - at) / (2 * softness))


def _rotation(angles: np.ndarray) -> np.ndarray:
    c, s = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    about_y = np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
    about_z = np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    return about_x @ about_y @ about_z
