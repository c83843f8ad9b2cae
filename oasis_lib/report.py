"""The page of a run: results, every figure in order, the manifest and all warnings in one file that needs no network."""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oasis_lib.config import PRIORS
from oasis_lib.paths import atomic, read_json, write_json

PAGE = "report.html"
BRIEF = {"ssim", "ssim_brain", "level_within_one", "two_sample", "memorised_pixels", "memorised_trained"}
BRIEF |= {f"{measure}_{space}" for measure in ("frechet", "coverage") for space in ("trained", "fixed")}
CSS = """
body{font:16px/1.55 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
h1,h2,h3{line-height:1.25} h2{margin-top:2.5rem;border-bottom:1px solid #ddd;padding-bottom:.3rem}
table{border-collapse:collapse;margin:1rem 0;font-size:14px}
td,th{padding:.25rem .7rem;border-bottom:1px solid #e4e4e4;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} figure{margin:2rem 0} img{max-width:100%;height:auto}
figcaption{color:#444}
.headed tr:first-child td:not(:first-child){text-align:right}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem} .pair figure{margin:.5rem 0}
.note{background:#fff4e5;border-left:4px solid #d55e00;padding:.4rem .8rem;margin:.5rem 0} .scroll{overflow-x:auto}
pre{background:#f6f6f6;padding:.7rem;overflow-x:auto;font-size:13px} details{margin:1rem 0} .tag{color:#d55e00;font-weight:bold}
.anchor-link,.jp-InputPrompt,.jp-OutputPrompt,.prompt{display:none} .cell{margin:1rem 0} .output_png img{max-width:100%}
"""


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """report.html of one run, and its executed notebooks as pages beside it."""
    run = Contents(Path(folder))
    out = Path(out) if out else run.folder / PAGE
    links = [
        f'<li><a href="{html.escape(page.name)}">{html.escape(page.stem)}</a></li>' for page in run.export_notebooks(out.parent)
    ]
    parts = [
        f"<h1>Run {html.escape(run.folder.name)}</h1>",
        f"<p>{run.heading()}</p>",
        *(f'<p class="note">{html.escape(w)}</p>' for w in run.warnings()),
        "<h2>Results</h2>",
        *(_table(title, rows) for title, rows in tables(run.metrics)),
        "<h2>Figures</h2>",
        *(_figure(run.figure(name), f"{name}: {caption}") for name, caption in run.captions()),
        "<h2>Notebooks</h2>",
        f"<ul>{''.join(links)}</ul>",
        "<h2>Manifest</h2>",
        run.manifest_html(),
    ]
    return _page(out, f"Run {run.folder.name}", parts)


def write_pair(left: str | Path, right: str | Path, out: str | Path | None = None) -> Path:
    """Two runs side by side: every number and every figure that either has."""
    runs = [Contents(Path(left)), Contents(Path(right))]
    names = [run.folder.name for run in runs]
    if names[0] == names[1]:
        names = [str(run.folder) for run in runs]
    flat = [dict(flatten(run.metrics)) for run in runs]
    rows = [["", *names]] + [[key, *(f.get(key, "-") for f in flat)] for key in flat[0] | flat[1]]
    captions = [dict(run.captions()) for run in runs]
    parts = [f"<h1>{html.escape(names[0])} beside {html.escape(names[1])}</h1>"]
    parts += [f"<p>{html.escape(name)}: {run.heading()}</p>" for name, run in zip(names, runs, strict=True)]
    parts += [f'<p class="note">{html.escape(f"{n}: {w}")}</p>' for n, run in zip(names, runs, strict=True) for w in run.warnings()]
    parts += ["<h2>Results</h2>", _table("", rows), "<h2>Figures</h2>"]
    for name in sorted(captions[0] | captions[1]):
        both = [
            _figure(run.figure(name), f"{n}: {c.get(name, 'not in this run')}")
            for n, run, c in zip(names, runs, captions, strict=True)
        ]
        parts.append(f'<h3>{html.escape(name)}</h3><div class="pair">{"".join(both)}</div>')
    parts += [
        "<h2>Manifests</h2>",
        *(f"<h3>{html.escape(n)}</h3>{run.manifest_html()}" for n, run in zip(names, runs, strict=True)),
    ]
    return _page(Path(out) if out else runs[0].folder / "compare.html", " beside ".join(names), parts)


def closing(folder: str | Path) -> str:
    """What a study says last: its numbers, and where everything lies."""
    run = Contents(Path(folder))
    shown = [_text_table(title, _brief(rows)) for title, rows in tables(run.metrics, brief=True)]
    where = [
        f"executed notebooks  {run.folder}/*.ipynb",
        f"figures             {run.folder / 'figures'}",
        f"report              {run.folder / PAGE}",
    ]
    return "\n".join(["", *shown, "", *(f"! {w}" for w in run.warnings()), *where])


