"""The gallery, from a finished laptop run on synthetic subjects: `make publish RUN=runs/latest`.

docs/study/ takes the executed notebooks, html/ beside them the same as pages without scripts, and thumbnails. Figures
are drawn smaller and with fewer colours. images/overview.webp is made anew.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
from overview import main as overview
from PIL import Image

from oasis_lib.paths import PROJECT, project_path
from oasis_lib.report import export_notebooks
from oasis_lib.storage import read_json

WIDEST, COLOURS, QUALITY, MOST = 850, 32, 62, 8_000_000  # pixels, of a PNG's palette, of a JPEG, bytes in all
THUMBNAILS = {
    "01_cohort": "01_mean",
    "02_vqvae": "02_decoders",
    "03_codebook": "03_umap",
    "04_priors": "04_progress",
    "05_generation": "05_samples",
    "06_evaluation": "06_detectability",
}
OURS = ("text/plain", "text/html", "text/markdown", "image/png", "image/jpeg")
# A place on this machine; an import path of the library is none.
PLACES = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|check)/[\w./-]+")


def refuse(run: Path) -> None:
    """Only a finished run of the laptop profile on synthetic subjects is shown to others."""
    made = read_json(run / "run.json")
    if made["profile"] != "laptop":
        sys.exit(f"{run} is a {made['profile']} run: the gallery shows the laptop study")
    if not made["cohort_info"]["synthetic"]:
        sys.exit(f"{run} shows real subjects: only a run on the synthetic cohort is published")
    for name, stage in made["stages"].items():
        if stage["status"] != "finished":
            sys.exit(f"{run}: {name} is {stage['status']}; finish it first")


def smaller(png: str) -> tuple[str, str]:
    """The picture at most WIDEST pixels wide.

    PNG with a palette (charts) or JPEG (slices), whichever is smaller; base64 both.
    """
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    palette, jpeg = io.BytesIO(), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(palette, "png", optimize=True)
    image.save(jpeg, "jpeg", quality=QUALITY, optimize=True)
    kind, kept = min(("image/png", palette), ("image/jpeg", jpeg), key=lambda one: len(one[1].getvalue()))
    return kind, base64.b64encode(kept.getvalue()).decode()


def as_uri(png: str) -> str:
    return "data:{};base64,{}".format(*smaller(png))


def published(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Its outputs without widgets' state, with smaller pictures and without this machine's paths."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "markdown":  # links as seen from docs/study
            cell.source = cell.source.replace("](../docs/", "](../").replace("](notebooks/", "](")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                kind, picture = smaller(data.pop("image/png"))
                data[kind] = picture
                data.pop("text/plain", None)
            for kind in [kind for kind in data if kind not in OURS]:
                del data[kind]
            if "text/html" in data:
                html = "".join(data["text/html"])
                data["text/html"] = re.sub(r"data:image/png;base64,([\w+/=]+)", lambda found: as_uri(found[1]), html)
    return nbformat.from_dict(json.loads(PLACES.sub(lambda found: Path(found[0]).name, json.dumps(notebook))))


def beside(page: str, folder: Path, name: str) -> str:
    """A page whose pictures and styles lie in files beside it: the styles once for all pages."""
    (folder / "figures").mkdir(exist_ok=True)
    shared = folder / "style.css"
    known = shared.read_text() if shared.is_file() else ""
    new = [style for style in dict.fromkeys(re.findall(r"<style[^>]*>(.*?)</style>", page, re.S)) if style not in known]
    shared.write_text(known + "".join(f"{style}\n" for style in new))

    def kept(found: re.Match) -> str:
        file = f"figures/{name}-{len(list((folder / 'figures').glob(f'{name}-*')))}.webp"
        Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB").save(folder / file, quality=QUALITY)
        return file

    page = re.sub(r"<style[^>]*>.*?</style>", "", page, flags=re.S)
    page = page.replace("</head>", '<link rel="stylesheet" href="style.css"></head>', 1)
    return re.sub(r"data:image/(?:png|jpeg);base64,\s*([\w+/=\s]+)", kept, page)


def main(run: str) -> None:
    folder, out = project_path(run), PROJECT / "docs" / "study"
    refuse(folder)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in sorted(folder.glob("*.ipynb")):
        nbformat.write(published(nbformat.read(path, as_version=4)), out / path.name)
    export_notebooks(out, out / "html")
    for page in (out / "html").glob("*.html"):
        text = re.sub(r'<a class="anchor-link".*?</a>', "", page.read_text()).replace('href="../', 'href="../../')
        text = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', text)
        page.write_text(beside(text, out / "html", page.stem))
    for name, figure in THUMBNAILS.items():
        image = Image.open(folder / "figures" / f"{figure}.png").convert("RGB")
        image.thumbnail((240, 160), Image.Resampling.LANCZOS)
        image.save(out / f"{name}.webp", quality=70)
    overview(str(folder))
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out.relative_to(PROJECT)}: {len(list(out.glob('*.ipynb')))} notebooks, {total / 1e6:.1f} MB")
    if total > MOST:
        sys.exit(f"{total / 1e6:.1f} MB are more than {MOST / 1e6:.0f}: lower WIDEST or COLOURS")


if __name__ == "__main__":
    main(*sys.argv[1:])
