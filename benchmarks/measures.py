"""Which measures rank sets as detectability does: Spearman correlation of each with the mean AUC over all reference sets.

python benchmarks/measures.py --subjects 40 --size 64
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from common import keep
from scipy.stats import spearmanr

from oasis_lib import config, sampling
from oasis_lib.cohort import open_cohort, prepare
from oasis_lib.evaluation import samples
from oasis_lib.evaluation.detectability import Recipe
from oasis_lib.evaluation.evaluator import Evaluator, Samples
from oasis_lib.evaluation.generation import compare
from oasis_lib.evaluation.instrument import Instrument
from oasis_lib.models import load
from oasis_lib.training import encode_cohort, train_prior, train_vqvae

SETTINGS = ["vqvae.epochs=16", "vqvae.codebook_size=128", "transformer.width=64", "evaluation.feature_steps=150"]


def trained(root: Path, cohort, epochs: tuple[int, ...]) -> dict[str, Samples]:
    """Samples of transformers after so many epochs, of one VQ-VAE."""
    train_vqvae(cohort, root / "vqvae", config.profile("smoke", SETTINGS).vqvae, progress=False)
    encode_cohort(root / "vqvae", cohort)
    found, vqvae = {}, load(root / "vqvae")
    for count in epochs:
        part = config.profile("smoke", [*SETTINGS, f"transformer.epochs={count}"]).transformer
        train_prior("transformer", cohort, root / "vqvae", root / f"transformer-{count}", part, progress=False)
        drawn = sampling.draw(
            load(root / f"transformer-{count}"), vqvae, sampling.even_slice_indices(192, cohort.slice_indices), seed=count
        )
        found[f"transformer, {count} epochs"] = samples.as_samples(drawn)
    return found


def spoiled(real: Samples, seed: int = 0) -> dict[str, Samples]:
    """Real slices under noise and under a faint grid, of two strengths each."""
    rng, found, size = np.random.default_rng(seed), {}, real.images.shape[-1]
    lines = (np.arange(size) % 4 == 0)[:, None] | (np.arange(size) % 4 == 0)[None]
    for strength in (6, 15):
        noise = rng.normal(0, strength, real.images.shape)
        for name, change in (("noise", noise), ("grid", strength * lines)):
            images = np.where(real.images > 0, real.images + change, 0).clip(0, 255).astype(np.uint8)
            found[f"{name} {strength}"] = Samples(images, real.slice_indices, real.subjects)
    return found


def correlations(table: pd.DataFrame, auc: pd.Series) -> pd.DataFrame:
    """A row a measure: Spearman correlation with the mean AUC over the sets."""
    rows = {}
    for name in table.columns:
        values = pd.to_numeric(table.loc[auc.index, name], errors="coerce")
        known = values.notna()
        if known.sum() > 4 and values[known].nunique() > 1:
            rows[name] = {"spearman": spearmanr(values[known], auc[known]).statistic, "sets": int(known.sum())}
    return pd.DataFrame(rows).T.sort_values("spearman", key=np.abs, ascending=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    given, begun = parser.parse_args(), time.perf_counter()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        prepare("phantom", root / "cohort", size=given.size, subjects=given.subjects, lesions=2, seed=given.seed, progress=False)
        cohort = open_cohort(root / "cohort")
        sets = trained(root, cohort, tuple(given.epochs))
        vqvae = load(root / "vqvae")
        evaluator = Evaluator(cohort, config.profile("smoke", SETTINGS).evaluation, cache=root, vqvae=vqvae)
        sets |= samples.references(evaluator, vqvae)
        sets = {name: one for name, one in sets.items() if "black" not in name}
        real = next(one for name, one in sets.items() if name.startswith("blur"))
        rows = evaluator.baseline_rows[: len(real.images)]
        train = cohort["train"]
        sets |= spoiled(Samples(np.asarray(train.images[rows]), train.slice_indices[rows], train.subjects[rows]))
        table = compare(evaluator, sets)
        instrument = Instrument(cohort, split="test", recipe=Recipe(steps=given.steps))
        learned = set(instrument.fit.subjects)
        given_sets = {}
        for name, one in sets.items():
            subjects = np.array([f"{name} {row}" for row in range(len(one.images))]) if one.subjects is None else one.subjects
            rows = np.flatnonzero(~np.isin(subjects, list(learned)))
            given_sets[name] = one.images[rows], one.slice_indices[rows], subjects[rows]
        summary = instrument.compare(given_sets).summary()
        summary.index = [table.index[0], *summary.index[1:]]
    found = correlations(table, summary["mean"])
    shown = summary.round(2)
    print(f"SYNTHETIC data, {given.subjects} subjects at {given.size} x {given.size}; {(time.perf_counter() - begun) / 60:.1f} min")
    print(shown.sort_values("mean").to_string() + "\n\n" + found.round(2).to_string())
    keep("measures", given, found)


if __name__ == "__main__":
    main()
