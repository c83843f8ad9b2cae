"""From whatever people have (or from a seed) to one prepared cohort: look, say what was understood, then write."""

from __future__ import annotations

import os
from pathlib import Path

from oasis_lib.cohort.folders import IMAGES, plan_folder
from oasis_lib.cohort.plan import CohortError, Plan, examples
from oasis_lib.cohort.store import Cohort, open_cohort
from oasis_lib.cohort.writer import write
from oasis_lib.paths import project_path, user_path


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    size: int = 256,
    people: int = 60,
    lesions: int = 8,
    seed: int = 0,
    fractions: tuple[float, float] = (0.1, 0.1),
    skip_bad: bool = False,
    progress: bool = True,
    processes: int | None = None,
) -> Cohort:
    """Make the cohort `out` from `source`: "phantom", or a folder, an archive or a file of images or volumes.

    `people` and `lesions` are of the phantom; `fractions` (validate, test) of a split that is made here. A cohort that is
    there already is given back when it came of the same request; one that was cut short goes on.
    """
    if size < 16 or size > 4096:
        raise CohortError(f"size={size} must be from 16 to 4096 pixels")
    out = project_path(out)
    say = print if progress else _quiet
    plan = _understand(source, out, size, people, lesions, seed, fractions, skip_bad)
    request = {"source": plan.info["source"], "fingerprint": plan.fingerprint, "size": size, "seed": seed}
    if source == "phantom":
        request |= {"people": people, "lesions": lesions}
    else:
        request |= {"fractions": list(fractions)}
    if out.exists():
        return _existing(out, request)
    for line in (f"preparing {out} at {size} x {size}", *plan.summary, *(f"note: {w}" for w in plan.warnings)):
        say(line if line.startswith("preparing") else f"  {line}")
    write(plan, out, request, size=size, skip_bad=skip_bad, progress=progress, processes=processes or os.cpu_count() or 1)
    cohort = open_cohort(out)
    if cohort.info["left_out"]:
        say(f"  left out {len(cohort.info['left_out'])} (all listed in cohort.json): {examples(cohort.info['left_out'])}")
    return cohort


def _existing(out: Path, request: dict) -> Cohort:
    if not (out / "cohort.json").is_file():
        if out.is_dir() and not any(out.iterdir()):
            raise CohortError(f"{out} is an empty folder that is in the way; remove it (rmdir) and prepare again")
        raise CohortError(f"{out} exists and is not a prepared cohort; choose another folder")
    cohort = open_cohort(out)
    made = cohort.info.get("request", {})
    differs = [f"{key} {made.get(key)!r} (asked for {value!r})" for key, value in request.items() if made.get(key) != value]
    if differs:
        raise CohortError(f"{out} holds another cohort: {', '.join(differs)}; choose another folder, or delete that one first")
    return cohort


def _understand(source, out, size, people, lesions, seed, fractions, skip_bad) -> Plan:
    if source == "phantom":
        from oasis_lib.cohort.phantom import plan_phantom

        return plan_phantom(size=size, people=people, lesions=lesions, seed=seed)
    root = user_path(source)
    if not root.exists():
        raise CohortError(f"{root} does not exist; give a folder of images or volumes, an archive, or 'phantom'")
    files = listing(root)
    images = [f for f in files if f.name.lower().endswith(IMAGES)]
    if not images:
        raise CohortError(f"{root}: holds no images or volumes ({len(files)} files of other kinds)")
    return plan_folder(root, images, size=size, seed=seed, fractions=fractions, skip_bad=skip_bad)


def listing(root: Path) -> list[Path]:
    """Every file below a folder in a fixed order, hidden ones apart."""

    def refuse(error: OSError) -> None:
        raise CohortError(f"{error.filename}: no permission to read it; ask its owner, or chmod u+rx") from error

    found = []
    for folder, inside, names in os.walk(root, onerror=refuse, followlinks=True):
        inside[:] = sorted(n for n in inside if not n.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if not n.startswith(".")]
    return found


def _quiet(line: str) -> None:
    """Nobody is watching."""
