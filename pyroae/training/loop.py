"""The training loop, and all that changes as it goes on, in one place: it can be written down and taken up again."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from .. import programs
from ..objectives.base import Objective
from . import distributed
from .batches import Args, Batches
from .checkpoints import Checkpoints, copied
from .divergence import Diverged, careful_step, finite, first_bad_site, first_bad_step, remedy
from .epoch import Epoch, StopTraining
from .interrupt import requested
from .resuming import check_state
from .step.svi import SVI

_GLANCE = 0.5  # seconds between two looks at the running loss
_TOGETHER = 50  # steps between two looks of several processes, which look, and go back, after the same step
_KEEP = 5.0  # seconds between two copies of the state in memory, to go back to where a run diverges or another process dies
_SHARE = 0.05  # of the time, at most, for the checkpoints at the ends of epochs
_LOG = logging.getLogger("pyroae")


class Training:
    """The state of a run, how it goes on by steps and epochs, and how it is kept.

    ``state`` is everything that a step or the end of an epoch changes: what starts from it, on the same data and with the
    same settings, does the same.
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
        callbacks: Iterable[Callable[[Epoch], None]],
        given: tuple[Any, Any],
        checkpoints: Checkpoints | None,
        save_every: float,
    ):
        self.svi, self.pair, self.elbo, self.train, self.held_out, self.schedule = svi, pair, elbo, train, held_out, schedule
        self.epochs, self.patience, self.retries = epochs, patience, retries
        self.callbacks, self.checkpoints, self.save_every = list(callbacks), checkpoints, save_every
        self.given, self.stopped = given, False  # the model and the guide that callbacks see; whether one of them stopped training
        self.rows: list[dict[str, float]] = []  # of the history, one for each finished epoch
        self.step = self.seen = 0  # steps in all, data in this epoch
        self.total = torch.zeros((), dtype=torch.float64, device=train.device)  # of this epoch's losses
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": 0, "weights": None, "objective": []}
        self.start = self.glanced = self.kept_at = self.saved_at = time.perf_counter()
        self.saving = 0.0  # seconds that a checkpoint takes
        self.making = False  # a graph of the step, which takes seconds
        self.several = distributed.processes() > 1
        self.careful = False  # looking at every step, which waits for the device

    # --- the state ---

    def weights(self) -> dict[str, Tensor]:
        """Everything in the programs that training changes, by name."""
        return programs.named_tensors(self.pair, self.svi.parameters)

    def state(self) -> dict[str, Any]:
        """What the run is at this moment, tensors by reference."""
        return {
            "about": self._about(),
            "step": self.step,
            "seen": self.seen,
            "total": self.total,
            "seconds": time.perf_counter() - self.start,
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
        """Be what the run was then."""
        state = copied(state)
        self.step, self.seen, self.rows, self.best = state["step"], state["seen"], state["history"], state["best"]
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

    def go_on(self, state: dict[str, Any]):
        """Be what another process's run was when it wrote this, down to the graphs that it had made.

        Raises:
            ValueError: that was another model, other data or other settings.
        """
        check_state(state, self, self.svi.optim)
        self.svi.optim.load_state_dict(copied(state["optimizer"]))  # a compiled step works on it
        self._climb(state["levels"])
        self.load(state)
        self.svi.optim._opt_called = self.step > 0  # a scheduler warns where it looks as if no step was taken before it
        self.start -= state["seconds"]

    def restore_best(self):
        """Put back the best weights, where early stopping kept some."""
        if self.best["weights"] is not None:
            _fill(self.weights(), self.best["weights"])

    def _about(self) -> dict[str, Any]:
        """What cannot change when a run goes on."""
        kinds = {"objective": self.elbo, "optimizer": self.svi.optim, "scheduler": self.schedule}
        return {name: type(each).__name__ for name, each in kinds.items()} | {
            "batches": len(self.train),
            "batch_size": self.train.batch_size,
            "patience": self.patience,
            "accumulate": self.svi.accumulate,
            "clip": self.svi.clip,
        }

    def _climb(self, levels: dict[str, list]):
        """Make the graphs that ran then, so that numbers round as they would have."""
        for what, batches in (("step", self.train), ("loss", self.held_out)):
            if not levels[what] or batches is None:
                continue
            batch = batches.first()
            with programs.eval_mode(*self.pair, seed=0) if what == "loss" else contextlib.nullcontext():
                for rows, level, runs in levels[what]:
                    self.svi.climb(what, level, runs, *(column[torch.arange(rows) % len(column)] for column in batch))

    # --- going on ---

    def to_the_end(self, progress: bool):
        """Train until the last epoch, or until early stopping.

        Raises:
            ValueError: the loss is not finite any more; the weights are the last that were.
            KeyboardInterrupt: asked for; the weights are those of now.
        """
        whole = self.epochs * len(self.train)
        with (
            tqdm(total=whole, initial=self.step, disable=not progress, unit="step", dynamic_ncols=True) as self.bar,
            requested() as self.asked,
        ):
            self.svi.announce_to(self._say_making)
            self.keep()
            if self.checkpoints and not self.checkpoints.paths():
                self.checkpoints.write(self.kept)
            while True:
                try:
                    if self.finished():
                        return self.save()
                    self.epoch()
                except Diverged as noticed:
                    self._go_back(str(noticed))
                except ConnectionError:
                    if self.asked.is_set() and not distributed.leads():  # the first process was asked too, and has stopped
                        self._stop()
                    self._write_kept()
                    raise

    def finished(self) -> bool:
        """Whether the last epoch is done, early stopping has come, or a callback has stopped training."""
        done = len(self.rows)
        return self.stopped or done >= self.epochs or (self.patience is not None and done - self.best["epoch"] >= self.patience)

    def epoch(self):
        """The rest of the epoch under way."""
        epoch = len(self.rows) + 1
        self.bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
        for batch in self.train:
            self._step(batch)
        row = {"epoch": epoch, "loss": self._look()}
        if self.held_out is not None:
            row["validation_loss"] = self._validate()
        row |= {"lr": float(self.svi.optim.param_groups[0]["lr"]), "seconds": time.perf_counter() - self.start}
        self._advance(row)
        self.rows.append(row)
        self.seen = 0
        self.total.zero_()
        if not self.careful:
            self._call_back(row)
            self._keep_or_save(self.saving / _SHARE)

    def _call_back(self, row: dict[str, float]):
        """Call all callbacks; they add columns to the row, and may stop training."""
        model, guide = self.given
        epoch, stopped = Epoch(row, model=model, guide=guide, step=self.step), False
        for callback in self.callbacks:
            try:
                callback(epoch)
            except StopTraining:
                stopped = True
        self.stopped = bool(distributed.of_any(stopped or None))
        row |= {**epoch, **row}

    def _step(self, batch: Args):
        if self.careful:
            return careful_step(self, batch)
        try:
            self.count(batch, self.svi.step(*batch))
        except ValueError as error:  # the program's own, or validation's, which may have met a NaN
            if finite([self.total, *self.svi.parameters]):
                raise
            raise Diverged("a weight is not finite") from error
        if self.making:
            self.making = False
            self.bar.unpause()  # else it would take every step to come to be as long
        self.bar.update()
        now = time.perf_counter()
        if self.step % _TOGETHER == 0 if self.several else now - self.glanced > _GLANCE:
            self.glanced = now
            self._look()
            self._keep_or_save(self.save_every)
        if self.asked.is_set() and distributed.leads():
            self._stop()

    def _say_making(self, graph: str):
        """On the bar, which stands still meanwhile."""
        self.making = True
        self.bar.set_postfix_str({"traced": "tracing the step", "compiled": "compiling the step, some 20 s"}[graph])

    def count(self, batch: Args, loss: Tensor | tuple[Tensor, ...]):
        """Count a step, and its loss."""
        self.total += loss[0] if isinstance(loss, tuple) else loss  # of several losses the first is the bound
        self.seen += self.train.rows
        self.step += 1

    def _look(self) -> float:
        """The mean loss of the epoch so far, on the bar too; waits for the device, once it is known that no other process has died."""
        distributed.meet()
        loss = self.total.item() / self.seen
        self.bar.set_postfix_str(f"loss {loss:.2f} nats/example", refresh=False)
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss}")
        if not self.svi.valid():
            raise Diverged("a distribution was given invalid values")
        return loss

    def _validate(self) -> float:
        """The loss of held-out data, with the same noise after every epoch."""
        total, rows = torch.zeros((), dtype=torch.float64, device=self.held_out.device), 0
        with programs.eval_mode(*self.pair, seed=distributed.rank()):
            for batch in self.held_out:
                loss = self.svi.evaluate_loss(*batch)
                total += loss[0] if isinstance(loss, tuple) else loss
                rows += len(batch[0])
        (total,) = distributed.total(total)
        loss = total.item() / distributed.count(rows)
        if not math.isfinite(loss):
            raise Diverged(f"the validation loss is {loss} after epoch {len(self.rows) + 1}{self._bad_held_out() if self.careful else ''}")
        return loss

    def _bad_held_out(self) -> str:
        with programs.eval_mode(*self.pair, seed=0):
            sites = (first_bad_site(self.svi.model, self.svi.guide, batch) for batch in self.held_out)
            site = distributed.of_any(next(filter(None, sites), None))
        return f": {site}" if site else ""

    def _advance(self, row: dict):
        """Let the scheduler and early stopping see a finished epoch."""
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
            weights = copied(self.weights())
            self.best = {"loss": row["validation_loss"], "epoch": row["epoch"], "weights": weights, "objective": objective}

    # --- keeping ---

    def keep(self):
        """Remember the state, which must be good, in the CPU's memory; waits for the device."""
        if self.step and not finite([self.total, *self.svi.parameters]):
            raise Diverged("a weight is not finite")
        self.kept, self.kept_at = copied(self.state(), torch.device("cpu")), time.perf_counter()

    def save(self):
        """Remember the state, on the disk too where there is a folder."""
        self.keep()
        self._write_kept()

    def _write_kept(self):
        """A disk that is full or gone stops no training."""
        if self.checkpoints is None:
            return
        start = time.perf_counter()
        try:
            self.checkpoints.write(self.kept)
        except OSError as error:
            _LOG.warning("fit: no checkpoint could be written (%s); training goes on, and the one before it stays", error)
        self.saved_at = time.perf_counter()
        self.saving = self.saved_at - start

    def _keep_or_save(self, between: float):
        """Write a checkpoint, where the last one is so many seconds old; otherwise remember the state now and then.

        Of several processes the first decides, so that all remember the state after the same step.
        """
        now = time.perf_counter()
        due = self.checkpoints is not None and now - self.saved_at > between
        if distributed.decided(due or now - self.kept_at > _KEEP):
            self.save() if due else self.keep()

    def _stop(self):
        self.save()
        how = f"; go on with resume={str(self.checkpoints.run)!r}" if self.checkpoints else ""
        raise KeyboardInterrupt(f"stopped in epoch {len(self.rows) + 1} after {self.step:,} steps{how}")

    # --- divergence ---

    def _go_back(self, noticed: str):
        """To the state that was kept; from there with half the rate if that was asked for, otherwise to say what happened."""
        until = self.step
        why = first_bad_step(self, until) or f"{noticed} after {until:,} steps, and was not so again when they were repeated"
        self.load(self.kept)
        self.bar.n = self.step
        if not self.retries:
            x = self.train.data[0] if isinstance(self.train.data, tuple) else None
            kept = f"when all was finite{f', and so is the checkpoint in {self.checkpoints.folder}' if self.checkpoints else ''}"
            back = f"those of step {self.step:,}, {kept}" if self.step else "those from before training"
            raise ValueError(f"fit: {why}. The weights are again {back}; {remedy(self.svi.model, x, self.train.schema)}")
        self.retries -= 1
        for group in self.svi.optim.param_groups:
            group["lr"] = group["lr"] / 2
        if hasattr(self.schedule, "base_lrs"):
            self.schedule.base_lrs = [lr / 2 for lr in self.schedule.base_lrs]
        _LOG.warning("fit: %s; going on from step %d with half the learning rate", why, self.step)
        self.keep()


def _fill(tensors: dict[str, Tensor], values: dict[str, Tensor]):
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
