"""The sub-commands: their options, and what each does with the library."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Given
from typing import Any

import click

from oasis_lib.check import choose_device
from oasis_lib.config import MODEL_CONFIGS, PRIORS, PROFILES, Part, TrainingConfig, from_dict, literal
from oasis_lib.config import profile as profile_of
from oasis_lib.kernel import StageFailed, execute
from oasis_lib.paths import user_path
from oasis_lib.storage import only_one, read_config, read_json

FOLDER = {"type": user_path, "metavar": "DIR"}
NEW = {"type": click.Path(path_type=Path, resolve_path=True), "metavar": "PATH"}
ON_SHEET = 64  # samples in the picture of `oasis sample`
CONTEXT = {"show_default": True, "token_normalize_func": lambda name: name.replace("_", "-"), "max_content_width": 100}


@click.group(context_settings=CONTEXT, epilog="`oasis COMMAND --help` has an example of each.")
def oasis() -> None:
    """A VQ-VAE study of brain MRI slices."""


def command(example: str) -> Callable:
    """A sub-command of the function's name and docstring; its options are attributes of one argument."""

    def register(work: Callable[[Given], None]) -> Callable:
        @oasis.command(work.__name__, epilog=f"\b\nexample:\n  {example}")
        @click.option("--device", type=click.Choice(("auto", "cpu", "cuda", "mps")), default="auto")
        @click.option("--quiet", is_flag=True, help="print results and errors only")
        @functools.wraps(work)
        def call(**values: Any) -> None:
            if values.get("overwrite"):
                os.environ["OASIS_OVERWRITE"] = "1"  # notebooks inherit it
            choose_device(values["device"])
            work(Given(**values))

        return call

    return register


def parameter(text: str) -> tuple[str, object]:
    """NAME=VALUE, the value as JSON where it is that."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--param {text!r} must look like name=value")
    return name, literal(value)


overwrite = click.option("--overwrite", is_flag=True, help="replace finished models of other settings or versions")
settings = click.option("--set", "settings", multiple=True, metavar="SECTION.NAME=VALUE", help="change a setting")


@command("oasis prepare ~/scans data/scans-256 --size 256")
@click.argument("source")
@click.argument("out", **NEW | {"metavar": "OUT"})
@click.option("--size", default=256, help="pixels a side")
@click.option("--mm", type=float, help="of volumes: the pixel in mm, instead of their own")
@click.option("--skip-bad", is_flag=True, help="leave out what can't be read, and list it")
@click.option("--seed", default=0, help="of the split, and of the phantom")
@click.option("--subjects", default=60, help="subjects of the phantom")
@click.option("--lesions", default=8, help="phantom subjects copied with a planted lesion")
def prepare(given: Given) -> None:
    """Make a cohort ready: split by subject, one array a split.

    SOURCE is `phantom`, or a folder or file of your own; OUT is the folder to make.
    """
    from oasis_lib.cohort import prepare as make

    options = {name: getattr(given, name) for name in ("size", "subjects", "lesions", "seed", "mm", "skip_bad")}
    cohort = make(given.source, given.out, progress=not given.quiet, **options)
    splits = cohort.splits.items()
    counts = ", ".join(f"{name} {len(split)} slices of {len(set(split.subjects))} subjects" for name, split in splits)
    known = cohort.slice_indices or "unknown"
    print(f"{given.out}: {cohort.size} x {cohort.size}, {known} slice indices, {counts}")
    for warning in cohort.info.get("warnings", []):
        print(f"note: {warning}")


@command("oasis study --profile laptop --run runs/latest --set vqvae.codebook_size=512")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="laptop", help="where settings start from")
@click.option("--cohort", default="phantom", help="phantom, a prepared cohort, or a folder of images or volumes")
@click.option("--run", default="runs/latest", **FOLDER, help="the run's folder")
@click.option("--runs", default=1, metavar="N", help="seeds 0 to N-1: mean, sd, and the best by validation")
@click.option("--from", "repeat", type=user_path, metavar="RUN.JSON", help="repeat that run; further settings on top")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="a parameter of notebooks")
@settings
@overwrite
@click.option("--epoch", type=int, help="epochs of the VQ-VAE, instead of a time limit")
@click.option("--batch", type=int, help="its batch size")
@click.option("--lr", type=float, help="its learning rate")
@click.option("--epoch-prior", type=int, help="epochs of every prior, instead of a time limit")
@click.option("--batch-prior", type=int, help="their batch size")
@click.option("--lr-prior", type=float, help="their learning rate")
@click.option("--k", type=int, help="codebook size")
@click.option("--d", type=int, help="dimension of a code")
def study(given: Given) -> None:
    """Run all notebooks in order; what is done already is kept.

    The last eight options are short forms of settings; without them a setting is the profile's own.
    """
    from oasis_lib.report import closing
    from oasis_lib.study import DRIVER, repeated

    cohort = given.cohort if given.cohort in ("", "phantom") else str(user_path(given.cohort))
    values = {"profile": given.profile, "cohort": cohort, "settings": [*given.settings, *short_forms(given)]}
    values["parameters"] = dict(map(parameter, given.parameters))
    if given.repeat:
        values = repeated(given.repeat, values)
    values |= {"run": str(given.run), "runs": given.runs}
    profile_of(values["profile"], values["settings"])  # a mistyped setting is refused before a kernel starts
    try:
        with only_one(given.run / ".command.lock", "running this study"):
            execute(DRIVER, given.run / DRIVER.name, values, quiet=given.quiet)
    except StageFailed as failure:
        raise StageFailed(str(failure).rpartition("StageFailed: ")[2]) from None
    print(closing(given.run if given.runs == 1 else given.run / read_json(given.run / "seeds.json")["best"]))


def short_forms(given: Given) -> list[str]:
    """The short options as settings. A number of epochs takes the place of the profile's limit in minutes."""
    parts = {"vqvae": (given.epoch, given.batch, given.lr)}
    parts |= dict.fromkeys(PRIORS, (given.epoch_prior, given.batch_prior, given.lr_prior))
    pairs = [("vqvae.codebook_size", given.k), ("vqvae.code_dim", given.d)]
    for part, (epochs, batch, lr) in parts.items():
        limits = [("epochs", epochs), ("minutes", 0), ("steps", 0)] if epochs is not None else []
        pairs += [(f"{part}.{name}", value) for name, value in (*limits, ("batch", batch), ("lr", lr))]
    return [f"{name}={value}" for name, value in pairs if value is not None]


