"""Can a small network tell generated slices from real ones? Area under its ROC curve on held-out subjects, by scale.

AUC is the probability that a generated slice scores above a real one: 0.5 is chance, 1 is always detected.
Fine scales show texture, coarse scales anatomy. See Lopez-Paz & Oquab 2017 (classifier two-sample tests).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.evaluation.features import Samples
from oasis_lib.metrics import brain_mask

SCALES = (1, 2, 4, 8)
SIDE = 48  # pixels across a crop, at every scale
NOISE = 1.5  # standard deviation, of 255: hides rounding and flat regions on both sides alike
QUALITY = 90  # of the JPEG step that both sides pass


@dataclass(frozen=True, eq=False)
class Prepared:
    """Slices without cues that are no anatomy, cropped to a common box, one array a scale."""

    scales: dict[int, Tensor]  # scale -> (N, h, w) uint8, at least SIDE x SIDE
    inside: dict[int, Tensor]  # scale -> (N, P) 1 at crop positions with half as much brain as the fullest crop, else 0
    slice_indices: np.ndarray  # (N,)
    subjects: np.ndarray  # (N,)

    def at(self, scale: int, rows: np.ndarray | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Images and crop positions of one scale."""
        return self.scales[scale][rows], self.inside[scale][rows]


def without_cues(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, H, W) -> uint8: background zero, faint noise inside the brain, one JPEG step."""
    images = images if images.dtype == np.uint8 else (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
    rng, mask, done = np.random.default_rng(seed), brain_mask(images), np.empty_like(images)
    for row, (image, inside) in enumerate(zip(images, mask)):
        noisy = np.where(inside, image + rng.normal(0, NOISE, image.shape), 0)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        done[row] = np.where(inside, np.maximum(np.asarray(Image.open(file)), 1), 0)
    return done


def prepare(samples: Samples, box: tuple[slice, slice], scales: Sequence[int], device: str = "cpu") -> Prepared:
    """Scales are area averages of the cropped slices, rounded to 8 bits."""
    subjects = np.array([f"generated {row}" for row in range(len(samples.images))])
    subjects = subjects if samples.subjects is None else np.asarray(samples.subjects)
    clean = without_cues(np.asarray(samples.images))[:, box[0], box[1]]
    full, found, inside = torch.from_numpy(np.ascontiguousarray(clean)).to(device)[:, None], {}, {}
    for scale in scales:
        small = torch.cat([F.avg_pool2d(part.float(), scale).round().to(torch.uint8)[:, 0] for part in full.split(64)])
        down, across = (max(0, SIDE - side) for side in small.shape[1:])
        found[scale] = F.pad(small, [across // 2, across - across // 2, down // 2, down - down // 2])
        share = F.avg_pool2d((found[scale] > 0).float()[:, None], SIDE, _stride(found[scale])).flatten(1)
        inside[scale] = (share >= 0.5 * share.amax(1, keepdim=True)).float()
    return Prepared(found, inside, np.asarray(samples.slice_indices), subjects)


def _stride(images: Tensor) -> int:
    return max(1, (min(images.shape[1:]) - SIDE) // 8)


def crops_of(images: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """(B, 1, SIDE, SIDE) in [0, 1]: the crop of image `rows[i]` at position `places[i]`."""
    views = images.unfold(1, SIDE, _stride(images)).unfold(2, SIDE, _stride(images))  # (N, down, across, SIDE, SIDE)
    return (views[rows, places // views.shape[2], places % views.shape[2]].float() / 255)[:, None]


@dataclass(frozen=True)
class Recipe:
    """How detectors are trained and tested: the same for every set."""

    steps: int = 200
    batch: int = 32  # half real, half generated
    lr: float = 2e-3
    solved: float = 0.03  # training loss (nats) at which it stops
    crops: int = 4  # of a slice, averaged
    folds: int = 3  # of the generated side; every network has its own seed
    sure: float = 0.99  # AUC of the first network that no other is asked to confirm
    most: int = 1024  # slices of a set
    draws: int = 1000  # of the bootstrap over subjects
    seed: int = 0


class Detector(nn.Module):
    """Four strided convolutions and an average: (B, 1, SIDE, SIDE) in [0, 1] -> (B,) logits, positive for generated.

    A second channel holds what a 3 x 3 mean removes, amplified: without it, short trainings miss a decoder's texture.
    Normalisation is over the batch, since one over the crop would hide contrast.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 2
        for outputs, kernel, stride in ((width, 5, 2), (2 * width, 3, 2), (4 * width, 3, 2), (4 * width, 3, 1)):
            layers += [nn.Conv2d(channels, outputs, kernel, stride, kernel // 2), nn.BatchNorm2d(outputs)]
            layers += [nn.LeakyReLU(0.1)]
            channels = outputs
        self.body, self.out = nn.Sequential(*layers), nn.Linear(channels, 1)

    def forward(self, crops: Tensor) -> Tensor:
        wide = F.pad(crops, (1, 1, 1, 1), mode="replicate")
        wide = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]  # avg_pool2d takes eight times as long on a CPU
        fine = crops - (wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]) / 9
        seen = torch.cat([(crops - 0.35) / 0.3, fine / 0.05], 1)
        return self.out(self.body(seen).mean((2, 3)))[:, 0]


