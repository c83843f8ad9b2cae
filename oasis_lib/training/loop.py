"""The one loop that trains everything: the VQ-VAE, the priors and the GAN."""

from __future__ import annotations

import copy
import math
import time
import warnings
from abc import ABC, abstractmethod
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
from oasis_lib.device import best_device, full_precision, in_half, spilled, step_room
from oasis_lib.storage import STATE, WEIGHTS, atomic, read_state, save_model, save_state
from oasis_lib.training.data import Batch, Batches

SAVE_EVERY = 30  # seconds between saved states, so that short epochs don't spend their time on the disk
HISTORY, WARNINGS = "history.csv", "warnings.txt"  # in the model's folder; the second is what `Task.verdicts` said
LOOK_EVERY = 20  # steps between looks at the loss: each look waits for the GPU
WARM_UP = 2  # steps before the clock starts: the first ones compile, choose kernels and fetch memory


class Task(ABC):
    """What a model has to say to be trained. `parts` are stepped in their order, each by an optimiser of its own."""

    model: nn.Module
    rates: dict[str, float] = {}  # a part's factor on the learning rate, where it is not 1
    learnt = False  # whether the model came with weights of an earlier training, and need not begin
    step, fraction = 0, 0.0  # how much of the run is done; the loop keeps both

    def __init__(self, model: nn.Module):
        self.model = model
        self.parts: dict[str, nn.Module] = self.split()

    def split(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def begin(self, batch: Batch) -> None:
        """Once, before the first step of a fresh run."""

    @abstractmethod
    def loss(self, part: str, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """To be lowered by the part's optimiser, and what the history keeps of it."""

    def after_step(self, step: int) -> None:
        """What moves without a gradient."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Of the averaged weights. `score` is what the best is chosen by: higher is better."""

    def verdicts(self, row: dict[str, float]) -> list[str]:
        """What the numbers of a validation say in words: collapse, a balance lost."""
        return []

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """What is kept of the averaged model."""
        return model.state_dict()

    def compile(self) -> None:
        for part in self.parts.values():
            part.compile()


MakeTask = Callable[[torch.device], Task]
MakeBatches = Callable[[torch.device, int, int], Batches]  # also told which process of how many


def processes() -> PartialState:
    """The CPU is said outright, or several CPU processes would not find each other."""
    return PartialState(cpu=best_device().type == "cpu")


def accelerator_for(training: TrainingConfig) -> Accelerator:
    """The device asked for, and processes as they are found; bf16 wherever the hardware has it."""
    device = processes().device
    AcceleratorState._reset_state()  # a kernel may train several models, each at its own precision
    return Accelerator(mixed_precision="bf16" if in_half(device, training.precision) else "no")


class Loop:
    """One training: what its steps change, which is what a resume needs."""

    def __init__(self, task: Task, batches: Batches, training: TrainingConfig, out: Path, accelerator: Accelerator):
        self.task, self.batches, self.training, self.out, self.accelerator = task, batches, training, out, accelerator
        self.limits = {name: limit for name in ("epochs", "steps", "minutes") if (limit := getattr(training, name))}
        self.every = training.validate_every or batches.steps_an_epoch
        self.step, self.best, self.rows, self.seconds = 0, -math.inf, [], 0.0
        self.sums: dict[str, Tensor] = {}  # of the losses since the last row
        task.model.to(accelerator.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(task.model).requires_grad_(False)
        self.weights = list(self.average.parameters()), list(task.model.parameters())
        rates = {name: training.lr * task.rates.get(name, 1.0) for name in task.parts}
        self.optimizers = {name: _optimizer(part, training, rates[name]) for name, part in task.parts.items()}
        if state := read_state(out):
            self.restore(state)
        elif not task.learnt:
            task.begin(batches.batch(0))
        if training.compile:
            task.compile()
        task.parts = {name: accelerator.prepare_model(part) for name, part in task.parts.items()}
        self.optimizers = {name: accelerator.prepare_optimizer(one) for name, one in self.optimizers.items()}
        self.first, self.kept, self.since = self.step, time.perf_counter(), math.nan  # of this process
        self.room = step_room(accelerator.device)
        self.counted = self.seconds
        self.fraction = self.done()

    def restore(self, state: dict[str, Any]) -> None:
        try:
            for name in ("step", "best", "rows", "seconds"):
                setattr(self, name, state[name])
            self.sums = {key: value.to(self.accelerator.device) for key, value in state["sums"].items()}
            self.task.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            found = f"{self.out / STATE} is of another network or version of the library"
            raise ValueError(f"{found}; delete it, and the same command trains from the start") from error

    def save(self) -> None:
        self.copy_buffers()
        state = {name: getattr(self, name) for name in ("step", "best", "rows", "sums", "seconds")}
        state |= {"model": self.task.model.state_dict(), "average": self.average.state_dict()}
        state["optimizers"] = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        self.kept = time.perf_counter()
        if self.accelerator.is_main_process:
            save_state(self.out, state)

    def copy_buffers(self) -> None:
        """What has no gradient is not averaged: it is copied when the average is looked at."""
        torch._foreach_copy_(list(self.average.buffers()), list(self.task.model.buffers()))

    def done(self) -> float:
        """How much of the run is done: by whichever limit comes first."""
        now = {"epochs": self.step / self.batches.steps_an_epoch, "steps": self.step, "minutes": self.seconds / 60}
        return min(1.0, max(now[name] / limit for name, limit in self.limits.items()))

    def advance(self) -> None:
        """One step of every part, then of the average."""
        step, training, task = self.step, self.training, self.task
        torch.manual_seed(training.seed * 1_000_003 + step * 64 + self.accelerator.process_index)  # of dropout
        batch, task.fraction = self.batches.batch(step), self.fraction
        for name, part in task.parts.items():
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * _schedule(self.fraction, training.warmup)
            with self.accelerator.autocast(), spilled(self.room):
                self.loss, logs = task.loss(name, batch, step)
            self.accelerator.backward(self.loss)
            if training.clip:
                logs["gradient"] = self.accelerator.clip_grad_norm_(part.parameters(), training.clip)
            optimizer.step()
            for other in self.optimizers.values():  # a part's loss may run through the others
                other.zero_grad(set_to_none=True)
            for key, value in logs.items():
                self.sums[key] = self.sums.get(key, 0) + value.detach().float()
        self.rate, self.step, task.step = optimizer.param_groups[0]["lr"], step + 1, step + 1
        task.after_step(step)
        decay = min(training.ema, (step + 1) / (step + 10)) if step else 0.0  # grows: short runs forget their start
        with torch.no_grad():
            torch._foreach_lerp_(*self.weights, 1 - decay)
        if self.step - self.first == WARM_UP:
            self.loss.item()  # waits for the GPU
        self.tick()
        self.fraction = self.done()

    def tick(self) -> None:
        """The time training has taken: without compilation and warm-up, and `fit` leaves out validation and writing."""
        now = time.perf_counter()
        self.seconds += now - self.since if self.step - self.first > WARM_UP else 0.0
        self.since = now

    def refuse_nan(self) -> None:
        if torch.isfinite(self.loss):
            return
        found = f"the loss is {self.loss.item()} at step {self.step}, at a learning rate of {self.rate:.3g}"
        kept = f"the best weights are kept in {self.out}" if (self.out / WEIGHTS).is_file() else "none were kept yet"
        raise FloatingPointError(f"{found}; {kept}. Try a smaller learning rate, or precision=no")

    def validate(self) -> dict[str, float]:
        """A row of the history: mean losses since the last one, and what the averaged weights are worth."""
        shown = self.rows[-1]["step"] if self.rows else 0
        means = torch.stack(list(self.sums.values())) / (self.step - shown)
        if self.accelerator.num_processes > 1:  # each has the losses of its share of the batch
            torch.distributed.all_reduce(means)
            means /= self.accelerator.num_processes
        losses = {f"train_{key}": value for key, value in zip(self.sums, means.tolist())}  # waits for the GPU
        timed = self.step - max(shown, self.first + WARM_UP)
        speed = timed * self.batches.size / (self.seconds - self.counted) if timed > 0 else math.nan
        row = {"step": self.step, "epoch": self.step / self.batches.steps_an_epoch, "seconds": self.seconds}
        row |= {"lr": self.rate, "images_per_second": speed} | losses
        self.copy_buffers()
        with torch.random.fork_rng(devices=[]), full_precision(self.accelerator.device):
            row |= self.task.validate(self.average.eval())
        self.rows.append(row)
        self.sums, self.counted = {}, self.seconds
        return row

    def keep(self, row: dict[str, float], saved: dict[str, Any]) -> None:
        """The best weights, the history, and what there is to be said of it."""
        if row["score"] > self.best:
            self.best = row["score"]
            if self.accelerator.is_main_process:
                save_model(self.out, self.task.weights(self.average), saved | {"step": self.step, "score": self.best})
        if not self.accelerator.is_main_process:
            return
        with atomic(self.out / HISTORY) as beside:
            pd.DataFrame(self.rows).to_csv(beside, index=False)
        for words in self.task.verdicts(row):
            warnings.warn(f"{self.out.name}, step {self.step}: {words}", stacklevel=2)
            with (self.out / WARNINGS).open("a") as file:
                file.write(f"step {self.step}: {words}\n")


@stop.after_the_step()
def fit(
    make_task: MakeTask,
    make_batches: MakeBatches,
    training: TrainingConfig,
    out: str | Path,
    saved: dict[str, Any],
    report: Callable[[pd.DataFrame, float], None] = lambda history, fraction: None,
) -> pd.DataFrame:
    """Train until the first limit; keep the best weights in `out`, and the last state beside them for a resume.

    What varies slices, opens labels and revives entries comes from CPU generators, alike on every device; dropout and
    hidden tokens draw on the device. On a CPU, a stopped run ends with the same numbers as one that was not. A GPU goes
    on from the same state with the same batches, but atomic sums have no fixed order, and so the last bits differ.
    """
    if not (training.epochs or training.steps or training.minutes):
        raise ValueError("training has no end: set epochs, steps or minutes")
    accelerator = accelerator_for(training)
    device, world = accelerator.device, accelerator.num_processes
    torch.manual_seed(training.seed)
    task, batches = make_task(device), make_batches(device, accelerator.process_index, world)
    loop = Loop(task, batches, training, Path(out), accelerator)
    history = pd.DataFrame(loop.rows)
    while loop.fraction < 1:
        loop.advance()
        stopping = bool(stop.asked)
        if world > 1:
            loop.fraction, stopping = _agreed(loop.fraction, stopping, device)
        ending = loop.fraction >= 1
        validating = ending or loop.step % loop.every == 0
        if validating or loop.step % LOOK_EVERY == 0:
            loop.refuse_nan()
            loop.tick()
            if validating:
                loop.keep(loop.validate(), saved)
                history = pd.DataFrame(loop.rows)
            if ending or time.perf_counter() - loop.kept > SAVE_EVERY:
                loop.save()
            report(history, loop.fraction)
            loop.since = time.perf_counter()
        if stopping and not ending:
            loop.save()
            raise KeyboardInterrupt(f"stopped after step {loop.step}; the same command goes on from there ({out})")
    accelerator.wait_for_everyone()
    return history


def _optimizer(part: nn.Module, training: TrainingConfig, rate: float) -> torch.optim.Optimizer:
    """Weights decay; biases, gains and the like don't."""
    groups = []
    for decay, small in ((training.weight_decay, False), (0.0, True)):
        chosen = [p for p in part.parameters() if p.requires_grad and (p.dim() <= 1) == small]
        groups += [{"params": chosen, "weight_decay": decay, "full_lr": rate}] if chosen else []
    return torch.optim.AdamW(groups, lr=training.lr, betas=(training.beta1, training.beta2), fused=True)


def _schedule(fraction: float, warmup: float) -> float:
    """Linear up, then a cosine down to a hundredth."""
    if fraction < warmup:
        return max(fraction / warmup, 0.01)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


def _agreed(fraction: float, stopping: bool, device: torch.device) -> tuple[float, bool]:
    """Clocks differ between processes: the slowest one's counts. A signal may reach one process: all of them stop."""
    shared = torch.tensor([fraction, float(stopping)], device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return float(shared[0]), bool(shared[1])
