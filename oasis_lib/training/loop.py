"""The one loop that trains everything: the VQ-VAE, the priors and the GAN."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from oasis_lib import stop
from oasis_lib.config import TrainingConfig
from oasis_lib.device import best_device, full_precision
from oasis_lib.storage import STATE, WEIGHTS, atomic, read_state, save_model, save_state
from oasis_lib.training.data import Batch, Batches, seeded

SAVE_EVERY = 30  # seconds between saved states, so that short epochs don't spend their time on the disk
WARNINGS = "warnings.txt"  # in the model's folder: what `Task.verdicts` said
LOOK_EVERY = 20  # steps between looks at the loss: each look waits for the GPU
WARM_UP = 2  # steps before the clock starts: the first ones compile, choose kernels and fetch memory


class Task:
    """What a model has to say to be trained. `parts` are stepped in their order, each by an optimiser of its own."""

    model: nn.Module
    rates: dict[str, float] = {}  # a part's factor on the learning rate, where it is not 1
    fraction = 0.0  # how much of the run is done; the loop keeps it

    def __init__(self, model: nn.Module):
        self.model = model
        self.parts: dict[str, nn.Module] = self.split()

    def split(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def begin(self, batch: Batch) -> None:
        """Once, before the first step of a fresh run."""

    def loss(self, part: str, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        raise TypeError(f"{type(self).__name__} has no loss")

    def after_step(self, step: int) -> None:
        """What moves without a gradient."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Of the averaged weights. `score` is what the best is chosen by: higher is better."""
        raise TypeError(f"{type(self).__name__} has no validation")

    def verdicts(self, row: dict[str, float]) -> list[str]:
        """What the numbers of a validation say in words: collapse, a balance lost."""
        return []

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """What is kept of the averaged model."""
        return model.state_dict()

    def compile(self) -> None:
        for part in self.parts.values():
            part.compile()


def processes() -> PartialState:
    """The CPU is said outright, or several CPU processes would not find each other."""
    return PartialState(cpu=best_device().type == "cpu")


def accelerator_for(training: TrainingConfig) -> Accelerator:
    """The device asked for, and processes as they are found; bf16 wherever the hardware has it."""
    device = processes().device.type
    half = {"cuda": torch.cuda.is_available() and torch.cuda.is_bf16_supported(), "cpu": cpu_has_bf16(), "mps": False}
    bf16 = training.precision == "bf16" or (training.precision == "auto" and half.get(device, False))
    AcceleratorState._reset_state()  # a kernel may train several models, each at its own precision
    return Accelerator(mixed_precision="bf16" if bf16 else "no")


