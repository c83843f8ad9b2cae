"""The one layout for images: every cell is what was given, cut to the brain and never to a speck, at any resolution."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from oasis_lib.figures import evaluation as draw
from oasis_lib.figures.grid import WHOLE, Row, content_box, cut, frame, image_grid, sheet
from oasis_lib.figures.style import WIDTH, footnote, new_figure, synthetic


def disc(size: int = 64, radius: float = 12) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    return ((np.hypot(y, x * 2) < radius) * 200).astype(np.uint8)


def words(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def test_content_is_the_brain_and_not_a_speck():
    image = disc()
    image[0, 0] = 255
    top, bottom, left, right = content_box([image], 16)
    lit = np.argwhere(disc() > 0)
    assert top * 64 <= lit[:, 0].min() and bottom * 64 > lit[:, 0].max()
    assert 0 < top < 0.3 < left < 0.5 < right < bottom < 1, "a disc that is higher than wide, with little margin"
    assert all(edge * 16 == round(edge * 16) for edge in (top, bottom, left, right)), "whole tokens"
    assert content_box([np.zeros((8, 8))]) == WHOLE and content_box([]) == WHOLE
    assert cut(image, (0.25, 0.75, 0.5, 1.0)).shape == (32, 32)


def test_cells_hold_what_was_given_and_show_the_same_part_of_it():
    images, tokens = np.stack([disc(), disc()]), np.linspace(0, 1, 2 * 256).reshape(2, 16, 16)
    rows = {
        "slice": images,
        "tokens": Row(tokens, ["a", "b"], cmap="viridis", bar="brightness"),
        "one": [images[0], None],
    }
    figure = image_grid(rows, ["sub-1", "sub-2"], "Title", mm=2.0)
    cells = figure.axes[:6]
    for axis, given in zip(cells, [*images, *tokens, images[0]]):
        assert (axis.images[0].get_array() == given).all()
    assert cells[0].images[0].get_clim() == (0, 255) and cells[2].images[0].get_clim() == (0, 1) and not cells[5].images
    parts = [
        (np.array([*axis.get_xlim(), *axis.get_ylim()]) + 0.5) / side for axis, side in ((cells[0], 64), (cells[2], 16))
    ]
    assert parts[0] == pytest.approx(parts[1]) and (parts[0][1] - parts[0][0]) < 0.5, (
        "cut, and alike at both resolutions"
    )
    assert [axis.get_title() for axis in cells] == ["sub-1", "sub-2", "a", "b", "", ""]
    assert {"slice", "tokens", "Title", "brightness", "50 mm"} <= set(words(figure))
    whole = image_grid(rows, crop=False).axes[0]
    assert whole.get_xlim() == (-0.5, 63.5) and whole.get_ylim() == (63.5, -0.5)


@pytest.mark.parametrize("count", [1, 4, 12])
def test_a_grid_fits_a_page(count: int):
    figure = synthetic(image_grid({"a row with a long name": Row([disc()] * count, bar="bits")}), True)
    assert figure.get_figwidth() == WIDTH and "SYNTHETIC" in words(figure)
    figure.canvas.draw()
    edges = [axis.get_window_extent() for axis in figure.axes]
    assert min(e.x0 for e in edges) >= 0 and max(e.x1 for e in edges) <= figure.bbox.width


def test_sheets_lay_images_out_row_by_row():
    images = np.stack([np.full((4, 4), value, np.uint8) for value in (0, 51, 102, 153, 255)])
    whole = sheet(images, 3)
    assert (
        whole.shape == (2 * 5 + 1, 3 * 5 + 1, 3)
        and whole[1, 6, 0] == pytest.approx(0.2)
        and whole[6, 1, 0] == pytest.approx(0.6)
    )
    assert whole[0, 0, 0] == 1


def test_a_frame_surrounds_its_pixels():
    axis = plt.figure().subplots()
    frame(axis, 2, 3, 4, 5)
    x, y = axis.lines[0].get_data()
    assert (x.min(), x.max(), y.min(), y.max()) == (2.5, 7.5, 1.5, 5.5)


def test_a_colour_bar_with_a_long_label_moves_no_rows_apart():
    looks = {"cmap": "viridis", "bar": "mean intensity of the decoded patch"}
    images = np.random.default_rng(0).random((6, 16, 16))
    figure = image_grid({"one": images, "two": Row(images, **looks), "three": Row(images, **looks)}, crop=False)
    figure.draw_without_rendering()
    heights = [figure.axes[row * 6].get_position().y0 for row in range(3)]
    assert np.ptp(np.diff(heights)) < 0.02


def test_one_bad_generator_flattens_no_panel():
    slice_indices, names = np.repeat(np.arange(4), 5), ("csf", "grey")
    subjects = np.random.default_rng(0).normal(5, 1, (20, 2))
    limits = []
    for far in (0, 1000):
        areas = {"subjects": (subjects, slice_indices), "generator": (subjects + far, slice_indices)}
        figure = draw.areas_by_slice_index(areas, names)
        limits.append([axis.get_ylim() for axis in figure.axes])
        assert {"CSF", "grey matter", "% of the frame", "generator"} <= set(words(figure))
    assert limits[0] == limits[1]


def test_nearest_neighbours_and_lesions_are_cut_to_the_brain():
    sample, real = np.stack([disc(), disc()]), np.stack([disc(radius=11), disc()])
    figure = draw.pairs(sample, real, pd.DataFrame({"relative": [0.5, 1.25]}), "Nearest")
    cells = figure.axes[:6]
    assert np.ptp(cells[0].get_xlim()) < 40 and cells[0].get_title() == "distance 0.50"
    assert cells[4].images[0].get_array().max() > 0.5 and not cells[5].images[0].get_array().any(), (
        "an equal pair leaves nothing"
    )
    truth = np.zeros((3, 64, 64), bool)
    truth[:, 30:34, 30:34], truth[1, 28:34] = True, True
    shown = {"images": np.stack([disc()] * 3), "truth": truth, "inside": np.stack([disc() > 0] * 3)}
    shown |= {
        "subjects": np.array(["a", "a", "b"]),
        "maps": {"surprisal": np.random.default_rng(0).random((3, 64, 64))},
    }
    figure = draw.anomalies(shown, pd.DataFrame({"roc_area": [0.75]}, index=["surprisal"]))
    assert {"a", "b", "surprisal\nAUC 0.75"} <= set(words(figure)) and len(figure.axes) == 4


def test_a_legend_lies_above_the_line_under_a_figure():
    figure, ((axis,),) = new_figure(height=3.0)
    axis.plot([0, 1], label="a line")
    axis.set(xlabel="step")
    legend = figure.legend(loc="outside lower center", fontsize=8)
    footnote(synthetic(figure, True), "trained too little")
    figure.draw_without_rendering()
    box, below = legend.get_window_extent(), max(text.get_window_extent().y1 for text in figure.texts)
    assert below <= box.y0 and box.y1 <= axis.get_tightbbox().y0
