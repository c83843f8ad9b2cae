"""The study: its notebooks in order, each in its own kernel, in a run folder that knows what is done already.

A stage runs again when its notebook's text, a setting or parameter that it or an earlier stage reads, or its cohort
changed, or when one of its files is gone. An edit of the library is only reported; `--overwrite` then reruns the stage.
`training/once.py` treats trained models alike, but replaces one of other settings with `--overwrite` alone.
"""

from __future__ import annotations

import builtins
import json
import re
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oasis_lib import config, report
from oasis_lib.check import device_name, environment_line, git_state, versions
from oasis_lib.config import as_dict, unknown
from oasis_lib.kernel import StageFailed, execute
from oasis_lib.paths import PROJECT, data_home, library_digest, overwriting, project_path, short, user_path
from oasis_lib.run import Run, open_run
from oasis_lib.storage import content_hash, only_one, read_json, write_json

NOTEBOOKS, DRIVER = PROJECT / "notebooks", PROJECT / "driver.ipynb"
PEAK = ".peak.json"  # what a notebook's kernel leaves: its peak memory in bytes
# The part of a profile that a stage is the first to read. A change in it reruns the stage, and all that follow.
SECTIONS = {
    "01_cohort": ("cohort",),
    "02_vqvae": ("vqvae",),
    "04_priors": tuple(config.PRIORS),
    "05_generation": ("evaluation",),
    "06_evaluation": ("evaluation",),
}
MANIFEST = "run.json"
SHARED = {MANIFEST, "metrics.json", "captions.json", "seeds.json"}  # several stages write these


def begin(name: str, namespace: dict[str, Any]) -> Run:
    """A notebook's first line: its parameters checked, its run opened, its cohort at hand, its environment printed."""
    injected = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters\n")]
    kinds = {n: getattr(kind, "__name__", str(kind)) for n, kind in namespace.get("__annotations__", {}).items()}
    names = [*re.findall(r"^(\w+) =", "".join(injected[-1:]), re.M), *kinds]
    check_parameters(name, {n: namespace[n] for n in names if n in namespace}, kinds)
    run = open_run(*(namespace[n] for n in ("run", "profile", "cohort", "settings")))
    if "get_ipython" in namespace:
        namespace["get_ipython"]().events.register("post_run_cell", lambda _: write_json(run.path(PEAK), peak_memory()))
    if not (run.cohort_folder / "cohort.json").is_file() and not namespace["cohort"] and name != "01_cohort":
        prepare_default(run)  # notebook 01 shows how it is made
    where = f"run {short(run.folder)} · cohort {short(run.cohort_folder)}"
    print(f"{environment_line()} · profile {run.profile.name} · {where}")
    return run


def peak_memory() -> int:
    """Of this process, in bytes; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def prepare_default(run: Run) -> None:
    """The profile's own synthetic cohort, where the run expects it."""
    from oasis_lib.cohort import prepare

    print(f"preparing the synthetic cohort {short(run.cohort_folder)} ...")
    prepare("phantom", run.cohort_folder, progress=False, **as_dict(run.profile.cohort))


