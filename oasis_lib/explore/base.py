"""What every panel is: controls, a picture that answers them, words under it, and a static twin where no kernel lives.

A subclass says which controls there are and what they draw; the rest is here:

    class Mirror(Panel):
        title = "A mirror"

        def controls(self):
            return {"turn": slider("turn", 0, 3)}

        def actions(self):  # long work: each gets a button that shows when it is busy
            return {"Train": self.train}

        def draw(self, turn):
            return [("turned", np.rot90(self.image, turn))], "words under the picture"
"""

from __future__ import annotations

import html
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import Image as Picture
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from oasis_lib.figures.style import new_figure, show_image, synthetic

Tile = tuple[str, np.ndarray]  # a title, and grey (h, w) or colour (h, w, 3), uint8
TILE, TITLE, GAP = 256, 22, 6  # pixels of a painted panel


class Panel:
    """`ready()` makes the twin (so that a batch run stops where it can't); showing the panel shows both."""

    title = ""
    is_synthetic = False

    def controls(self) -> dict[str, widgets.Widget]:
        """Named as `draw` takes them."""
        return {}

    def actions(self) -> dict[str, Callable[..., None]]:
        """Button labels, and what they run with the controls' values; the picture is drawn anew afterwards."""
        return {}

    def draw(self, **values: Any) -> tuple[Sequence[Tile], str]:
        """Tiles side by side, and the words under them. Has a fifth of a second."""
        raise TypeError(f"{type(self).__name__} must say what it draws")

    def examples(self) -> list[dict[str, Any]]:
        """The settings that the twin shows, one a row."""
        return [{name: control.value for name, control in self.controls().items()}]

    def twin(self) -> Figure:
        """The same pictures at the settings of `examples`, for pages without a kernel."""
        drawn = [self.draw(**values) for values in self.examples()]
        columns = max(len(tiles) for tiles, _ in drawn)
        figure, axes = new_figure(len(drawn), columns, width=2.1 * columns + 1.6, height=2.2 * len(drawn) + 0.5, title=self.title)
        above = [None] * columns
        for row, (tiles, words) in zip(axes, drawn):
            for axis in row[len(tiles) :]:
                axis.set_visible(False)
            for axis, (title, tile), same in zip(row, tiles, above):
                show_image(axis, tile, "" if title == same else title, low=0, high=255)
            above = [title for title, _ in tiles]
            words = "\n".join(textwrap.fill(line, 24) for line in words.splitlines())
            row[0].set_ylabel(words, rotation=0, ha="right", va="center", ma="left", fontsize=8)
        return synthetic(figure, self.is_synthetic)

    @cached_property
    def twin_png(self) -> bytes:
        stream = io.BytesIO()
        self.twin().savefig(stream, format="png")
        return stream.getvalue()

    def ready(self) -> Panel:
        assert self.twin_png
        return self

    def _ipython_display_(self) -> None:
        display(Picture(self.twin_png, format="png"))
        if live():
            display(self.widget)

    @cached_property
    def widget(self) -> widgets.VBox:
        """Made when somebody sits at the kernel, never in a batch: saved widgets need a network to be shown again."""
        self.inputs = self.controls()
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%", object_fit="contain"))
        self.picture.add_class("oasis-picture")
        self.words, self.trouble = widgets.HTML(), widgets.HTML()
        buttons = []
        for label, work in self.actions().items():
            button = widgets.Button(description=label, tooltip=label, button_style="primary")
            button.on_click(partial(self.run, work=work))
            buttons.append(button)
        for control in self.inputs.values():
            control.observe(lambda _: self.redraw(), names="value")
        self.redraw()
        row = widgets.HBox([*self.inputs.values(), *buttons], layout=widgets.Layout(flex_flow="row wrap"))
        title = widgets.HTML(f"<b>{html.escape(self.title)}</b>")
        panel = widgets.VBox([title, row, self.picture, self.words, self.trouble])
        panel.add_class("oasis-panel")
        return panel

    @property
    def values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.inputs.items()}

    def redraw(self) -> None:
        """Paint what the controls say; an error is for the reader of the panel, not for a log."""
        try:
            tiles, words = self.draw(**self.values)
            self.picture.value = paint(tiles, self.is_synthetic)
            self.words.value, self.trouble.value = html.escape(words).replace("\n", "<br>"), ""
        except Exception as error:
            self.complain(error)

    def run(self, button: widgets.Button, work: Callable[..., None]) -> None:
        """Long work behind its button, which can't be pressed again meanwhile."""
        label, button.disabled, button.description = button.description, True, "working …"
        try:
            work(**self.values)
            self.redraw()
        except Exception as error:
            self.complain(error)
        finally:
            button.disabled, button.description = False, label

    def complain(self, error: Exception) -> None:
        text = html.escape(f"{type(error).__name__}: {error}")
        self.trouble.value = f'<span class="oasis-trouble" style="color:#D55E00">{text}</span>'


