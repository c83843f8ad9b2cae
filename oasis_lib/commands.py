"""What each sub-command does: paths and options made plain, then one call into the library."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from oasis_lib.check import choose_device
from oasis_lib.config import MODEL_CONFIGS, PRIORS, Part, TrainingConfig, apply_settings, from_dict
from oasis_lib.config import profile as profile_of
from oasis_lib.paths import user_path

DEFAULT = "laptop"  # profile of settings that are not given, whatever the machine


def prepare(given: Namespace) -> None:
    from oasis_lib.cohort import prepare as make

    out = Path(given.out).expanduser().absolute()
    options = {name: getattr(given, name) for name in ("size", "people", "lesions", "seed", "mm", "skip_bad")}
    cohort = make(given.source, out, progress=not given.quiet, **options)
    counts = ", ".join(f"{name} {len(split)} slices of {len(set(split.subjects))} people" for name, split in cohort.splits.items())
    print(f"{out}: {cohort.size} x {cohort.size}, {cohort.levels or 'unknown'} levels, {counts}")
    for warning in cohort.info.get("warnings", []):
        print(f"note: {warning}")


def study(given: Namespace) -> None:
    """The driver notebook, through papermill: what people open in JupyterLab is what this runs."""
    from oasis_lib.kernel import CellFailed, execute
    from oasis_lib.report import closing
    from oasis_lib.study import DRIVER, StageFailed, check_parameters, declared

    choose_device(given.device)
    folder = user_path(given.run)
    cohort = str(user_path(given.cohort)) if given.cohort not in ("", "phantom") else given.cohort
    values = {"profile": given.profile, "run": str(folder), "cohort": cohort, "settings": [*given.settings, *short_forms(given)]}
    values |= {"runs": given.runs, "parameters": dict(literal(p) for p in given.parameters)}
    profile_of(given.profile, values["settings"])
    check_parameters("driver", values, declared(DRIVER))
    try:
        execute(DRIVER, folder / DRIVER.name, values, quiet=given.quiet, echo=not given.quiet)
    except CellFailed as failure:
        raise StageFailed(str(failure).rpartition("StageFailed: ")[2]) from None
    if given.quiet:
        print(closing(folder))


def short_forms(given: Namespace) -> list[str]:
    """The short options as settings. A number of epochs takes the place of the profile's limit in minutes."""
    priors = [f"{prior}.{name}" for name in ("batch", "lr") for prior in PRIORS]
    pairs = [("vqvae.batch", given.batch), ("vqvae.lr", given.lr), ("vqvae.entries", given.k), ("vqvae.code_dim", given.d)]
    pairs += [(name, given.batch_prior if name.endswith("batch") else given.lr_prior) for name in priors]
    if given.epoch is not None:
        pairs += [("vqvae.epochs", given.epoch), ("vqvae.minutes", 0), ("vqvae.steps", 0)]
    if given.epoch_prior is not None:
        pairs += [
            (f"{p}.{name}", value) for p in PRIORS for name, value in (("epochs", given.epoch_prior), ("minutes", 0), ("steps", 0))
        ]
    return [f"{name}={value}" for name, value in pairs if value is not None]


