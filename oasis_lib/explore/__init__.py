"""Panels for a live notebook, each one call, each with a static twin that stays when the kernel is gone."""

from __future__ import annotations

from oasis_lib.evaluation.codebook import Reading
from oasis_lib.explore.base import Panel
from oasis_lib.explore.codebook import CodebookBrowser, ReconstructionExplorer
from oasis_lib.explore.editor import CodeEditor, Walk
from oasis_lib.explore.generator import Generator
from oasis_lib.explore.painter import Painter
from oasis_lib.run import Run


def codebook_browser(run: Run | Reading) -> Panel:
    """One entry at a time: its patch, its usage, its neighbours, where it fires, the slices that use it most."""
    return CodebookBrowser(run).ready()


def reconstruction_explorer(run: Run | Reading) -> Panel:
    """A held-out person's slice, what the model makes of it, the difference, and the codes in between."""
    return ReconstructionExplorer(run).ready()


def code_editor(run: Run | Reading) -> Panel:
    """Swap a slice's codes one at a time, and see what changes in the image and where."""
    return CodeEditor(run).ready()


def walk(run: Run | Reading) -> Panel:
    """From one person to another through the embedding, and through the codes."""
    return Walk(run).ready()


def generator(run: Run) -> Panel:
    """New brains from any of the run's priors, at the level, rating and settings that are asked for."""
    return Generator(run).ready()


def painter(run: Run) -> Panel:
    """A box over a test person's slice, and what a prior fills it with."""
    return Painter(run).ready()


__all__ = ["Panel", "code_editor", "codebook_browser", "generator", "painter", "reconstruction_explorer", "walk"]
