"""The training loop and its state, which can be saved and resumed."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from .. import programs
from ..objectives.base import Objective
from . import distributed
from .batches import Batches
from .checkpoints import Checkpoints, copy_tensors
from .divergence import Diverged, finite, first_bad_site, first_bad_step, remedy
from .epoch import Epoch, StopTraining, complete
from .interrupt import stop_requested
from .resuming import check_state
from .saving import Saver
from .step.svi import SVI

_SECONDS_BETWEEN_CHECKS = 0.5  # of the running loss
_STEPS_BETWEEN_CHECKS = 50  # with several processes, which must check, and restore a state, after the same step
_SHOWN = {  # on the bar
    "traced": "tracing the step",
    "compiled": "compiling the step, some 20 s",
    "elsewhere": "another process compiles the step",
    "loaded": "loading the compiled step",
}
_LOG = logging.getLogger("pyroae")


class Training:
    """A run: its steps and epochs, and its state.

    ``state`` is everything that a step or the end of an epoch changes: a run that loads it, with the same data and
    settings, continues identically. ``arguments`` are model and guide as callbacks get them.
    """

    def __init__(
        self,
        svi: SVI,
        pair: list[nn.Module],
        elbo: ELBO,
        train: Batches,
        held_out: Batches | None,
        schedule: LRScheduler | None,
        epochs: int,
        patience: int | None,
        retries: int,
        callbacks: list[Callable[[Epoch], None]],
        arguments: tuple[Any, Any],
        checkpoints: Checkpoints | None,
        save_every: float,
    ):
        self.svi, self.pair, self.elbo, self.train, self.held_out, self.schedule = svi, pair, elbo, train, held_out, schedule
        self.epochs, self.patience, self.retries = epochs, patience, retries
        self.callbacks, self.checkpoints, self.save_every = callbacks, checkpoints, save_every
        self.arguments, self.stopped = arguments, False  # stopped: by a callback
        self.rows: list[dict[str, float]] = []  # of the history
        self.step = self.examples = 0  # steps in total, examples in this epoch
        self.total = torch.zeros((), dtype=torch.float64, device=train.device)  # sum of this epoch's losses
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": 0, "weights": None, "objective": []}
        self.started_at = self.checked_at = time.perf_counter()
        self.saver = Saver(self.state, lambda: not self.step or self._is_finite(), checkpoints)
        self.compiling = False
        self.is_distributed = distributed.world_size() > 1

    # --- the state ---

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the programs, by name."""
        return programs.named_tensors(self.pair, self.svi.parameters)

    def state(self) -> dict[str, Any]:
        """The state of the run, tensors by reference."""
        return {
            "about": self._settings(),
            "step": self.step,
            "seen": self.examples,
            "total": self.total,
            "seconds": time.perf_counter() - self.started_at,
            "history": self.rows,
            "best": self.best,
            "weights": self.weights(),
            "optimizer": self.svi.optim.state_dict(),
            "scheduler": self.schedule.state_dict() if self.schedule else None,
            "objective": self.elbo.state_dict() if hasattr(self.elbo, "state_dict") else None,
            "batches": self.train.state_dict(),
            "random": programs.random_state(self.train.device),
            "levels": self.svi.levels(),
        }

    def load(self, state: dict[str, Any]):
        """Restore a saved state."""
        state = copy_tensors(state)
        self.step, self.examples, self.rows, self.best = state["step"], state["seen"], state["history"], state["best"]
        self.total.copy_(state["total"])
        _fill(self.weights(), state["weights"])
        self.svi.optim.load_state_dict(state["optimizer"])
        self.svi.forget()
        if self.schedule:
            self.schedule.load_state_dict(state["scheduler"])
        if hasattr(self.elbo, "load_state_dict"):
            self.elbo.load_state_dict(state["objective"])
        self.train.load_state_dict(state["batches"])
        programs.set_random_state(state["random"], self.train.device)

    def resume(self, state: dict[str, Any]):
        """Restore the state of another process's run, and rebuild the graphs that it used.

        Raises:
            ValueError: the state is of another model, other data or other settings.
        """
        check_state(state, self, self.svi.optim)
        self.svi.optim.load_state_dict(copy_tensors(state["optimizer"]))  # before graphs are built, which update it in place
        self._rebuild_graphs(state["levels"])
        self.load(state)
        self.svi.optim._opt_called = self.step > 0  # schedulers warn if no step seems to have been taken before theirs
        self.started_at -= state["seconds"]

    def restore_best(self):
        """Restore the weights of the best epoch, if early stopping kept them."""
        if self.best["weights"] is not None:
            _fill(self.weights(), self.best["weights"])

    def _settings(self) -> dict[str, Any]:
        """The settings that a resumed run must share."""
        objects = {"objective": self.elbo, "optimizer": self.svi.optim, "scheduler": self.schedule}
        return {name: type(value).__name__ for name, value in objects.items()} | {
            "batches": len(self.train),
            "batch_size": self.train.batch_size,
            "patience": self.patience,
            "accumulate": self.svi.options.accumulate,
            "clip": self.svi.options.clip,
        }

    def _rebuild_graphs(self, levels: dict[str, list]):
        """Rebuild the checkpoint's graphs, so that results are rounded the same way."""
        for function, batches in (("step", self.train), ("loss", self.held_out)):
            if not levels[function] or batches is None:
                continue
            batch = batches.first()
            with programs.eval_mode(*self.pair, seed=0) if function == "loss" else contextlib.nullcontext():
                for rows, level, runs in levels[function]:
                    self.svi.rebuild_graph(function, level, runs, *(column[torch.arange(rows) % len(column)] for column in batch))

    # --- training ---

    def start(self, saved: dict[str, Any] | None):
        """Begin or resume a run; all processes get the same weights and different noise."""
        if saved is not None:
            self.resume(saved)
        distributed.broadcast(*self.weights().values())
        distributed.seed_ranks()

    def run(self, progress: bool):
        """Train until the last epoch or early stopping.

        Raises:
            ValueError: the loss became infinite or NaN; the weights are the last finite ones.
            KeyboardInterrupt: by Ctrl-C or SIGTERM; the weights are the current ones.
        """
        total = self.epochs * len(self.train)
        with (
            tqdm(total=total, initial=self.step, disable=not progress, unit="step", dynamic_ncols=True) as self.bar,
            stop_requested() as self.stop_requested,
        ):
            self.svi.announce_to(self._show_compilation)
            self.saver.start()
            while True:
                try:
                    if self.finished():
                        return self.saver.save()
                    self._describe_epoch()
                    for block in self.train.blocks():
                        with self.svi.unchanged():
                            for batch in block:
                                self.count(self.svi.step(*batch))
                                self._after_step()
                    self.end_epoch()
                except Diverged as error:
                    self._restore(str(error))
                except ConnectionError:
                    if self.stop_requested.is_set() and not distributed.is_main():  # the main process was stopped too
                        self._stop()
                    self.saver.write()
                    raise
                except ValueError as error:  # of the program, or of validation because of a NaN
                    if self._is_finite():
                        raise
                    self._restore(f"a weight is not finite ({error})")

    def _is_finite(self) -> bool:
        return finite([self.total, *self.svi.parameters])

    def finished(self) -> bool:
        """Whether the last epoch is done, early stopping applies, or a callback has stopped training."""
        done = len(self.rows)
        return self.stopped or done >= self.epochs or (self.patience is not None and done - self.best["epoch"] >= self.patience)

    def count(self, loss: Tensor | tuple[Tensor, ...]):
        """Count a step and its loss."""
        self.total += loss[0] if isinstance(loss, tuple) else loss  # the first of several losses is the bound
        self.examples += self.train.rows
        self.step += 1

    def _after_step(self):
        """Update the progress bar; at intervals check the loss and save; stop if requested."""
        if self.compiling:
            self.compiling = False
            self.bar.unpause()  # excludes the compilation from the estimated time per step
        self.bar.update()
        now = time.perf_counter()
        if self.step % _STEPS_BETWEEN_CHECKS == 0 if self.is_distributed else now - self.checked_at > _SECONDS_BETWEEN_CHECKS:
            self.checked_at = now
            self._mean_loss()
            self.saver.update(self.save_every)
        if self.stop_requested.is_set() and distributed.is_main():
            self._stop()

    def end_epoch(self, repeated: bool = False):
        """Validate and append the epoch's row; an epoch that is repeated to find a bad step calls no callback and saves nothing."""
        row = {"epoch": len(self.rows) + 1, "loss": self._mean_loss()}
        if self.held_out is not None:
            row["validation_loss"] = self._validate(name_site=repeated)
        row |= {"lr": float(self.svi.optim.param_groups[0]["lr"]), "seconds": time.perf_counter() - self.started_at}
        self._advance(row)
        self.rows.append(row)
        self.examples = 0
        self.total.zero_()
        if not repeated:
            self._call_back(row)
            self.saver.update()

    def _call_back(self, row: dict[str, float]):
        """Call all callbacks, which may add columns to the row and stop training."""
        model, guide = self.arguments
        epoch, stopped = Epoch(row, model=model, guide=guide, step=self.step), None
        for callback in self.callbacks:
            try:
                callback(epoch)
            except StopTraining:
                stopped = True
        self.stopped = bool(distributed.first_result(stopped))
        row |= {**epoch.plain(), **row}
        if row.keys() != self.rows[0].keys():
            complete(self.rows)

    def _describe_epoch(self):
        self.bar.set_description(f"epoch {len(self.rows) + 1}/{self.epochs}", refresh=False)

    def _show_compilation(self, graph: str):
        """Show on the bar that a graph is made."""
        self.compiling = True
        self.bar.set_postfix_str(_SHOWN[graph])

    def _mean_loss(self) -> float:
        """Mean loss of the epoch so far, also shown on the bar; synchronizes with the device and fails if another process has died."""
        distributed.barrier()
        loss = self.total.item() / self.examples
        self.bar.set_postfix_str(f"loss {loss:.2f} nats/example", refresh=False)
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss}")
        if not self.svi.valid():
            raise Diverged("a distribution was given invalid values")
        return loss

    def _validate(self, name_site: bool) -> float:
        """Loss of the held-out data, with the same noise after every epoch."""
        total, rows = torch.zeros((), dtype=torch.float64, device=self.held_out.device), 0
        with programs.eval_mode(*self.pair, seed=distributed.rank()):
            for batch in self.held_out:
                loss = self.svi.evaluate_loss(*batch)
                total += loss[0] if isinstance(loss, tuple) else loss
                rows += len(batch[0])
        (total,) = distributed.all_reduce(total)
        loss = total.item() / distributed.all_reduce_int(rows)
        if not math.isfinite(loss):
            raise Diverged(f"the validation loss is {loss} after epoch {len(self.rows) + 1}{self._bad_held_out() if name_site else ''}")
        return loss

    def _bad_held_out(self) -> str:
        with programs.eval_mode(*self.pair, seed=0):
            sites = (first_bad_site(self.svi.model, self.svi.guide, batch) for batch in self.held_out)
            site = distributed.first_result(next(filter(None, sites), None))
        return f": {site}" if site else ""

    def _advance(self, row: dict):
        """Step the scheduler and early stopping."""
        try:
            if isinstance(self.schedule, ReduceLROnPlateau):
                self.schedule.step(row.get("validation_loss", row["loss"]))
            elif self.schedule is not None:
                self.schedule.step()
        except ArithmeticError as error:
            raise ValueError(f"fit: the scheduler {type(self.schedule).__name__} failed: {type(error).__name__}: {error}") from error
        if self.patience is None:
            return
        objective = self.elbo.values() if isinstance(self.elbo, Objective) else []
        if row["validation_loss"] < self.best["loss"] or objective != self.best["objective"]:
            weights = copy_tensors(self.weights())
            self.best = {"loss": row["validation_loss"], "epoch": row["epoch"], "weights": weights, "objective": objective}

    def _stop(self):
        self.saver.save()
        hint = f"; continue with run=pa.Run({str(self.checkpoints.run)!r}, resume=True)" if self.checkpoints else ""
        raise KeyboardInterrupt(f"stopped in epoch {len(self.rows) + 1} after {self.step:,} steps{hint}")

    # --- divergence ---

    def _restore(self, reason: str):
        """Restore the last copy of the state; continue with half the learning rate if retries are left, otherwise raise."""
        until = self.step
        reason = first_bad_step(self, until) or f"{reason} after {until:,} steps, which did not happen again when they were repeated"
        self.load(self.saver.last)
        self.bar.n = self.step
        if not self.retries:
            x = self.train.data[0] if isinstance(self.train.data, tuple) else None
            checkpoint = f", as is the checkpoint in {self.checkpoints.folder}" if self.checkpoints else ""
            weights = f"those of step {self.step:,}, when all was finite{checkpoint}" if self.step else "those from before training"
            raise ValueError(f"fit: {reason}. The weights are again {weights}; {remedy(self.svi.model, x, self.train.schema)}")
        self.retries -= 1
        for group in self.svi.optim.param_groups:
            group["lr"] = group["lr"] / 2
        if hasattr(self.schedule, "base_lrs"):
            self.schedule.base_lrs = [lr / 2 for lr in self.schedule.base_lrs]
        _LOG.warning("fit: %s; continuing from step %d with half the learning rate", reason, self.step)
        self.saver.copy()


def _fill(tensors: dict[str, Tensor], values: dict[str, Tensor]):
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
