"""Reading a codebook: statistics held against counting by hand, projections, tampering, and what the figures say."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from oasis_lib.cohort import Cohort, Split
from oasis_lib.config import VQVAEConfig
from oasis_lib.evaluation import codebook as analysis
from oasis_lib.evaluation import tampering
from oasis_lib.figures import codebook as draw
from oasis_lib.figures import projection as plane
from oasis_lib.models import VQVAE
from oasis_lib.projection import FEW, losses, project

ENTRIES, SIZE, LEVELS = 24, 32, 3


def make_reading(levels_known: bool = True) -> analysis.Reading:
    """An untrained model whose codebook was started on made-up heads: discs of two tissues, eight people of three slices."""
    dice = np.random.default_rng(0)
    torch.manual_seed(0)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    splits = {}
    for name, people in (("train", 5), ("test", 3)):
        radius = dice.uniform(8, 13, people * LEVELS)[:, None, None]
        far = np.hypot(y, x)[None] / radius
        tissue = np.select([far > 1, far > 0.8, far > 0.5], [0, 1, 2], 3).astype(np.uint8)
        images = (tissue * 70 + dice.integers(0, 20, tissue.shape) * (tissue > 0)).astype(np.uint8)
        level = np.tile(np.arange(LEVELS), people) if levels_known else -1
        table = pd.DataFrame({"subject": np.repeat([f"{name}-{p}" for p in range(people)], LEVELS), "level": level})
        splits[name] = Split(name, images, table, tissue=tissue if name == "train" else None)
    cohort = Cohort(Path("nowhere"), {"size": SIZE, "levels": LEVELS, "synthetic": True}, splits)
    model = VQVAE(VQVAEConfig(entries=ENTRIES, hidden=8, blocks=1, code_dim=4, factor=4)).eval()
    pixels = {name: torch.from_numpy(split.images)[:, None].float() / 255 for name, split in splits.items()}
    with torch.no_grad():
        model.quantizer.start(model.latents(pixels["train"]))
    return analysis.Reading(model, cohort, {name: model.encode(some).numpy().astype(np.int16) for name, some in pixels.items()})


@pytest.fixture(scope="module")
def book() -> analysis.Reading:
    return make_reading()


def test_counting():
    codes = np.array([[[0, 1], [1, 1]], [[3, 1], [0, 0]]], dtype=np.int16)
    counts = analysis.usage(codes, 5)
    assert counts.tolist() == [3, 4, 0, 1, 0]
    assert analysis.entropy(np.array([4, 4, 0])) == 1 and analysis.entropy(np.array([7])) == 0
    by_level = analysis.usage_by_level(codes, np.array([2, 4]), 5)
    assert by_level["level"].tolist() == [2, 4] and by_level["used"].tolist() == [2, 3]
    assert analysis.firing(codes, [1, 4])[0].tolist() == [[0, 1], [0.5, 0.5]]
    pairs = analysis.adjacency(codes, 5)
    assert pairs.sum() == 8 and pairs[0, 1] == 2 and pairs[3, 1] == 1 and pairs[1, 0] == 1
    summary = analysis.summary(counts, by_level)
    assert summary["used"] == 3 and 1 < summary["perplexity"] < 3


def test_neighbours_tell_all_or_nothing():
    certain = np.array([[0, 4], [4, 0]])  # the neighbour is always the other one
    assert analysis.neighbour_bits(certain) == pytest.approx(1)
    assert analysis.neighbour_bits(np.full((4, 4), 3)) == pytest.approx(0)
    bits = analysis.guess_bits(np.array([4, 4]), certain)
    assert list(bits.values()) == pytest.approx([1, 1, 0])


def test_a_reading(book):
    assert book.counts.sum() == book.codes["train"].size and book.factor == 4
    assert book.patches.shape == (ENTRIES, 8, 8) and np.isfinite(book.patches).all()
    assert sorted(book.shades * (ENTRIES - 1)) == pytest.approx(range(ENTRIES))
    assert book.slice_of("test-1", 2) == 5
    with pytest.raises(ValueError, match="no person 'nobody'"):
        book.slice_of("nobody", 0)
    rows = [0, 4]
    parts = analysis.through(book, rows)
    assert parts["before"].shape == parts["after"].shape == parts["shades"].shape == (2, 8, 8)
    latents = book.latents(book.shown.images[rows])
    assert (book.snap(latents) == book.codes["test"][rows]).all()
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


def test_unknown_levels_are_read_too():
    book = make_reading(levels_known=False)
    assert book.levels.tolist() == [0, 1, 2] * 3 and book.slice_of("test-2", 1) == 7


def test_encoder_outputs_carry_what_lies_beneath(book):
    table = analysis.outputs(book, 200)
    assert len(table) == 200 and set(table["tissue"]) <= {0, 1, 2, 3}
    assert table["brightness"].between(0, 1).all()
    assert analysis.all_points(book, table).shape == (ENTRIES + 200, 4)
    dark, bright = (table[table["tissue"] == kind]["brightness"].mean() for kind in (0, 3))
    assert dark < bright


def test_projection_is_seeded_kept_and_quiet(tmp_path):
    points = np.random.default_rng(0).normal(size=(60, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = project(points, cache=tmp_path)
    assert first.method == "UMAP" and first.points.shape == (60, 2)
    file = next(tmp_path.glob("umap-*.npz"))
    written = file.stat().st_mtime_ns
    assert (project(points, cache=tmp_path).points == first.points).all() and file.stat().st_mtime_ns == written
    assert (project(points).points == first.points).all()  # the seed alone does it
    project(points, seed=1, cache=tmp_path)
    assert len(list(tmp_path.glob("umap-*.npz"))) == 2


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.zeros((50, 3)), np.eye(FEW - 1)], ids=["one", "all alike", "few"])
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
    codes = ((points[10:, None] - points[None, :10]) ** 2).sum(-1).argmin(1)
    kept = losses(points, answer.points, 10, codes)
    assert kept["same_code"] == 1 and kept["trustworthiness"] == pytest.approx(1)


@pytest.mark.parametrize("points, said", [(np.zeros((0, 2)), "not \\(0, 2\\)"), (np.full((4, 2), np.nan), "4 of 4")])
def test_what_cannot_be_projected_is_named(points, said):
    with pytest.raises(ValueError, match=said):
        project(points)
    with pytest.raises(ValueError, match="'TSNE'"):
        project(np.eye(3), "TSNE")


def test_the_page_has_a_place_for_every_entry_and_keeps_neighbours():
    points = np.stack(np.meshgrid(np.arange(8.0), np.arange(4.0)), -1).reshape(-1, 2)
    order, (rows, columns) = analysis.page_order(points)
    assert rows * columns == len(order) and sorted(order[order >= 0]) == list(range(32))
    assert (order.reshape(rows, columns) == np.arange(32).reshape(4, 8)).all()  # a grid stays the grid it was
    line = analysis.alike_order(np.array([[0.0], [5.0], [0.1], [5.1]]))
    assert {frozenset(line[:2]), frozenset(line[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_tampering(book):
    codes = np.asarray(book.codes["test"][0])
    edited, (top, left, height, width) = tampering.swapped(book, codes)
    assert (edited != codes).sum() == 1 and (top, left, height, width) == (16, 16, 4, 4)
    kept = tampering.keep_commonest(book, codes, 5)
    assert set(kept.ravel()) <= set(np.argsort(-book.counts, kind="stable")[:5])
    assert (tampering.keep_commonest(book, codes, ENTRIES) == codes).all()
    assert sorted(tampering.shuffled(codes).ravel()) == sorted(codes.ravel())
    scores = tampering.tamper(book, range(0, 9, 2))
    assert list(scores.index) == ["all entries", "6 commonest", "shuffled"]
    assert (scores["low"] <= scores["ssim"]).all() and (scores["ssim"] <= scores["high"]).all()


def test_figures_show_what_they_were_given(book):
    table = analysis.outputs(book, 100)
    flat = project(analysis.all_points(book, table), "PCA").points
    figures = {"embedding": plane.embedding(flat, table, book.counts, book.patches, "PCA")}
    titles = [axis.get_title() for axis in figures["embedding"].axes]
    assert "outputs by the tissue beneath" in titles and "each entry's decoded patch at its place" in titles
    unknown = plane.embedding(flat, table.assign(tissue=-1), book.counts, book.patches)
    assert any("not known" in axis.get_title() for axis in unknown.axes)
    lost = pd.DataFrame({"trustworthiness": [0.9, 0.8], "same_code": [0.5, 0.4]}, index=["UMAP", "PCA"])
    figures["compare"] = plane.compare({"UMAP": flat, "PCA (9%)": flat}, lost, table, ENTRIES)
    bars = figures["compare"].axes[2]
    assert sorted(bar.get_height() for bar in bars.patches) == [0.4, 0.5, 0.8, 0.9]

    history = pd.DataFrame({"step": [1, 2], "codes_used": [3, 9], "perplexity": [2.0, 7.5]})
    figures["usage"] = draw.usage(history, analysis.usage_by_level(book.codes["train"], np.arange(15) % 3, ENTRIES), book.counts)
    lines = {line.get_label(): line for line in figures["usage"].axes[0].lines}
    assert lines["perplexity"].get_ydata().tolist() == [2.0, 7.5] and "codes used" in lines
    assert "level" in figures["usage"].axes[1].get_xlabel()

    figures["slices"] = draw.slices(**analysis.through(book, [0, 3]), names=["a", "b"], mm=2.0)
    assert [axis.get_ylabel() for axis in figures["slices"].axes[::6][:2]] == ["a", "b"]
    assert any("50 mm" in text.get_text() for axis in figures["slices"].axes for text in axis.texts)
    parts = analysis.through(book, [0, 3])
    figures["maps"] = draw.code_maps(parts["images"], parts["shades"], ["a", "b"], 1)
    assert "level 2" in figures["maps"].get_suptitle()

    top = analysis.commonest(book, 7)
    maps = analysis.firing(book.codes["train"], top)
    figures["firing"] = draw.firing(maps, top, book.patches, book.counts, np.ones((SIZE, SIZE)))
    assert figures["firing"].axes[0].get_title().startswith(f"{top[0]}: ")
    real = analysis.examples(book, top, 3)
    assert all(len(found) <= 3 and found.shape[1:] == (8, 8) for found in real)
    figures["gallery"] = draw.gallery(book.patches, real, top)
    order, shape = analysis.page_order(flat[:ENTRIES])
    unused = book.counts.copy()
    unused[:2] = 0
    figures["page"] = draw.page(book.patches, order, shape, unused)
    assert "2 never used" in figures["page"].get_suptitle()
    pairs = analysis.adjacency(book.codes["train"], ENTRIES)
    bits = analysis.guess_bits(book.counts, pairs)
    figures["followers"] = draw.followers(pairs, np.arange(ENTRIES), bits)
    assert (np.ma.filled(figures["followers"].axes[0].images[0].get_array(), 0) == pairs).all()
    images, box = tampering.variants(book, book.codes["test"][0])
    figures["tampering"] = draw.tampering(images, box)
    assert [axis.get_title() for axis in figures["tampering"].axes[:4]] == list(images)
    for name, figure in figures.items():
        assert figure.get_figwidth() * figure.dpi >= 1000, name
        assert figure.get_suptitle(), name
