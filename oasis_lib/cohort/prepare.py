"""From whatever people have (or from a seed) to one prepared cohort: look, say what was understood, then write."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from oasis_lib.cohort.folders import IMAGES, fingerprint, is_image, plan_folder
from oasis_lib.cohort.people import find_sheet
from oasis_lib.cohort.plan import CohortError, Plan, examples
from oasis_lib.cohort.store import Cohort, open_cohort
from oasis_lib.cohort.volumes import VOLUMES, is_volume, plan_volumes
from oasis_lib.cohort.writer import disk_errors, write
from oasis_lib.paths import project_path, user_path

# What a damaged, encrypted or unknown archive raises.
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, shutil.ReadError, EOFError, zlib.error, lzma.LZMAError, RuntimeError)


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    size: int = 256,
    people: int = 60,
    lesions: int = 8,
    seed: int = 0,
    mm: float | None = None,
    fractions: tuple[float, float] = (0.1, 0.1),
    skip_bad: bool = False,
    progress: bool = True,
    processes: int | None = None,
) -> Cohort:
    """Make the cohort `out` from `source`: "phantom", or a folder, an archive or a file of images or volumes.

    `people` and `lesions` are of the phantom; `fractions` (validate, test) of a split that is made here; `mm` is the pixel of
    volumes, else their own. A cohort that is there already is given back when it came of the same request; one that was cut
    short goes on.
    """
    if not 16 <= size <= 4096:
        raise CohortError(f"size={size} must be from 16 to 4096 pixels")
    out = project_path(out)
    request = {"source": str(source), "size": size, "seed": seed}
    say = print if progress else _quiet
    if source == "phantom":
        from oasis_lib.cohort.phantom import plan_phantom

        plan = plan_phantom(size=size, people=people, lesions=lesions, seed=seed)
        request |= {"people": people, "lesions": lesions, "fingerprint": plan.fingerprint}
        if out.exists():
            return _existing(out, request)
        _write(plan, out, request, say, skip_bad, progress, processes)
        return open_cohort(out)
    root = user_path(source)
    request |= {"source": str(root), "fractions": list(fractions), "mm": mm}
    if not root.exists():
        if (out / "cohort.json").is_file():
            return _existing(out, request)
        raise CohortError(f"{root} does not exist; give a folder of images or volumes, an archive, or 'phantom'")
    files = listing(root) if root.is_dir() else [root]
    request["fingerprint"] = fingerprint(root, files)
    if out.exists():
        return _existing(out, request)
    folder, unpacked = (root if root.is_dir() else root.parent), out.with_name(f".{out.name}.unpacked")
    if not any(map(is_image, files)) and not any(map(is_volume, files)) and any(map(archive_kind, files)):
        with disk_errors(unpacked):
            unpack([f for f in files if archive_kind(f)], unpacked, say)
        folder, files = unpacked, listing(unpacked)
    sheet = find_sheet(folder, folder.parent, root, root.parent)
    options = {"size": size, "seed": seed, "fractions": fractions, "skip_bad": skip_bad}
    if images := [f for f in files if is_image(f)]:
        plan = plan_folder(folder, images, sheet, **options)
    elif volumes := [f for f in files if is_volume(f)]:
        plan = plan_volumes(folder, volumes, sheet, mm=mm, **options)
    else:
        others = f"{len(files):,} files of other kinds, such as {files[0].name}" if files else "it is empty"
        raise CohortError(f"{root}: holds no images ({' '.join(IMAGES)}) and no volumes ({' '.join(VOLUMES)}): {others}")
    plan.info["source"] = str(root)
    plan.summary.append(f"participants from {sheet}" if sheet else "no participants' sheet (participants.tsv) found")
    _write(plan, out, request, say, skip_bad, progress, processes)
    shutil.rmtree(unpacked, ignore_errors=True)
    return open_cohort(out)


def _write(plan: Plan, out: Path, request: dict, say, skip_bad: bool, progress: bool, processes: int | None) -> None:
    """Say what was understood, write, and say what was left out."""
    say(f"preparing {out} at {request['size']} x {request['size']}")
    for line in (*plan.summary, *(f"note: {w}" for w in plan.warnings)):
        say(f"  {line}")
    write(plan, out, request, skip_bad=skip_bad, progress=progress, processes=processes or os.cpu_count() or 1)
    if left_out := open_cohort(out).info["left_out"]:
        say(f"  left out {len(left_out):,} (all listed in {out / 'cohort.json'}): {examples(left_out)}")


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


def archive_kind(file: Path) -> str:
    """ "zip", "gztar" ... as `shutil` names what it can unpack, else ""."""
    kinds = shutil.get_unpack_formats()
    return next((kind for kind, endings, _ in kinds if file.name.lower().endswith(tuple(endings))), "")


def unpack(archives: list[Path], into: Path, say: Callable[[str], None]) -> None:
    """Each archive into a folder of its own name, unless that exists. Nothing in it may land outside that folder."""
    for archive in archives:
        if (into / archive.name).is_dir():
            continue
        say(f"unpacking {archive} ({archive.stat().st_size / 1e6:,.0f} MB)")
        kind, beside = archive_kind(archive), into / f".{archive.name}.part"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            if kind == "zip":  # shutil passes over such members in silence
                with zipfile.ZipFile(archive) as file:
                    if names := [n for n in file.namelist() if n[:1] in "/\\" or ".." in re.split(r"[/\\]", n)]:
                        raise tarfile.FilterError(f"{names[0]!r} would be extracted outside the destination")
            shutil.unpack_archive(archive, beside, kind, **({} if kind == "zip" else {"filter": "data"}))
        except tarfile.FilterError as error:
            raise CohortError(f"{archive}: {error}; don't use this archive") from error
        except UNREADABLE as error:
            raise CohortError(f"{archive}: can't be unpacked ({error}); download it again") from error
        beside.rename(into / archive.name)


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
