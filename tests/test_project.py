"""What the repository promises of itself.

One list of dependencies, imports that run downward, notebooks that read well.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = sorted((PROJECT / "oasis_lib").rglob("*.py"))
STAGES = ["01_cohort", "02_vqvae", "03_codebook", "04_priors", "05_generation", "06_evaluation"]
NOTEBOOKS = [PROJECT / "notebooks" / f"{name}.ipynb" for name in STAGES]
DRIVER = PROJECT / "driver.ipynb"
MODULES = {
    "pillow": "PIL",
    "pytest-xdist": "xdist",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "umap-learn": "umap",
}
BROUGHT_ALONG = {
    "nbclient",
    "pygments",
    "IPython",
    "traitlets",
    "jupyter_client",
}  # parts of declared packages, used with them

# Imports run downward only: a module may import what stands on a lower line, and what is in its own package.
LAYERS = [
    {"storage", "stop"},
    {"paths"},
    {"config", "vision", "device"},
    {"cards", "metrics", "projection"},
    {"cohort"},
    {"figures"},
    {"run"},
    {"models"},
    {"training"},
    {"sampling", "pretrained"},
    {"evaluation"},
    {"explore", "report", "check", "kernel"},
    {"study"},
    {"commands"},
    {"__main__"},
]


def declared(extra: str = "") -> dict[str, str]:
    """Package -> lowest release, as pyproject.toml says."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return dict(re.match(r"([\w-]+)>=([\d.]+)$", line).groups() for line in lines)


