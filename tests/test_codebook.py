"""Reading a codebook: statistics held against counting by hand, projections, tampering, and what the figures say."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_lib.cohort import Cohort, Split
from oasis_lib.config import VQVAEConfig
from oasis_lib.evaluation import codebook as analysis
from oasis_lib.figures import codebook as draw
from oasis_lib.models import VQVAE
from oasis_lib.projection import FEW, project

ENTRIES, SIZE, LEVELS = 24, 32, 3


def make_reading(slice_indices_known: bool = True) -> analysis.CodebookStatistics:
    """An untrained model whose codebook was started on made-up heads.

    Discs of two tissues, eight subjects of three slices.
    """
    dice = np.random.default_rng(0)
    torch.manual_seed(0)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    splits = {}
    for name, subjects in (("train", 5), ("test", 3)):
        radius = dice.uniform(8, 13, subjects * LEVELS)[:, None, None]
        far = np.hypot(y, x)[None] / radius
        tissue = np.select([far > 1, far > 0.8, far > 0.5], [0, 1, 2], 3).astype(np.uint8)
        images = (tissue * 70 + dice.integers(0, 20, tissue.shape) * (tissue > 0)).astype(np.uint8)
        slice_index = np.tile(np.arange(LEVELS), subjects) if slice_indices_known else -1
        table = pd.DataFrame(
            {"subject": np.repeat([f"{name}-{p}" for p in range(subjects)], LEVELS), "slice_index": slice_index}
        )
        splits[name] = Split(name, images, table, tissue=tissue if name == "train" else None)
    cohort = Cohort(Path("nowhere"), {"size": SIZE, "slice_indices": LEVELS, "synthetic": True}, splits)
    model = VQVAE(VQVAEConfig(codebook_size=ENTRIES, hidden=8, blocks=1, code_dim=4, factor=4)).eval()
    pixels = {name: torch.from_numpy(split.images)[:, None].float() / 255 for name, split in splits.items()}
    with torch.no_grad():
        model.quantizer.start(model.latents(pixels["train"]))
    return analysis.CodebookStatistics(
        model, cohort, {name: model.encode(some).numpy().astype(np.int16) for name, some in pixels.items()}
    )


@pytest.fixture(scope="module")
def book() -> analysis.CodebookStatistics:
    return make_reading()


def test_counting():
    codes = np.array([[[0, 1], [1, 1]], [[3, 1], [0, 0]]], dtype=np.int16)
    counts = analysis.usage(codes, 5)
    assert counts.tolist() == [3, 4, 0, 1, 0]
    by_slice_index = analysis.usage_by_slice_index(codes, np.array([2, 4]), 5)
    assert by_slice_index["slice_index"].tolist() == [2, 4] and by_slice_index["used"].tolist() == [2, 3]
    assert analysis.firing(codes, [1, 4])[0].tolist() == [[0, 1], [0.5, 0.5]]
    pairs = analysis.adjacency(codes, 5)
    assert pairs.sum() == 8 and pairs[0, 1] == 2 and pairs[3, 1] == 1 and pairs[1, 0] == 1
    summary = analysis.summary(counts, by_slice_index)
    assert summary["used"] == 3 and 1 < summary["perplexity"] < 3


def test_neighbours_tell_all_or_nothing():
    certain = np.array([[0, 4], [4, 0]])  # the neighbour is always the other one
    bits = analysis.guess_bits(np.array([4, 4]), certain)
    assert list(bits.values()) == pytest.approx([1, 1, 0])
    nothing = analysis.guess_bits(np.array([4, 4, 4, 0]), np.full((4, 4), 3))
    assert list(nothing.values()) == pytest.approx([2, np.log2(3), np.log2(3)])
    assert analysis.steps(certain, np.array([0.0, 1.0])) == pytest.approx((1, 0.5))
    assert analysis.steps(np.eye(2), np.array([0.0, 1.0])) == pytest.approx((0, 0.5))


def test_a_reading(book):
    assert book.counts.sum() == book.codes["train"].size and book.factor == 4
    assert book.patches.shape == (ENTRIES, 8, 8) and np.isfinite(book.patches).all()
    assert book.shades == pytest.approx(book.patches[:, 2:6, 2:6].mean((1, 2)).clip(0, 1))
    assert book.slice_of("test-1", 2) == 5
    with pytest.raises(ValueError, match="no subject 'nobody'"):
        book.slice_of("nobody", 0)
    rows = [0, 4]
    parts = analysis.through(book, rows)
    assert parts["latent"].shape == parts["quantised"].shape == parts["tokens"].shape == (2, 8, 8)
    latents = torch.from_numpy(book.latents(book.shown.images[rows]))
    assert (book.model.quantizer(latents)[1].numpy() == book.codes["test"][rows]).all()
    assert book.decode(book.codes["test"][0]).shape == (SIZE, SIZE)


def test_the_patch_of_an_entry_is_the_mean_of_its_drawings(book):
    codes = np.asarray(book.codes["train"])
    n, row, column = np.argwhere(codes[:, 1:-1, 1:-1] == codes[0, 3, 3])[0] + [0, 1, 1]
    one = codes[n : n + 1].copy()
    entry = one[0, row, column]
    one[one == entry] = (entry + 1) % ENTRIES
    one[0, row, column] = entry  # alone in its map: the mean is that one drawing
    drawn = book.decode(one[0])
    expected = drawn[row * 4 - 2 : row * 4 + 6, column * 4 - 2 : column * 4 + 6]
    assert analysis.decoded_patches(book, one)[entry] == pytest.approx(expected, abs=1e-5)


def test_unknown_slice_indices_are_read_too():
    book = make_reading(slice_indices_known=False)
    assert book.slice_indices.tolist() == [0, 1, 2] * 3 and book.slice_of("test-2", 1) == 7


def test_windows_are_the_pixels_of_a_token_and_some_around_it(book):
    images = np.arange(2 * 8 * 8).reshape(2, 8, 8)
    cells = analysis.windows(images, 4)
    assert cells.shape == (2, 2, 2, 4, 4) and (cells[1, 1, 0] == images[1, 4:, :4]).all()
    wide = analysis.windows(images, 4, 2)
    assert wide.shape == (2, 2, 2, 8, 8) and (wide[0, 0, 1][2:6, 2:6] == images[0, :4, 4:]).all()
    assert wide[0, 0, 0][0, 0] == images[0, 0, 0], "the edge is repeated"
    found = analysis.examples(book, [int(book.codes["test"][0, 3, 3]), 0], 1000, margin=4)
    assert len(found[0]) == (book.codes["test"] == book.codes["test"][0, 3, 3]).sum() and found[0].shape[1:] == (12, 12)


def test_the_tissue_of_a_token_is_what_it_covers_most(book):
    tissue = analysis.tissues(book)
    token = int(np.bincount(book.codes["train"].ravel()).argmax())
    covered = np.asarray(book.cohort["train"].tissue)[np.kron(book.codes["train"] == token, np.ones((1, 4, 4), bool))]
    assert tissue[token] == np.bincount(covered).argmax()
    assert (tissue[book.counts == 0] == -1).all() and tissue.max() <= 3
    unknown = dataclasses.replace(book.cohort["train"], tissue=None)
    blind = dataclasses.replace(book.cohort, splits=book.cohort.splits | {"train": unknown})
    assert (analysis.tissues(dataclasses.replace(book, cohort=blind)) == -1).all()


def test_projection_is_seeded_and_quiet():
    points = np.random.default_rng(0).normal(size=(60, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = project(points)
    assert first.method == "UMAP" and first.points.shape == (60, 2) and 0.5 < first.trustworthiness <= 1
    assert (project(points).points == first.points).all() and (project(points, seed=1).points != first.points).any()


@pytest.mark.parametrize(
    "points", [np.zeros((1, 3)), np.zeros((50, 3)), np.eye(FEW - 1)], ids=["one", "all alike", "few"]
)
def test_too_few_points_are_answered_by_pca(points):
    answer = project(points, "UMAP")
    assert answer.method == "PCA" and np.isfinite(answer.points).all() and 0 <= answer.kept <= 1


def test_without_umap_pca_answers(monkeypatch):
    monkeypatch.setattr("oasis_lib.projection.find_spec", lambda name: None)
    assert project(np.random.default_rng(0).normal(size=(60, 5))).method == "PCA"


def test_pca_of_a_plane_loses_nothing():
    points = np.random.default_rng(0).normal(size=(90, 2)) @ np.random.default_rng(1).normal(size=(2, 6))
    answer = project(points, "PCA")
    assert answer.kept == pytest.approx(1)
    assert answer.trustworthiness == pytest.approx(1)
    assert project(np.random.default_rng(0).normal(size=(90, 20)), "PCA").trustworthiness < 0.9


@pytest.mark.parametrize("points, said", [(np.zeros((0, 2)), "not \\(0, 2\\)"), (np.full((4, 2), np.nan), "4 of 4")])
def test_what_cannot_be_projected_is_named(points, said):
    with pytest.raises(ValueError, match=said):
        project(points)
    with pytest.raises(ValueError, match="'TSNE'"):
        project(np.eye(3), "TSNE")


def test_the_page_has_a_place_for_every_entry_and_keeps_neighbours():
    points = np.stack(np.meshgrid(np.arange(8.0), np.arange(4.0)), -1).reshape(-1, 2)
    order, columns = analysis.page_order(points)
    assert len(order) % columns == 0 and sorted(order[order >= 0]) == list(range(32))
    assert (order.reshape(-1, columns) == np.arange(32).reshape(4, 8)).all()  # a grid stays the grid it was


def test_tampering(book):
    codes = np.asarray(book.codes["test"][:2])
    _, swapped, few, shuffled = analysis.perturbed(book, codes).values()
    assert (swapped != codes).sum((1, 2)).tolist() == [1, 1] and (swapped != codes)[:, 4, 4].all()
    assert set(few.ravel()) <= set(np.argsort(-book.counts, kind="stable")[:6])
    common = np.isin(codes, np.argsort(-book.counts, kind="stable")[:6])
    assert (few[common] == codes[common]).all(), "the most used stay"
    assert sorted(shuffled[0].ravel()) == sorted(codes[0].ravel())
    scores = analysis.perturbation_scores(book, range(0, 9, 2))
    assert list(scores.index) == ["all tokens", "one token replaced", "6 most used", "shuffled"]
    assert (scores["low"] <= scores["ssim"]).all() and (scores["ssim"] <= scores["high"]).all()


def test_charts_show_what_they_were_given(book):
    flat, tissue = project(book.codebook, "PCA").points, analysis.tissues(book)
    use, bright, kinds, pictures = draw.embedding(flat, book.counts, book.shades, tissue, book.patches, "PCA").axes[:4]
    assert len(use.collections[0].get_offsets()) == (book.counts > 0).sum()
    assert (bright.collections[0].get_array() == book.shades).all()
    assert [len(drawn.get_offsets()) for drawn in kinds.collections] == [(tissue == kind).sum() for kind in range(4)]
    corners = [np.array(image.get_extent()).reshape(2, 2) for image in pictures.images]
    assert len(corners) > 2 and all(
        (abs(a - b).max(0) > 0.06).any() for i, a in enumerate(corners) for b in corners[:i]
    )
    unknown = draw.embedding(flat, book.counts, book.shades, tissue * 0 - 1, book.patches, "PCA")
    assert "tissue is not known here" in [axis.get_title() for axis in unknown.axes]


def test_grids_of_tokens_show_what_they_were_given(book):
    top = analysis.commonest(book, 7)
    maps = analysis.firing(book.codes["train"], top)
    figure = draw.firing(maps, top, book.patches, book.counts, np.ones((SIZE, SIZE)))
    assert figure.axes[0].get_title().startswith(f"{top[0]}: ") and figure.axes[0].images[0].get_array().max() == 1
    found = analysis.examples(book, top, 3, margin=4)
    figure = draw.gallery(found, top, book.factor, shown=2)
    assert np.allclose(figure.axes[0].images[0].get_array(), found[0].mean(0))
    assert figure.axes[0].lines[0].get_xdata().min() == 3.5, "the token's own pixels are framed"

    unused = book.counts.copy()
    unused[:2] = 0
    order, columns = analysis.page_order(project(book.codebook, "PCA").points)
    assert "2 never used" in draw.page(book.patches, order, columns, unused).get_suptitle()