def new_detector(seed: int) -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector()


def train(net: nn.Module, sides: Sequence[tuple[Tensor, Tensor]], seed: int, recipe: Recipe) -> nn.Module:
    """A detector of real (first) from generated (second) images with their crop positions. Both are augmented alike.

    Random numbers come from a generator of its own: detectors train in threads, and a seed gives the same one.
    """
    device, generator = sides[0][0].device, torch.Generator().manual_seed(seed)
    net = net.to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=max(recipe.steps, 2))
    half = recipe.batch // 2
    truth = torch.arange(2, device=device).repeat_interleave(half).float()
    sides, running = [(images, inside.cpu()) for images, inside in sides], 1.0
    for _ in range(recipe.steps):
        batch = []
        for images, weight in sides:
            rows = torch.randint(len(images), (half,), generator=generator)
            places = torch.multinomial(weight[rows], 1, generator=generator)[:, 0]
            batch.append(crops_of(images, rows.to(device), places.to(device)))
        x = torch.cat(batch)
        gain = 0.9 + 0.2 * torch.rand(len(x), 1, 1, 1, generator=generator)
        mirror = (torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5).to(device)
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        x = torch.roll(torch.where(mirror, x.flip(3), x), shift, (2, 3)) * gain.to(device)
        loss = F.binary_cross_entropy_with_logits(net(x), truth)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        running = 0.9 * running + 0.1 * loss.item()
        if running < recipe.solved:
            break
    return net.eval()