def results_html(folder: str | Path) -> str:
    """The tables alone, for a notebook to show."""
    return "".join(_table(title, rows) for title, rows in tables(Contents(Path(folder)).metrics))


def figures_html(folder: str | Path) -> str:
    """The first figure of each notebook."""
    run = Contents(Path(folder))
    first = {name[:2]: (name, caption) for name, caption in reversed(run.captions())}
    return "".join(_figure(run.figure(name), caption) for _, (name, caption) in sorted(first.items()))


def over_seeds(folder: Path, runs: list[Path]) -> tuple[str, int]:
    """Mean and standard deviation of every number over runs, and which of them validation (not test) prefers."""
    flat = [dict(flatten(Contents(run).metrics, numbers=True)) for run in runs]
    rows = {}
    for key in flat[0]:
        values = [f[key] for f in flat if key in f]
        rows[key] = {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
    scores = validation_scores(runs)
    ranks = scores.rank(ascending=False)
    best = int(ranks.mean(1).argmin())
    criterion = f"mean rank by {' and '.join(scores.columns)}"
    written = {"metrics": rows, "validation_scores": scores.to_dict("index"), "criterion": criterion, "best": runs[best].name}
    write_json(folder / "seeds.json", written)
    table = [["", "mean", "sd"], *([key, _shown(row["mean"]), _shown(row["sd"])] for key, row in rows.items())]
    text = _text_table(f"{len(runs)} seeds", table)
    chosen = ", ".join(f"{name} {value:.4f}" for name, value in scores.iloc[best].items())
    return f"{text}\n\nbest by validation: {runs[best].name} ({chosen}; {criterion}); all in {folder / 'seeds.json'}", best


def validation_scores(runs: list[Path]) -> Any:
    """One row a run, higher is better: of its VQ-VAE, and minus the bits of its default prior where that was trained."""
    import pandas as pd

    found = {}
    for run in runs:
        found[run.name] = {"vqvae score": pd.read_csv(run / "vqvae" / "history.csv")["score"].max()}
        if (run / PRIORS[0] / "history.csv").is_file():
            found[run.name][f"minus {PRIORS[0]} bits"] = -pd.read_csv(run / PRIORS[0] / "history.csv")["validate_bits"].min()
    return pd.DataFrame(found).T


class Contents:
    """What a run's folder holds for a reader."""

    def __init__(self, folder: Path):
        if not (folder / "run.json").is_file():
            raise FileNotFoundError(f"{folder} is not a run: it has no run.json; make one with `oasis study --run {folder}`")
        self.folder, self.manifest = folder, read_json(folder / "run.json")
        self.metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}

    def captions(self) -> list[tuple[str, str]]:
        """In the order of the notebooks, and within one as it showed them."""
        path = self.folder / "figures" / "captions.json"
        return sorted(read_json(path).items() if path.is_file() else (), key=lambda item: item[0][:2])

    def figure(self, name: str) -> Path:
        return self.folder / "figures" / f"{name}.png"

    def heading(self) -> str:
        m = self.manifest
        cohort = m.get("cohort_info", {})
        tag = ' <span class="tag">SYNTHETIC people</span>,' if cohort.get("synthetic") else ""
        minutes = sum(s.get("seconds", 0) for s in m["stages"].values()) / 60
        size = f"{cohort['size']} x {cohort['size']}" if cohort else "size unknown"
        device = html.escape(str(m.get("device")))
        return f"Profile {html.escape(str(m.get('profile')))}, {size},{tag} {device}, {minutes:.1f} minutes."

    def warnings(self) -> list[str]:
        m = self.manifest
        found = [
            f"{name} is {stage['status']}: {stage.get('cause', 'it was stopped')}"
            for name, stage in m["stages"].items()
            if stage["status"] != "finished"
        ]
        git = m.get("git") or {}
        if git.get("clean") is False:
            found.append(f"the code had uncommitted changes on {git['commit'][:10]}")
        found += [str(w) for w in m.get("cohort_info", {}).get("warnings", [])]
        return found + list(_find_warnings(self.metrics))

    def export_notebooks(self, folder: Path) -> list[Path]:
        """Each executed notebook as one page, without the scripts that the exporter's own templates fetch."""
        import nbformat
        from nbconvert import HTMLExporter
        from pygments.formatters import HtmlFormatter

        exporter, pages = HTMLExporter(template_name="basic"), []
        for notebook in sorted(self.folder.glob("[0-9][0-9]_*.ipynb")):
            body, _ = exporter.from_notebook_node(nbformat.read(notebook, as_version=4))
            style = f"<style>{HtmlFormatter().get_style_defs('.highlight')}</style>"
            pages.append(_page(folder / f"{notebook.stem}.html", notebook.stem, [style, body]))
        return pages

    def manifest_html(self) -> str:
        m = self.manifest
        stages = [["stage", "status", "minutes", "peak memory, GB"]]
        stages += [[n, s["status"], s.get("seconds", 0) / 60, s.get("peak_memory_bytes", 0) / 1e9] for n, s in m["stages"].items()]
        git, cohort = m.get("git") or {}, m.get("cohort_info", {})
        about = [[key, str(m.get(key))] for key in ("profile", "settings", "seed", "device")]
        about += [["cohort", f"{m.get('cohort') or 'phantom'}, hash {cohort.get('hash')}"]]
        about += [
            [
                "code",
                f"commit {git.get('commit')}, {'clean' if git.get('clean') else 'with changes'}"
                if git.get("commit")
                else "not a clone",
            ]
        ]
        versions = [[name, version] for name, version in m.get("versions", {}).items()]
        return _table("", stages) + _table("", about) + f"<details><summary>Versions</summary>{_table('', versions)}</details>"