def cpu_has_bf16() -> bool:
    """Matrix units (AMX) only: by AVX-512 alone bf16 takes 1.5 times as long as float32 (transformer and VQ-VAE, one core)."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


@stop.after_the_step()
def fit(
    make_task: Callable[[torch.device], Task],
    make_batches: Callable[[torch.device, int, int], Batches],
    training: TrainingConfig,
    out: str | Path,
    saved: dict[str, Any],
    report: Callable[[pd.DataFrame, float], None] = lambda history, fraction: None,
) -> pd.DataFrame:
    """Train until the first limit; keep the best weights in `out`, and the last state beside them for a resume.

    What varies the slices, opens labels and revives entries comes from CPU generators: the same on every device. Dropout and
    hidden tokens draw on the device. On a CPU, a stopped run ends with the same numbers as one that was not. On a GPU it goes
    on from the same state with the same batches, but sums in atomic operations have no fixed order, and so the last bits differ.
    Compilation, warm-up, validation and writing are not training time.
    """
    out = Path(out)
    limits = {name: getattr(training, name) for name in ("epochs", "steps", "minutes") if getattr(training, name)}
    if not limits:
        raise ValueError("training has no end: set epochs, steps or minutes")
    accelerator = accelerator_for(training)
    device = accelerator.device
    torch.manual_seed(training.seed)
    task = make_task(device)
    batches = make_batches(device, accelerator.process_index, accelerator.num_processes)
    task.model.to(device, memory_format=torch.channels_last)

    step, seconds, best, rows = 0, 0.0, -math.inf, []
    sums: dict[str, Tensor] = {}  # of the losses since the last row
    average = copy.deepcopy(task.model).requires_grad_(False)
    weights = list(average.parameters()), list(task.model.parameters())
    optimizers = {name: _optimizer(part, training, task.rates.get(name, 1.0)) for name, part in task.parts.items()}
    state = read_state(out)
    if state is not None:
        try:
            step, seconds, best, rows = state["step"], state["seconds"], state["best"], state["rows"]
            sums = {key: value.to(device) for key, value in state["sums"].items()}
            task.model.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
            for name, optimizer in optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            found = f"{out / STATE} is of another network or version of the library"
            raise ValueError(f"{found}; delete it, and the same command trains from the start") from error
    else:
        (out / WARNINGS).unlink(missing_ok=True)
        task.begin(batches.batch(0))
    if training.compile:
        task.compile()
    task.parts = {name: accelerator.prepare_model(part) for name, part in task.parts.items()}
    optimizers = {name: accelerator.prepare_optimizer(optimizer) for name, optimizer in optimizers.items()}

    every = training.validate_every or batches.steps_an_epoch
    started, kept, shown, counted = time.perf_counter() - seconds, time.perf_counter(), rows[-1]["step"] if rows else 0, seconds
    begun, history = step, pd.DataFrame(rows)
    fraction = _fraction(limits, step, seconds, batches.steps_an_epoch)
    while fraction < 1:
        torch.manual_seed(training.seed * 1_000_003 + step * 64 + accelerator.process_index)  # dropout, the same after a resume
        batch, task.fraction = batches.batch(step), fraction
        for name, part in task.parts.items():
            optimizer = optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * _schedule(fraction, training.warmup)
            with accelerator.autocast():
                loss, logs = task.loss(name, batch, step)
            accelerator.backward(loss)
            if training.clip:
                logs["gradient"] = accelerator.clip_grad_norm_(part.parameters(), training.clip)
            optimizer.step()
            for other in optimizers.values():  # a part's loss may run through the others
                other.zero_grad(set_to_none=True)
            for key, value in logs.items():
                sums[key] = sums.get(key, 0) + value.detach().float()
        task.after_step(step)
        decay = min(training.ema, (step + 1) / (step + 10)) if step else 0.0  # grows: short runs are not held back by their start
        with torch.no_grad():
            torch._foreach_lerp_(*weights, 1 - decay)
        step += 1

        if step - begun == WARM_UP:
            loss.item()  # waits for the GPU
            started = time.perf_counter() - seconds
        elif step - begun > WARM_UP:
            seconds = time.perf_counter() - started
        fraction = _fraction(limits, step, seconds, batches.steps_an_epoch)
        stopping = bool(stop.asked)
        if accelerator.num_processes > 1:
            fraction, stopping = _agreed(fraction, stopping, device)
        if step % LOOK_EVERY == 0 or fraction >= 1:
            _refuse_nan(loss, step, optimizer, out)
            report(history, fraction)
        if step % every == 0 or fraction >= 1:
            _refuse_nan(loss, step, optimizer, out)
            means = {f"train_{key}": float(value) / (step - shown) for key, value in sums.items()}  # waits for the GPU
            timed = step - max(shown, begun + WARM_UP)
            seconds = time.perf_counter() - started if timed > 0 else seconds
            row = {"step": step, "epoch": step / batches.steps_an_epoch, "seconds": seconds, "lr": optimizer.param_groups[0]["lr"]}
            row["images_per_second"] = timed * batches.size / (seconds - counted) if timed > 0 else math.nan
            _copy_buffers(average, task.model)
            with torch.random.fork_rng(devices=[]), full_precision(device):
                row |= means | task.validate(average.eval())
            rows.append(row)
            sums, shown, counted, history = {}, step, seconds, pd.DataFrame(rows)
            if accelerator.is_main_process:
                if row["score"] > best:
                    best = row["score"]
                    save_model(out, task.weights(average), saved | {"step": step, "score": best})
                if fraction >= 1 or time.perf_counter() - kept > SAVE_EVERY:
                    kept = time.perf_counter()
                    save_state(out, _state(step, seconds, best, rows, sums, task, average, optimizers))
                with atomic(out / "history.csv") as beside:
                    history.to_csv(beside, index=False)
                for words in task.verdicts(row):
                    warnings.warn(f"{out.name}, step {step}: {words}", stacklevel=2)
                    with (out / WARNINGS).open("a") as file:
                        file.write(f"step {step}: {words}\n")
            report(history, fraction)
            started = time.perf_counter() - seconds  # validation and writing are not training time
        if stopping and fraction < 1:
            _copy_buffers(average, task.model)
            if accelerator.is_main_process:
                save_state(out, _state(step, seconds, best, rows, sums, task, average, optimizers))
            raise KeyboardInterrupt(f"stopped after step {step}; the same command goes on from there ({out})")
    accelerator.wait_for_everyone()
    return history


def _copy_buffers(average: nn.Module, model: nn.Module) -> None:
    """What has no gradient is not averaged: it is copied when the average is looked at."""
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)


def _state(step, seconds, best, rows, sums, task: Task, average: nn.Module, optimizers: dict) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": seconds,
        "best": best,
        "rows": rows,
        "sums": sums,
        "model": task.model.state_dict(),
        "average": average.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
    }


def _optimizer(part: nn.Module, training: TrainingConfig, rate: float) -> torch.optim.Optimizer:
    """Weights decay; biases, gains and the like don't."""
    weights = [p for p in part.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in part.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    for group in groups:
        group["full_lr"] = training.lr * rate
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=training.lr, betas=(training.beta1, training.beta2), fused=True)


def _schedule(fraction: float, warmup: float) -> float:
    """Linear up, then a cosine down to a hundredth."""
    if fraction < warmup:
        return max(fraction / warmup, 0.01)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


def _fraction(limits: dict[str, float], step: int, seconds: float, steps_an_epoch: int) -> float:
    """How much of the run is done: by whichever limit comes first."""
    done = {"epochs": step / steps_an_epoch, "steps": step, "minutes": seconds / 60}
    return min(1.0, max(done[name] / limit for name, limit in limits.items()))


def _agreed(fraction: float, stopping: bool, device: torch.device) -> tuple[float, bool]:
    """Clocks differ between processes: the slowest one's counts. A signal may reach one process alone: all of them stop."""
    shared = torch.tensor([fraction, float(stopping)], device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return float(shared[0]), bool(shared[1])


def _refuse_nan(loss: Tensor, step: int, optimizer: torch.optim.Optimizer, out: Path) -> None:
    if not torch.isfinite(loss):
        rate = f"at a learning rate of {optimizer.param_groups[0]['lr']:.3g}"
        kept = f"the best weights so far are kept in {out}" if (out / WEIGHTS).is_file() else "no weights were kept yet"
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {step}, {rate}; {kept}. Try a smaller learning rate, or precision=no"
        )


__all__ = ["Task", "fit", "seeded"]