@torch.no_grad()
def crop_scores(net: nn.Module, images: Tensor, inside: Tensor, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and positions (N, crops) of crops spread evenly over the positions inside the brain."""
    logits, positions = [], []
    for part, weight in zip(images.split(64), inside.split(64)):
        order, rows = weight.argsort(dim=1, descending=True, stable=True), torch.arange(len(part)).to(part.device)
        count = min(crops, weight.shape[1])
        picks = [((number + 0.5) / count * weight.sum(1)).long() for number in range(count)]
        places = [order.gather(1, pick[:, None])[:, 0] for pick in picks]
        logits.append(torch.stack([net(crops_of(part, rows, place)) for place in places], 1).float().cpu())
        positions.append(torch.stack(places, 1).cpu())
    return torch.cat(logits).numpy(), torch.cat(positions).numpy()


def roc_area(real: np.ndarray, generated: np.ndarray, real_weight: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """AUC of scores with weights (draws, n) on each side: (draws,). Ties count half."""
    below = (real[:, None] < generated[None]) + 0.5 * (real[:, None] == generated[None])
    with np.errstate(invalid="ignore"):  # a draw that left one side empty has no area
        return ((real_weight @ below) * weight).sum(1) / (real_weight.sum(1) * weight.sum(1))


def folds_of(slice_indices: np.ndarray, subjects: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold of each row, whole subjects together, slice indices spread evenly."""
    names, first, which = np.unique(subjects, return_index=True, return_inverse=True)
    order = np.lexsort((rng.random(len(names)), slice_indices[first]))
    fold = np.empty(len(names), int)
    fold[order] = np.arange(len(names)) % folds
    return fold[which]


@dataclass(frozen=True)
class Result:
    """One set at one scale. Scores are mean logits of held-out slices, higher where they look generated."""

    auc: float
    low: float  # 95 % interval: subjects of both sides resampled, networks resampled
    high: float
    accuracy: float  # balanced, at the network's own threshold


def detectability(
    fit: Prepared, real: Prepared, sets: Mapping[str, Prepared], recipe: Recipe, progress: Callable = lambda count: None
) -> dict[str, dict[int, Result]]:
    """Set -> scale -> how well it is told from `real`.

    Detectors learn on `fit` and two of three folds of a set. They are tested on the third fold and on `real`, whose
    subjects must not be in `fit`. Nor are subjects of a set on both sides. Where the first network finds all,
    no other is trained.
    """
    folds = {name: _folds(fit, real, generated, recipe) for name, generated in sets.items()}
    tested: dict[tuple[str, int], list] = {(name, scale): [] for name in sets for scale in real.scales}

    def work(job: tuple[str, int, int, Detector]) -> tuple[np.ndarray, np.ndarray]:
        name, scale, number, net = job
        generated, held, seed = sets[name], folds[name] == number, recipe.seed * 1000 + number
        net, ours = train(net, (fit.at(scale), generated.at(scale, ~held)), seed, recipe), np.full(len(held), np.nan)
        ours[held] = crop_scores(net, *generated.at(scale, held), recipe.crops)[0].mean(1)
        theirs = crop_scores(net, *real.at(scale), recipe.crops)[0].mean(1)
        progress(1)
        return theirs, ours

    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for numbers in (range(1), range(1, recipe.folds)):
            found = {key: _result(scores, real, sets[key[0]], recipe) for key, scores in tested.items() if scores}
            unsure = [key for key in tested if key not in found or found[key].auc < recipe.sure]
            progress(len(numbers) * (len(tested) - len(unsure)))
            jobs = [(*key, number) for key in unsure for number in numbers if number <= folds[key[0]].max()]
            jobs = [(*job, new_detector(recipe.seed * 1000 + job[2])) for job in jobs]
            for job, scores in zip(jobs, pool.map(work, jobs)):
                tested[job[:2]].append(scores)
    return {n: {s: _result(tested[n, s], real, sets[n], recipe) for s in real.scales} for n in sets}


def _folds(fit: Prepared, real: Prepared, generated: Prepared, recipe: Recipe) -> np.ndarray:
    """The fold of each generated slice."""
    if shared := set(fit.subjects) & (set(real.subjects) | set(generated.subjects)):
        raise ValueError(f"{len(shared)} training subjects are tested as well, such as {sorted(shared)[0]!r}")
    if (folds := min(recipe.folds, len(np.unique(generated.subjects)))) < 2:
        raise ValueError("detectability needs generated slices of at least two subjects")
    return folds_of(generated.slice_indices, generated.subjects, folds, np.random.default_rng([recipe.seed, 0]))


def _result(tested: list, real: Prepared, generated: Prepared, recipe: Recipe) -> Result:
    rng, areas, rights = np.random.default_rng(recipe.seed), [], []
    weights = [_resampled(side.subjects, recipe.draws, rng) for side in (real, generated)]
    for theirs, ours in tested:
        held = np.isfinite(ours)
        areas.append(roc_area(theirs, ours[held], weights[0], weights[1][:, held]))
        rights.append(((theirs < 0).mean() + (ours[held] > 0).mean()) / 2)
    areas = np.stack(areas)  # (networks, 1 + draws); the first draw is the set itself
    picks = rng.integers(len(areas), size=(recipe.draws, len(areas)))
    low, high = np.nanquantile(np.take_along_axis(areas[:, 1:].T, picks, 1).mean(1), [0.025, 0.975])
    return Result(float(areas[:, 0].mean()), float(low), float(high), float(np.mean(rights)))


def _resampled(subjects: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + draws, n) weights of rows: all once, then subjects drawn with replacement."""
    names, which = np.unique(subjects, return_inverse=True)
    picks = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.concatenate([np.ones((1, len(subjects))), picks[:, which]]).astype(np.float32)
