"""The study: its notebooks in order, each in its own kernel, and a run folder that knows what is done already."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oasis_lib import config, report
from oasis_lib.check import describe_environment, environment_line
from oasis_lib.config import as_dict, suggest
from oasis_lib.kernel import CellFailed, StageFailed, execute
from oasis_lib.manifest import Manifest, digest
from oasis_lib.paths import PROJECT, data_home, overwriting, project_path, user_path
from oasis_lib.run import Run, open_run
from oasis_lib.storage import read_json, write_json

NOTEBOOKS, DRIVER = PROJECT / "notebooks", PROJECT / "driver.ipynb"
PEAK = ".peak.json"  # what a notebook's kernel leaves: its peak memory in bytes
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


def begin(name: str, namespace: dict[str, Any]) -> Run:
    """A notebook's first line: its parameters checked, its run opened, its cohort at hand, its environment told."""
    injected = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters\n")]
    kinds = {n: getattr(kind, "__name__", str(kind)) for n, kind in namespace.get("__annotations__", {}).items()}
    names = [*re.findall(r"^(\w+) =", "".join(injected[-1:]), re.M), *kinds]
    given = {n: namespace[n] for n in names if n in namespace}
    check_parameters(name, given, kinds)
    run = open_run(*(namespace[n] for n in ("run", "profile", "cohort", "settings")))
    if "get_ipython" in namespace:
        namespace["get_ipython"]().events.register("post_run_cell", lambda result: write_json(run.path(PEAK), peak_memory()))
    if not (run.cohort_folder / "cohort.json").is_file() and not namespace["cohort"] and not name.startswith("01"):
        prepare_default(run)  # the first notebook shows how it is made; a later one run alone just needs it
    print(f"{environment_line()} · profile {run.profile.name} · run {_short(run.folder)} · cohort {_short(run.cohort_folder)}")
    return run


def peak_memory() -> int:
    """Of this process, in bytes; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def prepare_default(run: Run) -> None:
    """The profile's own synthetic cohort, where the run expects it."""
    from oasis_lib.cohort import prepare

    c = run.profile.cohort
    print(f"preparing the synthetic cohort {_short(run.cohort_folder)} ({c.subjects} subjects, {c.size} x {c.size} pixels) ...")
    prepare("phantom", run.cohort_folder, size=c.size, subjects=c.subjects, lesions=c.lesions, seed=c.seed, progress=False)


def declared(notebook: Path) -> dict[str, str]:
    """The parameters of a notebook and the names of their types."""
    from papermill import inspect_notebook

    return {name: parameter["inferred_type_name"] for name, parameter in inspect_notebook(notebook).items()}


