"""What is measured of reconstructions, and that figures show those numbers: data and labels, not pixels."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from oasis_lib.cohort import Cohort, Split
from oasis_lib.config import Part, TrainingConfig, VQVAEConfig
from oasis_lib.evaluation import reconstruction
from oasis_lib.evaluation.codebook import code_bytes
from oasis_lib.figures import reconstruction as draw
from oasis_lib.figures import training
from oasis_lib.figures.style import new_figure, plain_log
from oasis_lib.metrics import psnr, ssim
from oasis_lib.models import VQVAE, load
from oasis_lib.paths import PROJECT
from oasis_lib.training import to_images, train_vqvae

sys.path.insert(0, str(PROJECT / "benchmarks"))
sys.path.insert(0, str(PROJECT / "images"))
import diagrams
import rate_distortion

SIZE = 32


def split(name: str, subjects: int, seed: int) -> Split:
    """Bright discs of varying place: enough for every number to be finite."""
    rng, (down, across) = np.random.default_rng(seed), np.mgrid[:SIZE, :SIZE]
    images, rows = [], []
    for subject in range(subjects):
        for slice_index in range(4):
            middle = SIZE / 2 + rng.uniform(-2, 2, 2)
            inside = np.hypot(down - middle[0], across - middle[1]) < 8 + slice_index
            images.append((inside * rng.integers(90, 220, (SIZE, SIZE))).astype(np.uint8))
            rows.append({"subject": f"{name}-{subject}", "slice_index": slice_index, "file": "none"})
    return Split(name, np.stack(images), pd.DataFrame(rows))


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    info = {
        "hash": "x",
        "size": SIZE,
        "slice_indices": 4,
        "synthetic": True,
        "cdrs": [],
        "left_right": None,
        "source": "discs",
    }
    parts = {
        name: split(name, subjects, seed)
        for seed, (name, subjects) in enumerate({"train": 4, "validate": 2, "test": 3}.items())
    }
    return Cohort(Path("nowhere"), info, parts)


@pytest.fixture(scope="module")
def model() -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(codebook_size=16, code_dim=4, hidden=8, blocks=1)).eval()
    model.quantizer.start(model.latents(torch.rand(4, 1, SIZE, SIZE)))
    return model


@pytest.fixture(scope="module")
def trained(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, Part]:
    out = tmp_path_factory.mktemp("trained") / "vqvae"
    part = Part(
        VQVAEConfig(codebook_size=16, code_dim=4, hidden=8, blocks=1, autoencoder_steps=1),
        TrainingConfig(epochs=4, batch=8),
    )
    return out, train_vqvae(cohort, out, part, progress=False), part


def texts(figure: Figure) -> str:
    return " | ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def grey(axes: list[Axes]) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axis in axes for image in axis.images]


# --- what is measured


def test_scores_are_those_of_the_codes(cohort: Cohort, model: VQVAE):
    table = reconstruction.scores(model, cohort["test"])
    assert list(table["subject"]) == list(cohort["test"].subjects) and len(table) == 12
    images = to_images(cohort["test"].images)
    shown = model.decode(model.encode(images))
    np.testing.assert_allclose(table["ssim"], ssim(images, shown), atol=1e-6)
    np.testing.assert_allclose(table["psnr"], psnr(images, shown), atol=1e-4)
    assert not table.filter(like="brain").isna().any(axis=None)


def test_baselines_are_what_they_say(cohort: Cohort):
    tables = reconstruction.baselines(cohort)
    assert list(tables) == ["black image", "mean training image", "another subject"]
    assert (tables["black image"]["ssim_brain"] < 0.05).all()
    perfect = reconstruction.measure(cohort["test"], lambda images, rows: images)
    assert np.allclose(perfect["ssim"], 1) and all(table["ssim"].max() < 1 for table in tables.values())


def test_another_subject_is_of_the_same_slice_index(cohort: Cohort):
    train, wanted = cohort["train"], np.append(cohort["test"].slice_indices, 99)
    found = reconstruction.strangers(train, wanted)
    assert (train.slice_indices[found[:-1]] == wanted[:-1]).all() and len(set(found)) > 4
    assert 0 <= found[-1] < len(train), "a slice index that training lacks"


def test_the_summary_is_by_subject_and_counts(cohort: Cohort):
    table = pd.DataFrame(
        {"subject": ["a"] * 3 + ["b"], "ssim": [0.9, 0.9, 0.9, 0.5], "ssim_brain": [0.8] * 4, "psnr": [20.0] * 4}
    )
    row = reconstruction.summary({"x": table}).loc["x"]
    assert row["ssim"] == pytest.approx(0.7) and row["subjects"] == 2 and row["above_0.6"] == 0.75
    assert row["ssim_low"] == pytest.approx(0.5) and row["ssim_high"] == pytest.approx(0.9)
    assert "0.700 (0.500 to 0.900)" in reconstruction.readable(reconstruction.summary({"x": table})).to_string()


def test_the_gap_is_between_subjects():
    tables = {
        "train": pd.DataFrame({"subject": ["a", "b"], "ssim": [0.9, 0.9]}),
        "test": pd.DataFrame({"subject": ["c", "d"], "ssim": [0.8, 0.8]}),
    }
    assert reconstruction.gap(tables) == pytest.approx((0.1, 0.1, 0.1))


def test_each_loss_moves_its_own_parts(cohort: Cohort, model: VQVAE):
    flow = reconstruction.gradients(model, to_images(cohort["test"].images[:4]))
    moved = (flow > 0).to_numpy().tolist()
    assert moved == [[True, False, True], [False, True, False], [True, False, False]]
    assert all(p.grad is None for p in model.parameters()), "looking leaves no trace"


def test_probes_without_planted_lesions_have_one_drawn_in(cohort: Cohort):
    odd = reconstruction.probes(cohort["test"])
    assert list(odd) == ["noise", "blank", "a lesion"] and not odd["blank"].any()
    assert odd["a lesion"].max() == 255 and odd["noise"].std() > 50


def test_bytes_of_codes_are_their_entropy():
    known = np.array([[[0, 0], [0, 1]]] * 5000)
    bits = -np.log2([0.75, 0.25])
    found = code_bytes(np.array([[[0, 0], [0, 1]], [[1, 1], [1, 1]]]), known, 2)
    np.testing.assert_allclose(found, [(3 * bits[0] + bits[1]) / 8, 4 * bits[1] / 8], rtol=1e-3)
    assert np.isfinite(code_bytes(np.array([[[3]]]), known, 4)).all(), "an entry that training never used"


def test_codecs_give_more_for_more_bytes(cohort: Cohort):
    table = rate_distortion.classical(cohort, {"JPEG": (10, 90), "WebP": (10, 90), "AVIF": (10, 90)})
    assert set(table["method"]) == {"JPEG", "WebP", "AVIF"}
    for _, rows in table.groupby("method"):
        assert rows["bytes"].is_monotonic_increasing and rows["ssim"].is_monotonic_increasing


def test_the_stored_rates_have_grids_and_codecs():
    stored = pd.read_csv(PROJECT / "data" / "pretrained" / "rate.csv")
    learned = stored.dropna(subset="codebook_size")
    assert learned.groupby("grid")["plain_bytes"].max().is_monotonic_increasing, "finer grids cost more"
    assert len(learned) >= 6 and set(stored["method"]) - set(learned["method"]) == {"JPEG", "WebP", "AVIF"}


def test_a_trained_model_is_a_point(cohort: Cohort, trained):
    out, history, _ = trained
    point = rate_distortion.point(out, cohort)
    assert (point["grid"], point["codebook_size"], point["plain_bytes"]) == (8, 16, 32.0) and 0 < point["bytes"] < 60
    assert point["steps"] == history["step"].iloc[-1]


def test_snapshots_begin_before_training_and_double(cohort: Cohort, trained):
    out, history, _ = trained
    with np.load(out / "snapshots.npz") as kept:
        steps, images, rows = kept["steps"], kept["images"], kept["rows"]
    assert steps[0] == 0 and (steps[2:] >= 2 * steps[1:-1]).all() and steps[-1] <= history["step"].iloc[-1]
    assert images.shape == (len(steps), len(rows), SIZE, SIZE) and images.dtype == np.uint8
    assert not np.array_equal(images[0], images[-1])


# --- what is shown


def test_triples_show_input_codes_and_decoded(cohort: Cohort, model: VQVAE):
    look = reconstruction.look(model, cohort["test"].images[:3])
    shades = np.linspace(0, 1, 16)
    figure = draw.compare(look, ["one", "two", "three"], ("images", "codes", "decoded"), shades)
    drawn = grey(figure.axes)
    np.testing.assert_array_equal(drawn[0], look["images"][0])
    np.testing.assert_array_equal(drawn[4], shades[look["codes"][1]])
    np.testing.assert_array_equal(drawn[8], look["decoded"][2])
    assert all(word in texts(figure) for word in ("one", "two", "three", "tokens, 8 x 8", "decoded"))


def test_both_decoders_are_shown_beside_the_input():
    slices = np.random.default_rng(0).random((2, 16, 16))
    parts = ("images", "decoded", "crisp", "decoded - images", "crisp - images")
    figure = draw.compare({"images": slices, "decoded": 0.5 * slices, "crisp": 0.9 * slices}, ["a", "b"], parts)
    drawn = grey(figure.axes)
    np.testing.assert_allclose(drawn[4], 0.9 * slices[0])
    np.testing.assert_allclose(drawn[9], -0.1 * slices[1])
    assert "crisp decoder" in texts(figure) and "decoded - input" in texts(figure)
    assert len(grey(draw.compare({"images": slices, "decoded": slices}, ["a", "b"], parts).axes)) == 6


def test_error_maps_show_the_signed_difference(cohort: Cohort, model: VQVAE):
    look = reconstruction.look(model, cohort["test"].images[:2])
    figure = draw.compare(look, ["a", "b"], ("images", "decoded", "decoded - images", "map"))
    drawn = grey(figure.axes)
    np.testing.assert_allclose(drawn[4], look["decoded"][0] - look["images"][0])
    np.testing.assert_array_equal(drawn[7], look["map"][1])
    assert "decoded - input" in texts(figure)


def test_subjects_are_in_order_with_best_and_worst_named():
    table = pd.DataFrame({"subject": list("aabb"), "slice_index": [0, 1, 0, 1], "ssim_brain": [0.9, 0.8, 0.3, 0.7]})
    figure = draw.subjects(table, {"black image": 0.1, "mean": 0.2})
    shown = texts(figure)
    assert "best: a, slice index 0, 0.900" in shown and "worst: b, slice index 0, 0.300" in shown
    assert "black image 0.10, mean 0.20" in figure.axes[0].get_xlabel()
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["b", "a"]


@pytest.mark.parametrize("least, most, words", [(0.04, 3000, ["0.1", "10", "1,000"]), (300, 900, ["500"])])
def test_bytes_can_be_read_off_a_logarithmic_axis(least: float, most: float, words: list[str]):
    figure, ((axis,),) = new_figure()
    axis.plot([least, most], [0.6, 0.9])
    plain_log(axis)
    figure.canvas.draw()
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert set(words) <= set(labels) and len(set(labels)) == len(labels) and "0" not in labels


def test_gradients_and_entries_are_drawn_as_measured(cohort: Cohort, model: VQVAE):
    flow = reconstruction.gradients(model, to_images(cohort["test"].images[:4]))
    latents, codebook, codes = reconstruction.plane(model, cohort["test"].images)
    norms, plane = draw.arrows(flow, latents, codebook, codes).axes
    np.testing.assert_allclose([bar.get_height() for bar in norms.patches], flow.to_numpy().T.ravel())
    lines = next(lines for lines in plane.collections if isinstance(lines, LineCollection))
    np.testing.assert_allclose(lines.get_segments()[3], np.stack([latents[3], codebook[codes[3]]]))


def test_the_plane_of_a_codebook_that_learns_by_gradient(cohort: Cohort):
    model = VQVAE(VQVAEConfig(codebook_size=16, code_dim=4, hidden=8, blocks=1, codebook="gradient")).eval()
    assert reconstruction.plane(model, cohort["test"].images)[1].shape == (16, 2)


def test_the_plane_leaves_out_entries_whose_latents_coincide(
    cohort: Cohort, model: VQVAE, monkeypatch: pytest.MonkeyPatch
):
    model = deepcopy(model)
    centres = (
        9 * torch.eye(4).repeat(2, 1) * torch.tensor([1] * 4 + [-1] * 4)[:, None]
    )  # entries 1 to 8; 0 is background
    model.quantizer.codebook[:9] = torch.cat([torch.zeros(1, 4), centres])
    around = centres.repeat_interleave(20, 0) + torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    flat = torch.cat([torch.zeros(240, 4), around])
    monkeypatch.setattr(model, "latents", lambda images: flat.T.reshape(1, 4, 20, 20))
    latents, entries, codes = reconstruction.plane(model, cohort["test"].images[:1])
    assert latents.shape == (len(codes), 2) and len(entries) == 16 and 0 not in codes and len(np.unique(codes)) >= 3


def test_probes_and_pairs_and_diagram(cohort: Cohort, model: VQVAE):
    odd, shades = reconstruction.probes(cohort["test"]), np.linspace(0, 1, 16)
    look = reconstruction.look(model, np.stack(list(odd.values())))
    assert "noise" in texts(
        draw.compare(look, list(odd), ("images", "codes", "decoded", "decoded - images"), shades, crop=False)
    )
    pairs = draw.compare({name: some[:2] for name, some in look.items()}, ["this", "that"], ("images", "decoded"))
    assert [axis.get_title() for axis in pairs.axes] == ["this", "that", "", ""]
    np.testing.assert_array_equal(grey(pairs.axes)[3], look["decoded"][1])
    figure = diagrams.model(
        look["images"][0], shades[look["codes"][0]], look["decoded"][0], model.quantizer.codebook.numpy()
    )
    assert all(word in texts(figure) for word in ("encoder", "decoder", "8 x 8 numbers", "16 x 4", "commitment"))


def test_curves_of_a_vqvae(trained):
    figure = training.curves(trained[1], title="now")
    losses, ssim, codes = figure.axes
    assert losses.get_yscale() == "log" and "dssim" in texts(figure) and "now" in texts(figure)
    raw, mean = (next(line.get_ydata() for line in losses.lines[at:]) for at in (0, len(losses.lines) // 2))
    np.testing.assert_allclose(raw, trained[1]["train_l1"])
    assert np.ptp(mean) <= np.ptp(raw), "the running mean is smoother"
    np.testing.assert_allclose(ssim.lines[0].get_ydata(), trained[1]["validate_ssim"])
    np.testing.assert_allclose(codes.lines[0].get_ydata(), trained[1]["codes_used"])


@pytest.mark.parametrize("columns", [["train_bits", "validate_bits"], ["train_generator", "train_real"], []])
def test_curves_of_any_other_history(columns: list[str]):
    history = pd.DataFrame(
        {"step": [1, 2, 3], "score": [-3.0, -2.0, -1.0]} | {name: [3.0, 0.0, 1.0] for name in columns}
    )
    figure = training.curves(history)
    assert len(figure.axes) >= 2 and figure.axes[1].lines


def test_a_folder_gives_back_what_was_measured(cohort: Cohort, trained):
    out, history, _ = trained
    again = reconstruction.scores(load(out), cohort["validate"])
    assert again["ssim_brain"].mean() == pytest.approx(history["score"].max(), abs=0.02)
