"""Writing a prepared cohort: rows are appended to files in a hidden folder, which takes its real name when all is done.

Appending (not mapping) keeps memory flat however large the source; a small state file says how much of it counts, so that
a prepare that was killed goes on where it was.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from oasis_lib.cohort.plan import CohortError, Item, Plan, Slices
from oasis_lib.paths import read_json, write_json

SAVE_EVERY = 3.0  # seconds between notes of how far it came
COLUMNS = ("split", "subject", "session", "level", "file")


def write(plan: Plan, out: Path, request: dict, *, size: int, skip_bad: bool, progress: bool, processes: int) -> None:
    """Fill `out` from the plan; `out` appears whole or not at all."""
    part = out.with_name(f".{out.name}.part")
    with plain_disk_errors(part):
        part.mkdir(parents=True, exist_ok=True)
        with _only_one(part):
            state = _state(part, request, progress)
            _room_for(plan, part, size, state)
            _fill(plan, part, state, size, skip_bad, progress, processes)
            _finish(plan, part, state, size, request)
            os.replace(part, out)


def _fill(plan: Plan, part: Path, state: dict, size: int, skip_bad: bool, progress: bool, processes: int) -> None:
    stacks = {name: Stack(part / f"{name}.npy", size, state["rows"].get(name, 0)) for name in _stack_names(plan)}
    table = _open_at(part / "slices.csv", state["table"])
    if not state["table"]:
        table.write(",".join(COLUMNS) + "\n")

    def save(done: int) -> None:
        for file in (*(s.file for s in stacks.values()), table):
            file.flush()
            os.fsync(file.fileno())
        state.update(done=done, table=table.tell(), rows={n: s.rows for n, s in stacks.items()})
        write_json(part / "state.json", state)

    saved = time.monotonic()
    rest = plan.items[state["done"] :]
    told = Progress(sum(len(i.levels) for i in plan.items), sum(len(i.levels) for i in rest), shown=progress)
    done = state["done"]
    results = _results(plan, rest, processes)
    try:
        for item, slices in results:
            if slices.left_out and not skip_bad:
                raise CohortError(f"{slices.left_out[0]}; repair it, or go on without it with skip_bad (--skip-bad)")
            _append(item, slices, stacks, table)
            state["left_out"] += slices.left_out
            state["notes"] += [note for note in slices.notes if note not in state["notes"]]
            done += 1
            told.step(len(item.levels))
            if time.monotonic() - saved > SAVE_EVERY:
                save(done)
                saved = time.monotonic()
        save(done)
        told.end()
    finally:
        results.close()
        table.close()
        for stack in stacks.values():
            stack.close()


def _append(item: Item, slices: Slices, stacks: dict[str, Stack], table) -> None:
    stacks[item.split].append(slices.images)
    for suffix, extra in (("_tissue", slices.tissue), ("_lesion", slices.lesion)):
        if item.split + suffix in stacks:
            stacks[item.split + suffix].append(extra)
    files = item.files if len(item.files) > 1 else item.files * len(item.levels)
    lines = csv.writer(table, lineterminator="\n")
    for k in slices.kept:
        lines.writerow((item.split, item.subject, item.session, item.levels[k], files[k]))


def _results(plan: Plan, items: list[Item], processes: int) -> Iterator[tuple[Item, Slices]]:
    """Items read in order, by several processes where the plan says that it pays."""
    if not plan.parallel or processes < 2 or len(items) < 2:
        yield from ((item, plan.read(item)) for item in items)
        return
    plan.warm()
    method = "fork" if sys.platform == "linux" else "spawn"  # spawn would ask every script for a __main__ guard
    waiting: deque = deque()
    with ProcessPoolExecutor(min(processes, len(items)), multiprocessing.get_context(method)) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(plan.read, item)))
                if len(waiting) > 2 * processes:  # a few ahead, not all: memory stays flat
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _finish(plan: Plan, part: Path, state: dict, size: int, request: dict) -> None:
    table = pd.read_csv(part / "slices.csv", dtype={"subject": str, "session": str}, keep_default_na=False)
    counts = {name: int((table["split"] == name).sum()) for name in dict.fromkeys(i.split for i in plan.items)}
    for name, count in counts.items():
        if not count:
            raise CohortError(
                f"{plan.info['source']}: nothing could be read for {name}; first: {(state['left_out'] or ['no slices'])[0]}"
            )
    if not table["session"].any():
        table = table.drop(columns="session")
        _write_table(table, part / "slices.csv", ",")
    people = plan.people[plan.people["subject"].isin(table["subject"])]
    _write_table(people, part / "participants.tsv", "\t")
    rated = people[people["split"] == "train"].get("cdr", pd.Series(dtype=float)).dropna()
    names = [f"{name}.npy" for name in _stack_names(plan)]
    info = {
        "hash": content_hash(part, [*names, "slices.csv", "participants.tsv"]),
        "size": size,
        "levels": int(table["level"].max()) + 1,
        **plan.info,
        "splits": list(counts),
        "counts": counts,
        "people": people["split"].value_counts().to_dict(),
        "ratings": sorted({float(r) for r in rated}),
        "left_right": plan.info.get("left_right") or left_right(part / "train.npy"),
        "warnings": [*plan.warnings, *state["notes"]],
        "left_out": [*plan.left_out, *state["left_out"]],
        "request": request,
    }
    (part / "state.json").unlink()
    (part / "lock").unlink()
    write_json(part / "cohort.json", info)


def content_hash(folder: Path, names: list[str]) -> str:
    """One number for the bytes of arrays and tables: stages compare it to know whether their input changed."""
    total = hashlib.sha256()
    for name in names:
        total.update(name.encode())
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16]


def left_right(path: Path) -> str | None:
    """ "columns" where the mean head mirrors itself left for right, so that a flip gives another plausible head."""
    images = np.load(path, mmap_mode="r")
    mean = np.zeros(images.shape[1:])
    for i in range(0, len(images), max(1, len(images) // 100)):
        mean += images[i]
    across, along = (np.corrcoef(mean.ravel(), mean[flip].ravel())[0, 1] for flip in (np.s_[:, ::-1], np.s_[::-1]))
    return "columns" if across > 0.9 and across > along else None


class Stack:
    """An .npy file of slices that grows row by row. The header's width allows any number of rows, so it is sealed in place."""

    def __init__(self, path: Path, size: int, rows: int) -> None:
        self.size, self.rows = size, rows
        self.file = open(path, "r+b" if rows else "w+b")
        self._header()
        self.file.truncate(self.file.tell() + rows * size * size)
        self.file.seek(0, os.SEEK_END)

    def append(self, images: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(images, np.uint8).data)
        self.rows += len(images)

    def close(self) -> None:
        self._header()
        self.file.close()

    def _header(self) -> None:
        self.file.seek(0)
        shape = (self.rows, self.size, self.size)
        np.lib.format.write_array_header_1_0(self.file, {"descr": "|u1", "fortran_order": False, "shape": shape})


