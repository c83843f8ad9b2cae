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
from oasis_lib.explore.base import TILE, Panel, boxed, colours, difference, grey, live, paint, slider


class Mirror(Panel):
    title = "A mirror"

    def controls(self):
        return {"turn": slider("turn", 0, 3)}

    def actions(self):
        return {"Break": self.shatter}

    def draw(self, turn):
        if turn == 3:
            raise ValueError("turn 3 is <too far>")
        return [("turned", np.rot90(np.arange(12, dtype=np.uint8).reshape(3, 4), turn))], f"turn {turn}"

    def shatter(self, turn):
        self.seen = (turn, self.button.disabled, self.button.description)
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
    panel.button = children[1].children[-1]
    panel.button.click()
    assert panel.seen == (2, True, "working …")
    assert not panel.button.disabled and panel.button.description == "Break"
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


def test_a_panel_that_draws_nothing_says_so():
    with pytest.raises(TypeError, match="must say what it draws"):
        Panel()


@pytest.fixture(scope="module")
def book():
    return make_reading()


@pytest.fixture
def one_thread():
    """Threads that wait for each other spend processor time, which is what is measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("make", [explore.CodebookBrowser, explore.ReconstructionExplorer, explore.CodeEditor, explore.Walk])
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


def test_the_editor_changes_one_code_keeps_it_and_lets_go(book):
    panel = explore.CodeEditor(book)
    where = {"subject": book.subjects[0], "slice_index": 0, "row": 1, "column": 2}
    index, edited = panel.edit(**where, place=0)
    original = book.codes["test"][index]
    assert (edited != original).sum() <= 1 and edited[1, 2] == panel.by_brightness[0]
    panel.keep(**where, place=0)
    panel.keep(**where | {"row": 4}, place=1)
    assert panel.kept[index][1, 2] == panel.by_brightness[0] and panel.kept[index][4, 2] == panel.by_brightness[1]
    panel.actions()["Undo all"]()
    assert panel.draw(**where, place=int(np.argsort(panel.by_brightness)[original[1, 2]]))[1].startswith("0 of ")


def test_a_walk_starts_at_one_subject_and_ends_at_the_other(book):
    panel = explore.Walk(book)
    first, last = book.subjects[0], book.subjects[1]
    assert panel.draw(first, last, 1, 3)[1].startswith("press Walk")
    panel.walk(first, last, 1)
    ends = [book.slice_of(subject, 1) for subject in (first, last)]
    frames = panel.done[first, last, 1]
    for step, row in ((0, ends[0]), (-1, ends[1])):
        assert (frames["tokens"][step] == book.codes["test"][row]).all()
        for name in ("latents mixed", "mixed and quantised", "tokens exchanged"):
            assert frames[name][step] == pytest.approx(book.decode(book.codes["test"][row]), abs=1e-4)