def literal(text: str) -> tuple[str, object]:
    """NAME=VALUE, the value as JSON where it is that."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--param {text!r} must look like name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def train(given: Namespace) -> None:
    from oasis_lib.cohort import open_cohort

    choose_device(given.device)
    if given.kind != "vqvae" and not given.vqvae:
        raise ValueError(f"training {given.kind} needs --vqvae DIR: the model whose codes it learns")
    part = getattr(profile_of(given.profile or DEFAULT), given.kind)
    if given.begin and given.profile:
        raise ValueError("--begin takes its settings from that prior; leave --profile out, and change some with --set")
    if given.begin:
        part = settings_of(user_path(given.begin), given.kind)
    if given.minutes is not None:
        if given.minutes <= 0:
            raise ValueError(f"--minutes {given.minutes:g} must be more than 0")
        limits = [f"{given.kind}.{limit}" for limit in (f"minutes={given.minutes}", "epochs=0", "steps=0")]
        given.settings = [*limits, *given.settings]
    part = apply_settings(part, given.kind, given.settings)
    cohort = open_cohort(user_path(given.cohort))
    out = Path(given.out).expanduser().absolute()
    if given.kind == "vqvae":
        from oasis_lib.training import train_vqvae

        history = train_vqvae(cohort, out, part, progress=not given.quiet)
    else:
        from oasis_lib.training import train_prior

        begin = user_path(given.begin) if given.begin else ""
        history = train_prior(given.kind, cohort, user_path(given.vqvae), out, part, begin=begin, progress=not given.quiet)
    last = history.iloc[-1]
    print(f"{out}: step {int(last['step'])}, best score {history['score'].max():.5g}")


def settings_of(folder: Path, kind: str) -> Part:
    """What the model of a folder was made and trained with."""
    from oasis_lib.checkpoint import read_model

    if kind == "vqvae":
        raise ValueError("--begin is for priors: a VQ-VAE that went on learning would change what its codes mean")
    config = read_model(folder)[1]
    if config["kind"] != kind:
        raise ValueError(f"{folder} holds a {config['kind']}, not a {kind}")
    return Part(from_dict(MODEL_CONFIGS[kind], config["model"]), from_dict(TrainingConfig, config["training"]))


def sample(given: Namespace) -> None:
    choose_device(given.device)
    import numpy as np
    from PIL import Image

    from oasis_lib import sampling
    from oasis_lib.models import load
    from oasis_lib.models.prior import Autoregressive
    from oasis_lib.paths import atomic
    from oasis_lib.training.data import evenly

    if given.n < 1:
        raise ValueError(f"--n {given.n} must be at least 1")
    folder = user_path(given.prior)
    prior, vqvae = load(folder), load(user_path(given.vqvae) if given.vqvae else folder.parent / "vqvae")
    if given.level is not None and not 0 <= given.level < prior.levels:
        raise ValueError(f"--level {given.level} must be from 0 to {prior.levels - 1}")
    options = {name: getattr(given, name) for name in ("temperature", "top_k", "top_p", "rating", "seed")}
    if given.guidance:
        if not isinstance(prior, Autoregressive):
            raise ValueError(f"{folder}: a {prior.kind} prior takes no --guidance; a transformer or PixelCNN prior does")
        options["guidance"] = given.guidance
    levels = sampling.even_levels(given.n, prior.levels) if given.level is None else np.full(given.n, given.level)
    drawn = sampling.draw(prior, vqvae, levels, progress=not given.quiet, **options)
    out, images = Path(given.out).expanduser().absolute(), drawn["images"]
    sampling.save(out / "samples.npz", drawn)
    with atomic(out / "samples.png") as beside:
        Image.fromarray(sheet(images[evenly(len(images), ON_SHEET)])).save(beside, format="png")
    some = f" ({ON_SHEET} of them)" * (given.n > ON_SHEET)
    print(f"{out}: {given.n} samples of {images.shape[1]} x {images.shape[2]} pixels in samples.npz and samples.png{some}")


ON_SHEET = 64  # samples in the picture: more would be too small to be looked at


def sheet(images, columns: int = 8):
    """(N, H, W) -> one picture, row by row."""
    import numpy as np

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    padded = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    height, width = images.shape[1:]
    return padded.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def evaluate(given: Namespace) -> None:
    """Reconstruction of people never trained on, and of samples every measure of generation; all of it goes into a file."""
    import numpy as np

    from oasis_lib import sampling
    from oasis_lib.cohort import open_cohort
    from oasis_lib.evaluation import reconstruction
    from oasis_lib.evaluation.generation import evaluate_generation
    from oasis_lib.models import load
    from oasis_lib.paths import write_json
    from oasis_lib.training import best_device

    choose_device(given.device)
    config = profile_of(DEFAULT, given.settings).evaluation
    cohort, vqvae = open_cohort(user_path(given.cohort)), load(user_path(given.vqvae))
    tables = reconstruction.decoders(vqvae, cohort[given.split]) | reconstruction.baselines(cohort, given.split)
    summary = reconstruction.summary(tables, config.bootstrap)
    ssim, row = tables["faithful decoder"]["ssim"], summary.loc["faithful decoder"]
    print(f"SSIM of {int(row['slices'])} slices of {int(row['people'])} {given.split} people, full frame:")
    print(f"  mean {ssim.mean():.4f}   sd {ssim.std():.4f}   min {ssim.min():.4f}   max {ssim.max():.4f}")
    print(f"  at least 0.6: {int((ssim >= 0.6).sum())} ({100 * (ssim >= 0.6).mean():.2f} %)")
    print(f"\nby person, with 95 % intervals:\n{reconstruction.readable(summary).to_string()}")
    found = {"reconstruction": summary.to_dict("index")}
    if given.samples:
        with np.load(user_path(given.samples)) as drawn:
            images, levels = drawn["images"], drawn["level"]
    elif given.prior:
        prior = load(user_path(given.prior))
        levels = sampling.even_levels(config.samples, prior.levels)
        images = sampling.draw(prior, vqvae, levels, seed=config.seed, progress=not given.quiet)["images"]
    out = Path(given.out).expanduser().absolute()
    if given.samples or given.prior:
        options = {"device": str(best_device()), "config": config, "vqvae": vqvae, "cache": out.parent, "split": given.split}
        found["generation"] = evaluate_generation(images, levels, cohort, **options)
        print(f"\n{len(images)} samples:")
        for name, target in found["generation"]["targets"].items():
            print(f"  {name:<24} {target['value']:8.4g}   target {target['target']:<8} {'met' if target['met'] else 'not met'}")
    write_json(out, found)
    print(f"\nall of it in {out}")


def report(given: Namespace) -> None:
    from oasis_lib import report as page

    folders = [user_path(run) for run in given.runs]
    if len(folders) > 2:
        raise ValueError(f"report takes one run, or two to set side by side, not {len(folders)}")
    out = Path(given.out).expanduser().absolute() if given.out else None
    written = page.write(folders[0], out) if len(folders) == 1 else page.write_pair(*folders, out)
    print(written)


def check(given: Namespace) -> int:
    from oasis_lib.check import installation, layers

    choose_device(given.device)
    if given.model:
        rows, about = layers(user_path(given.model))
        print(f"{'layer':<44} {'kind':<22} {'output':<16} parameters")
        for name, kind, size, parameters in rows:
            print(f"{name:<44} {kind:<22} {size:<16} {parameters:,}")
        print(f"{about['parameters']:,} parameters in all; {about['config']}")
        return 0
    there, wrong = installation()
    print("\n".join(there))
    print("\n".join(f"! {line}" for line in wrong) or "nothing is wrong with this installation")
    return 0


def publish(given: Namespace) -> None:
    """README's pictures from a finished run. Of synthetic people only: nobody's scan is to end up in a repository."""
    import numpy as np

    from oasis_lib.cohort import open_cohort
    from oasis_lib.figures.overview import overview
    from oasis_lib.models import load
    from oasis_lib.paths import PROJECT, atomic, project_path
    from oasis_lib.report import Contents
    from oasis_lib.training import decode_codes

    run = Contents(user_path(given.run))
    if not run.manifest.get("cohort_info", {}).get("synthetic"):
        raise ValueError(f"{run.folder} shows real people: only a run on the synthetic cohort is published")
    cohort = open_cohort(project_path(run.manifest["cohort_folder"]))
    test, levels = cohort["test"], np.linspace(0.2, 0.8, 8)
    rows = [int(np.flatnonzero(test.levels == round(share * (cohort.levels - 1)))[i]) for i, share in enumerate(levels)]
    drawn = np.load(run.folder / "samples" / f"{PRIORS[0]}.npz")
    picks = [int(np.abs(drawn["level"] - test.levels[row]).argmin()) for row in rows]
    codes = np.load(run.folder / "codes" / "test.npy", mmap_mode="r")[rows]
    figure = overview(
        test.images[rows], decode_codes(load(run.folder / "vqvae"), codes), codes, drawn["images"][picks], cohort.synthetic
    )
    with atomic(PROJECT / "images" / "overview.png") as beside:
        figure.savefig(beside, format="png")
    print(f"images/overview.png, from {run.folder}")
