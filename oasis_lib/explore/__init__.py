"""Panels for a live notebook: `explore.CodebookBrowser(book)`. Without a kernel their static twin stays."""

from oasis_lib.explore.base import Panel
from oasis_lib.explore.codebook import CodebookBrowser, CodeEditor, ReconstructionExplorer
from oasis_lib.explore.generator import Generator, Painter

__all__ = ["CodeEditor", "CodebookBrowser", "Generator", "Painter", "Panel", "ReconstructionExplorer"]
