"""The base of panels: controls, an image that answers them, text, and a static twin for pages without a kernel."""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import Image as Picture
from IPython.display import display
from PIL import Image, ImageDraw, ImageFont

from oasis_lib.evaluation.codebook import CodebookStatistics, read
from oasis_lib.figures.grid import Row, content_box, cut, image_grid
from oasis_lib.figures.style import synthetic
from oasis_lib.run import Run

Tile = tuple[str, np.ndarray]  # a title, and grey (h, w) or colour (h, w, 3), uint8
TILE, TITLE, GAP = 256, 22, 6  # pixels of a painted panel


class Panel(ABC):
    """Over a run: its codebook, test slices and tokens. Making one makes its twin; displaying it displays both."""

    title, is_synthetic = "", False
    button = ""  # the label of long work, if any

    def __init__(self, run: Run | CodebookStatistics | None = None):
        self.done: dict[tuple, Any] = {}  # results of `work`, by the controls' values
        self.open(run)
        assert self.twin_png

    def open(self, run: Run | CodebookStatistics) -> None:
        """A run, or its codebook statistics: reading once is enough for all panels."""
        self.book = run if isinstance(run, CodebookStatistics) else read(run)
        self.is_synthetic = self.book.cohort.synthetic
        self.codes = np.asarray(self.book.codes["test"]).astype(np.int64)  # in memory, for speed
        few = list(self.book.shown.images[:: max(1, len(self.codes) // 40)])
        self.box = content_box(few, self.codes.shape[-1])
        self.last: tuple[int, np.ndarray] | None = None

    def controls(self) -> dict[str, widgets.Widget]:
        """Named as `draw` takes them."""
        return {}

    def work(self, **values: Any) -> Any:
        """What the button does; `draw` is given the result, or None before it."""

    @abstractmethod
    def draw(self, **values: Any) -> tuple[Sequence[Tile], str]:
        """Tiles side by side and the text below them, in a fifth of a second."""

    def examples(self) -> list[dict[str, Any]]:
        """The settings that the twin shows, one a row."""
        return [self.usual()]

    def usual(self, **changed: Any) -> dict[str, Any]:
        """The controls' first values."""
        return {name: control.value for name, control in self.controls().items()} | changed

    def tiles(self, values: dict[str, Any], work: bool = False) -> tuple[Sequence[Tile], str]:
        """Do the work, if asked for, and draw."""
        key = tuple(values.values())
        if work:
            self.done[key] = self.work(**values)
        return self.draw(**values, **({"result": self.done.get(key)} if self.button else {}))

    @cached_property
    def twin_png(self) -> bytes:
        rows, above = {}, []  # a title is not repeated below itself
        for number, values in enumerate(self.examples()):
            tiles, words = self.tiles(values, work=bool(self.button))
            titles = [title for title, _ in tiles]
            names = ["" if title in above[place : place + 1] else title for place, title in enumerate(titles)]
            rows[words + " " * number], above = Row([tile for _, tile in tiles], names), titles
        figure, stream = synthetic(image_grid(rows, title=self.title, crop=False), self.is_synthetic), io.BytesIO()
        figure.savefig(stream, format="png")
        return stream.getvalue()

    def _ipython_display_(self) -> None:
        display(Picture(self.twin_png, format="png"))
        if live():
            display(self.widget)

    @cached_property
    def widget(self) -> widgets.VBox:
        """Made in a live kernel only, never in a batch: saved widgets need a network to be shown again."""
        self.inputs = self.controls()
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%", object_fit="contain"))
        self.picture.add_class("oasis-picture")
        self.words, self.trouble = widgets.HTML(), widgets.HTML()
        buttons = [widgets.Button(description=self.button, button_style="primary")] if self.button else []
        for button in buttons:
            button.on_click(self.press)
        for control in self.inputs.values():
            control.observe(lambda _: self.redraw(), names="value")
        self.redraw()
        row = widgets.HBox([*self.inputs.values(), *buttons], layout=widgets.Layout(flex_flow="row wrap"))
        title = widgets.HTML(f"<b>{html.escape(self.title)}</b>")
        panel = widgets.VBox([title, row, self.picture, self.words, self.trouble])
        panel.add_class("oasis-panel")
        return panel

    def redraw(self, work: bool = False) -> None:
        """Paint what the controls say; an error is shown in the panel."""
        try:
            tiles, words = self.tiles({name: control.value for name, control in self.inputs.items()}, work)
            self.picture.value = paint(tiles, self.is_synthetic)
            self.words.value, self.trouble.value = html.escape(words).replace("\n", "<br>"), ""
        except Exception as error:
            text = html.escape(f"{type(error).__name__}: {error}")
            self.trouble.value = f'<span class="oasis-trouble" style="color:#D55E00">{text}</span>'

    def press(self, button: widgets.Button) -> None:
        """Long work behind its button, which can't be pressed again meanwhile."""
        button.disabled, button.description = True, "working …"
        self.redraw(work=True)
        button.disabled, button.description = False, self.button

    def subject_and_slice(self) -> dict[str, widgets.Widget]:
        indices = self.book.slice_indices
        index = slider("slice index", int(indices.min()), int(indices.max()), self.book.middle)
        return {"subject": choice("subject", self.book.subjects), "slice_index": index}

    def decoded(self, row: int) -> np.ndarray:
        """A test slice from its own tokens; the last one is remembered, half of what a slider costs."""
        if self.last is None or self.last[0] != row:
            self.last = row, self.book.decode(self.codes[row])
        return self.last[1]

    def cropped(self, tiles: Iterable[Tile]) -> list[Tile]:
        """Tiles of whole slices or maps, without the margin around brains."""
        return [(title, cut(tile, self.box)) for title, tile in tiles]

    def token_map(self, codes: np.ndarray) -> np.ndarray:
        """Tokens coloured by the mean brightness of their patch."""
        return colours(self.book.shades[codes], 0, 1)


def live() -> bool:
    """Whether this kernel has a reader: a browser can be asked for input, papermill and nbconvert can't."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def slider(label: str, low: int, high: int, value: int | None = None) -> widgets.IntSlider:
    return widgets.IntSlider(low if value is None else value, low, max(low, high), description=label)


def choice(label: str, options: Iterable) -> widgets.Dropdown:
    """The first option is chosen."""
    return widgets.Dropdown(description=label, options=list(options))


def grey(image: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8."""
    return (np.clip(np.asarray(image), 0, 1) * 255).round().astype(np.uint8)


def colours(values: np.ndarray, low: float, high: float, name: str = "viridis") -> np.ndarray:
    """Values as uint8 colours of one of matplotlib's maps."""
    scaled = (np.asarray(values, dtype=np.float32) - low) / max(high - low, 1e-9)
    return mpl.colormaps[name](np.clip(scaled, 0, 1), bytes=True)[..., :3]


def difference(image: np.ndarray, other: np.ndarray, reach: float = 0.2) -> np.ndarray:
    """`image` less `other`: more is red, less is blue; full colour at `reach` of the range."""
    return colours(np.asarray(image) - np.asarray(other), -reach, reach, "RdBu_r")


def boxed(tile: np.ndarray, row: int, column: int, height: int, width: int) -> np.ndarray:
    """A tile, enlarged, with a thin orange frame around one of its regions (in the tile's own pixels)."""
    scale = max(1, round(TILE / max(tile.shape[:2])))
    big = Image.fromarray(np.ascontiguousarray(tile.repeat(scale, 0).repeat(scale, 1))).convert("RGB")
    frame = [column * scale - 1, row * scale - 1, (column + width) * scale, (row + height) * scale]
    ImageDraw.Draw(big).rectangle(frame, outline=(230, 159, 0), width=max(2, big.height // 128))
    return np.asarray(big)


def paint(tiles: Sequence[Tile], is_synthetic: bool = False) -> bytes:
    """Tiles side by side as a PNG, in milliseconds: matplotlib is too slow for a slider."""
    font = ImageFont.load_default(size=14)
    canvas = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TILE + 2 * TITLE), "white")
    pen = ImageDraw.Draw(canvas)
    for left, (title, tile) in zip(range(0, canvas.width, TILE + GAP), tiles):
        scale = TILE / max(tile.shape[:2])
        size = round(tile.shape[1] * scale), round(tile.shape[0] * scale)
        picture = Image.fromarray(np.ascontiguousarray(tile)).resize(size, Image.Resampling.NEAREST)
        canvas.paste(picture, (left + (TILE - picture.width) // 2, TITLE))
        pen.text((left, 3), title, fill="black", font=font)
    if is_synthetic:
        pen.text((canvas.width - 4, TILE + TITLE + 3), "SYNTHETIC", fill="#D55E00", font=font, anchor="ra")
    stream = io.BytesIO()
    canvas.save(stream, format="png", compress_level=1)
    return stream.getvalue()
