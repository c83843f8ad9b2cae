"""The study: its notebooks in order, each in its own kernel, and a run folder that knows what is done already."""

from __future__ import annotations

import ast
import difflib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oasis_lib import config, report
from oasis_lib.check import describe_environment, environment_line
from oasis_lib.config import as_dict, near
from oasis_lib.manifest import Manifest, digest
from oasis_lib.paths import PROJECT, overwriting, project_path, read_json, user_path
from oasis_lib.run import Run, open_run

NOTEBOOKS, DRIVER = PROJECT / "notebooks", PROJECT / "driver.ipynb"
# The part of a profile that a stage is the first to read. A change in it reruns the stage, and all that follow.
SECTIONS = {
    "01_cohort": ("cohort",),
    "02_vqvae": ("vqvae",),
    "03_codebook": (),
    "04_priors": config.PRIORS,
    "05_generation": ("evaluation",),
    "06_evaluation": ("evaluation",),
}
KINDS = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": (list, tuple), "dict": dict}


class StageFailed(RuntimeError):
    """What stopped a study, in words: notebook, cell and cause."""

    def _render_traceback_(self) -> list[str]:  # in the driver's kernel the message says it all
        return [f"StageFailed: {self}"]


def begin(name: str, namespace: dict[str, Any]) -> Run:
    """A notebook's first line: its parameters checked, its run opened, its cohort at hand, its environment told."""
    names = declared(NOTEBOOKS / f"{name}.ipynb")
    given = {n: namespace.get(n) for n in _injected(namespace)} | {n: namespace[n] for n in names if n in namespace}
    check_parameters(name, given, names)
    run = open_run(
        given.get("run", "runs/latest"), given.get("profile", "laptop"), given.get("cohort", ""), given.get("settings", [])
    )
    run.path("figures").mkdir(exist_ok=True)
    if not (run.cohort_folder / "cohort.json").is_file() and not given.get("cohort"):
        if not name.startswith("01"):  # the first notebook shows how it is made; a later one run alone just needs it
            prepare_default(run)
    print(f"{environment_line()} · profile {run.profile.name} · run {_short(run.folder)} · cohort {_short(run.cohort_folder)}")
    return run


def prepare_default(run: Run) -> None:
    """The profile's own synthetic cohort, where the run expects it."""
    from oasis_lib.cohort import prepare

    c = run.profile.cohort
    print(f"preparing the synthetic cohort {_short(run.cohort_folder)} ({c.people} people, {c.size} x {c.size} pixels) ...")
    prepare("phantom", run.cohort_folder, size=c.size, people=c.people, lesions=c.lesions, seed=c.seed, progress=False)


def declared(notebook: Path) -> dict[str, tuple[str, Any]]:
    """The names in a notebook's `parameters` cell, with annotation and default."""
    for cell in read_json(notebook)["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            statements = ast.parse("".join(cell["source"])).body
            annotated = [s for s in statements if isinstance(s, ast.AnnAssign) and s.value is not None]
            return {s.target.id: (ast.unparse(s.annotation), ast.literal_eval(s.value)) for s in annotated}
    raise ValueError(f"{notebook} has no cell tagged `parameters`")


def check_parameters(stage: str, given: Mapping[str, Any], names: Mapping[str, tuple[str, Any]]) -> None:
    """Papermill only warns of a name it does not know, and trains for an hour with the default: here it is refused."""
    for name, value in given.items():
        if name not in names:
            raise ValueError(f"{stage} has no parameter {name!r}{_nearest(stage, name, value, names)} (it has {', '.join(names)})")
        annotation, default = names[name]
        kind = KINDS.get(annotation.split("[")[0], object)
        if not isinstance(value, kind) or (isinstance(value, bool) and annotation in ("int", "float")):
            raise ValueError(f"{stage}: parameter {name}={value!r} must be {annotation}, like {default!r}")


def _nearest(stage: str, name: str, value: Any, names: Iterable[str]) -> str:
    """A mistyped parameter may have been meant for a setting: `epcohs` for `settings=["vqvae.epochs=5"]`."""
    section = next(iter(SECTIONS.get(stage, ())), "vqvae")
    fields = as_dict(getattr(config.PROFILES["laptop"], section))
    settings = {key for part in fields.values() if isinstance(part, dict) for key in part} - set(names)
    close = difflib.get_close_matches(name, [*names, *settings], n=1, cutoff=0.5)
    return f"; did you mean settings=['{section}.{close[0]}={value}']?" if close and close[0] in settings else near(name, names)


def stages(notebooks: str | Path = NOTEBOOKS) -> list[Path]:
    found = sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"there are no notebooks in {notebooks}: the study runs from a clone, installed with `pip install -e .`"
        )
    return found


