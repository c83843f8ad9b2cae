"""A run's page, or two runs side by side: sentences, tables, figures, manifest, in one file that needs no network."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pandas as pd

from oasis_lib.cards import template
from oasis_lib.config import DEFAULT_PRIOR
from oasis_lib.storage import atomic, read_json, write_json

PAGE = "report.html"
RESULTS = "06_results"  # the table that stands first
# What a notebook found, in sentences and one figure: always shown, the rest is folded away.
HEADLINES = ("sentences", "01_slices", "02_decoders", "03_page", "04_learning", "05_samples", "06_detectability")
SHOWN = {"status": "status", "seconds": "minutes", "peak_memory_bytes": "peak memory, GB"}  # of a stage


def write(*folders: str | Path, out: str | Path | None = None) -> Path:
    """report.html of one run, with its executed notebooks as pages beside it; or compare.html of two."""
    runs = [contents(Path(folder)) for folder in folders]
    out = Path(out) if out else Path(folders[0]) / (PAGE if len(runs) == 1 else "compare.html")
    if len(runs) == 1:
        export_notebooks(runs[0]["folder"], out.parent)
    elif runs[0]["name"] == runs[1]["name"]:
        runs = [run | {"name": str(run["folder"])} for run in runs]
    notebooks: dict[str, list[str]] = {}  # the items of each, of any run
    for run in runs:
        for notebook, items in run["notebooks"].items():
            notebooks[notebook] = list(dict.fromkeys([*notebooks.get(notebook, []), *items]))
    title = " beside ".join(f"Run {run['name']}" for run in runs)
    return _page(out, title=title, runs=runs, headlines=HEADLINES, notebooks=dict(sorted(notebooks.items())))


def summary(folder: str | Path) -> str:
    """HTML of the results in one table, each notebook's sentences and headline figure, and all other tables, folded."""
    return str(template(PAGE).module.summary(contents(Path(folder)), HEADLINES))


def closing(folder: str | Path) -> str:
    """What a study prints last: each notebook's sentences, and where everything lies."""
    run = contents(Path(folder))
    said = [f"{name}\n{found['sentences']['said']}" for name, found in run["notebooks"].items() if "sentences" in found]
    where = {"executed notebooks": "*.ipynb", "figures": "figures", "tables": "tables", "report": PAGE}
    lines = [f"! {warning}" for warning in run["warnings"]]
    lines += [f"{name:<20}{run['folder'] / file}" for name, file in where.items()]
    return "\n\n".join([*said, "\n".join(lines)])


def contents(folder: Path) -> dict[str, Any]:
    """What a run's folder holds for a reader."""
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(f"{folder} is not a run (no run.json); make one with `oasis study --run {folder}`")
    made = read_json(folder / "run.json")
    cohort, git, stages = made.get("cohort_info") or {}, made.get("git") or {}, made["stages"]
    table = pd.DataFrame.from_dict(stages, orient="index").reindex(columns=list(SHOWN))
    table["seconds"], table["peak_memory_bytes"] = table["seconds"] / 60, table["peak_memory_bytes"] / 1e9
    about = {key: made.get(key) for key in ("profile", "settings", "parameters", "seed", "device", "cohort")}
    about |= {"cohort hash": cohort.get("hash"), "commit": git.get("commit"), "commit clean": git.get("clean")}
    broken = {name: stage for name, stage in stages.items() if stage["status"] != "finished"}
    warnings = [f"{name} is {stage['status']}: {stage.get('cause')}" for name, stage in broken.items()]
    if git.get("clean") is False:
        warnings.append(f"the code had uncommitted changes on {git['commit'][:10]}")
    return {
        "folder": folder,
        "name": folder.name,
        "made": made,
        "cohort": cohort,
        "minutes": f"{table['seconds'].sum():.1f}",
        "warnings": warnings + cohort.get("warnings", []),
        "results": _table(folder / "tables" / f"{RESULTS}.json"),
        "notebooks": {name: _items(folder, name) for name in stages},
        "stages": _html(table.rename(columns=SHOWN)),
        "about": _html(pd.Series(about | made.get("versions", {}), name="").astype(str).to_frame()),
    }