@command("oasis train vqvae --cohort data/phantom-128 --out runs/mine/vqvae --minutes 15 --set vqvae.factor=8")
@click.argument("kind", type=click.Choice(("vqvae", *PRIORS)))
@click.option("--cohort", required=True, **FOLDER, help="a prepared cohort")
@click.option("--out", required=True, **NEW, help="the model's folder; a stopped training goes on from it")
@click.option("--vqvae", **FOLDER, help="the VQ-VAE's folder (for priors)")
@click.option("--begin", metavar="DIR|pretrained", help="a model to go on from; pretrained is the repository's")
@click.option("--profile", type=click.Choice(list(PROFILES)), help="where settings start from; without it, laptop")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="instead of the profile's limit")
@settings
@overwrite
def train(given: Given) -> None:
    """Train one model."""
    from oasis_lib.cohort import open_cohort
    from oasis_lib.training import train_prior, train_vqvae

    kind, begin, parts = given.kind, "", {}
    if kind != "vqvae" and not given.vqvae:
        raise ValueError(f"training {kind} needs --vqvae DIR: the model whose tokens it learns")
    if given.begin and given.profile:
        raise ValueError("--begin takes that model's settings; leave --profile out, and change some with --set")
    if other := [setting for setting in given.settings if setting.split(".")[0].strip() != kind]:
        raise ValueError(f"--set {other[0]} is no setting of {kind}")
    if given.begin:
        from oasis_lib.pretrained import HOME

        begin = HOME / kind if given.begin == "pretrained" else user_path(given.begin)
        parts = {kind: trained_with(begin, kind)}
    limits = [f"{kind}.{limit}" for limit in (f"minutes={given.minutes}", "epochs=0", "steps=0") if given.minutes]
    part = getattr(profile_of(given.profile or "laptop", [*limits, *given.settings], **parts), kind)
    cohort, options = open_cohort(given.cohort), {"begin": begin, "progress": not given.quiet}
    if kind == "vqvae":
        history = train_vqvae(cohort, given.out, part, **options)
    else:
        history = train_prior(kind, cohort, given.vqvae, given.out, part, **options)
    print(f"{given.out}: step {int(history['step'].iloc[-1])}, best score {history['score'].max():.5g}")


def trained_with(folder: Path, kind: str) -> Part:
    """The settings of the model in a folder."""
    config = read_config(folder)
    if config["kind"] != kind:
        raise ValueError(f"--begin needs a {kind}, and {folder} holds a {config['kind']}")
    return Part(from_dict(MODEL_CONFIGS[kind], config["model"]), from_dict(TrainingConfig, config["training"]))


@command("oasis sample --prior runs/latest/transformer --out new --n 32 --slice-index 16")
@click.option("--prior", required=True, **FOLDER, help="a prior's folder")
@click.option("--vqvae", **FOLDER, help="the VQ-VAE's folder, where it is not beside the prior's")
@click.option("--out", required=True, **NEW, help="takes samples.npz and samples.png")
@click.option("--n", type=click.IntRange(1), default=32, help="number of samples")
@click.option("--slice-index", type=click.IntRange(0), help="slice index, from 0; without it, all slice indices evenly")
@click.option("--cdr", type=int, help="index of a CDR, where the prior knows them")
@click.option("--temperature", default=1.0, help="of the logits; below 1 is more likely")
@click.option("--top-k", type=int, help="draw from the k likeliest tokens")
@click.option("--top-p", type=float, help="draw from the likeliest tokens that make up this probability")
@click.option("--guidance", default=0.0, help="above 0, samples show their slice index and CDR more plainly")
@click.option("--seed", default=0, help="of the random numbers")
def sample(given: Given) -> None:
    """Draw new token maps from a prior and decode them."""
    import numpy as np
    import torch

    from oasis_lib import sampling
    from oasis_lib.models import load
    from oasis_lib.vision import torchvision

    prior, vqvae = load(given.prior), load(given.vqvae or given.prior.parent / "vqvae")
    options = {name: getattr(given, name) for name in ("temperature", "top_k", "top_p", "guidance", "cdr", "seed")}
    slice_indices = sampling.even_slice_indices(given.n, prior.slice_indices)
    if given.slice_index is not None:
        slice_indices = np.full(given.n, given.slice_index)
    drawn = sampling.draw(prior, vqvae, slice_indices, progress=not given.quiet, **options)
    sampling.save(given.out / "samples.npz", drawn)
    shown = drawn["images"][np.unique(np.linspace(0, given.n - 1, ON_SHEET).astype(int))]
    torchvision.utils.save_image(torch.from_numpy(shown)[:, None] / 255, given.out / "samples.png", padding=0)
    print(f"{given.out}: {given.n} samples in samples.npz, {len(shown)} of them in samples.png")