def tables(metrics: dict[str, Any], *, brief: bool = False) -> Iterator[tuple[str, list[list[Any]]]]:
    """metrics.json as tables, what matters most first: a dict of like dicts has columns, everything else goes name by name."""
    first = [name for name in ("reconstruction", "generation", "priors")[: 2 if brief else 3] if name in metrics]
    for section in first if brief and first else dict.fromkeys([*first, *metrics]):
        whole = metrics[section] if isinstance(metrics[section], dict) else {"": metrics[section]}
        if all(map(_is_row, whole.values())):
            whole = {"": whole}
        plain = {}
        for name, value in whole.items():
            if isinstance(value, list) and value and all(map(_is_row, value)):
                value = dict(map(_named, enumerate(value, 1)))
            if isinstance(value, dict) and value and all(map(_is_row, value.values())):
                yield f"{section}: {name}".removesuffix(": "), _grid(value)
            else:
                plain[name] = value
        rows = [[key, value] for key, value in flatten(plain)]
        if rows and not (brief and first):
            yield section, rows


def _brief(rows: list[list[Any]]) -> list[list[Any]]:
    """For a terminal: the measures that targets are set on, and as many columns as fit. The page has the rest."""
    kept = [row for row in rows[1:] if row[0] in BRIEF] or rows[1:]
    return [row[:7] for row in [rows[0], *kept]]


def _named(numbered: tuple[int, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A row of a list, by the words in it."""
    number, row = numbered
    words = [str(cell) for cell in row.values() if isinstance(cell, str)]
    return ", ".join(words) or str(number), {key: cell for key, cell in row.items() if not isinstance(cell, str)}


def _grid(value: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows and columns; an interval goes into its mean's cell, and a table wider than it is long is turned."""
    rows = {}
    for name, row in value.items():
        bounds = {f"{key}{end}" for key in row for end in ("_low", "_high") if f"{key}_low" in row}
        interval = {key: [row[key], row[f"{key}_low"], row[f"{key}_high"]] for key in row if f"{key}_low" in row}
        rows[name] = {key: _shown(interval.get(key, cell)) for key, cell in row.items() if key not in bounds}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    if len(columns) > max(6, len(rows)):
        rows, columns = {c: {name: row.get(c, "") for name, row in rows.items()} for c in columns}, list(rows)
    return [["", *columns], *([name, *(row.get(c, "") for c in columns)] for name, row in rows.items())]


def flatten(value: Any, name: str = "", numbers: bool = False) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{name} {key}".strip(), numbers)
    elif numbers and isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
    elif not numbers and (not isinstance(value, list) or len(value) <= 3) and not name.endswith("warnings"):
        yield name, _shown(value)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and not any(isinstance(v, dict) for v in value.values())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 5e-4 else f"{value:.1g}"
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value):
        return "{} [{}, {}]".format(*map(_shown, value))  # a mean with its interval
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)


def _find_warnings(value: Any) -> Iterator[str]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "warnings" and isinstance(inner, list):
            yield from map(str, inner)
        else:
            yield from _find_warnings(inner)


def _table(title: str, rows: list[list[Any]]) -> str:
    head = f"<h3>{html.escape(title)}</h3>" if title else ""
    body = "".join(
        "<tr>" + "".join(f"<td{_right(cell)}>{html.escape(_shown(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    kind = ' class="headed"' if rows and rows[0][0] == "" else ""
    return f'{head}<div class="scroll"><table{kind}>{body}</table></div>'


def _right(cell: Any) -> str:
    return ' class="n"' if str(cell)[:1].isdigit() or isinstance(cell, float) else ""


def _text_table(title: str, rows: list[list[Any]]) -> str:
    cells = [[_shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells)))]
    return "\n".join(
        [f"\n{title}"] + ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)).rstrip() for row in cells]
    )


def _figure(path: Path, caption: str) -> str:
    if not path.is_file():
        return f"<figure><figcaption>{html.escape(caption)}</figcaption></figure>"
    data = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _page(path: Path, title: str, parts: list[str]) -> Path:
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{CSS}</style></head>'
    )
    with atomic(path) as beside:
        beside.write_text(f"{head}<body>{''.join(parts)}</body></html>\n", encoding="utf-8")
    return path
