"""The phantom's anatomy: nilearn's MNI152 templates, sharpened, and smooth random warps that never fold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

LATTICE = 4.0  # mm between the points on which warps live
LOW, HIGH = np.array([-88.0, -124.0, -34.0]), np.array([88.0, 92.0, 66.0])  # mm, the box they cover (x, y, z)
SHAPE = tuple(int(n) for n in (HIGH - LOW) / LATTICE + 1)
# (3, *SHAPE), in mm
POINTS = np.stack(np.meshgrid(*(a + LATTICE * np.arange(n) for a, n in zip(LOW, SHAPE)), indexing="ij"))


@dataclass(frozen=True)
class Template:
    """Volumes on one 1 mm grid; `origin` is the place in mm of its first voxel."""

    origin: np.ndarray
    whiteness: np.ndarray  # T1, sharpened: CSF below 0.5, grey about 0.64, white about 0.87
    tissue: np.ndarray  # the same in the cortex; deep inside it follows the tissue probabilities
    depth: np.ndarray  # mm below the surface of the brain; negative outside
    lateral: np.ndarray  # mm from the ventricles
    towards_ventricles: np.ndarray  # (3, *SHAPE): unit-peak field that points to them

    def sample(self, volume: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Linear interpolation at points in mm, (3, n) -> (n,)."""
        return linear(volume, points - self.origin[:, None])


@lru_cache(maxsize=1)
def template() -> Template:
    """Read and derived once per process: some 5 seconds."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    loaders = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    t1, grey, white = (load(resolution=1) for load in loaders)
    origin = t1.affine[:3, 3]
    low, high = np.floor(LOW - 6 - origin).astype(int), np.ceil(HIGH + 6 - origin).astype(int)
    box = tuple(slice(max(0, a), b) for a, b in zip(low, high))
    t1, grey, white = (np.ascontiguousarray(v.get_fdata(dtype=np.float32)[box]) for v in (t1, grey, white))
    origin = origin + np.maximum(low, 0)
    in_plane = ndimage.generate_binary_structure(2, 1)[:, :, None]
    brain = ndimage.binary_fill_holes(t1 > 0.1, in_plane)
    depth = (ndimage.distance_transform_edt(brain) - ndimage.distance_transform_edt(~brain)).astype(np.float32)
    # A template is an average, hence blurred; a high-pass (within the brain's edge) gives sulci and gyri back.
    share = np.maximum(ndimage.gaussian_filter(brain.astype(np.float32), 2.5), 1e-3)
    sharp = t1 + 1.5 * (t1 - ndimage.gaussian_filter(t1 * brain, 2.5) / share)
    deep = np.clip((depth - 24) / 10, 0, 1) * np.clip((t1 - 0.55) / 0.08, 0, 1)
    tissue = (1 - deep) * sharp + deep * (0.79 + 0.25 * (white - grey))
    x = np.abs(origin[0] + np.arange(t1.shape[0]))[:, None, None]
    ventricles = ndimage.binary_opening((t1 < 0.55) & (depth > 22) & (x < 34))
    lateral = ndimage.distance_transform_edt(~ventricles).astype(np.float32)
    pull = np.stack(np.gradient(ndimage.gaussian_filter(ventricles.astype(np.float32), 6.0)))
    pull = np.stack([linear(p, POINTS.reshape(3, -1) - origin[:, None]) for p in pull]).reshape(3, *SHAPE)
    return Template(origin, sharp, tissue, depth, lateral, pull / np.linalg.norm(pull, axis=0).max())


def on_lattice(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A lattice field at points in mm, linearly."""
    return linear(field, (points - LOW[:, None]) / LATTICE)


def linear(field: np.ndarray, at: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(field, at, order=1, mode="nearest", output=np.float32)


def smooth_noise(random: np.random.Generator, scale: float) -> np.ndarray:
    """Gaussian noise on the lattice, smooth over `scale` mm, unit variance."""
    sigma = scale / LATTICE
    pad = int(np.ceil(2 * sigma))
    noise = ndimage.gaussian_filter(random.standard_normal([n + 2 * pad for n in SHAPE]), sigma, mode="wrap")
    noise = noise[tuple(slice(pad, pad + n) for n in SHAPE)]
    return noise / noise.std()


def grow_warp(random: np.random.Generator, scales: dict[float, float], extra: np.ndarray) -> tuple[np.ndarray, float]:
    """A displacement (3, *SHAPE) in mm and the smallest Jacobian determinant of its map.

    Velocities at several scales ({smoothness: peak} in mm) plus `extra` are integrated to a diffeomorphism. Fine scales
    fade to the surface. Where the discrete map still comes near folding, all are weakened.
    """
    mni = template()
    depth = mni.sample(mni.depth, POINTS.reshape(3, -1)).reshape(SHAPE)
    inner = np.clip((depth + 4) / 16, 0.25, 1)
    straight = np.stack([np.clip(abs(POINTS[0]) / 24, 0.2, 1), np.ones_like(depth), np.ones_like(depth)])  # the midline
    velocity = sum(
        peak / 2 * np.stack([smooth_noise(random, scale) for _ in range(3)]) * (inner if scale < 20 else 1) * straight
        for scale, peak in scales.items()
    )
    for gentler in (1.0, 0.7, 0.5, 0.3, 0.1):
        displacement = integrate(gentler * (velocity + extra))
        smallest = float(jacobian(displacement).min())
        if smallest > 0.05:
            return displacement, smallest
    raise ValueError(f"a warp folds (Jacobian {smallest:.2f}) at a tenth of its strength; lower its scales {scales}")


def integrate(velocity: np.ndarray, steps: int = 5) -> np.ndarray:
    """exp(velocity) by scaling and squaring: half a step composed with itself is a whole one."""
    displacement = velocity / 2**steps
    grid = np.indices(velocity.shape[1:]).astype(float)
    for _ in range(steps):
        at = grid + displacement / LATTICE
        moved = [ndimage.map_coordinates(d, at, order=1, mode="nearest") for d in displacement]
        displacement = displacement + np.stack(moved)
    return displacement


def jacobian(displacement: np.ndarray) -> np.ndarray:
    """Determinant of the Jacobian of x -> x + displacement(x) at every lattice point: positive where nothing folds."""
    gradient = np.stack([np.stack(np.gradient(d, LATTICE)) for d in displacement])  # (3, 3, *SHAPE)
    return np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3))
