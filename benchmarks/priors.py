"""Every prior on the same codes for the same minutes, the earlier recipes among them: bits of subjects never seen, and placement.

python benchmarks/priors.py --minutes 6 --batch 16 --cohort data/oasis1-256 --vqvae runs/oasis1-8x8/vqvae
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from baselines import PIXELCNNS
from common import cohort_of, limited, options, report
from dcgan import TRAINING as DCGAN
from dcgan import DCGANConfig

from oasis_lib import sampling
from oasis_lib.cohort import Cohort
from oasis_lib.config import (
    ADVERSARIAL,
    CodeGANConfig,
    EvaluationConfig,
    Part,
    PixelCNNConfig,
    TrainingConfig,
    TransformerConfig,
    profile,
)
from oasis_lib.evaluation import generation, likelihood
from oasis_lib.evaluation.evaluator import Evaluator
from oasis_lib.evaluation.features import Samples
from oasis_lib.evaluation.generation import compare
from oasis_lib.models import load
from oasis_lib.models.sampler import image_seeds
from oasis_lib.paths import user_path
from oasis_lib.run import Run
from oasis_lib.training import best_device, encode_cohort, train_prior, train_vqvae

OURS = TrainingConfig(lr=1.5e-3, weight_decay=0.05, validate_every=100)
GAN = TrainingConfig(**ADVERSARIAL)
ROWS = {
    "transformer": ("transformer", TransformerConfig(), OURS),
    "transformer, not counted by slice index": ("transformer", TransformerConfig(knots=0), OURS),
    "pixelcnn": ("pixelcnn", PixelCNNConfig(), OURS),
    "pixelcnn of seed 002": ("pixelcnn-002", PIXELCNNS["pixelcnn-002"].model, PIXELCNNS["pixelcnn-002"].training),
    "pixelcnn of seed 004": ("pixelcnn-004", PIXELCNNS["pixelcnn-004"].model, PIXELCNNS["pixelcnn-004"].training),
    "codegan": ("codegan", CodeGANConfig(), GAN),
    "dcgan, one-hot": ("dcgan", DCGANConfig(codes="one-hot"), DCGAN),
    "dcgan, latent": ("dcgan", DCGANConfig(codes="latent"), DCGAN),
    "dcgan, uniform bins": ("dcgan", DCGANConfig(codes="index", bins="uniform"), DCGAN),
    "dcgan, quantile bins": ("dcgan", DCGANConfig(codes="index", bins="quantile"), DCGAN),
    "dcgan, learned bins": ("dcgan", DCGANConfig(codes="index", bins="learned"), DCGAN),
}


def heads(priors: dict, vqvae: Path, cohort: Cohort, count: int, cache: Path, seed: int) -> pd.DataFrame:
    """Fréchet distance to test subjects over that of training subjects, and recall likewise."""
    evaluator = Evaluator(cohort, EvaluationConfig(), device=str(best_device()), cache=cache)
    slice_indices, model, sets = sampling.even_slice_indices(count, cohort.slice_indices), load(vqvae), {}
    for name, prior in priors.items():
        sets[name] = generation.as_samples(sampling.draw(prior, model, slice_indices, seed=seed))
        if of_latents(prior):
            sets[f"{name}, not snapped"] = unsnapped(prior, model, slice_indices, seed)
    table = compare(evaluator, sets)
    ratios = {"frechet": table["frechet_ratio"], "recall": table["recall"] / table["recall"].iloc[0]}
    return pd.DataFrame(ratios).iloc[1:]


def of_latents(prior: torch.nn.Module) -> bool:
    return prior.kind == "dcgan" and prior.config.codes == "latent"


@torch.no_grad()
def unsnapped(prior: torch.nn.Module, vqvae: torch.nn.Module, slice_indices: np.ndarray, seed: int) -> Samples:
    """What the decoder makes of a generator's vectors as they are, before they become the nearest entries."""
    codebook_size, generator = vqvae.to(prior.device).quantizer.codebook, torch.Generator().manual_seed(seed)
    seeds, labels = (
        image_seeds(len(slice_indices), generator, prior.device),
        prior.labels(len(slice_indices), torch.as_tensor(slice_indices)),
    )
    images = []
    for own, *label in zip(seeds.split(16), *(label.split(16) for label in labels)):
        looks = prior.generator(prior.noise(own), *label) * codebook_size.std() + codebook_size.mean(0)[:, None, None]
        images.append(vqvae.decode_latents(looks).mean(1).cpu())
    return Samples(torch.cat(images).numpy(), slice_indices)


def main() -> None:
    parser = options(__doc__.splitlines()[0], minutes=0.1)
    parser.add_argument(
        "--vqvae", default="", help="a trained VQ-VAE's folder; empty trains the laptop profile's for as many minutes"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--images", type=int, default=160, help="of each split that bits are told of, spread over everybody"
    )
    parser.add_argument(
        "--samples", type=int, default=128, help="drawn from each prior, to be held against test subjects"
    )
    parser.add_argument(
        "--gan-hidden", type=int, default=64, help="channels of the DCGANs' last layers; few make quicker steps"
    )
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="rows of the table")
    given = parser.parse_args()
    cohort = cohort_of(given)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vqvae = user_path(given.vqvae) if given.vqvae else folder / "vqvae"
        if not given.vqvae:
            train_vqvae(cohort, vqvae, limited(profile("laptop").vqvae, given), progress=False)
        codes, run = encode_cohort(vqvae, cohort), Run(folder, profile("laptop"), cohort.folder)
        priors, steps = {}, {}
        for name in given.only:
            kind, model, training = ROWS[name]
            if kind == "dcgan":
                model = dataclasses.replace(model, hidden=given.gan_hidden)
            print(f"training {name} ...", flush=True)
            part = limited(Part(model, dataclasses.replace(training, batch=given.batch)), given)
            history = train_prior(kind, cohort, vqvae, folder / name.replace(" ", "-"), part, progress=False)
            priors[name] = load(folder / name.replace(" ", "-")).to(best_device())
            steps[name] = history["step"].iloc[-1]
        images = likelihood.likelihoods(run, priors, codes, given.images)
        drawn = heads(priors, vqvae, cohort, given.samples, vqvae, given.seed)
        bits = likelihood.bits_table(images, codes["test"][0].size).pivot(index="prior", columns="split")
        placed = likelihood.costs(priors, codes["test"], cohort["test"].slice_indices).set_index("prior")
    table = placed[["misplaced", "histogram", "distinct", "seconds"]].rename(columns={"seconds": "seconds a map"})
    for split in ("validate", "test"):
        table[f"{split} bits"] = bits["bits"][split]
    table["test low"], table["test high"] = bits["low"]["test"], bits["high"]["test"]
    table = table.join(drawn, how="outer").join(bits["bits"][[]], how="outer")
    for name in ("frequencies", "frequencies by position"):
        for column, key in (("validate bits", "validate"), ("test bits", "test")):
            table.loc[name, column] = bits["bits"].loc[name, key]
    table["steps"] = pd.Series(steps)
    table["million weights"] = pd.Series(
        {name: sum(w.numel() for w in prior.parameters()) / 1e6 for name, prior in priors.items()}
    )
    report("priors", given, cohort, table.sort_values("test bits"))


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
