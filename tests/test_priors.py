"""Priors as distributions.

Nothing leaks, nothing is out of sight, chances sum to one, and draws depend on the seed alone.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from oasis_lib import sampling
from oasis_lib.config import CodeGANConfig, PixelCNNConfig, TransformerConfig
from oasis_lib.models import build, load
from oasis_lib.models.pixelcnn import plan
from oasis_lib.models.position_prior import STEP, PositionPrior
from oasis_lib.models.prior import Autoregressive, Inpainting, Likelihood
from oasis_lib.models.sampler import Sampler, gumbel, uniform
from oasis_lib.models.tokens import TokenEmbedding, TokenLogits, feature_count, features_of

TINY = {
    "transformer": ("transformer", TransformerConfig(width=16, layers=2, heads=2)),
    "pixelcnn": ("pixelcnn", PixelCNNConfig(hidden=8, layers=5)),
    "codegan": ("codegan", CodeGANConfig(hidden=8, noise=8, knots=3)),
}
ONE_BY_ONE = ["transformer", "pixelcnn"]
OPTIONS = [{}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.5, "top_k": 4, "top_p": 0.9}, {"temperature": 0.0}]
OPTIONS += [{"guidance": 1.0}]


def tiny(name: str, grid=(6, 5), codebook_size=7, slice_indices=3, cdrs=2, framed=False):
    """A random prior with opinions: fresh ones hardly have any."""
    torch.manual_seed(0)
    kind, config = TINY[name]
    prior = build(kind, config, grid=grid, codebook_size=codebook_size, slice_indices=slice_indices, cdrs=cdrs).eval()
    with torch.no_grad():
        for weight in prior.parameters():
            weight.mul_(1.5)
        if kind != "codegan":
            prior.features.normal_()
            prior.head.own.weight.normal_(std=0.8)
            prior.head.shared.weight.normal_(std=0.1)
        if kind == "codegan":
            prior.start_from.keep(torch.randn(prior.start_from.components.shape))
            for key, weight in prior.generator.named_parameters():
                weight.mul_(30 if "style" in key or key.startswith("last") else 1)
    if framed:
        codes = background_around(grid, codebook_size)
        prior.start(codes, torch.arange(len(codes)) % slice_indices)
    return prior


def background_around(grid, codebook_size, count=60):
    """Random maps in a frame of one code."""
    codes = torch.randint(codebook_size, (count, *grid), generator=torch.Generator().manual_seed(1))
    codes[:, 0], codes[:, :, 0], codes[:, :, -1] = 2, 2, 2
    return codes


def seed(number: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@torch.no_grad()
def reached(prior, codes: torch.Tensor) -> torch.Tensor:
    """(N, N): does changing code i move the chances at place j?"""
    before = prior(codes)
    flat = codes.flatten()
    moved = []
    for place in range(len(flat)):
        other = flat.clone()
        other[place] = (other[place] + 1) % prior.codebook_size
        moved.append((prior(other.view_as(codes)) - before).abs().amax(-1).flatten() > 0)
    return torch.stack(moved)


@pytest.mark.parametrize("grid", [(6, 5), (4, 9)])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_code_is_told_by_all_codes_before_it_and_by_no_other(name, grid):
    prior = tiny(name, grid)
    moved = reached(prior, torch.randint(7, (1, *grid), generator=seed()))
    before = torch.ones(len(moved), len(moved)).triu(1).bool()
    assert not moved[~before].any(), "a later code, or the code itself, leaks"
    assert moved[before].all(), "blind spot"


def test_the_air_that_a_transformer_leaves_out_makes_no_blind_spot():
    prior = tiny("transformer", framed=True)
    inside = prior.background.inside
    assert 0 < inside.sum() < len(inside)
    moved = reached(prior, background_around((6, 5), 7)[:1])
    before = torch.ones(len(moved), len(moved)).triu(1).bool()
    assert not moved[~before].any()
    assert moved[before & inside & inside[:, None]].all()


def test_the_receptive_field_is_what_it_says():
    grid = (24, 24)
    assert sum(reach.taps * reach.dilation for reach in plan(8, grid)) >= 23


def test_a_pixelcnn_that_cannot_see_the_map_is_refused():
    with pytest.raises(ValueError, match="pixelcnn.layers=4 can't see all of a 64 x 64 map; 7 layers can"):
        build("pixelcnn", PixelCNNConfig(layers=4), grid=(64, 64), codebook_size=8)
    assert build("pixelcnn", PixelCNNConfig(layers=7), grid=(64, 64), codebook_size=8).receptive_field >= 63
    assert build("pixelcnn", PixelCNNConfig(), grid=(64, 64), codebook_size=8).receptive_field >= 63


@pytest.mark.parametrize("name", [*ONE_BY_ONE, "framed"])
def test_cached_logits_equal_plain_ones(name):
    prior = tiny("transformer", framed=True) if name == "framed" else tiny(name)
    codes = background_around((6, 5), 7)[:5]
    slice_index, cdr = prior.labels(5, torch.tensor([0, 1, 2, -1, 1]), 1)
    step, plain = prior.stepper(slice_index, cdr), Autoregressive.stepper(prior, slice_index, cdr)
    order = range(30) if prior.background is None else prior.background.positions().tolist()
    for t in order:
        torch.testing.assert_close(step(codes.flatten(1), t), plain(codes.flatten(1), t), atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["framed", "pixelcnn"])
def test_the_seed_decides_whatever_the_batch_and_options(name, options):
    prior = tiny("transformer", framed=True) if name == "framed" else tiny(name)
    asked = {"slice_index": torch.tensor([0, 1, 2, -1, 1]), "cdr": 1} | options
    drawn = prior.sample(5, generator=seed(), **asked)
    assert drawn.shape == (5, 6, 5) and drawn.dtype == torch.int64
    assert torch.equal(drawn, prior.sample(5, generator=seed(), batch=2, **asked))


def test_background_is_drawn_in_one_call_by_its_own_frequencies():
    prior = tiny("transformer", framed=True)
    codes = background_around((6, 5), 7)
    codes[0, 0, 0] = 4  # once in sixty: no background with share 0.998, but with 0.9
    prior.background.start(codes, share=0.9)
    asked, step = [], prior.stepper
    prior.stepper = lambda *labels: (lambda made: lambda flat, t: asked.append(t) or made(flat, t))(step(*labels))
    drawn = prior.sample(4000, generator=seed(), batch=4000)
    assert asked == prior.background.positions().tolist()
    assert float((drawn[:, 0, 0] == 2).float().mean()) == pytest.approx(60 / 62, abs=0.01)
    assert len(drawn[:, 0, 0].unique()) == 7, "a background position may hold any token"
    assert prior.sample(500, generator=seed(), top_p=0.9)[:, 0].unique().tolist() == [2]


@pytest.mark.parametrize("name", TINY)
def test_the_seed_decides_whatever_the_batch(name):
    prior = tiny(name)
    together = prior.sample(7, generator=seed(), batch=64)
    assert torch.equal(together, prior.sample(7, generator=seed(), batch=1))
    assert not torch.equal(together, prior.sample(7, generator=seed(4)))
    assert 0 <= int(together.min()) and int(together.max()) < 7
    assert prior.sample(1).shape == (1, 6, 5)


@pytest.mark.parametrize("name", [*ONE_BY_ONE, "framed"])
def test_likelihoods_sum_to_one(name):
    grid, codebook_size = (3, 2), 3
    if name == "framed":
        prior = tiny("transformer", grid, codebook_size)
        codes = torch.randint(codebook_size, (40, *grid), generator=seed())
        codes[:, 0] = 1
        prior.start(codes, slice_index=torch.arange(40) % 3)
        assert not prior.background.inside.all()
    else:
        prior = tiny(name, grid, codebook_size)
    every = torch.tensor(list(itertools.product(range(codebook_size), repeat=6))).view(-1, *grid)
    for slice_index in (None, 1):
        assert float((-prior.nll(every, slice_index=slice_index).double()).exp().sum()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(-prior.log_probs(every).flatten(1).sum(1), prior.nll(every))


@pytest.mark.parametrize("name", ["transformer", "pixelcnn"])
def test_samples_follow_the_likelihood(name):
    prior = tiny(name, (2, 2), codebook_size=2)
    every = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 2, 2)
    wanted = (-prior.nll(every, slice_index=2)).exp()
    drawn = prior.sample(4000, slice_index=2, generator=seed(), batch=4000).flatten(1) @ torch.tensor([8, 4, 2, 1])
    found = torch.bincount(drawn, minlength=16) / 4000
    assert float((found - wanted).abs().sum() / 2) < 0.05


@pytest.mark.parametrize("name", ["transformer", "pixelcnn", "codegan"])
def test_labels_matter_and_may_be_left_open(name):
    prior = tiny(name)
    drawn = [
        prior.sample(4, slice_index=slice_index, cdr=cdr, generator=seed())
        for slice_index, cdr in ((0, 0), (1, 0), (0, 1), (None, None))
    ]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    assert torch.equal(drawn[3], prior.sample(4, slice_index=-1, cdr=torch.full((4,), -1), generator=seed()))
    with pytest.raises(ValueError, match="slice_index=3 must be 0 .. 2"):
        prior.sample(4, slice_index=3)
    with pytest.raises(ValueError, match="slice_index must be one number or 4 of them, not 2"):
        prior.sample(4, slice_index=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="cdr=0 must be left open"):
        tiny(name, cdrs=0).sample(1, cdr=0)


@pytest.mark.parametrize("name", ["transformer", "pixelcnn"])
def test_filling_leaves_the_rest_alone(name):
    prior = tiny(name)
    codes = torch.randint(7, (3, 6, 5), generator=seed())
    box = torch.zeros(6, 5, dtype=torch.bool)
    box[2:4, 1:3] = True
    filled = prior.fill(codes, box, slice_index=1, generator=seed())
    assert torch.equal(filled[:, ~box], codes[:, ~box]) and not torch.equal(filled, codes)
    assert torch.equal(prior.fill(codes, torch.zeros_like(box)), codes)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"guidance": -0.5}, "guidance=-0.5"),
    ],
)
@pytest.mark.parametrize("name", ["transformer", "codegan"])
def test_senseless_options_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        tiny(name).sample(1, **options)


def test_senseless_codes_are_refused():
    prior = tiny("transformer")
    with pytest.raises(ValueError, match=r"codes must be \(B, 6, 5\), not \(1, 5, 6\)"):
        prior.nll(torch.zeros(1, 5, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="codes must lie in 0 .. 6, not 0 .. 7"):
        prior.nll(torch.full((1, 6, 5), 7).index_fill(1, torch.tensor([0]), 0))
    with pytest.raises(ValueError, match="n=0"):
        prior.sample(0)


def test_a_slice_index_is_refused_by_a_prior_that_was_trained_without():
    with pytest.raises(ValueError, match="slice_index=1 must be left open"):
        sampling.draw(tiny("transformer", slice_indices=0), None, np.array([1]))


def test_top_k_and_top_p_cut_the_tail_and_nothing_else():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]])).expand(6000, 4)
    noise = gumbel(torch.arange(6000), 0, 4)[:, 0]
    two, three = [2 / 3, 1 / 3, 0, 0], [5 / 9, 2.5 / 9, 1.5 / 9, 0]
    for options, wanted in (
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, two),
        ({"top_p": 0.8}, three),
        ({"top_p": 0.7}, two),
    ):
        found = torch.bincount(Sampler(**options)(logits, noise), minlength=4) / 6000
        np.testing.assert_allclose(found, wanted, atol=0.03)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_guidance_moves_logits_away_from_those_of_open_labels(name):
    """By so many times their distance; by nothing where no label is given."""
    prior, codes = tiny(name), torch.randint(7, (4, 6, 5), generator=seed())
    slice_index, left_open = torch.tensor([0, 1, 2, -1]), torch.full((4,), -1)
    with torch.no_grad():
        asked, without = (prior(codes, labels, left_open).flatten(1, 2) for labels in (slice_index, left_open))
        step = prior.guided(slice_index, left_open, 2.0)
        found = torch.stack([step(codes.flatten(1), t) for t in range(30)], 1)
    torch.testing.assert_close(found, asked + 2 * (asked - without), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[3], asked[3], atol=1e-4, rtol=1e-4)


def test_guided_samples_show_their_slice_index_more_plainly():
    prior = tiny("transformer", slice_indices=2, cdrs=0)
    asked = torch.arange(400) % 2
    shares = []
    for guidance in (0.0, 2.0):
        drawn = prior.sample(400, slice_index=asked, guidance=guidance, generator=seed())
        sure = torch.stack([-prior.nll(drawn, torch.full((400,), label)) for label in (0, 1)], 1).softmax(1)
        shares.append(float(sure.gather(1, asked[:, None]).mean()))
    assert shares[1] > shares[0] + 0.02


def test_counts_know_each_slice_index_what_lies_between_and_what_is_left_open():
    slice_index = torch.arange(300) % 3  # of 0 .. 4: two of them nobody has
    codes = (2 * slice_index)[:, None, None].expand(-1, 2, 2).clone()
    codes[:, 0, 0] = 6  # one place that is the same at all slice indices
    counts = PositionPrior((2, 2), 7, slice_indices=5, knots=3)
    counts.start(codes, 2 * slice_index, pull=1.0, spread=0.0)
    chances = counts(slice(None), torch.tensor([0, 2, 4, 1, -1])).softmax(-1)
    assert (
        chances.argmax(-1)[:3].tolist() == [[6, 0, 0, 0], [6, 2, 2, 2], [6, 4, 4, 4]]
        and float(chances[:3].amax(-1).min()) > 0.9
    )
    torch.testing.assert_close(chances[3, 1:, 0], chances[3, 1:, 2], atol=0.02, rtol=0)  # half way between two
    torch.testing.assert_close(chances[4], counts(slice(None)).softmax(-1))
    torch.testing.assert_close(chances[4, 1, [0, 2, 4]], torch.full((3,), 1 / 3), atol=0.02, rtol=0)


def test_places_lend_their_counts_to_those_beside_them():
    codes = torch.zeros(100, 3, 3, dtype=torch.int64)
    codes[:, 1, 1] = 5
    counts = PositionPrior((3, 3), 7)
    counts.start(codes, weight=0.0, spread=0.3)
    chances = counts(slice(None)).softmax(-1).view(3, 3, 7)[..., 5]
    beside, corner = (
        0.3 / 6,
        0.3 / 12,
    )  # of 100 maps; a corner has 1 + 0.3 * 2.5 / 6 in all, the middle of a side 1 + 0.3 * 4 / 6
    row = torch.tensor([corner / (1 + 0.3 * 2.5 / 6), beside / 1.2, corner / (1 + 0.3 * 2.5 / 6)])
    kept = {"rtol": STEP, "atol": 0}  # log-frequencies are rounded to steps
    torch.testing.assert_close(chances[0], row, **kept)
    torch.testing.assert_close(chances[1, 1], torch.tensor(1 / 1.3), **kept)


def test_noise_is_even_and_belongs_to_its_image():
    numbers = uniform(torch.arange(500), 7, 100)[:, 0]
    assert float(numbers.min()) > 0 and float(numbers.max()) < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.01) and float(numbers.var()) == pytest.approx(
        1 / 12, abs=0.002
    )
    assert abs(float(torch.corrcoef(numbers[:, :2].T)[0, 1])) < 0.15
    assert torch.equal(uniform(torch.tensor([41]), torch.tensor([3, 7]), 100)[0, 1], numbers[41])


@pytest.mark.parametrize("name", TINY)
def test_a_thousand_entries_survive_the_disk(name, tmp_path):
    from oasis_lib.config import as_dict
    from oasis_lib.storage import save_model

    prior = tiny(name, (4, 4), codebook_size=1024)
    save_model(tmp_path, prior.state_dict(), {"kind": prior.kind, "model": as_dict(prior.config), **prior.shape})
    again = load(tmp_path)
    drawn = prior.sample(16, generator=seed())
    assert torch.equal(drawn, again.sample(16, generator=seed()))
    assert int(drawn.max()) > 255, "no code is squeezed in eight bits"


def test_what_a_prior_can_do_is_seen_from_its_methods():
    for name, capable in (("transformer", True), ("pixelcnn", True), ("codegan", False)):
        assert isinstance(tiny(name), Likelihood) is isinstance(tiny(name), Inpainting) is capable


def test_tokens_whose_codebook_vectors_are_alike_start_alike():
    """A prior that has learned of one token has learned something of its neighbours in the codebook."""
    vectors = torch.tensor([[0.0, 0.0], [0.1, 0.0], [3.0, -2.0], [-3.0, 2.0]])
    features = features_of(vectors)
    assert features.shape == (4, feature_count(2)) and torch.allclose(features.mean(0), torch.zeros(5), atol=1e-5)
    embedded = TokenEmbedding(4, 0, 2, 16)(torch.arange(4), features)
    assert (embedded[0] - embedded[1]).norm() < 0.3 * (embedded[0] - embedded[2]).norm()
    logits = TokenLogits(3, 4, 2)
    with torch.no_grad():
        logits.shared.weight.normal_(generator=torch.Generator().manual_seed(0))
    found = logits(torch.ones(3), features)
    assert (found[0] - found[1]).abs() < 0.3 * (found[0] - found[2]).abs()
