"""Panels: what they draw, how fast, and that an error is said where the reader looks."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

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
    panel = Mirror().ready()
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
        Panel().draw()
