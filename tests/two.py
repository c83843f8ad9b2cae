"""What each process of test_processes.py runs.

VQ-VAE, adversarial stage and default prior; then each says what it holds.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from test_loop import MODEL, TRAINING, made_cohort

from oasis_lib.config import Part, TransformerConfig
from oasis_lib.storage import fingerprint
from oasis_lib.training import loop, train_prior, train_vqvae

folder, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
written, tasks = set(), {}


def heard(event: str, given: tuple) -> None:
    """Notes files that this process makes, renames or removes."""
    writes = event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+")
    if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
        if str(given[0]).startswith(str(folder)):
            written.add(str(given[0]))


class Noted(loop.Task):
    def __init__(self, model):
        tasks[type(self).__name__] = self
        real(self, model)


real, loop.Task.__init__ = loop.Task.__init__, Noted.__init__
cohort = made_cohort(folder, grain=40)
sys.addaudithook(heard)
train_vqvae(cohort, folder / "vqvae", Part(replace(MODEL, adversarial=0.5), TRAINING), progress=False)
prior = Part(TransformerConfig(width=16, layers=1, heads=2, token_dropout=0.0), TRAINING)
train_prior("transformer", cohort, folder / "vqvae", folder / "transformer", prior, progress=False)
held = {name: fingerprint(task.model) for name, task in tasks.items()}
(folder.parent / f"{folder.name}-{rank}.json").write_text(json.dumps({"held": held, "written": sorted(written)}))
