"""What the pages point to exists: links, anchors, files, names and tests of the feature table, references."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from oasis_lib.report import export_notebooks

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")]
PAGES += [
    *sorted((PROJECT / "docs").rglob("*.md")),
    *sorted(PROJECT.glob("notebooks/*.ipynb")),
    PROJECT / "driver.ipynb",
]
PAGES += [*sorted(PROJECT.glob("docs/study/*.ipynb")), *sorted(PROJECT.glob("docs/study/html/*.html"))]
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page's Markdown without code blocks."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    if page.suffix == ".html":
        text = re.sub(r"<pre>.*?</pre>", "", text, flags=re.S)  # cells as they were written
        return re.sub(r'<a [^>]*href="([^"]+)"', r"[](\1)", text)
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings, and those that are set by hand."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    made = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    return made | set(re.findall(r'<a id="([\w-]+)">', prose(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_resolve(page: Path):
    broken = []
    for target in LINK.findall(prose(page)):
        file, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert not broken, f"{page.name} points to what is not there: {', '.join(broken)}"


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#a-title), [b](page.md#other), [c](none.md)\n\n# A title\n")
    with pytest.raises(AssertionError, match="page.md#other, none.md"):
        test_links_resolve(page)


def test_every_page_of_the_book_is_in_its_contents():
    contents = set(LINK.findall(prose(PROJECT / "docs" / "README.md")))
    pages = {path.name for path in (PROJECT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= contents, f"not in docs/README.md: {', '.join(sorted(pages - contents))}"


def test_references_name_what_is_cited():
    """Every entry has an address, and citations in notebooks lead to entries, not to the page alone."""
    text = prose(PROJECT / "docs" / "references.md")
    entries = re.split(r"^- ", text.split("## Tools")[0], flags=re.M)[1:]
    assert len(entries) >= 40
    for entry in entries:
        assert re.match(r'<a id="[\w-]+"></a>', entry) and re.search(r"<https://(arxiv\.org/abs|doi\.org)/", entry), (
            entry
        )
    for page in PROJECT.glob("notebooks/*.ipynb"):
        cited = [target for target in LINK.findall(prose(page)) if "references.md" in target]
        assert cited and all("#" in target for target in cited), page.name


@pytest.mark.parametrize("page", sorted(PROJECT.glob("notebooks/*.ipynb")), ids=lambda page: page.stem)
def test_equations_need_no_scripts(page: Path, tmp_path: Path):
    """Pages of executed notebooks hold MathML: no dollars and no TeX are left."""
    source = nbformat.read(page, as_version=4)
    source.cells = [cell for cell in source.cells if cell.cell_type == "markdown"]
    nbformat.write(source, tmp_path / page.name)
    export_notebooks(tmp_path, tmp_path)
    text = (tmp_path / f"{page.stem}.html").read_text()
    shown = re.sub(r"<code>.*?</code>|<style>.*?</style>|alttext=\"[^\"]*\"", "", text, flags=re.S)
    assert shown.count("<math") == shown.count("</math>") >= 5
    assert not re.findall(r"\$|\\\w+", shown)


@pytest.mark.parametrize("page", sorted(PROJECT.glob("notebooks/*.ipynb")), ids=lambda page: page.stem)
def test_notebooks_teach(page: Path):
    """Equations, what would fail, and three exercises that say what to expect."""
    text = prose(page)
    assert text.count("$$") >= 2 and "What would fail." in text
    exercises = text.split("Exercises")[1].split("## What we learned")[0]
    assert [int(number) for number in re.findall(r"^(\d)\. ", exercises, re.M)] == [1, 2, 3]


def features() -> list[list[str]]:
    lines = (PROJECT / "docs" / "features.md").read_text().splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if re.match(r"\| \w+-\d+ ", line)]
    return [[cell.strip() for cell in row] for row in rows]


@pytest.mark.parametrize("row", features(), ids=lambda row: row[0])
def test_features_live_where_the_table_says(row: list[str]):
    name, _, where, checked, state = row
    assert where and checked and re.match(r"(done$|part: |open: )", state), name
    for file, _, word in (found.partition("::") for found in re.findall(r"`([^`]+)`", where + checked)):
        path = next((base / file for base in (PROJECT / "oasis_lib", PROJECT) if (base / file).is_file()), None)
        assert path, f"{name}: there is no {file}"
        assert not word or re.search(rf"\b{re.escape(word)}\b", path.read_text()), f"{name}: {file} has no {word}"
    assert re.search(r"`(tests/test_\w+\.py::|notebooks/|benchmarks/|docs/)", checked), f"{name}: nothing checks it"


def test_no_feature_row_was_lost():
    ids = [row[0] for row in features()]
    counts = {"S0": 22, "S1": 22, "S2": 22, "S3": 32, "S4": 17, "X": 4, "B": 18}
    assert ids == [f"{group}-{number:02}" for group, count in counts.items() for number in range(1, count + 1)]


def test_every_package_is_in_the_file_table():
    table = prose(PROJECT / "docs" / "extending.md")
    parts = {
        path.name + "/" * path.is_dir() for path in (PROJECT / "oasis_lib").iterdir() if not path.name.startswith("__")
    }
    missing = sorted(part for part in parts if f"`{part}`" not in table)
    assert not missing, f"not in docs/extending.md: {', '.join(missing)}"
