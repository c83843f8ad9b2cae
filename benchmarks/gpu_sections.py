"""The sections of gpu.py: each takes the bench and gives back its numbers, {name: {measure: value}}."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from gpu_bench import Bench, Waits, at_each_step
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from oasis_lib.check import environment_line
from oasis_lib.config import DEFAULT_PRIOR, PRIORS, EvaluationConfig
from oasis_lib.evaluation.features import FeatureNet, extract
from oasis_lib.evaluation.generation import evaluate_generation
from oasis_lib.models import load, transformer
from oasis_lib.training import decode_codes, encode_images, even_slice_indices, to_images, train_prior
from oasis_lib.training.data import seeded

Found = dict[str, Any]


def environment(bench: Bench) -> Found:
    """What there is, and the ceilings that speeds are set beside."""
    found = {"environment": environment_line(), "cpus": torch.get_num_threads()}
    if bench.device.type == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {"card": about.name, "memory_gb": about.total_memory / 1e9, "cuda": torch.version.cuda}
    side = 256 if bench.tiny else 8192
    for name, kind, precision in (
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=bench.device, dtype=kind) for _ in range(2))
        found[f"matmul_{name}_tflops"] = 2e-12 * side**3 / bench.seconds(lambda a=a, b=b: a @ b)
    torch.set_float32_matmul_precision("highest")
    block = torch.empty(2**20 if bench.tiny else 2**30, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(block)
    return found | {"copy_gb_per_s": 2e-9 * len(block) / bench.seconds(lambda: other.copy_(block))}


def correctness(bench: Bench) -> Found:
    """Tokens, logits, samples and features of this device beside the CPU's. `bound` is what may differ."""
    pixels, device = bench.cohort["test"].images[:64], bench.device
    known = encode_images(load(bench.vqvae), pixels, "cpu")
    checks = {"tokens, fp32": (float((encode_images(load(bench.vqvae), pixels, device) != known).mean()), 1e-3)}
    vqvae = load(bench.vqvae).to(device)
    few = to_images(pixels[:16], device)
    torch.set_float32_matmul_precision("high")
    with torch.no_grad():
        for name, half in (("tf32", False), ("bf16", True)):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                tokens = vqvae.quantizer(vqvae.latents(few))[1].cpu().numpy()
            checks[f"tokens, {name} (for comparison)"] = float((tokens != known[:16]).mean()), 1.0
    torch.set_float32_matmul_precision("highest")
    shown = [decode_codes(load(bench.vqvae), known[:16], where).astype(int) for where in ("cpu", device)]
    checks["decoded grey values"] = float(np.abs(shown[0] - shown[1]).max()), 1.0
    prior, maps = load(bench.prior).to(device), torch.from_numpy(known[:4].astype(np.int64)).to(device)
    level = torch.zeros(4, dtype=torch.int64, device=device)
    with torch.no_grad():
        plain, step = prior(maps, level, level).flatten(1, 2), prior.stepper(level, level)
        inside = prior.background.positions().tolist()
        cached = torch.stack([step(maps.flatten(1), t) for t in inside], 1)
    checks["logits, cached against plain"] = float((cached - plain[:, inside]).abs().max()), 1e-3
    bits = [load(bench.prior).to(where).nll(maps, level) for where in ("cpu", device)]
    checks["nats a map, share"] = float((bits[0] - bits[1].cpu()).abs().max() / bits[0].max()), 1e-4
    draw = lambda where, **options: load(bench.prior).to(where).sample(4, 0, generator=seeded(0), **options).cpu()  # noqa: E731
    with patch.dict(os.environ, OASIS_PRECISION="no"):
        single, others = draw("cpu"), {"CPU against device": draw(device), "one by one": draw(device, batch=1)}
    for name, drawn in others.items():
        checks[f"samples, {name}"] = float((drawn != single).float().mean()), 0.05  # one other token leads on to others
    with patch.dict(os.environ, OASIS_PRECISION="bf16"):
        checks["samples, bf16 (for comparison)"] = float((draw(device) != single).float().mean()), 1.0
    torch.manual_seed(0)
    net = FeatureNet(bench.cohort.size, 4, 4).eval()
    features = [extract(net, pixels, where) for where in ("cpu", str(device))]
    checks["features, share"] = float(np.abs(features[0] - features[1]).max() / np.abs(features[0]).max()), 1e-4
    return {name: {"value": value, "bound": bound, "ok": value <= bound} for name, (value, bound) in checks.items()}


