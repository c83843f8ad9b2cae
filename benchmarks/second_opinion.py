"""Does another network, on subjects that nothing here has seen, agree with the detectors of notebook 06?

A residual network looks at whole slices, where the detectors look at crops. It is tested on a second cohort.

oasis prepare phantom data/others --size 128 --subjects 20 --lesions 0 --seed 77
python benchmarks/second_opinion.py --run runs/latest --others data/others
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib import sampling
from oasis_lib.cohort import open_cohort
from oasis_lib.evaluation.detectability import without_cues
from oasis_lib.evaluation.instrument import Instrument
from oasis_lib.models import load
from oasis_lib.paths import user_path
from oasis_lib.run import open_run
from oasis_lib.training import decode_codes
from oasis_lib.training.codes import encode_images

STEPS, HALF, MOST, SEEDS = 160, 16, 288, 2


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.skip(x))


def network() -> nn.Sequential:
    blocks = [Block(*channels) for channels in ((1, 24), (24, 48), (48, 96))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 1))


def auc(learned: Tensor, tested: Tensor, generated: Tensor, seed: int) -> float:
    """Learns from `learned` and two thirds of `generated`; tested on `tested` and the last third."""
    torch.manual_seed(seed)
    order, net = torch.randperm(len(generated)), network()
    held, seen = generated[order[: len(order) // 3]], generated[order[len(order) // 3 :]]
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=STEPS)
    truth = torch.arange(2).repeat_interleave(HALF).float()
    for _ in range(STEPS):
        batch = torch.cat([side[torch.randint(len(side), (HALF,))] for side in (learned, seen)])
        batch = batch.flip(3) if torch.rand(()) < 0.5 else batch
        batch = batch.roll(torch.randint(-2, 3, (2,)).tolist(), (2, 3)) * (0.9 + 0.2 * torch.rand(len(batch), 1, 1, 1))
        loss = F.binary_cross_entropy_with_logits(net(batch)[:, 0], truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        real, made = (net.eval()(side)[:, 0].numpy() for side in (tested, held))
    return roc_auc_score(np.repeat([0, 1], [len(real), len(made)]), np.concatenate([real, made]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="a run whose notebooks 01 to 06 are done")
    parser.add_argument("--profile", default="laptop", help="the run's profile")
    parser.add_argument("--others", required=True, help="a prepared cohort of other subjects, of the same size")
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 4], help="pixels averaged, each way")
    given = parser.parse_args()
    run, others = open_run(user_path(given.run), given.profile), open_cohort(user_path(given.others))
    drawn, vqvae, train = sampling.read_all(run), load(run.path("vqvae")), run.cohort["train"]
    instrument = Instrument(run.cohort, "test")  # the same halves of the training subjects
    rows = instrument.others(instrument.counts([one["slice_index"] for one in drawn.values()]))
    learned = np.setdiff1d(np.arange(len(train)), instrument.other_rows)
    sets = {"real-vs-real": train.images[rows]}
    sets["reconstructions, crisp"] = decode_codes(vqvae, encode_images(vqvae, sets["real-vs-real"]))
    sets |= {name: one["images"] for name, one in drawn.items()}
    fresh = np.concatenate([others[name].images for name in ("train", "validate", "test")])
    fresh = fresh[np.random.default_rng(0).permutation(len(fresh))[:MOST]]
    sides = {"learned": train.images[learned], "tested": fresh} | sets
    ready = {n: torch.from_numpy(without_cues(np.asarray(x))).float()[:, None] / 255 for n, x in sides.items()}
    found = {}
    for scale in given.scales:
        small = {name: F.avg_pool2d(images, scale) for name, images in ready.items()}
        column = f"{scale * (instrument.mm or 1):g} {'mm' if instrument.mm else 'px'}"
        for name in sets:
            each = [auc(small["learned"], small["tested"], small[name], seed) for seed in range(SEEDS)]
            found.setdefault(column, {})[name] = float(np.mean(each))
            print(column, name, round(found[column][name], 2), flush=True)
    print(pd.DataFrame(found).round(2).to_string())


if __name__ == "__main__":
    main()