def locked() -> dict[str, str]:
    lines = [
        line for line in (PROJECT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def release(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def code_of(notebook: Path) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def imported(text: str) -> set[str]:
    """Top-level modules that a piece of code imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def strings(text: str) -> list[str]:
    """What a piece of code may print or draw: its string literals, docstrings apart."""
    nodes = list(ast.walk(ast.parse(text)))
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs]


def test_the_lock_holds_what_is_declared():
    lock = locked()
    for name, lowest in (declared() | declared("test")).items():
        assert name in lock, f"{name} is declared and not locked"
        assert release(lock[name]) >= release(lowest), f"{name} is locked below what is declared"
    assert "://" not in (PROJECT / "requirements.lock").read_text()


def test_the_lock_pins_torch_and_the_torchvision_that_belongs_to_it():
    torch, torchvision = release(locked()["torch"]), release(locked()["torchvision"])
    assert torchvision[1] == torch[1] + 15, "torch 2.N goes with torchvision 0.(N+15)"


def test_conda_has_no_second_list():
    lines = (PROJECT / "environment.yml").read_text().splitlines()
    wanted = [line.strip() for line in lines[lines.index("dependencies:") + 1 :]]
    assert [re.sub(r"=.*", "", line) for line in wanted] == ["- python", "- pip", "- pip:", "- -e ."]


def test_a_table_says_what_each_dependency_is_for():
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|$", (PROJECT / "docs" / "dependencies.md").read_text(), re.M)
    assert dict(rows).keys() == declared().keys() | declared("test").keys()
    assert all(len(what) > 10 for _, what in rows)


def test_nobody_is_called_real_by_hand():
    """The default cohort is synthetic: what subjects are called in figures and tables is for `Cohort.who` to say."""
    drawn = [p.read_text() for p in SOURCES if p.parent.name in ("figures", "explore", "evaluation")]
    for text in [*drawn, *("\n".join(code_of(path)) for path in [*NOTEBOOKS, DRIVER])]:
        assert not [s for s in strings(text) if re.search(r"\breal\b.*(subjects|head|slice)", s, re.I | re.S)]


def test_nothing_undeclared_is_imported():
    library = {MODULES.get(n, n) for n in declared()} | BROUGHT_ALONG | {"oasis_lib", *sys.stdlib_module_names}
    for path in SOURCES:
        assert imported(path.read_text()) <= library, path
    for path in [*NOTEBOOKS, DRIVER]:
        assert imported("\n".join(code_of(path))) <= library, path
    tests = library | {MODULES.get(n, n) for n in declared("test")}
    beside = [
        *(PROJECT / "tests").glob("*.py"),
        *(PROJECT / "benchmarks").glob("*.py"),
        *(PROJECT / "images").glob("*.py"),
    ]
    for path in beside:
        assert imported(path.read_text()) <= tests | {other.stem for other in beside}, path


def test_every_dependency_is_used():
    used = set().union(*(imported(path.read_text()) for path in SOURCES))
    indirect = {
        "ipykernel",
        "jupyterlab",
        "openpyxl",
    }  # the kernel, what `make lab` opens, and pandas' reader of spreadsheets
    unused = [name for name in declared() if name not in indirect and MODULES.get(name, name) not in used]
    assert not unused


def test_torchvision_comes_through_one_module_and_is_put_to_work():
    """`vision.py` mends it beside a torch of another build; what that module offers is used."""
    files = [*SOURCES, *(PROJECT / "tests").glob("*.py"), *(PROJECT / "benchmarks").glob("*.py")]
    assert [path.name for path in files if "torchvision" in imported(path.read_text())] == ["vision.py"]
    texts = [path.read_text() for path in SOURCES if path.name not in ("vision.py", "check.py")]
    for name in ("blur", "torchvision"):
        assert any(re.search(rf"from oasis_lib\.vision import .*\b{name}\b", text) for text in texts), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_imports_run_downward(path: Path):
    rank = {name: line for line, names in enumerate(LAYERS) for name in names}
    own = path.relative_to(PROJECT / "oasis_lib").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        modules = (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        for module in modules:
            if module == "oasis_lib":
                names = [alias.name for alias in node.names]
            elif module and module.startswith("oasis_lib."):
                names = [module.split(".")[1]]
            else:
                continue
            for name in names:
                assert name == own or rank[name] < rank[own], f"{own} imports {name}, which stands above it"


@pytest.mark.parametrize("path", [*NOTEBOOKS, DRIVER], ids=lambda p: p.stem)
def test_notebook(path: Path):
    notebook = json.loads(path.read_text())
    cells = notebook["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["nbformat"] == 4 and all("id" in c for c in cells)
    assert not any(c["outputs"] or c["execution_count"] for c in code), "sources carry no outputs"
    # The four opening cells: title and question; parameters; environment; what it reads, writes and takes.
    assert [c["cell_type"] for c in cells[:4]] == ["markdown", "code", "code", "markdown"]
    title = "".join(cells[0]["source"])
    assert title.startswith("# ") and "?" in title
    assert ["parameters" in c["metadata"].get("tags", []) for c in cells] == [i == 1 for i in range(len(cells))]
    for line in "".join(cells[1]["source"]).splitlines():
        assert re.match(r"\w+: [\w\[\]. |]+ = .+  # [^=]+$", line), (
            f"not annotated, literal and commented (papermill trips over =): {line}"
        )
    opening = "".join(cells[3]["source"])
    for word in ("reads", "writes", "takes"):
        assert re.search(word, opening, re.I), f"the opening does not say what it {word}"
    sources = ["".join(c["source"]) for c in code]
    assert max(len(s.splitlines()) for s in sources) <= 20
    assert not any(re.search(r"^\s*(def|class) ", s, re.M) for s in sources)
    assert not any("plt.show" in s or "%" == s[:1] or "!" == s[:1] for s in sources)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_reads_well(path: Path):
    cells = json.loads(path.read_text())["cells"]
    sources = code_of(path)
    words = sum(len("".join(c["source"]).split()) for c in cells if c["cell_type"] == "markdown")
    lines = sum(1 for s in sources for line in s.splitlines() if line.strip() and not line.strip().startswith("#"))
    lengths = sorted(len(s.splitlines()) for s in sources)
    figures = re.findall(r"""\.figure\(\s*["'](\w+)["']""", "\n".join(sources))
    assert 18 <= len(cells) <= 37, f"{len(cells)} cells"
    assert lengths[len(lengths) // 2] <= 5 and lengths[int(0.9 * (len(lengths) - 1))] <= 12
    assert 3.5 <= words / lines <= 15, f"{words / lines:.1f} words a line of code"
    assert 5 <= len(figures) <= 11 and len(set(figures)) == len(figures)
    assert all(name.startswith(path.stem[:2] + "_") for name in figures)
    assert any("assert " in s for s in sources), "claims in prose are held by assertions"
    assert "What we learned" in "\n".join("".join(c["source"]) for c in cells[-3:])
    assert f'begin("{path.stem}", globals())' in sources[1]