class Progress:
    """How far, and the minutes left: one line that is rewritten on a terminal, a line every 15 seconds elsewhere."""

    def __init__(self, total: int, left: int, shown: bool) -> None:
        self.total, self.left, self.shown = total, left, shown
        self.now = 0
        self.start = self.last = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def step(self, count: int) -> None:
        self.now += count
        now = time.monotonic()
        if self.shown and now - self.last > (0.5 if self.terminal else 15):
            self.last = now
            minutes = (now - self.start) / self.now * (self.left - self.now) / 60
            done = self.total - self.left + self.now
            self._print(f"  {done:,} of {self.total:,} slices, {minutes:.1f} minutes left")

    def end(self) -> None:
        if self.shown:
            self._print(f"  {self.total:,} slices in {(time.monotonic() - self.start) / 60:.1f} minutes")
            print(flush=True, end="\n" if self.terminal else "")

    def _print(self, line: str) -> None:
        print(f"\r{line:<60}" if self.terminal else line, end="" if self.terminal else "\n", flush=True)


def _stack_names(plan: Plan) -> list[str]:
    splits = list(dict.fromkeys(item.split for item in plan.items))
    return [*splits, *(f"{s}_tissue" for s in plan.tissue), *(f"{s}_lesion" for s in plan.lesion)]


def _state(part: Path, request: dict, progress: bool) -> dict:
    """How far an earlier prepare of the same request came; a different request starts over."""
    path = part / "state.json"
    if path.is_file():
        state = read_json(path)
        if state["request"] == request:
            if progress:
                print(f"  going on after {state['done']:,} items that are there already")
            return state
    for file in part.iterdir():
        if file.name != "lock":
            file.unlink()
    return {"request": request, "done": 0, "rows": {}, "table": 0, "left_out": [], "notes": []}


def _open_at(path: Path, length: int):
    file = open(path, "r+" if length else "w+", encoding="utf-8", newline="")
    file.truncate(length)
    file.seek(length)
    return file


def _write_table(table: pd.DataFrame, path: Path, separator: str) -> None:
    table.to_csv(path, sep=separator, index=False, lineterminator="\n")


def _room_for(plan: Plan, part: Path, size: int, state: dict) -> None:
    arrays = {name: 1 + (name in plan.tissue) + (name in plan.lesion) for name in {i.split for i in plan.items}}
    needed = sum(len(i.levels) * arrays[i.split] for i in plan.items) - sum(state["rows"].values())
    free = shutil.disk_usage(part).free
    if needed * size * size > free:
        needs = f"needs {needed * size * size / 1e9:.2f} GB more on the disk of {part.parent}, which has {free / 1e9:.2f} GB free"
        raise CohortError(f"{part.parent}: the cohort {needs}; make room or choose another folder")


@contextmanager
def plain_disk_errors(part: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise CohortError(f"{error.filename or part}: no permission to write here; choose another folder for the cohort") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CohortError(f"{part}: the disk is full; make room and run the same command, it goes on where it was") from error


@contextmanager
def _only_one(part: Path) -> Iterator[None]:
    """Two prepares into the same folder would mix their rows."""
    with open(part / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CohortError(f"{part}: another prepare is writing here; wait for it") from error
        yield
