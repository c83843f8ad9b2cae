"""From a source (or a seed) to one prepared cohort: look, say what was understood, then write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from oasis_lib.cohort.folders import IMAGES, plan_folder
from oasis_lib.cohort.source import examples
from oasis_lib.cohort.store import Cohort, CohortError, Options, Plan, open_cohort
from oasis_lib.cohort.subjects import find_sheet
from oasis_lib.cohort.volumes import VOLUMES, plan_volumes
from oasis_lib.cohort.writer import write
from oasis_lib.paths import project_path, user_path
from oasis_lib.storage import content_hash, disk_errors

ARCHIVES = tuple(ending for _, endings, _ in shutil.get_unpack_formats() for ending in endings)


def prepare(source: str | Path, out: str | Path, *, progress: bool = True, processes: int = 0, **options) -> Cohort:
    """Make the cohort `out` from `source`: "phantom", or a folder, an archive or a file of images or volumes.

    `options` are the fields of `Options`. A cohort that exists is checked in full; an interrupted one is continued.
    """
    how, out, say = Options(**options), project_path(out), print if progress else lambda line: None
    unpacked = out.with_name(f".{out.name}.unpacked")
    request: dict[str, Any] = {"source": str(source), "size": how.size, "seed": how.seed}
    if source == "phantom":
        from oasis_lib.cohort.phantom import FINGERPRINT, plan_phantom

        request |= {"subjects": how.subjects, "lesions": how.lesions, "fingerprint": FINGERPRINT}
        look = partial(plan_phantom, how)
    else:
        root = user_path(source)
        request |= {"source": str(root), "mm": how.mm}
        files = listing(root) if root.is_dir() else [root]
        look = partial(_look, root, files, unpacked, how, say)
        if root.exists():
            request["fingerprint"] = _fingerprint(root, files)
        elif not (out / "cohort.json").is_file():
            raise CohortError(f"{root} does not exist; give a folder of images or volumes, an archive, or 'phantom'")
    if out.exists():
        return _existing(out, request)
    plan = look()
    plan.info = {"synthetic": False, "source": request["source"]} | plan.info
    say(f"preparing {out} at {how.size} x {how.size}")
    for split in dict.fromkeys(item.split for item in plan.items):
        mine = [item for item in plan.items if item.split == split]
        count, subjects = sum(len(item.slice_indices) for item in mine), len({item.subject for item in mine})
        plan.summary.append(f"{split} {count:,} slices of {subjects:,} subjects")
    for line in (*plan.summary, *(f"note: {w}" for w in plan.warnings)):
        say(f"  {line}")
    write(plan, out, request, skip_bad=how.skip_bad, progress=progress, processes=processes or os.cpu_count() or 1)
    shutil.rmtree(unpacked, ignore_errors=True)
    cohort = open_cohort(out)
    if left_out := cohort.info["left_out"]:
        say(f"  left out {len(left_out):,} (all listed in {out / 'cohort.json'}): {examples(left_out)}")
    return cohort


def _look(root: Path, files: list[Path], unpacked: Path, how: Options, say: Callable[[str], None]) -> Plan:
    """Images before volumes, volumes before archives."""
    folder = root if root.is_dir() else root.parent
    archives = _ending(files, ARCHIVES)
    if archives and not _ending(files, IMAGES + VOLUMES):
        with disk_errors(unpacked, CohortError):
            unpack(archives, unpacked, say)
        folder, files = unpacked, listing(unpacked)
    sheet = find_sheet(folder, folder.parent, root, root.parent)
    if images := _ending(files, IMAGES):
        plan = plan_folder(folder, images, sheet, how)
    elif volumes := _ending(files, VOLUMES):
        plan = plan_volumes(folder, volumes, sheet, how)
    else:
        others = f"{len(files):,} files of other kinds, such as {files[0].name}" if files else "it is empty"
        raise CohortError(f"{root}: no images ({' '.join(IMAGES)}) and no volumes ({' '.join(VOLUMES)}): {others}")
    plan.summary.append(f"participants from {sheet}" if sheet else "no participants' sheet (participants.tsv) found")
    return plan


def _ending(files: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    return [f for f in files if f.name.lower().endswith(suffixes)]


def _existing(out: Path, request: dict[str, Any]) -> Cohort:
    if not (out / "cohort.json").is_file():
        raise CohortError(f"{out} exists and is not a prepared cohort; choose another folder")
    cohort = open_cohort(out, full=True)
    made = cohort.info.get("request", {})
    if differs := [f"{k} {made.get(k)!r} (asked for {v!r})" for k, v in request.items() if made.get(k) != v]:
        raise CohortError(f"{out} holds another cohort: {', '.join(differs)}; choose another folder or delete it")
    for rest in ("part", "unpacked"):  # of a prepare that was killed as it tidied up
        shutil.rmtree(out.with_name(f".{out.name}.{rest}"), ignore_errors=True)
    return cohort


def _fingerprint(root: Path, files: list[Path]) -> str:
    """Names and sizes of the files: enough to see that a source changed."""
    text = "\n".join(f"{os.path.relpath(f, root)} {f.stat().st_size if f.exists() else 0}" for f in sorted(files))
    return content_hash(text)[:16]


def unpack(archives: list[Path], into: Path, say: Callable[[str], None]) -> None:
    """Each archive into a folder of its own name, unless that exists; nothing lands outside that folder."""
    for archive in archives:
        if (into / archive.name).is_dir():
            continue
        say(f"unpacking {archive} ({archive.stat().st_size / 1e6:,.0f} MB)")
        beside = into / f".{archive.name}.part"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        is_zip = archive.name.lower().endswith(".zip")
        try:
            shutil.unpack_archive(archive, beside, **({} if is_zip else {"filter": "data"}))
        except Exception as error:  # every format has errors of its own
            if getattr(error, "errno", None):  # of the disk, not of the archive
                raise
            raise CohortError(f"{archive}: is damaged or unsafe ({error}); download it again") from error
        beside.rename(into / archive.name)


def listing(root: Path) -> list[Path]:
    """Every file below a folder in a fixed order, hidden ones apart."""

    def stop(error: OSError) -> None:
        raise CohortError(f"{error.filename}: no permission to read it; ask its owner, or chmod u+rx") from error

    found = []
    for folder, inside, names in os.walk(root, onerror=stop, followlinks=True):
        inside[:] = sorted(n for n in inside if not n.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if not n.startswith(".")]
    return found