@command("oasis evaluate --cohort data/phantom-128 --vqvae runs/latest/vqvae --out scores.json")
@click.option("--cohort", required=True, **FOLDER, help="a prepared cohort")
@click.option("--vqvae", required=True, **FOLDER, help="the VQ-VAE's folder")
@click.option("--samples", type=user_path, metavar="FILE", help="an .npz of `oasis sample`")
@click.option("--split", type=click.Choice(("test", "validate")), default="test", help="the subjects to measure on")
@click.option("--out", required=True, **NEW, help="a JSON file")
@settings
def evaluate(given: Given) -> None:
    """Measure reconstructions, and samples, on held-out subjects: test, or validation while settings are chosen."""
    import pandas as pd

    from oasis_lib import sampling
    from oasis_lib.cohort import open_cohort
    from oasis_lib.evaluation import reconstruction
    from oasis_lib.evaluation.generation import evaluate_generation
    from oasis_lib.models import load
    from oasis_lib.storage import write_json
    from oasis_lib.training import best_device

    config = profile_of("laptop", given.settings).evaluation
    cohort, vqvae = open_cohort(given.cohort), load(given.vqvae)
    tables = reconstruction.decoders(vqvae, cohort[given.split]) | reconstruction.baselines(cohort, given.split)
    summary = reconstruction.summary(tables, config.bootstrap)
    ssim, row = tables["faithful decoder"]["ssim"], summary.loc["faithful decoder"]
    print(f"SSIM of {int(row['slices'])} slices of {int(row['subjects'])} {given.split} subjects, full frame:")
    print(f"  mean {ssim.mean():.4f}   sd {ssim.std():.4f}   min {ssim.min():.4f}   max {ssim.max():.4f}")
    print(f"  at least 0.6: {int((ssim >= 0.6).sum())} ({(ssim >= 0.6).mean():.2%})")
    print(f"\nby subject, with 95 % intervals:\n{reconstruction.readable(summary).to_string()}")
    found = {"reconstruction": summary.to_dict("index")}
    if given.samples:
        drawn = sampling.read(given.samples)
        how = {"config": config, "split": given.split, "progress": not given.quiet}
        how |= {"device": str(best_device()), "vqvae": vqvae, "cache": given.out.parent}
        made = evaluate_generation(drawn["images"], drawn["slice_index"], cohort, **how)
        print(f"\n{len(drawn['images'])} samples. ROC area of detectors, 0.5 is chance, by size of a pixel:")
        print(pd.DataFrame(made["summary"]).T.astype(float).round(2).to_string() + "\n")
        targets = pd.DataFrame(made["targets"]).T[["value", "real", "target", "verdict"]]
        print(targets.to_string(float_format="{:.4g}".format))
        found["generation"] = made
    write_json(given.out, found)
    print(f"\nall of it in {given.out}")


@command("oasis report runs/latest runs/other --out both.html")
@click.argument("runs", nargs=-1, required=True, type=user_path, metavar="RUN...")
@click.option("--out", **NEW, help="the page, where not report.html in the run (compare.html in the first of two)")
def report(given: Given) -> None:
    """Write a run's page, or set two runs side by side."""
    from oasis_lib.report import write

    if len(given.runs) > 2:
        raise ValueError(f"report takes one run, or two to set side by side, not {len(given.runs)}")
    print(write(*given.runs, out=given.out))


@command("oasis check runs/latest/vqvae")
@click.argument("model", required=False, type=user_path)
def check(given: Given) -> None:
    """Say what is installed and what is wrong, or (of a MODEL's folder) its layers, output sizes and parameters."""
    from oasis_lib.check import installation, layers

    if given.model:
        rows, about = layers(given.model)
        for row in [("layer", "kind", "output", "parameters"), *rows]:
            print("{:<44} {:<22} {:<16} {}".format(*row))
        print(f"{about['parameters']:,} parameters in all; {about['config']}")
        return
    there, wrong = installation()
    print("\n".join(there))
    print("\n".join(f"! {line}" for line in wrong) or "nothing is wrong with this installation")