def check_parameters(stage: str, given: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Papermill only warns of a name it does not know, and trains for an hour with the default: here it is refused."""
    for name, value in given.items():
        if name not in kinds:
            known = f"it has {', '.join(kinds)}; settings of a profile go into `settings`"
            raise ValueError(f"{stage} has no parameter {name!r}{suggest(name, kinds)} ({known})")
        kind = KINDS.get(kinds[name].split("[")[0], object)
        if not isinstance(value, kind) or (isinstance(value, bool) and kinds[name] in ("int", "float")):
            raise ValueError(f"{stage}: parameter {name}={value!r} must be {kinds[name]}")


def stages(notebooks: str | Path = NOTEBOOKS) -> list[Path]:
    found = sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebooks in {notebooks}: the study runs from a clone, installed with `pip install -e .`")
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
    given = _short(this.cohort_folder) if cohort else ""
    common = {"profile": profile, "run": _short(this.folder), "cohort": given, "settings": settings}
    plan = _plan(stages(notebooks), common, parameters)
    manifest = Manifest(this.folder)
    manifest.describe(**common, parameters=parameters, cohort_folder=_short(this.cohort_folder))
    manifest.describe(seed=this.profile.vqvae.training.seed, **describe_environment())
    key, ran = "", False
    for source, values in plan.items():
        sections = {s: as_dict(getattr(this.profile, s)) for s in SECTIONS.get(source.stem, ())}
        own = {n: v for n, v in values.items() if n not in common}
        key = digest([key, _text(source), own, sections, str(this.cohort_folder)])
        stale = manifest.is_stale(source.stem)
        ran = ran or not manifest.stands(source.stem, key, _cohort_info(this).get("hash", "")) or (stale and overwriting())
        if ran:
            _run_stage(this, manifest, source, values, key, quiet)
            continue
        _say(f"{source.stem:<14} done already ({manifest.stage(source.stem)['seconds'] / 60:.1f} min when it ran)", quiet)
        if stale:
            _say(f"{'':<14} made by another version of the library; --overwrite reruns it", quiet)
    manifest.describe(cohort_info=_cohort_info(this))
    report.write(this.folder)
    return this


def _plan(sources: list[Path], common: dict[str, Any], extra: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """Every notebook's parameters, all checked before the first one starts."""
    kinds = {source: declared(source) for source in sources}
    known = {name for of_one in kinds.values() for name in of_one}
    for name in extra:
        if name not in known or name in common:
            raise ValueError(f"no notebook has a parameter {name!r}{suggest(name, known)}")
    plan = {source: common | {n: v for n, v in extra.items() if n in kinds[source]} for source in sources}
    for source, values in plan.items():
        check_parameters(source.stem, values, kinds[source])
    return plan


def _run_stage(run: Run, manifest: Manifest, source: Path, parameters: dict[str, Any], key: str, quiet: bool) -> None:
    started = {"parameters": parameters, "started": time.strftime("%Y-%m-%d %H:%M:%S"), "cause": ""}
    manifest.note(source.stem, "running", **started)
    begun = time.time()
    try:
        execute(source, run.path(source.name), parameters, quiet=quiet)
    except KeyboardInterrupt as stop:
        manifest.note(source.stem, "stopped", cause=str(stop) or "interrupted")
        raise
    except CellFailed as failure:
        manifest.note(source.stem, "failed", cause=str(failure))
        raise StageFailed(
            f"{source.stem} stopped in {failure}\nIts executed copy {_short(run.path(source.name))} shows it. "
            "Once the cause is mended, the same command goes on from this notebook."
        ) from None
    peak = int(read_json(run.path(PEAK))) if run.path(PEAK).is_file() else 0
    run.path(PEAK).unlink(missing_ok=True)
    manifest.finish(source.stem, key, begun, cohort=_cohort_info(run).get("hash", ""), peak_memory_bytes=peak)
    _say(f"{source.stem:<14} {(time.time() - begun) / 60:5.1f} min   {peak / 1e9:.1f} GB", quiet)


def repeated(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What the run of a run.json was made with, and further settings and parameters on top."""
    made = read_json(path)
    cohort, known = project_path(made["cohort_folder"]) / "cohort.json", made["cohort_info"]["hash"]
    if cohort.is_file() and (found := read_json(cohort)["hash"]) != known:
        raise ValueError(f"{cohort.parent} has changed since {path} was written: its hash was {known}, now it is {found}")
    return {
        "profile": made["profile"],
        "cohort": made["cohort"] or "phantom",
        "settings": [*made["settings"], *values["settings"]],
        "parameters": made["parameters"] | values["parameters"],
    }


def literal(text: str) -> tuple[str, object]:
    """NAME=VALUE, the value as JSON where it is that."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--param {text!r} must look like name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def resolve_cohort(cohort: str, size: int) -> str:
    """`--cohort`: "phantom" or "" is the profile's own; a prepared folder is taken; anything else is prepared first."""
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


def _text(notebook: Path) -> str:
    """What a notebook says and does, without ids, outputs and the like."""
    return json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in read_json(notebook)["cells"]])


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
