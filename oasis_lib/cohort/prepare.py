"""From a source (or a seed) to one prepared cohort: look, say what was understood, then write."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from oasis_lib.cohort.folders import IMAGES, plan_folder
from oasis_lib.cohort.store import Cohort, CohortError, Options, Plan, open_cohort
from oasis_lib.cohort.subjects import examples, find_sheet
from oasis_lib.cohort.volumes import VOLUMES, plan_volumes
from oasis_lib.cohort.writer import write
from oasis_lib.paths import project_path, user_path
from oasis_lib.storage import content_hash, disk_errors

# What a damaged, encrypted or unknown archive raises.
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, shutil.ReadError, EOFError)
UNREADABLE += (zlib.error, lzma.LZMAError, RuntimeError)


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    progress: bool = True,
    processes: int | None = None,
    **options: Any,
) -> Cohort:
    """Make the cohort `out` from `source`: "phantom", or a folder, an archive or a file of images or volumes.

    `options` are the fields of `Options`. A cohort of the same request that exists is checked in full and returned; an
    interrupted one is continued.
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
        request |= {"source": str(root), "fractions": list(how.fractions), "mm": how.mm}
        files = listing(root) if root.is_dir() else [root]
        look = partial(_look, root, files, unpacked, how, say)
        if root.exists():
            request["fingerprint"] = _fingerprint(root, files)
        elif not (out / "cohort.json").is_file():
            raise CohortError(f"{root} does not exist; give a folder of images or volumes, an archive, or 'phantom'")
    if out.exists():
        return _existing(out, request)
    plan = look()
    say(f"preparing {out} at {how.size} x {how.size}")
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
    archives = [f for f in files if archive_kind(f)]
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
        wanted = f"no images ({' '.join(IMAGES)}) and no volumes ({' '.join(VOLUMES)})"
        raise CohortError(f"{root}: holds {wanted}: {others}")
    plan.info["source"] = str(root)
    plan.summary.append(f"participants from {sheet}" if sheet else "no participants' sheet (participants.tsv) found")
    return plan


def _ending(files: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    return [f for f in files if f.name.lower().endswith(suffixes)]


def _existing(out: Path, request: dict[str, Any]) -> Cohort:
    if not (out / "cohort.json").is_file():
        if out.is_dir() and not any(out.iterdir()):
            raise CohortError(f"{out} is an empty folder that is in the way; remove it (rmdir) and prepare again")
        raise CohortError(f"{out} exists and is not a prepared cohort; choose another folder")
    cohort = open_cohort(out, full=True)
    made = cohort.info.get("request", {})
    if differs := [f"{k} {made.get(k)!r} (asked for {v!r})" for k, v in request.items() if made.get(k) != v]:
        what = f"{out} holds another cohort: {', '.join(differs)}"
        raise CohortError(f"{what}; choose another folder, or delete that one first")
    for rest in ("part", "unpacked"):  # of a prepare that was killed as it tidied up
        shutil.rmtree(out.with_name(f".{out.name}.{rest}"), ignore_errors=True)
    return cohort


def _fingerprint(root: Path, files: list[Path]) -> str:
    """Names and sizes of the files: enough to see that a source changed."""
    text = "\n".join(f"{os.path.relpath(f, root)} {f.stat().st_size if f.exists() else 0}" for f in sorted(files))
    return content_hash(text)[:16]


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

    def stop(error: OSError) -> None:
        raise CohortError(f"{error.filename}: no permission to read it; ask its owner, or chmod u+rx") from error

    found = []
    for folder, inside, names in os.walk(root, onerror=stop, followlinks=True):
        inside[:] = sorted(n for n in inside if not n.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if not n.startswith(".")]
    return found