def run_study(
    profile: str = "laptop",
    run: str | Path = "runs/latest",
    cohort: str | Path = "",
    settings: Iterable[str] = (),
    *,
    runs: int = 1,
    parameters: Mapping[str, Any] | None = None,
    notebooks: str | Path = NOTEBOOKS,
    quiet: bool = False,
) -> Run:
    """All notebooks in order. A stage whose text, settings, inputs and outputs are as they were is not run again.

    `cohort` is "phantom" (or ""), a prepared cohort, or a folder of images or volumes. With `runs` above 1 it runs once a
    seed, each in a folder of its own, and the run that validation prefers is given back.
    """
    settings = list(settings)
    chosen = config.profile(profile, settings)  # a mistyped setting is refused before anything is made
    cohort = resolve_cohort(str(cohort), chosen.cohort.size)
    options = {"parameters": dict(parameters or {}), "notebooks": notebooks, "quiet": quiet}
    if runs == 1:
        return _run_once(profile, run, cohort, settings, **options)
    made = []
    for seed in range(runs):
        _say(f"seed {seed}", quiet)
        seeds = [f"{part}.seed={seed}" for part in ("vqvae", *config.PRIORS, "evaluation")]
        made.append(_run_once(profile, Path(run) / f"seed-{seed}", cohort, settings + seeds, **options))
    text, best = report.over_seeds(project_path(run), [one.folder for one in made])
    _say(text, quiet)
    return made[best]


def _run_once(profile: str, run: str | Path, cohort: str, settings: list[str], *, parameters, notebooks, quiet: bool) -> Run:
    this = open_run(run, profile, cohort, settings)
    sources = stages(notebooks)
    common = {
        "profile": profile,
        "run": _short(this.folder),
        "cohort": _short(this.cohort_folder) if cohort else "",
        "settings": list(settings),
    }
    plan = _plan(sources, common, parameters)
    manifest = Manifest(this.folder)
    manifest.describe(
        **common, cohort_folder=_short(this.cohort_folder), seed=this.profile.vqvae.training.seed, **describe_environment()
    )
    key, ran = "", False
    for source in sources:
        sections = {s: as_dict(getattr(this.profile, s)) for s in SECTIONS.get(source.stem, ())}
        own = {n: v for n, v in plan[source].items() if n not in common}
        key = digest([key, _text(source), own, sections, str(this.cohort_folder)])
        stale = manifest.is_stale(source.stem)
        if not ran and manifest.is_finished(source.stem, key, _cohort_hash(this)) and not (stale and overwriting()):
            _say(f"{source.stem:<14} done already ({manifest.stage(source.stem)['seconds'] / 60:.1f} min when it ran)", quiet)
            if stale:
                _say(f"{'':<14} made by another version of the library; --overwrite reruns it", quiet)
            continue
        ran = True
        _run_stage(this, manifest, source, plan[source], key, quiet)
    manifest.describe(cohort_info=_cohort_info(this))
    report.write(this.folder)
    return this


def _plan(sources: list[Path], common: dict[str, Any], extra: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """Every notebook's parameters, all checked before the first one starts."""
    names = {source: declared(source) for source in sources}
    known = {name for of_one in names.values() for name in of_one}
    for name in extra:
        if name not in known or name in common:
            raise ValueError(f"no notebook has a parameter {name!r}{near(name, known)}")
    plan = {source: common | {n: v for n, v in extra.items() if n in names[source]} for source in sources}
    for source, values in plan.items():
        check_parameters(source.stem, values, names[source])
    return plan


def _run_stage(run: Run, manifest: Manifest, source: Path, parameters: dict[str, Any], key: str, quiet: bool) -> None:
    from oasis_lib.kernel import CellFailed, execute

    manifest.start(source.stem, parameters)
    begun = time.time()
    try:
        peak = execute(source, run.path(source.name), parameters, quiet=quiet)
    except CellFailed as failure:
        manifest.fail(source.stem, str(failure))
        raise StageFailed(
            f"{source.stem} stopped in {failure}\nIts executed copy {_short(run.path(source.name))} shows it. "
            "Once the cause is mended, the same command goes on from this notebook."
        ) from None
    manifest.finish(source.stem, key, begun, peak, _cohort_hash(run))
    _say(f"{source.stem:<14} {(time.time() - begun) / 60:5.1f} min   {peak / 1e9:.1f} GB", quiet)


def resolve_cohort(cohort: str, size: int) -> str:
    """`--cohort`: "phantom" or "" is the profile's own; a prepared folder is taken; anything else is prepared first."""
    from oasis_lib.paths import data_home

    if cohort in ("", "phantom"):
        return ""
    source = user_path(cohort)
    if (source / "cohort.json").is_file():
        return str(source)
    if not source.exists():
        raise ValueError(f"--cohort {cohort!r} is neither phantom nor anything that exists")
    from oasis_lib.cohort import prepare

    folder = data_home() / f"{source.stem}-{size}"
    prepare(source, folder, size=size)
    return str(folder)


def _injected(namespace: dict[str, Any]) -> list[str]:
    """The names that papermill set in this kernel, from the history of its cells."""
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            return [target.id for s in ast.parse(source).body if isinstance(s, ast.Assign) for target in s.targets]
    return []


def _text(notebook: Path) -> str:
    """What a notebook says and does, without ids, outputs and the like."""
    return json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in read_json(notebook)["cells"]])


def _cohort_hash(run: Run) -> str:
    return _cohort_info(run).get("hash", "")


def _cohort_info(run: Run) -> dict[str, Any]:
    path = run.cohort_folder / "cohort.json"
    return read_json(path) if path.is_file() else {}


def _short(path: Path) -> str:
    """Relative to the project where it lies inside: `runs/latest`."""
    path = project_path(path)
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, flush=True)
