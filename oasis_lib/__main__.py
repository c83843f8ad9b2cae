"""The command line, thin: options are read here, commands.py does the work; nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys

from oasis_lib.config import PRIORS, PROFILES

KINDS = ("vqvae", *PRIORS)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="oasis", description="A VQ-VAE study of brain MRI slices.", epilog="`oasis COMMAND --help` has an example of each."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=what, description=what, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument("--quiet", action="store_true", help="print results and errors only")
        sub.add_argument(
            "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto takes CUDA, then MPS, then the CPU"
        )
        return sub

    def settings(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--set",
            dest="settings",
            metavar="SECTION.NAME=VALUE",
            action="append",
            default=[],
            help="change a setting; may be given often",
        )

    sub = command(
        "prepare", "Make a cohort ready: split by person, one array a split.", "oasis prepare ~/scans data/scans-256 --size 256"
    )
    sub.add_argument("source", help="phantom, or a folder or file of one's own")
    sub.add_argument("out", help="the folder to make")
    sub.add_argument("--size", type=int, default=256, help="pixels a side (default 256)")
    sub.add_argument("--mm", type=float, help="of volumes: the pixel in mm (default: their own)")
    sub.add_argument("--skip-bad", action="store_true", help="leave out what can't be read, and list it")
    sub.add_argument("--seed", type=int, default=0, help="of the split, and of the phantom")
    sub.add_argument("--people", type=int, default=60, help="of the phantom (default 60)")
    sub.add_argument("--lesions", type=int, default=8, help="phantom people copied with a planted lesion (default 8)")

    sub = command(
        "study",
        "Run all notebooks in order; what is done already is kept.",
        "oasis study --profile laptop --run runs/latest --set vqvae.entries=512",
    )
    sub.add_argument("--profile", choices=list(PROFILES), default="laptop")
    sub.add_argument("--cohort", default="phantom", help="phantom, a prepared cohort, or a folder of images or volumes")
    sub.add_argument("--run", default="runs/latest", help="the run's folder")
    sub.add_argument(
        "--runs", type=int, default=1, metavar="N", help="run it with seeds 0 to N-1: mean, sd, and the best by validation"
    )
    sub.add_argument(
        "--param",
        dest="parameters",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a parameter of the notebooks that declare it",
    )
    settings(sub)
    sub.add_argument("--overwrite", action="store_true", help="replace finished models of other settings or library versions")
    short = sub.add_argument_group("short forms of settings (not given: the profile's own)")
    short.add_argument("--epoch", type=int, help="epochs of the VQ-VAE, instead of a time limit")
    short.add_argument("--batch", type=int, help="its batch size")
    short.add_argument("--lr", type=float, help="its learning rate")
    short.add_argument("--epoch-prior", "--epoch_prior", type=int, help="epochs of every prior, instead of a time limit")
    short.add_argument("--batch-prior", "--batch_prior", type=int, help="their batch size")
    short.add_argument("--lr-prior", "--lr_prior", type=float, help="their learning rate")
    short.add_argument("--k", type=int, help="entries of the codebook")
    short.add_argument("--d", type=int, help="dimension of a code")

    sub = command(
        "train",
        "Train one model.",
        "oasis train vqvae --cohort data/phantom-128 --out runs/mine/vqvae --minutes 15 --set vqvae.factor=8",
    )
    sub.add_argument("kind", choices=KINDS)
    sub.add_argument("--cohort", required=True, help="a prepared cohort")
    sub.add_argument("--out", required=True, help="the model's folder; a training that was stopped goes on from it")
    sub.add_argument("--vqvae", help="the VQ-VAE's folder (for priors)")
    sub.add_argument("--begin", metavar="DIR", help="an earlier prior's folder, to go on from its weights and settings")
    sub.add_argument("--profile", choices=list(PROFILES), help="where settings start from (default: laptop)")
    sub.add_argument("--overwrite", action="store_true", help="replace finished models of other settings or library versions")
    sub.add_argument("--minutes", type=float, help="train this long, whatever the profile says")
    settings(sub)

    sub = command(
        "sample",
        "Draw new codes from a prior and decode them.",
        "oasis sample --prior runs/latest/transformer --out new --n 32 --level 16",
    )
    sub.add_argument("--prior", required=True, help="a prior's folder")
    sub.add_argument("--vqvae", help="the VQ-VAE's folder (default: beside the prior's)")
    sub.add_argument("--out", required=True, help="takes samples.npz and samples.png")
    sub.add_argument("--n", type=int, default=32)
    sub.add_argument("--level", type=int, help="of the slice, from 0 (default: all levels evenly)")
    sub.add_argument("--rating", type=int, help="index of a clinical rating, where the prior knows them")
    sub.add_argument("--temperature", type=float, default=1.0)
    sub.add_argument("--top-k", type=int)
    sub.add_argument("--top-p", type=float)
    sub.add_argument("--guidance", type=float, default=0.0, help="how much more than learned a sample obeys its level, such as 0.5")
    sub.add_argument("--seed", type=int, default=0)

    sub = command(
        "evaluate",
        "Measure a VQ-VAE, and samples, on test people, or on validation people while settings are being chosen.",
        "oasis evaluate --cohort data/phantom-128 --vqvae runs/latest/vqvae --out scores.json",
    )
    sub.add_argument("--cohort", required=True)
    sub.add_argument("--vqvae", required=True)
    sub.add_argument("--samples", help="an .npz of `oasis sample`")
    sub.add_argument("--prior", help="or a prior's folder, to draw samples from")
    sub.add_argument("--split", choices=("test", "validate"), default="test", help="the people to measure on")
    sub.add_argument("--out", required=True, help="a JSON file")
    settings(sub)

    sub = command(
        "report", "Write a run's page, or set two runs side by side.", "oasis report runs/latest runs/other --out both.html"
    )
    sub.add_argument("runs", nargs="+", metavar="RUN", help="one run's folder, or two")
    sub.add_argument("--out", help="the page (default: report.html in the run, or compare.html in the first)")

    sub = command("publish", "Make the pictures that README shows, from a synthetic run.", "oasis publish runs/latest")
    sub.add_argument("run", help="a finished run's folder")

    sub = command("check", "Say what is installed and what is wrong, or what a model is made of.", "oasis check runs/latest/vqvae")
    sub.add_argument("model", nargs="?", help="a model's folder: its layers, output sizes and parameters")
    return top


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if given.quiet or not sys.stdout.isatty():
        os.environ.setdefault("OASIS_PROGRESS", "0")
    if getattr(given, "overwrite", False):
        os.environ["OASIS_OVERWRITE"] = "1"  # notebooks inherit it
    from oasis_lib import commands
    from oasis_lib.study import StageFailed

    try:
        return getattr(commands, given.command)(given) or 0
    except (ValueError, FileNotFoundError, StageFailed) as error:  # ours, or plain enough: the words suffice
        print(f"oasis {given.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