def check_parameters(stage: str, given: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Refuse unknown names, of which papermill only warns, and values of another type."""
    for name, value in given.items():
        if name not in kinds:
            raise unknown(f"{stage} parameter", name, kinds)
        kind = getattr(builtins, kinds[name].split("[")[0], object)
        fits = isinstance(value, int | float if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind in (int, float)):
            raise ValueError(f"{stage}: parameter {name}={value!r} must be {kinds[name]}")


def stages(notebooks: str | Path = NOTEBOOKS) -> list[Path]:
    found = sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebooks in {notebooks}: install a clone of the project with `pip install -e .`")
    return found


def run_study(
    profile: str = "laptop",
    run: str | Path = "runs/latest",
    cohort: str | Path = "",
    settings: Iterable[str] = (),
    runs: int = 1,
    **options: Any,
) -> Run:
    """All notebooks in order. A stage whose text, settings, inputs and outputs are as they were is not run again.

    `cohort` is "phantom" (or ""), a prepared cohort, or a folder of images or volumes. With `runs` above 1 it runs once
    a seed, each in a folder of its own, and returns the best by validation. Options are `parameters` of notebooks, the
    folder of `notebooks`, and `quiet`.
    """
    settings = list(settings)
    chosen = config.profile(profile, settings)  # a mistyped setting is refused before anything is made
    cohort = resolve_cohort(str(cohort), chosen.cohort.size)
    with only_one(project_path(run) / ".lock", "running this study"):
        if runs == 1:
            return _run_once(open_run(run, profile, cohort, settings), cohort, settings, **options)
        made = []
        for seed in range(runs):
            _say(f"seed {seed}", options.get("quiet"))
            seeded = settings + [f"{part}.seed={seed}" for part in ("vqvae", *config.PRIORS, "evaluation")]
            one = open_run(Path(run) / f"seed-{seed}", profile, cohort, seeded)
            made.append(_run_once(one, cohort, seeded, **options))
        text, best = report.over_seeds(project_path(run), [one.folder for one in made])
        _say(text, options.get("quiet"))
        return made[best]


def _run_once(run: Run, cohort: str, settings: list[str], parameters=None, notebooks=NOTEBOOKS, quiet=False) -> Run:
    folder = short(run.cohort_folder)
    common = {"profile": run.profile.name, "run": short(run.folder), "cohort": folder if cohort else ""}
    common |= {"settings": settings}
    plan = _plan(stages(notebooks), common, parameters := dict(parameters or {}))
    manifest = Manifest(run)
    made = {"device": device_name(), "versions": versions(), "git": git_state()}
    made |= {"parameters": parameters, "cohort_folder": folder, "seed": run.profile.vqvae.training.seed}
    manifest.describe(**common, **made)
    key, ran = "", False
    for source, values in plan.items():
        name, sections = source.stem, {s: as_dict(getattr(run.profile, s)) for s in SECTIONS.get(source.stem, ())}
        text = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in read_json(source)["cells"]])
        own = {n: v for n, v in values.items() if n not in common}
        key = content_hash(json.dumps([key, text, own, sections, str(run.cohort_folder)], sort_keys=True))[:24]
        stale = manifest.stage(name).get("library") != library_digest()
        ran = ran or not manifest.stands(name, key) or (stale and overwriting())
        if ran:
            _run_stage(run, manifest, source, values, key, quiet)
            stage = manifest.stage(name)
            said = f"{stage['seconds'] / 60:5.1f} min   {stage['peak_memory_bytes'] / 1e9:.1f} GB"
        else:
            said = f"done already ({manifest.stage(name)['seconds'] / 60:.1f} min when it ran)"
            said += ", by another version of the library; --overwrite reruns it" if stale else ""
        _say(f"{name:<14} {said}", quiet)
    manifest.describe(cohort_info=manifest.cohort())
    report.write(run.folder)
    return run


def _plan(sources: list[Path], common: dict[str, Any], extra: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """Every notebook's parameters, all checked before the first one starts."""
    from papermill import inspect_notebook

    kinds = {s: {n: told["inferred_type_name"] for n, told in inspect_notebook(s).items()} for s in sources}
    known = {name for of_one in kinds.values() for name in of_one} - common.keys()
    for name in extra.keys() - known:
        raise unknown("parameter", name, sorted(known))
    plan = {source: common | {n: v for n, v in extra.items() if n in kinds[source]} for source in sources}
    for source, values in plan.items():
        check_parameters(source.stem, values, kinds[source])
    return plan


def _run_stage(run: Run, manifest: Manifest, source: Path, values: dict[str, Any], key: str, quiet: bool) -> None:
    name, begun = source.stem, time.time()
    manifest.note(name, "running", parameters=values, started=time.strftime("%Y-%m-%d %H:%M:%S"), cause="")
    try:
        execute(source, run.path(source.name), values, quiet=quiet)
    except KeyboardInterrupt as stop:
        manifest.note(name, "stopped", cause=str(stop) or "interrupted")
        raise
    except StageFailed as failure:
        manifest.note(name, "failed", cause=str(failure))
        shown = f"See {short(run.path(source.name))}; once it is mended, the same command goes on from here."
        raise StageFailed(f"{name} stopped in {failure}\n{shown}") from None
    manifest.finish(name, key, begun, peak_memory_bytes=int(read_json(run.path(PEAK), 0)))
    run.path(PEAK).unlink(missing_ok=True)


class Manifest:
    """run.json: how a run was made. Written whole after each change: a kill at any moment leaves a good file."""

    def __init__(self, run: Run):
        self.run = run
        self.values: dict[str, Any] = {"stages": {}} | read_json(run.path(MANIFEST), {})

    def cohort(self) -> dict[str, Any]:
        return read_json(self.run.cohort_folder / "cohort.json", {})

    def describe(self, **values: Any) -> None:
        self.values |= values
        write_json(self.run.path(MANIFEST), self.values)

    def stage(self, name: str) -> dict[str, Any]:
        return self.values["stages"].get(name, {})

    def note(self, name: str, status: str, **values: Any) -> None:
        self.values["stages"][name] = self.stage(name) | {"status": status} | values
        self.describe()

    def finish(self, name: str, key: str, begun: float, **values: Any) -> None:
        """Note the stage's files: those that are new, and those of an earlier time that are still there."""
        there = (path for path in self.run.folder.rglob("[!.]*") if path.is_file() and path.suffix != ".html")
        new = {path for path in there if path.name not in SHARED and path.stat().st_mtime >= begun - 1}
        files = {str(path.relative_to(self.run.folder)) for path in new}
        files |= {file for file in self.stage(name).get("files", []) if self.run.path(file).is_file()}
        values |= {"key": key, "seconds": round(time.time() - begun, 1), "library": library_digest()}
        self.note(name, "finished", files=sorted(files), cohort=self.cohort().get("hash", ""), **values)

    def stands(self, name: str, key: str) -> bool:
        stage, cohort = self.stage(name), self.cohort().get("hash")
        same = stage.get("status") == "finished" and cohort and (stage["key"], stage["cohort"]) == (key, cohort)
        return bool(same) and all(self.run.path(file).is_file() for file in stage["files"])


def repeated(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What the run of a run.json was made with, and further settings and parameters on top."""
    made = read_json(path)
    cohort, known = project_path(made["cohort_folder"]) / "cohort.json", made["cohort_info"]["hash"]
    if cohort.is_file() and (found := read_json(cohort)["hash"]) != known:
        raise ValueError(f"{cohort.parent} has changed since {path} was made: its hash was {known}, now it is {found}")
    return {
        "profile": made["profile"],
        "cohort": made["cohort"] or "phantom",
        "settings": [*made["settings"], *values["settings"]],
        "parameters": made["parameters"] | values["parameters"],
    }


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


def _say(line: str, quiet: bool | None) -> None:
    if not quiet:
        print(line, flush=True)
