"""Which measures rank sets as detectability does: their Spearman correlation with the mean AUC over reference sets.

python benchmarks/measures.py --subjects 30 --steps 60
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from common import keep
from scipy.stats import spearmanr

from oasis_lib import config, sampling
from oasis_lib.cohort import open_cohort, prepare
from oasis_lib.evaluation import generation
from oasis_lib.evaluation.detectability import Recipe
from oasis_lib.evaluation.evaluator import Evaluator
from oasis_lib.evaluation.features import Samples
from oasis_lib.evaluation.generation import UNDETECTED, compare
from oasis_lib.evaluation.instrument import Instrument
from oasis_lib.models import load
from oasis_lib.training import encode_cohort, train_prior, train_vqvae

SETTINGS = ["vqvae.epochs=16", "vqvae.codebook_size=128", "transformer.width=64", "evaluation.feature_steps=150"]


def trained(root: Path, cohort, epochs: Sequence[int]) -> dict[str, Samples]:
    """Samples of transformers after so many epochs, of one VQ-VAE."""
    train_vqvae(cohort, root / "vqvae", config.profile("smoke", SETTINGS).vqvae, progress=False)
    encode_cohort(root / "vqvae", cohort)
    found, vqvae, wanted = {}, load(root / "vqvae"), sampling.even_slice_indices(192, cohort.slice_indices)
    for count in epochs:
        part = config.profile("smoke", [*SETTINGS, f"transformer.epochs={count}"]).transformer
        train_prior("transformer", cohort, root / "vqvae", root / f"transformer-{count}", part, progress=False)
        drawn = sampling.draw(load(root / f"transformer-{count}"), vqvae, wanted, seed=count)
        found[f"transformer, {count} epochs"] = generation.as_samples(drawn)
    return found


def spoiled(real: Samples, seed: int = 0) -> dict[str, Samples]:
    """Real slices under noise and under a faint grid, of two strengths each."""
    rng, found = np.random.default_rng(seed), {}
    lines = (np.indices(real.images.shape[1:]) % 4 == 0).any(0)
    for strength in (6, 15):
        for name, change in (("noise", rng.normal(0, strength, real.images.shape)), ("grid", strength * lines)):
            images = np.where(real.images > 0, real.images + change, 0).clip(0, 255).astype(np.uint8)
            found[f"{name} {strength}"] = replace(real, images=images)
    return found


def correlations(table: pd.DataFrame, auc: pd.Series) -> pd.DataFrame:
    """A row a measure: Spearman correlation with the mean AUC over the sets."""
    rows = {}
    for name in table.columns[~table.columns.str.contains("_low$|_high$|_ratio$|^slices$")]:
        values = pd.to_numeric(table.loc[auc.index, name], errors="coerce")
        known = values.notna()
        if known.sum() > 4 and values[known].nunique() > 1:
            rows[name] = {"spearman": spearmanr(values[known], auc[known]).statistic, "sets": int(known.sum())}
    return pd.DataFrame(rows).T.sort_values("spearman", key=np.abs, ascending=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    given, begun = parser.parse_args(), time.perf_counter()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        options = {"size": given.size, "subjects": given.subjects, "lesions": 2, "seed": given.seed}
        prepare("phantom", root / "cohort", progress=False, **options)
        cohort = open_cohort(root / "cohort")
        sets = trained(root, cohort, given.epochs)
        vqvae = load(root / "vqvae")
        evaluator = Evaluator(cohort, config.profile("smoke", SETTINGS).evaluation, cache=root, vqvae=vqvae)
        sets |= generation.references(evaluator)
        sets |= spoiled(Samples.of(cohort["train"], evaluator.baseline_rows[: len(sets["blur"].images)]))
        sets = {name: one for name, one in sets.items() if name not in UNDETECTED}
        table = compare(evaluator, sets)
        summary = Instrument(cohort, "test", Recipe(steps=given.steps)).compare(sets).summary()
    found = correlations(table, summary["mean"])
    minutes = (time.perf_counter() - begun) / 60
    print(f"SYNTHETIC data, {given.subjects} subjects at {given.size} x {given.size}; {minutes:.1f} min")
    print(summary.round(2).sort_values("mean").to_string() + "\n\n" + found.round(2).to_string())
    keep("measures", given, found)


if __name__ == "__main__":
    main()