def live() -> bool:
    """Whether somebody sits at this kernel: a browser can be asked for input, papermill and nbconvert can't."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def slider(label: str, low: int, high: int, value: int | None = None) -> widgets.IntSlider:
    """A whole number; the arrow keys move it once it has the focus."""
    return widgets.IntSlider(description=label, min=low, max=max(low, high), value=low if value is None else value)


def choice(label: str, options: Iterable, value: Any = None) -> widgets.Dropdown:
    options = list(options)
    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    return widgets.Dropdown(description=label, options=options, value=first if value is None else value)


def grey(image: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8."""
    return (np.clip(np.asarray(image), 0, 1) * 255).round().astype(np.uint8)


def colours(values: np.ndarray, low: float, high: float, name: str = "viridis") -> np.ndarray:
    """Values as uint8 colours of one of matplotlib's maps."""
    scaled = (np.asarray(values, dtype=np.float32) - low) / max(high - low, 1e-9)
    return mpl.colormaps[name](np.clip(scaled, 0, 1), bytes=True)[..., :3]


def difference(image: np.ndarray, other: np.ndarray, reach: float = 0.2) -> np.ndarray:
    """What `image` has more than `other` in red, what it has less in blue; full colour at `reach` of the range."""
    return colours(np.asarray(image) - np.asarray(other), -reach, reach, "RdBu_r")


def boxed(tile: np.ndarray, row: int, column: int, height: int, width: int) -> np.ndarray:
    """A tile, enlarged so that a thin orange frame around one of its regions (in the tile's own pixels) can be seen."""
    colour = np.stack([tile] * 3, -1) if tile.ndim == 2 else tile
    scale = max(1, round(TILE / max(colour.shape[:2])))
    big = Image.fromarray(np.ascontiguousarray(colour.repeat(scale, 0).repeat(scale, 1)))
    frame = [column * scale - 1, row * scale - 1, (column + width) * scale, (row + height) * scale]
    ImageDraw.Draw(big).rectangle(frame, outline=(230, 159, 0), width=max(2, big.height // 128))
    return np.asarray(big)


def paint(tiles: Sequence[Tile], is_synthetic: bool = False) -> bytes:
    """Tiles side by side as a PNG, in milliseconds: a slider can't wait for matplotlib."""
    font = ImageFont.load_default(size=14)
    canvas = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TILE + 2 * TITLE), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (title, tile) in enumerate(tiles):
        height, width = tile.shape[:2]
        scale = TILE / max(height, width)
        picture = Image.fromarray(np.ascontiguousarray(tile)).resize(
            (round(width * scale), round(height * scale)), Image.Resampling.NEAREST
        )
        left = index * (TILE + GAP)
        canvas.paste(picture.convert("RGB"), (left + (TILE - picture.width) // 2, TITLE))
        pen.text((left, 3), title, fill="black", font=font)
    if is_synthetic:
        pen.text((canvas.width - 4, TILE + TITLE + 3), "SYNTHETIC", fill="#D55E00", font=font, anchor="ra")
    stream = io.BytesIO()
    canvas.save(stream, format="png", compress_level=1)
    return stream.getvalue()
