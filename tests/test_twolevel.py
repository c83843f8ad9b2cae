"""The prior of two levels: its chances are chances, no pass sees a later one, and the sketch says what the codes look like."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional as F

from oasis_lib.config import TwoLevelConfig
from oasis_lib.models import build
from oasis_lib.models.gauge import Gauge
from oasis_lib.models.style import Style, summary
from oasis_lib.models.twolevel import turns

CONFIG = TwoLevelConfig(
    side=2, words=5, styles=3, width=16, layers=1, heads=2, dropout=0.0, hide=0.0, channels=8, blocks=2, passes=4, code_dim=3
)


def seed(number: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def opinionated(grid=(8, 6), entries=7, levels=3, air=True, config=CONFIG):
    torch.manual_seed(0)
    prior = build("twolevel", config, grid=grid, entries=entries, levels=levels).eval()
    codes = torch.randint(entries, (60, *grid), generator=seed(1))
    if air:
        codes[:, :2] = 2
    level = torch.arange(60) % levels
    prior.start(codes, None, torch.randn(entries, config.code_dim, generator=seed(2)), level, torch.full((60,), -1))
    with torch.no_grad():
        for weight in prior.details.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=seed(weight.numel())))
        prior.sketch.trunk.head.weight.mul_(40)
    return prior, codes


def test_a_pass_holds_codes_that_lie_far_apart():
    for passes in (1, 4, 16, 64):
        found, step = turns((16, 16), passes), round(passes**0.5)
        assert torch.equal(torch.bincount(found.flatten()), torch.full((passes,), 256 // passes))
        assert torch.equal(found[step:, step:], found[: 16 - step, : 16 - step])
    with pytest.raises(ValueError, match="passes=5 must be 1, 4, 16 or 64"):
        turns((16, 16), 5)


def test_no_pass_sees_itself_or_a_later_one():
    prior, codes = opinionated()
    one, words = codes[:1], prior.words(codes[:1])
    with torch.no_grad():
        labels = (None, prior.styled(one))
        before = prior.log_probs_given(words, one, labels)
        for row, column in itertools.product(range(2, 8), range(6)):
            other = one.clone()
            other[0, row, column] = (other[0, row, column] + 1) % 7
            moved = (prior.log_probs_given(words, other, labels) != before)[0]
            same = prior.turn <= prior.turn[row, column]
            same[row, column] = False  # its own chance is another code's now
            assert not moved[same].any(), (row, column)
            if int(prior.turn[row, column]) == 0:
                assert moved[prior.turn > 0].any(), "nobody looks at what was drawn first"


def test_the_chances_of_all_maps_sum_to_one_given_any_sketch_and_to_no_more_in_all():
    prior, _ = opinionated(grid=(2, 2), entries=4, air=False)
    every = torch.tensor(list(itertools.product(range(4), repeat=4))).view(-1, 2, 2)
    for word, style in itertools.product(range(5), range(3)):
        words = torch.full((len(every), 1, 1), word)
        given = prior.log_probs_given(words, every, (None, torch.full((len(every),), style))).double().flatten(1).sum(1)
        assert float(given.exp().sum()) == pytest.approx(1, abs=1e-4)
    assert 0.05 < float((-prior.nll(every, level=1).double()).exp().sum()) <= 1.0001
    torch.testing.assert_close(prior.nll(every), -prior.log_probs(every, batch=7).flatten(1).sum(1))


def test_air_is_left_out_and_still_counted():
    prior, codes = opinionated()
    assert prior._box() == (2, 8, 0, 6)
    assert torch.equal(prior.sample(3, generator=seed())[:, :2], torch.full((3, 2, 6), 2))
    odd = codes[:1].clone()
    odd[0, 0, 0] = 5
    assert float(prior.nll(odd) - prior.nll(codes[:1])) > 3


def test_one_pass_an_image_is_right_on_average():
    prior, codes = opinionated()
    whole = prior.nll(codes[:3])
    each = [-prior.log_probs(codes[:3], only=torch.full((3,), turn)).flatten(1).sum(1) for turn in range(4)]
    torch.testing.assert_close(torch.stack(each).mean(0), whole)


def test_the_seed_decides_whatever_the_batch_and_labels_matter():
    prior, _ = opinionated()
    drawn = prior.sample(5, level=1, generator=seed())
    assert torch.equal(drawn, prior.sample(5, level=1, generator=seed(), batch=2))
    assert torch.equal(drawn, prior.sample(5, level=1, generator=seed(), cached=False))
    assert not torch.equal(drawn, prior.sample(5, level=1, generator=seed(4)))
    assert not torch.equal(drawn, prior.sample(5, level=2, generator=seed()))


def test_filling_leaves_the_rest_alone():
    prior, codes = opinionated()
    box = torch.zeros(8, 6, dtype=torch.bool)
    box[3:6, 1:4] = True
    filled = prior.fill(codes[:4], box, level=1, generator=seed())
    assert torch.equal(filled[:, ~box], codes[:4, ~box]) and not torch.equal(filled, codes[:4])
    assert torch.equal(prior.fill(codes[:4], torch.zeros_like(box)), codes[:4])


def test_samples_follow_the_likelihood():
    prior, _ = opinionated(grid=(2, 2), entries=2, air=False)
    words = torch.zeros(16, 1, 1, dtype=torch.int64)
    every = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 2, 2)
    open_label, wanted = torch.tensor([-1]), 0
    for style, chance in enumerate(prior.style.log_probs(open_label, open_label)[0].exp()):
        labels = (None, torch.full((16,), style))
        chances = [prior.log_probs_given(words + word, every, labels).flatten(1).sum(1).exp() for word in range(5)]
        sketch = (-prior.sketch.nll(torch.arange(5).view(5, 1, 1), rating=style)).exp()
        wanted = wanted + chance * (sketch[:, None] * torch.stack(chances)).sum(0)
    drawn = prior.sample(4000, generator=seed(), batch=4000).flatten(1) @ torch.tensor([8, 4, 2, 1])
    assert float((torch.bincount(drawn, minlength=16) / 4000 - wanted).abs().sum() / 2) < 0.05


def test_a_style_tells_bright_maps_from_dark_ones_and_is_as_frequent_as_at_its_level_and_rating():
    torch.manual_seed(0)
    bright = torch.arange(240) % 2 == 1
    looks = torch.randn(240, 3, 50, generator=seed()) + 2.0 * bright[:, None, None]
    level, rating = torch.arange(240) // 120, bright.long()  # both kinds at either level; but a rating decides
    style = Style(2, 3, 2, 2)
    style.start(summary(looks), level, rating)
    found = style(summary(looks))
    assert len(found[bright].unique()) == len(found[~bright].unique()) == 1 and found[0] != found[1]
    open_label = torch.tensor([-1, -1])
    either = style.log_probs(torch.tensor([0, 1]), open_label).exp()
    torch.testing.assert_close(either, torch.full((2, 2), 0.5), atol=0.01, rtol=0)
    known = style.log_probs(open_label, torch.tensor([0, 1])).exp()
    assert float(known[0, found[0]]) > 0.85 and float(known[1, found[1]]) > 0.85


def test_a_filled_head_keeps_its_style_and_a_new_one_gets_its_own():
    prior, codes = opinionated()
    labels, fill = {}, prior.sketch.fill
    prior.sketch.fill = lambda *given, **options: labels.update(rating=given[3]) or fill(*given, **options)
    box = torch.ones(8, 6, dtype=torch.bool)
    prior.fill(codes, box, generator=seed())
    assert len(labels["rating"].unique()) == 3 and not torch.equal(labels["rating"], prior.styled(codes))
    box[7, 5] = False
    prior.fill(codes, box, generator=seed())
    assert torch.equal(labels["rating"], prior.styled(codes))


def test_guidance_draws_what_its_level_says_more_than_others():
    prior, codes = opinionated(grid=(2, 2), entries=2, air=False)
    with torch.no_grad():
        prior.sketch.trunk.labels.level.weight.mul_(60)
    count, plain = 1500, {"generator": seed(), "batch": 1500}
    told = (-prior.sketch.nll(torch.arange(5).view(5, 1, 1), level=1, rating=0)).exp()
    left_open = (-prior.sketch.nll(torch.arange(5).view(5, 1, 1), rating=0)).exp()
    wanted = told**3 / left_open**2
    wanted = wanted / wanted.sum()
    drawn = prior.sketch.sample(count, level=1, rating=0, guidance=2.0, **plain).flatten()
    assert float((torch.bincount(drawn, minlength=5) / count - wanted).abs().sum() / 2) < 0.05
    assert float((wanted - told).abs().sum() / 2) > 0.1, "this prior's words don't hang on the level"
    small, options = prior.sketch, {"level": 1, "rating": 0, "guidance": 2.0}
    assert torch.equal(small.sample(7, generator=seed(), **options), small.sample(7, generator=seed(), cached=False, **options))
    with pytest.raises(ValueError, match="guidance=-1 must be 0"):
        prior.sample(1, guidance=-1)


def test_a_word_is_what_a_block_of_codes_looks_like():
    prior, codes = opinionated()
    patches = F.pixel_unshuffle(F.embedding(codes, prior.vectors).movedim(-1, 1), 2).movedim(1, -1)
    distance = (patches[..., None, :] - prior.reader.codebook).square().sum(-1)
    assert torch.equal(prior.words(codes), distance.argmin(-1))
    assert len(prior.words(codes).unique()) == 5


def test_words_that_look_alike_start_alike():
    prior, _ = opinionated(config=dataclasses.replace(CONFIG, words=40))
    looks, start = prior.reader.codebook, prior.sketch.codes.weight[:40].detach()
    apart = [torch.pdist(table) for table in (looks, start)]
    assert float(torch.corrcoef(torch.stack(apart))[0, 1]) > 0.9


def test_it_can_learn_eight_maps_by_heart():
    torch.manual_seed(0)
    codes = torch.randint(7, (8, 4, 4), generator=seed())
    prior = build("twolevel", dataclasses.replace(CONFIG, styles=1), grid=(4, 4), entries=7, levels=8)
    prior.start(codes, vectors=torch.randn(7, 3, generator=seed(2)))
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2, weight_decay=0.0)
    level = torch.arange(8)
    for _ in range(150):
        hidden = prior.hide(codes, torch.rand(8))
        pairs = zip(prior(codes, level, None, hidden), prior.targets(codes, hidden))
        loss = sum(F.cross_entropy(logits.flatten(0, -2), target.flatten()) for logits, target in pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(prior.eval().nll(codes, level).mean()) < 1.0
    assert torch.equal(prior.sample(8, level=level, temperature=0.0), codes)


def test_a_block_must_divide_the_map():
    with pytest.raises(ValueError, match="twolevel.side=2 must be at least 2 and divide the 7 x 6 codes"):
        build("twolevel", CONFIG, grid=(7, 6), entries=4)


def test_the_gauge_reads_levels_of_maps_it_has_not_seen():
    gauge, level = Gauge(code_dim=2, grid=(20, 20)), torch.arange(300) % 10
    looks = torch.randn(300, 2, 20, 20, generator=seed())
    looks[:, 1, 4:12] += 0.3 * level[:, None, None]
    level[:5] = -1  # open labels teach nothing
    gauge.start(gauge.cut(looks[:200]), level[:200])
    assert float((gauge(looks[200:]) - level[200:]).abs().mean()) < 0.5, "by chance it is 2.5"
    fresh = Gauge(code_dim=2, grid=(20, 20))
    fresh.start(fresh.cut(looks), torch.full_like(level, -1))  # a cohort without levels
    assert torch.equal(fresh(looks), torch.zeros(300))


def test_of_several_sketches_the_one_that_fits_its_level_is_kept():
    prior, codes = opinionated(levels=9)
    seen, fitting = [], prior._fitting
    prior._fitting = lambda words, level: seen.append((words, fitting(words, level))) or seen[-1][1]

    def off(words: torch.Tensor, level: int) -> torch.Tensor:
        return (prior.gauge(prior._looks(words)) - level).abs()

    prior.sample(40, level=8, generator=seed(), tries=6)
    drawn, kept = seen.pop()
    assert drawn.shape[:2] == (40, 6) and len(drawn.flatten(0, 1).flatten(1).unique(dim=0)) > 40
    assert all((off(kept, 8) <= off(one, 8)).all() for one in drawn.unbind(1))
    assert off(kept, 8).mean() < off(drawn[:, 0], 8).mean()
    prior.sample(4, generator=seed(), tries=6)
    assert seen.pop()[0].shape[1] == 1, "where no level is asked for, one sketch is enough"
    assert torch.equal(fitting(drawn[:2], torch.tensor([8, -1]))[1], drawn[1, 0])
    box = torch.zeros(8, 6, dtype=torch.bool)
    box[4:6, 2:4] = True
    filled = prior.fill(codes[:3], box, level=2, generator=seed(), tries=3)
    assert torch.equal(filled[:, ~box], codes[:3][:, ~box])
    with pytest.raises(ValueError, match="tries=0 must be at least 1"):
        prior.sample(1, tries=0)


def test_calm_cools_the_details_and_not_the_sketch():
    prior, _ = opinionated()
    kept, fitting = [], prior._fitting
    prior._fitting = lambda words, level: kept.append(fitting(words, level)) or kept[-1]
    drawn = [prior.sample(40, level=1, generator=seed(), calm=calm) for calm in (0.0, 1.0)]
    assert torch.equal(*kept), "one sketch a head, however its details are drawn"
    level = torch.full((40,), 1)
    cold, warm = (prior.log_probs_given(kept[0], codes, (level, prior.styled(codes))).mean() for codes in drawn)
    assert cold > warm + 0.05
    with pytest.raises(ValueError, match="temperature=-1"):
        prior.sample(1, calm=-1)
