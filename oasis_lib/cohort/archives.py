"""Unpacking archives: nothing that is in one may land outside the folder it is unpacked into."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from oasis_lib.cohort.plan import CohortError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(file: Path) -> bool:
    return file.name.lower().endswith(ARCHIVES)


def unpack_all(archives: list[Path], into: Path, progress: bool) -> None:
    """Each archive into a folder of its own name; one that is there already is not unpacked again."""
    for archive in archives:
        target = into / archive.name
        if target.is_dir():
            continue
        if progress:
            print(f"unpacking {archive} ({archive.stat().st_size / 1e6:,.0f} MB)", flush=True)
        beside = into / f".{archive.name}.part"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            unpack(archive, beside)
        except (
            tarfile.TarError,
            zipfile.BadZipFile,
            EOFError,
            zlib.error,
            lzma.LZMAError,
            RuntimeError,  # an encrypted member, or a compression that is not known
        ) as error:
            raise CohortError(f"{archive}: can't be unpacked ({error}); download it again") from error
        beside.rename(target)


def unpack(archive: Path, into: Path) -> None:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                _inside(archive, member.filename)
                if not (member.external_attr >> 16) & 0o170000 == 0o120000:  # links are not followed, nor made
                    file.extract(member, into)
        return
    with tarfile.open(archive) as file:
        for member in file:
            _inside(archive, member.name)
            try:
                file.extract(member, into, filter="data")  # refuses links and devices that lead outside
            except tarfile.FilterError as error:
                raise _refusal(archive, member.name) from error


def _inside(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else False:
        raise _refusal(archive, name)


def _refusal(archive: Path, name: str) -> CohortError:
    return CohortError(f"{archive}: holds {name!r}, which would land outside the folder; don't use this archive")