def training(bench: Bench) -> Found:
    """Every kind in bf16 and float32.

    The loss falls; stopped half way and started again, it ends with the same weights.
    """
    found = {}

    def stop_half_way(step: int) -> None:
        if step == bench.steps // 2:
            signal.raise_signal(signal.SIGTERM)

    for kind in ("vqvae", *PRIORS):
        for precision in ("no", "bf16"):
            part, name = bench.part(kind, precision=precision), f"{kind}-{precision}"
            begun = time.perf_counter()
            history = bench.train(kind, name, part)
            seconds = time.perf_counter() - begun
            with at_each_step(stop_half_way):
                try:
                    bench.train(kind, f"{name}-broken", part)
                except KeyboardInterrupt:
                    pass
            again = bench.train(kind, f"{name}-broken", part)
            one, two = (load_file(bench.folder / x / "model.safetensors") for x in (name, f"{name}-broken"))
            differ = max(float((one[key].float() - two[key].float()).abs().max()) for key in one)
            scores = history["score"].iloc[-1], again["score"].iloc[-1]
            ok = bool(np.isfinite(scores).all()) and int(again["step"].iloc[-1]) == bench.steps
            found[name] = {
                "seconds": seconds,
                "score": scores[0],
                "score resumed": scores[1],
                "weights differ": differ,
                "ok": ok,
            }
    return found


def waits(bench: Bench) -> Found:
    """Operations a step that a GPU is waited for in, by file and line.

    As CUDA itself reports them, else as dispatched.
    """
    found, cuda = {}, bench.device.type == "cuda"
    _ = bench.vqvae
    for kind in ("vqvae", *PRIORS):
        steps = (cuda_waits if cuda else dispatched_waits)(bench, kind)
        lines, count = steps[-1] - steps[6], len(steps) - 7  # the first ones start the codebook and the clock
        found[kind] = {"a step": sum(lines.values()) / count, "ok": sum(lines.values()) <= count, "where": dict(lines)}
    return found


def dispatched_waits(bench: Bench, kind: str) -> list[Counter]:
    with Waits() as counter, at_each_step(lambda _: Counter(counter.found)) as steps:
        bench.train(kind, f"waits-{kind}", bench.part(kind, steps=12))
    return steps


def cuda_waits(bench: Bench, kind: str) -> list[Counter]:
    def look(_step: int) -> Counter:
        return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in said if "synchroniz" in str(w.message))

    with warnings.catch_warnings(record=True) as said, at_each_step(look) as steps:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            bench.train(kind, f"waits-{kind}", bench.part(kind, steps=12))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return steps


