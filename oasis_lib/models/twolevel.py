"""Two levels (after VQ-VAE-2, Razavi 2019, arXiv:1906.00446): a sketch of the whole head, then its details in a few passes.

A block of codes, looked at together, is one word of the sketch: the nearest of k-means centres. The sketch follows from the codes,
so no second encoder is trained. A map is as probable as its sketch times its codes given the sketch, or more: other sketches may
lead to it too. So the bits told of it are never too few. What is the same all over a head (how bright it is) is drawn first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oasis_lib.config import TwoLevelConfig, VQVAEConfig
from oasis_lib.models.air import Air
from oasis_lib.models.choice import Choice, gumbel, image_seeds, place_seeds
from oasis_lib.models.counts import Counts
from oasis_lib.models.gauge import Gauge
from oasis_lib.models.quantizer import VectorQuantizer
from oasis_lib.models.sampling import Autoregressive, Label, drawing, full_precision
from oasis_lib.models.style import Style, StyledLabels, joined, summary
from oasis_lib.models.transformer import CodeTransformer

READ = 512  # maps that words are found in


class Wide(nn.Module):
    """A 3 x 3 convolution with holes to half the channels and a 1 x 1 back, added to the stream; as it starts it adds nothing."""

    def __init__(self, channels: int, holes: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels // 2, 3, padding=holes, dilation=holes)
        self.last = nn.Conv2d(channels // 2, channels, 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.gelu(self.first(F.gelu(x))))


class Details(nn.Module):
    """Codes of which some are hidden, and the sketch -> what each place looks like from around it."""

    def __init__(self, config: TwoLevelConfig, grid: tuple[int, int], entries: int, levels: int, ratings: int):
        super().__init__()
        width, self.side = config.channels, config.side
        self.codes = nn.Embedding(entries + 1, width)  # one more: hidden
        self.words = nn.Embedding(config.words, width)
        self.spread = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width * self.side**2, 3, padding=1),
            nn.PixelShuffle(self.side),
        )
        self.rows, self.columns = nn.Parameter(torch.zeros(grid[0], 1, width)), nn.Parameter(torch.zeros(1, grid[1], width))
        self.labels = StyledLabels(levels, ratings, config.styles, width)
        self.blocks = nn.Sequential(*(Wide(width, 2 ** (i % 3)) for i in range(config.blocks)))
        for table in (self.codes, self.words, self.labels.level, self.labels.rating, self.labels.style):
            nn.init.normal_(table.weight, std=0.3)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, entries)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, read: Tensor, words: Tensor, labels: tuple, box: tuple[int, int, int, int]) -> Tensor:
        """(B, h, w) codes and (B, h / side, w / side) words -> (B, h', w', width) of the box."""
        top, end, left, right = box
        seen = words[:, top // self.side : end // self.side, left // self.side : right // self.side]
        x = self.codes(read[:, top:end, left:right]) + self.rows[top:end] + self.columns[:, left:right]
        x = (x + self.labels(*labels, len(read))[:, None, None]).movedim(-1, 1)
        sketch = self.spread(self.words(seen).movedim(-1, 1))
        return self.blocks(x.to(sketch.dtype) + sketch).movedim(1, -1)  # in half precision, where convolutions are


class TwoLevel(Autoregressive):
    """Codes of one pass lie `sqrt(passes)` apart and are drawn together, each given the sketch and all passes before."""

    kind = "twolevel"
    shown = 4096

    def __init__(self, config: TwoLevelConfig, grid: tuple[int, int], entries: int, levels: int = 0, ratings: int = 0):
        super().__init__(config, grid, entries, levels, ratings)
        self.block = side = config.side
        if side < 2 or grid[0] % side or grid[1] % side:
            raise ValueError(f"twolevel.side={side} must be at least 2 and divide the {grid[0]} x {grid[1]} codes")
        patch = VQVAEConfig(entries=config.words, code_dim=config.code_dim * side**2)
        self.reader = VectorQuantizer(patch)
        # What codes look like: the VQ-VAE's entries, which training puts in.
        self.register_buffer("vectors", torch.randn(entries, config.code_dim, generator=torch.Generator().manual_seed(0)))
        self.style = Style(config.styles, config.code_dim, levels, ratings)
        sketch = (grid[0] // side, grid[1] // side)
        self.sketch = CodeTransformer(config, sketch, config.words, levels, (ratings + 1) * config.styles)
        self.sketch.trunk.labels = StyledLabels(levels, ratings, config.styles, config.width)
        for table in self.sketch.trunk.labels.children():
            nn.init.normal_(table.weight, std=0.02)
        self.details = Details(config, self.grid, entries, levels, ratings)
        self.air, self.counts = Air(self.grid, entries), Counts(self.grid, entries)
        self.gauge = Gauge(config.code_dim, self.grid)
        self.register_buffer("turn", turns(self.grid, config.passes), persistent=False)  # (h, w): in which pass each is drawn
        for name in {"sketch", "details"} - set(self.learning):
            getattr(self, name).requires_grad_(False)

    @property
    def passes(self) -> int:
        return self.sketch.passes + self.config.passes

    @property
    def learning(self) -> tuple[str, ...]:
        """The parts that training is of, in the order in which their logits and targets are given."""
        return ("sketch", "details") if self.config.learns == "both" else (self.config.learns,)

    @torch.no_grad()
    def start(self, codes: Tensor, shifted: Tensor | None = None, vectors: Tensor | None = None, *labels: Tensor | None) -> None:
        if vectors is not None:
            self.vectors.copy_(vectors)

        def shuffled(rows: Tensor, most: int | None = None) -> Tensor:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
            return rows[order.to(rows.device)]

        parts, few = codes.split(256), shuffled(codes, READ)
        different = self._patches(few).movedim(1, -1).flatten(0, -2).unique(dim=0)  # air is one patch, however often
        self.reader.start(shuffled(different).T[None, :, None], rounds=20, generator=torch.Generator().manual_seed(0))
        self.air.start(codes if shifted is None else torch.cat([codes, shifted]))
        self.counts.start(codes)
        self.style.start(torch.cat([self._summary(part) for part in parts]), *labels)
        for table, scale in ((self.sketch.codes, 0.3), (self.sketch.trunk.head, 0.02), (self.details.words, 0.3)):
            alike(table.weight, self.reader.codebook, scale)
        words = torch.cat([self.words(part) for part in parts])
        self.sketch.start(words, None if shifted is None else self.words(shifted), None, *labels)
        if labels and labels[0] is not None:
            self.gauge.start(torch.cat([self.gauge.cut(self._looks(part)) for part in words.split(256)]), labels[0])

    @property
    def grouped(self) -> bool:
        return self.sketch.grouped and "sketch" in self.learning

    def set_apart(self, codes: Tensor, level: Tensor, group: Tensor) -> None:
        self.sketch.set_apart(torch.cat([self.words(part) for part in codes.split(256)]), level, group)

    @torch.no_grad()
    def styles(self, codes: Tensor) -> Tensor:
        """(B, h, w) -> (B,)."""
        return self.style(self._summary(codes))

    def _summary(self, codes: Tensor) -> Tensor:
        """Of the entries at all places inside."""
        return summary(F.embedding(codes.flatten(1)[:, self.air.places()], self.vectors).movedim(-1, 1))

    def styled(self, codes: Tensor, rating: Tensor | None = None) -> Tensor:
        """(B,) the ratings, open where there are none, joined with the style of each map."""
        rating = torch.full((len(codes),), -1, device=codes.device) if rating is None else rating
        return joined(rating, self.styles(codes), self.config.styles)

    def _patches(self, codes: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.embedding(codes, self.vectors).movedim(-1, 1), self.config.side)

    @torch.no_grad()
    def words(self, codes: Tensor) -> Tensor:
        """(B, h, w) -> the sketch (B, h / side, w / side)."""
        patches = self._patches(codes).contiguous()
        return self.reader.nearest(patches.movedim(1, -1).flatten(0, -2)).view(len(codes), *self.sketch.grid)

    @torch.no_grad()
    def plain(self, words: Tensor) -> Tensor:
        """(B, h / side, w / side) -> (B, h, w): the codes nearest to what each word stands for, to look at a sketch by."""
        looks = self._looks(words).movedim(1, -1)
        return torch.cdist(looks.flatten(0, -2), self.vectors).argmin(1).view(-1, *self.grid)

    def _looks(self, words: Tensor) -> Tensor:
        """(B, h / side, w / side) -> (B, D, h, w): what the words stand for."""
        return F.pixel_shuffle(F.embedding(words, self.reader.codebook).movedim(-1, 1), self.config.side)

    def hide(self, codes: Tensor, draws: Tensor) -> Tensor:
        """What training hides: all passes from one on, drawn for every image; `draws` (B,) in [0, 1)."""
        now = (draws * self.config.passes).long()[:, None, None]
        return (self.turn >= now) & self._inside()

    def targets(self, codes: Tensor, hidden: Tensor) -> list[Tensor]:
        of = {"sketch": lambda: self.sketch.targets(self.words(codes)), "details": lambda: codes[: len(hidden)][hidden]}
        return [of[part]() for part in self.learning]

    def forward(
        self,
        codes: Tensor,
        level: Tensor | None = None,
        rating: Tensor | None = None,
        hidden: Tensor | None = None,
        group: Tensor | None = None,
    ) -> list[Tensor]:
        """Logits of what is learning: the sketch's words (as its transformer gives them) and (M, K) of the hidden codes.

        `hidden` may be of the first few maps alone: what details have to learn is much the same everywhere, a sketch is not.
        """
        words, few, rating = self.words(codes), len(hidden), self.styled(codes, rating)
        labels = None if level is None else level[:few], rating[:few]
        of = {
            "sketch": lambda: self.sketch(words, level, rating, group),
            "details": lambda: self._logits(codes[:few], hidden, hidden, words[:few], labels),
        }
        return [of[part]() for part in self.learning]

    def _logits(self, codes: Tensor, hidden: Tensor, asked: Tensor, words: Tensor, labels: tuple) -> Tensor:
        """(M, K) at the places `asked` (B, h, w), all of them inside."""
        top, end, left, right = box = self._box()
        looks = self.details(torch.where(hidden, self.entries, codes), words, labels, box)
        there = asked[:, top:end, left:right]
        place = torch.arange(self.turn.numel(), device=codes.device).view(self.grid)[top:end, left:right].expand_as(there)[there]
        return self.details.head(self.details.norm(looks[there])) + self.counts.logits[place]

    @torch.no_grad()
    def log_probs(
        self, codes: Tensor, level: Label = None, rating: Label = None, batch: int = 64, only: Tensor | None = None
    ) -> Tensor:
        """(B, h, w); a word's chance is shared out evenly among its codes, and the style's among all.

        `only` (B,) looks at one pass an image and takes it for all of them: right on average, and as many times faster.
        """
        codes, side = self.check_codes(codes), self.config.side
        level, rating = self.labels(len(codes), level, rating)
        found = []
        for part in torch.arange(len(codes), device=self.device).split(batch):
            some = codes[part]
            words, style = self.words(some), self.styles(some)
            labels = (level[part], joined(rating[part], style, self.config.styles))
            style = self.style.log_probs(level[part], rating[part]).gather(1, style[:, None])
            sketched = self.sketch.log_probs(words, *labels, batch=batch) / side**2
            shared = sketched.repeat_interleave(side, 1).repeat_interleave(side, 2) + style[:, None] / self.turn.numel()
            found.append(shared + self.log_probs_given(words, some, labels, None if only is None else only[part]))
        return torch.cat(found)

    @torch.no_grad()
    def log_probs_given(self, words: Tensor, codes: Tensor, labels: tuple, only: Tensor | None = None) -> Tensor:
        """(B, h, w) of the codes given a sketch and labels (level, rating and style in one), whether or not they are theirs."""
        air = self.air.logits(torch.arange(self.turn.numel(), device=self.device)).view(1, *self.grid, -1)
        air = air.expand(len(codes), -1, -1, -1).gather(-1, codes[..., None])[..., 0]
        found, weight = torch.where(self._inside(), 0.0, air), 1 if only is None else self.config.passes
        for turn in range(self.config.passes) if only is None else [only.view(-1, 1, 1)]:
            hidden = ((self.turn >= turn) & self._inside()).expand_as(codes)
            asked = hidden & (self.turn == turn)
            logits = self._logits(codes, hidden, asked, words, labels).float()
            found[asked] = -F.cross_entropy(logits, codes[asked], reduction="none") * weight
        return found

    def told(self, codes: Tensor, row: int, column: int) -> Tensor:
        hidden = ((self.turn >= self.turn[row, column]) & self._inside()).expand_as(codes)
        asked = torch.zeros_like(codes, dtype=torch.bool)
        asked[:, row, column] = True
        return self._logits(codes, hidden, asked, self.words(codes), (None, self.styled(codes)))

    @torch.no_grad()
    def fill(self, codes: Tensor, mask: Tensor, level: Label = None, rating: Label = None, *,
             generator: torch.Generator | None = None, cached: bool = True, batch: int = 64, progress: bool | None = None,
             guidance: float = 0.0, tries: int = 4, calm: float = 1.0, **how: Any) -> Tensor:  # fmt: skip
        """`codes` drawn anew where `mask` is true: first the words of the sketch that it touches, then the codes.

        A head that is drawn as a whole gets a style of its own; one that is filled in keeps its own. Guidance is of the sketch.
        Where a level is asked for, so many sketches are drawn as `tries` says, and the one whose level it looks most like is kept.
        `calm` is how warm the details are beside the sketch: codes that are drawn side by side know nothing of each other.
        """
        if tries < 1:
            raise ValueError(f"tries={tries} must be at least 1")
        choose = Choice(**how)
        calmly = choose.calmed(calm)
        codes, mask = self.check_codes(codes), mask.to(self.device).expand(len(codes), *self.grid)
        level, rating = self.labels(len(codes), level, rating)
        noise = gumbel(image_seeds(len(codes), generator, self.device), 0, self.config.styles)
        drawn = choose(self.style.log_probs(level, rating), noise)[0]
        whole = (mask | ~self._inside()).flatten(1).all(1)
        rating = joined(rating, torch.where(whole, drawn, self.styles(codes)), self.config.styles)
        touched, tries = F.max_pool2d(mask[:, None].float(), self.config.side)[:, 0] > 0, tries if bool((level >= 0).any()) else 1
        many = (each.repeat_interleave(tries, 0) for each in (self.words(codes), touched, level, rating))
        words = self.sketch.fill(*many, **how, generator=generator, cached=cached, batch=batch, progress=progress,
                                 guidance=guidance)  # fmt: skip
        words = self._fitting(words.unflatten(0, (-1, tries)), level)
        labels, seeds = (level, rating), image_seeds(len(codes), generator, self.device)
        codes = torch.where(mask & ~self._inside(), self.air.usual.view(self.grid), codes)
        parts, done = torch.arange(len(codes), device=self.device).split(max(1, batch // 4)), []  # larger than sketches
        with full_precision(self), drawing(len(parts) * self.config.passes, "pass of details", progress) as bar:
            for part in parts:
                drawn, own, wanted = codes[part].clone(), place_seeds(seeds[part], self.turn.numel()), mask[part] & self._inside()
                for turn in range(self.config.passes):
                    hidden = wanted & (self.turn >= turn)
                    asked = hidden & (self.turn == turn)
                    if bool(asked.any()):
                        logits = self._logits(drawn, hidden, asked, words[part], tuple(label[part] for label in labels))
                        noise = gumbel(own.view_as(drawn)[asked], 0, self.entries)
                        drawn[asked] = calmly(logits, noise)[0]
                    bar.update()
                done.append(drawn)
        return torch.cat(done)

    def _fitting(self, words: Tensor, level: Tensor) -> Tensor:
        """(B, tries, h, w) sketches -> of each the one that looks most like its level; the first where that is open."""
        off = [(self.gauge(self._looks(one)) - level).abs() for one in words.unbind(1)]
        best = torch.where(level < 0, 0, torch.stack(off, 1).argmin(1))
        return words[torch.arange(len(words), device=words.device), best]

    def _inside(self) -> Tensor:
        return self.air.inside.view(self.grid)

    def _box(self) -> tuple[int, int, int, int]:
        """What is inside, grown to whole words of the sketch."""
        side, (top, end, left, right) = self.config.side, self.air.box()
        return top // side * side, -(-end // side) * side, left // side * side, -(-right // side) * side


def alike(weight: Tensor, looks: Tensor, scale: float) -> None:
    """Words that look alike start alike (the first columns are principal components): so a thousand rare ones learn together."""
    u, size, _ = torch.linalg.svd(looks - looks.mean(0), full_matrices=False)
    parts = (u * size)[:, : weight.shape[1]]
    weight[: len(parts), : parts.shape[1]] = scale * parts / parts.std().clamp(min=1e-6)


def turns(grid: tuple[int, int], passes: int) -> Tensor:
    """(h, w) of 0 .. passes - 1: Bayer's matrix as a tiling, so that codes of any pass, and of the first so many, lie far apart."""
    order = torch.zeros(1, 1, dtype=torch.int64)
    while order.numel() < passes:
        order = torch.cat([torch.cat([4 * order, 4 * order + 2], 1), torch.cat([4 * order + 3, 4 * order + 1], 1)])
    if order.numel() != passes:
        raise ValueError(f"twolevel.passes={passes} must be 1, 4, 16 or 64")
    side = len(order)
    return order.repeat(-(-grid[0] // side), -(-grid[1] // side))[: grid[0], : grid[1]].clone()
