"""Training a prior over the tokens of a VQ-VAE."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import torch

from oasis_lib.cards import write_cards
from oasis_lib.cohort import Cohort
from oasis_lib.config import PRIORS, Part, as_dict, unknown
from oasis_lib.models import KINDS, build, load
from oasis_lib.storage import WEIGHTS, content_hash, main_process, read_config
from oasis_lib.training.gan import GANTask
from oasis_lib.training.once import resume_or_fit, weights_to_begin_with
from oasis_lib.training.tasks import LikelihoodTask, PriorTask

Folder = str | Path
TASKS: dict[str, type[PriorTask]] = {"codegan": GANTask}  # how others than autoregressive priors are trained


def train_prior(
    kind: str, cohort: Cohort, vqvae: Folder, out: Folder, part: Part, *, begin: Folder = "", progress: bool = True
) -> pd.DataFrame:
    """Train a prior over the codes of the VQ-VAE in folder `vqvae`, or go on where an earlier call was stopped.

    `begin` is the folder of a prior whose weights it begins with: over the same tokens, or those its VQ-VAE began with.
    Over another cohort, what is counted position by position is counted anew.
    """
    if kind == "vqvae" or kind not in KINDS:
        raise unknown("prior", kind, PRIORS)
    task, vqvae, out, training = TASKS.get(kind, LikelihoodTask), Path(vqvae), Path(out), part.training
    encoder = load(vqvae)
    config, codebook_size, side = part.model, encoder.config.codebook_size, cohort.size // encoder.config.factor
    if hasattr(config, "code_dim"):
        config = dataclasses.replace(config, code_dim=encoder.config.code_dim)
    shape = {"grid": [side, side], "codebook_size": codebook_size, "slice_indices": cohort.slice_indices}
    shape["cdrs"] = len(cohort.cdrs)
    made = {"kind": kind, "model": as_dict(config), **shape, "vqvae": content_hash(vqvae / WEIGHTS)}
    weights = None
    if begin:
        earlier = read_config(Path(begin))
        known = {made["vqvae"], read_config(vqvae).get("begin")} & {earlier.get("vqvae")}
        alike = shape | {"cdrs": earlier.get("cdrs")}
        asked = {"kind": kind, **alike, "vqvae": known.pop() if known else made["vqvae"]}
        weights = weights_to_begin_with(Path(begin), out, asked, build(kind, config, **alike))
        if alike != shape:  # other cohorts have other CDRs: what was learned of them is left
            weights = {name: value for name, value in weights.items() if not name.endswith("cdr.weight")}
    made |= {"begin": content_hash(Path(begin) / WEIGHTS)} if begin else {}

    def make_task(device: torch.device) -> PriorTask:
        ready = task(build(kind, config, **shape), load(vqvae), cohort, device, training, out)
        if weights:
            ready.model.load_state_dict(ready.model.state_dict() | weights)
            ready.learnt = earlier.get("cohort") == cohort.hash
        return ready

    history = resume_or_fit(make_task, cohort, training, out, made, progress)
    if main_process():
        write_cards(out, cohort.info)
    return history
