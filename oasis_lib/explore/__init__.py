"""Panels for a live notebook, one line each: `explore.CodebookBrowser(book)`. A static twin stays without a kernel."""

from oasis_lib.explore.base import Panel
from oasis_lib.explore.codebook import CodebookBrowser, ReconstructionExplorer
from oasis_lib.explore.editor import CodeEditor, Walk
from oasis_lib.explore.generator import Generator, Painter

__all__ = ["CodeEditor", "CodebookBrowser", "Generator", "Painter", "Panel", "ReconstructionExplorer", "Walk"]
