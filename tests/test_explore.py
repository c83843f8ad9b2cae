"""Panels: what they draw, how fast, and that an error is said where the reader looks."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from test_codebook import make_reading

from oasis_lib import explore
from oasis_lib.evaluation.codebook import farthest
from oasis_lib.explore.base import TILE, Panel, boxed, colours, difference, grey, live, paint, slider


class Mirror(Panel):
    title, button = "A mirror", "Break"

    def open(self, run):
        """Nothing of a run is shown."""

    def controls(self):
        return {"turn": slider("turn", 0, 3)}

    def draw(self, turn, result):
        if turn == 3:
            raise ValueError("turn 3 is <too far>")
        return [("turned", np.rot90(np.arange(12, dtype=np.uint8).reshape(3, 4), turn))], f"turn {turn}"

    def work(self, turn):
        if not hasattr(self, "pressed"):
            return None  # the twin's
        self.seen = (turn, self.pressed.disabled, self.pressed.description)
        raise RuntimeError("broken")


def test_a_panel_answers_its_controls_and_says_what_went_wrong():
    panel = Mirror()
    children = panel.widget.children
    first = panel.picture.value
    panel.inputs["turn"].value = 1
    assert panel.picture.value != first and panel.words.value == "turn 1" and panel.trouble.value == ""
    panel.inputs["turn"].value = 3
    assert "ValueError: turn 3 is &lt;too far&gt;" in panel.trouble.value
    panel.inputs["turn"].value = 2
    assert panel.trouble.value == ""
    panel.pressed = children[1].children[-1]
    panel.pressed.click()
    assert panel.seen == (2, True, "working …")
    assert not panel.pressed.disabled and panel.pressed.description == "Break"
    assert "RuntimeError: broken" in panel.trouble.value


def test_the_twin_is_a_wide_picture_and_no_kernel_is_no_audience(capsys):
    panel = Mirror()
    assert Image.open(io.BytesIO(panel.twin_png)).width >= 1000
    assert not live()
    panel._ipython_display_()
    assert "widget" not in panel.__dict__


def test_painting():
    tiles = [("grey", grey(np.eye(4))), ("colour", colours(np.eye(4), 0, 1))]
    picture = Image.open(io.BytesIO(paint(tiles, is_synthetic=True)))
    assert picture.width >= 2 * TILE and picture.height > TILE
    assert difference(np.ones((2, 2)), np.ones((2, 2))).min() > 200  # no difference is white
    framed = boxed(np.zeros((8, 8), np.uint8), 2, 2, 1, 1)
    assert framed.shape[2] == 3 and framed.max() == 230


@pytest.fixture(scope="module")
def book():
    return make_reading()


def test_a_panel_that_draws_nothing_cannot_be_made(book):
    with pytest.raises(TypeError, match="abstract method '?draw"):
        Panel(book)


@pytest.fixture
def one_thread():
    """Threads that wait for each other spend processor time, which is what is measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("make", [explore.CodebookBrowser, explore.ReconstructionExplorer, explore.CodeEditor])
def test_every_slider_of_every_panel_changes_its_picture_in_time(book, make, one_thread):
    panel = make(book)
    assert Image.open(io.BytesIO(panel.twin_png)).width >= 1000
    assert panel.is_synthetic and panel.widget
    sliders = [control for control in panel.inputs.values() if hasattr(control, "min")]
    assert sliders and panel.trouble.value == ""
    for control in sliders:
        before, begun = panel.picture.value, time.process_time()
        control.value = control.min if control.value != control.min else control.max
        assert time.process_time() - begun < 0.2
        assert panel.picture.value != before and panel.trouble.value == ""


def test_the_browser_shows_the_entry_that_was_picked(book):
    panel = explore.CodebookBrowser(book)
    commonest = int(book.counts.argmax())
    tiles, words = panel.draw(0, "use")
    assert words.startswith(f"token {commonest}: ") and "rank 1 of" in words
    assert [title for title, _ in tiles][:4] == ["decoded", "in test subjects", "neighbours", "where it occurs"]
    assert panel.draw(4, "index")[1].startswith("token 4: ")


def test_the_editor_replaces_one_token(book):
    panel = explore.CodeEditor(book)
    where = {"subject": book.subjects[0], "slice_index": 0, "row": 1, "column": 2}
    old = book.codes["test"][book.slice_of(book.subjects[0], 0)][1, 2]
    same = int(np.argsort(panel.by_brightness)[old])
    tiles, words = panel.draw(**where, place=same)
    assert words.startswith("0 pixels") and tiles[1][0] == f"token {old} replaced by {old}"
    other = int(np.argsort(panel.by_brightness)[farthest(book.codebook, old, book.counts)])
    changed = panel.draw(**where, place=other)[0]
    assert changed[1][0] == f"token {old} replaced by {panel.by_brightness[other]}"
    assert (changed[0][1] == tiles[0][1]).all()