def speed(bench: Bench) -> Found:
    """Steps, images and tokens a second over batch sizes, and the share of the bf16 ceiling that they come to."""
    found, ceiling = {}, bench.done.get("environment", {}).get("matmul_bf16_tflops", float("nan"))
    side = bench.cohort.size // load(bench.vqvae).config.factor
    for kind in ("vqvae", DEFAULT_PRIOR):
        counter = FlopCounterMode(display=False)
        with counter, at_each_step(lambda _, counter=counter: counter.get_total_flops()) as flops:
            bench.train(kind, f"flops-{kind}", bench.part(kind, steps=8, batch=8))
        an_image = (flops[7] - flops[6]) / 8
        for batch in (8, 16) if bench.tiny else (16, 32, 64, 128, 256):
            history = bench.train(kind, f"speed-{kind}-{batch}", bench.part(kind, steps=bench.steps // 2, batch=batch))
            images = float(history["images_per_second"].iloc[-1])
            row = {"images/s": images, "steps/s": images / batch, "tokens/s": images * side**2}
            found[f"{kind}, batch {batch}"] = row | {
                "TFLOP/s": 1e-12 * an_image * images,
                "of peak": 1e-12 * an_image * images / ceiling,
            }
    return found


def compiled(bench: Bench) -> Found:
    """What torch.compile costs before the third step, cold and warm, and after how many steps it has paid."""
    found, rate, compile_ = {}, {}, torch.nn.Module.compile
    if bench.tiny:  # its C++ takes minutes to build: the graph is taken and differentiated all the same
        torch.nn.Module.compile = lambda module: compile_(module, backend="aot_eager")
    for name, on in (("plain", False), ("cold", True), ("warm", True)):
        torch._dynamo.reset()
        with at_each_step(lambda _: time.perf_counter()) as times:
            history = bench.train(DEFAULT_PRIOR, f"compile-{name}", bench.part(DEFAULT_PRIOR, compile=on))
        rate[name] = bench.part(DEFAULT_PRIOR).training.batch / float(history["images_per_second"].iloc[-1])
        found[name] = {"seconds before step 3": times[2] - times[0], "ms a step": 1000 * rate[name]}
    torch.nn.Module.compile = compile_
    gain = rate["plain"] - rate["warm"]
    spent = found["cold"]["seconds before step 3"] - found["plain"]["seconds before step 3"]
    return found | {"break-even": {"steps": spent / gain if gain > 0 else None}}


def sampling(bench: Bench) -> Found:
    """Seconds for maps drawn together, a token's and a thousand maps'.

    Each step one CUDA graph, and launch by launch.
    """
    found, prior, graphs = {}, load(bench.prior).to(bench.device), transformer.GRAPHS
    for count, recorded in product((2, 8) if bench.tiny else (64, 512), (True, False)):
        begun, transformer.GRAPHS = time.perf_counter(), graphs if recorded else ()
        slice_index = torch.from_numpy(even_slice_indices(count, prior.slice_indices))
        prior.sample(count, slice_index=slice_index, generator=seeded(0), batch=count)
        bench.wait()
        seconds, transformer.GRAPHS = time.perf_counter() - begun, graphs
        found[f"{count} at once{'' if recorded else ', launch by launch'}"] = {
            "seconds": seconds,
            "ms a token": 1000 * seconds / prior.passes,
            "s per 1,000": 1000 * seconds / count,
        }
    return found


def quality(bench: Bench) -> Found:
    """VQ-VAE for 40 s, then the default prior for 30 s over its tokens: how good they become."""
    limits = (
        [{"steps": bench.steps}] * 2
        if bench.tiny
        else [{"steps": 0, "minutes": s / 60, "validate_every": 200} for s in (40, 30)]
    )
    first = bench.train("vqvae", "quality/vqvae", bench.part("vqvae", **limits[0])).iloc[-1]
    part = bench.part(DEFAULT_PRIOR, **limits[1])
    second = train_prior(
        DEFAULT_PRIOR,
        bench.cohort,
        bench.folder / "quality/vqvae",
        bench.folder / "quality/prior",
        part,
        progress=False,
    )
    prior = load(bench.folder / "quality/prior").to(bench.device)
    bits = second["validate_bits"].min() / (prior.grid[0] * prior.grid[1])
    vqvae = {name: float(first[name]) for name in ("step", "validate_ssim", "validate_ssim_brain", "images_per_second")}
    return {"vqvae": vqvae, "prior": {"step": float(second["step"].iloc[-1]), "bits a token": float(bits)}}


def evaluator(bench: Bench) -> Found:
    """The whole evaluation of samples, timed: on validation subjects, who are nobody's test."""
    config = EvaluationConfig(**{"feature_steps": 4, "detector_steps": 2, "bootstrap": 20} if bench.tiny else {})
    split, begun = bench.cohort["validate"], time.perf_counter()
    options = {"config": config, "device": str(bench.device), "split": "validate", "vqvae": load(bench.vqvae)}
    found = evaluate_generation(split.images[::2], split.slice_indices[::2], bench.cohort, **options)
    return {"validation slices as samples": {"seconds": time.perf_counter() - begun, "measures": len(found["targets"])}}