def _items(folder: Path, notebook: str) -> dict[str, dict[str, Any]]:
    """A notebook's closing sentences, then its tables, then its figures, each in the order it kept them."""
    from nbconvert.filters import markdown2html

    found, number = {}, notebook[:2]
    if said := _sentences(folder / f"{notebook}.ipynb"):
        found["sentences"] = {"text": markdown2html(said), "said": said.replace("**", "")}
    for path in sorted((folder / "tables").glob(f"{number}_*.json"), key=lambda path: path.stat().st_mtime_ns):
        if path.stem != RESULTS:
            found[f"{path.stem}, table"] = _table(path)  # a figure may have the same name
    for name, caption in read_json(folder / "figures" / "captions.json", {}).items():
        path = folder / "figures" / f"{name}.png"
        if name.startswith(number) and path.is_file():
            found[name] = {"caption": caption, "png": base64.b64encode(path.read_bytes()).decode()}
    return found


def _table(path: Path) -> dict[str, Any] | None:
    kept = read_json(path, {})
    return {"caption": kept.pop("caption"), "table": _html(pd.DataFrame(**kept))} if kept else None


def _sentences(executed: Path) -> str:
    """The Markdown that the last code cell of an executed notebook shows."""
    cells = reversed(read_json(executed, {"cells": []})["cells"])
    outputs = next((cell["outputs"] for cell in cells if cell["cell_type"] == "code"), [])
    return "".join("".join(output.get("data", {}).get("text/markdown", "")) for output in outputs).strip()


def _html(frame: pd.DataFrame) -> str:
    return frame.to_html(border=0, na_rep="-", float_format="{:.4g}".format)


def export_notebooks(source: Path, folder: Path) -> None:
    """Each executed notebook as one page, without the scripts that the exporter's own templates fetch."""
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    exporter, style = HTMLExporter(template_name="basic"), HtmlFormatter().get_style_defs(".highlight")
    for notebook in sorted(source.glob("[0-9][0-9]_*.ipynb")):
        read = nbformat.read(notebook, as_version=4)
        for cell in (cell for cell in read.cells if cell.cell_type == "markdown"):
            cell.source = with_mathml(cell.source)
        body, _ = exporter.from_notebook_node(read)
        _page(folder / f"{notebook.stem}.html", title=notebook.stem, body=f"<style>{style}</style>{body}")


def with_mathml(markdown: str) -> str:
    """TeX between dollars as MathML, which browsers show without scripts."""
    from latex2mathml.converter import convert

    def made(found: re.Match) -> str:
        math = convert(found[1] or found[2], display="block" if found[1] else "inline")
        for sign in "*_|":  # none of them is Markdown's here
            math = math.replace(sign, f"&#{ord(sign)};")
        return math

    return re.sub(r"\$\$(.+?)\$\$|(?<![\\$`])\$([^$\n]+?)\$", made, markdown, flags=re.S)


def _page(path: Path, **values: Any) -> Path:
    with atomic(path) as beside:
        beside.write_text(template(PAGE).render(**values), encoding="utf-8")
    return path


def over_seeds(folder: Path, runs: list[Path]) -> tuple[str, int]:
    """Mean and standard deviation of every number over runs, and which of them validation (not test) prefers."""
    numbers = [pd.json_normalize(read_json(run / "metrics.json"), sep=" ").select_dtypes("number") for run in runs]
    table = pd.concat(numbers).agg(["mean", "std"]).T.set_axis(["mean", "sd"], axis=1).fillna(0.0)
    found = {}  # of each run's VQ-VAE, and minus the bits of its default prior if it has one: higher is better
    for run in runs:
        found[run.name] = {"vqvae score": pd.read_csv(run / "vqvae" / "history.csv")["score"].max()}
        if (prior := run / DEFAULT_PRIOR / "history.csv").is_file():
            found[run.name][f"minus {DEFAULT_PRIOR} bits"] = -pd.read_csv(prior)["validate_bits"].min()
    scores = pd.DataFrame(found).T
    best = int(scores.rank(ascending=False).mean(axis=1).argmin())
    criterion = f"mean rank by {' and '.join(scores.columns)}"
    written = {"metrics": table.to_dict("index"), "validation_scores": scores.to_dict("index")}
    write_json(folder / "seeds.json", written | {"criterion": criterion, "best": runs[best].name})
    chosen = ", ".join(f"{name} {value:.4f}" for name, value in scores.iloc[best].items())
    chosen = f"best by validation: {runs[best].name} ({chosen}; {criterion}); all in {folder / 'seeds.json'}"
    return f"{len(runs)} seeds\n{table.to_string(float_format='{:.4g}'.format)}\n\n{chosen}", best
