"""What a GPU makes of this study, in at most eight minutes: correct, never waiting, how fast, how good.

    python benchmarks/gpu.py --cohort data/gpu --out gpu.json      # a table at the end, all numbers in the file
    python benchmarks/gpu.py --device cpu --tiny                   # the same sections in little, without a GPU

Each section has a deadline and fails alone; results are written after each. It needs no Jupyter and no nilearn: the
cohort comes prepared (`oasis prepare phantom data/gpu --size 128`). Without one, discs are drawn, whose scores mean
nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TOTAL = 480  # seconds for everything
DEADLINES = {
    "environment": 20,
    "correctness": 60,
    "training": 120,
    "waits": 30,
    "speed": 60,
    "compiled": 60,
    "sampling": 40,
}
DEADLINES |= {"quality": 100, "evaluator": 60}
NEEDED = {"skimage": "scikit-image", "sklearn": "scikit-learn"} | {
    name: name
    for name in ("torch", "numpy", "safetensors", "accelerate", "pandas", "tqdm", "psutil", "scipy", "jinja2", "PIL")
}


def run(section: Callable[[Any], dict[str, Any]], bench: Any, seconds: float) -> dict[str, Any]:
    """The section's results, or what stopped it."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before, begun = signal.signal(signal.SIGALRM, late), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds), 2.0)  # again: what it interrupts may swallow it
    try:
        found = section(bench)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = {"failed": f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return found | {"took_s": time.perf_counter() - begun}


def table(done: dict[str, Any]) -> str:
    """A line a number."""
    lines = []
    for section, found in done.items():
        failed = f"  FAILED: {found['failed']}" if "failed" in found else ""
        lines.append(f"\n{section} ({found.get('took_s', 0):.0f} s){failed}")
        for name, value in found.items():
            if name in ("took_s", "failed"):
                continue
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            shown = (f"{key} {x:.4g}" if isinstance(x, float) else f"{key} {x}" for key, x in pairs)
            lines.append(f"  {name:<40} {'   '.join(shown)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--cohort", default="", help="a prepared cohort's folder; without one, discs are drawn")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument(
        "--tiny", action="store_true", help="seconds instead of minutes, with the smoke profile's models"
    )
    parser.add_argument("--only", default=",".join(DEADLINES), help="sections, separated by commas")
    parser.add_argument("--out", default="gpu.json", help="the file that takes all numbers")
    given = parser.parse_args(arguments)
    if missing := [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]:
        sys.exit(f"benchmarks/gpu.py needs {', '.join(missing)}: python -m pip install {' '.join(missing)}")
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
    import gpu_sections
    from gpu_bench import bench_of

    from oasis_lib.check import choose_device
    from oasis_lib.device import best_device
    from oasis_lib.storage import write_json

    choose_device(given.device)
    if best_device().type == "cpu" and not given.tiny and given.device == "auto":
        sys.exit("there is no GPU here; --device cpu --tiny tries the script")
    begun, done, patience = time.perf_counter(), {}, 20 if given.tiny else 1  # on a CPU that may have other work
    with TemporaryDirectory() as folder:
        bench = bench_of(folder, given.cohort, given.tiny, done)
        for name in given.only.split(","):
            left = patience * TOTAL - (time.perf_counter() - begun)
            section = getattr(gpu_sections, name)
            done[name] = (
                run(section, bench, min(patience * DEADLINES[name], left)) if left > 5 else {"failed": "no time left"}
            )
            write_json(given.out, json.loads(json.dumps(done, default=float)))
            print(table({name: done[name]}), file=sys.stderr, flush=True)
    print(f"{table(done)}\n\n{time.perf_counter() - begun:.0f} s in all; every number is in {given.out}")
    return done


if __name__ == "__main__":
    main()
