"""A resumed run ends like an uninterrupted one; no fault loses progress."""

import functools
import json
import logging
import os
import random
import signal

import numpy as np
import pytest
import torch
from conftest import run_uncompiled, small_vae
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyroae as pa
from pyroae.cli import main
from pyroae.training import checkpoints, interrupt, loop
from pyroae.training.checkpoints import Checkpoints

quiet = functools.partial(pa.fit, progress=False)


class Killed(Exception):
    pass


def stopped_after(steps, monkeypatch, train):
    """Run ``train`` up to a checkpoint after a number of steps."""
    count = loop.Training.count

    def stopping(self, loss):
        if not steps:
            raise Killed
        count(self, loss)
        if self.step == steps:
            self.saver.save()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "count", stopping)
        with pytest.raises(Killed):
            train()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Noisy(Dataset):
    """Rows with noise of Python's, NumPy's and torch's own."""

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return torch.full((64,), float(torch.rand(()) + np.random.rand() + random.random() > 1.5))


def dynamic():
    return pa.data.load("digits", binarize="dynamic", validation=0.1)


def plain(ae, **more):
    return quiet(ae, dynamic().train.x[:200].round(), epochs=4, batch_size=30, seed=1, **more)


def with_everything(ae, **more):
    data = dynamic()
    return quiet(
        ae,
        data.train,
        validation=pa.Validation(data.validation, patience=2),
        elbo=pa.objectives.Tempered(pa.schedules.Linear(70)),
        scheduler=functools.partial(lr_scheduler.StepLR, step_size=1, gamma=0.7),
        optimizer=torch.optim.RMSprop,
        epochs=4,
        batch_size=12,
        lr=1e-2,
        seed=1,
        **more,
    )


def of_a_loader(ae, compile="auto", **more):
    loader = DataLoader(Noisy(), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(5))
    return quiet(ae, loader, epochs=3, seed=1, elbo=pa.Penalised(pa.penalties.L2()), compile=pa.Step(compile, clip=1.0), **more)


def of_the_callers_numbers(ae, compile="auto", **more):
    torch.manual_seed(2)
    return quiet(ae, dynamic().train.x[:100].round(), epochs=3, batch_size=30, compile=pa.Step(compile, accumulate=2), **more)


RUNS = {"plain": plain, "with everything": with_everything, "of a loader": of_a_loader, "of the caller's": of_the_callers_numbers}


@pytest.mark.parametrize("steps", [0, 1, 9, 64, 130])
@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_is_equal_bit_for_bit(run, steps, tmp_path, monkeypatch):
    goes_on(run, steps, tmp_path, monkeypatch)


def goes_on(run, steps, tmp_path, monkeypatch, **more):
    whole, half, again = (small_vae_of(0, corruption=pa.corruption.Masking(0.2)) for _ in range(3))
    if steps > 20 and run != "with everything":
        pytest.skip("over by then")
    history = RUNS[run](whole, **more)
    stopped_after(steps, monkeypatch, lambda: RUNS[run](half, run=tmp_path, **more))
    torch.manual_seed(99)
    resumed = RUNS[run](again, run=pa.Run(tmp_path, resume=True), **more)
    assert same(whole, again) and not same(whole, half)
    columns = set(history.rows[0]) - {"seconds"}
    assert [{c: row[c] for c in columns} for row in history.rows] == [{c: row[c] for c in columns} for row in resumed.rows]
    assert [row["seconds"] for row in resumed.rows] == sorted(row["seconds"] for row in resumed.rows)


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_so_is_one_with_the_optimizer_in_a_compiled_graph(steps, tmp_path, monkeypatch):
    run_uncompiled(monkeypatch)
    goes_on("plain", steps, tmp_path, monkeypatch, compile="compiled")


def test_a_run_whose_held_out_batches_are_larger_goes_on(tmp_path):
    held_out = DataLoader(TensorDataset(X), 40)
    arguments = {"batch_size": 10, "validation": held_out, "compile": "traced"}
    quiet(small_vae(), X, epochs=3, run=tmp_path, **arguments)
    assert len(quiet(small_vae(), X, epochs=4, run=pa.Run(tmp_path, resume=True), **arguments).rows) == 4


def small_vae_of(seed, **parts):
    torch.manual_seed(seed)
    return small_vae(**parts)


X = torch.rand(40, 64, generator=torch.Generator().manual_seed(0)).round()


def test_the_newest_two_are_kept_and_a_finished_run_can_be_extended(tmp_path):
    short, long = small_vae_of(0), small_vae_of(0)
    quiet(long, X, epochs=5, batch_size=10, seed=0)
    quiet(short, X, epochs=2, batch_size=10, seed=0, run=tmp_path)
    assert [path.name for path in Checkpoints(tmp_path).paths()] in (
        ["0000000008.safetensors", f"{step:010d}.safetensors"] for step in (0, 4)
    )
    history = quiet(short, X, epochs=5, batch_size=10, seed=0, run=pa.Run(tmp_path, resume=True))
    assert same(short, long) and history["epoch"] == [1, 2, 3, 4, 5]


REFUSED = {
    "another run's folder": (lambda folder: quiet(small_vae(), X, run=folder), ["already contains a run", "resume=True"]),
    "no folder": (lambda folder: quiet(small_vae(), X, run=pa.Run(folder / "none", resume=True)), ["the folder of a run", "none"]),
    "another model": (lambda folder: quiet(small_vae(z=5), X, run=pa.Run(folder, resume=True)), ["another model", "(8,)", "(10,)"]),
    "other batches": (lambda folder: quiet(small_vae(), X, batch_size=3, run=pa.Run(folder, resume=True)), ["batches 1", "this call 14"]),
    "another optimizer": (
        lambda folder: quiet(small_vae(), X, optimizer=torch.optim.SGD, lr=1.0, run=pa.Run(folder, resume=True)),
        ["Adam", "SGD"],
    ),
    "pretraining": (lambda folder: pa.pretrain(small_vae(), X, run=folder), ["pretrain", "pass run to the fit"]),
    "no clip": (lambda folder: quiet(small_vae(), X, compile=pa.Step(clip=0.0)), ["clip", "positive"]),
    "half a part": (lambda folder: quiet(small_vae(), X, compile=pa.Step(accumulate=0.5)), ["accumulate", "whole number"]),
    "negative retries": (lambda folder: quiet(small_vae(), X, compile=pa.Step(retries=-1)), ["retries", "at least 0"]),
    "no seconds": (lambda folder: quiet(small_vae(), X, run=pa.Run(folder, save_every=0)), ["save_every", "positive"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_checkpoints_are_refused_and_the_run_is_unchanged(name, tmp_path):
    quiet(small_vae(), X, epochs=1, run=tmp_path)
    wrong, words = REFUSED[name]
    before = [path.read_bytes() for path in Checkpoints(tmp_path).paths()]
    with pytest.raises(ValueError) as raised:
        wrong(tmp_path)
    assert all(word in str(raised.value) for word in words), raised.value
    assert [path.read_bytes() for path in Checkpoints(tmp_path).paths()] == before


def test_damaged_files_are_logged_and_the_previous_valid_one_is_used(tmp_path, caplog):
    whole, half = small_vae_of(0), small_vae_of(0)
    quiet(whole, X, epochs=4, batch_size=10, seed=0)
    quiet(half, X, epochs=2, batch_size=10, seed=0, run=tmp_path)
    newest, older = Checkpoints(tmp_path).paths()
    newest.write_bytes(newest.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING, "pyroae"):
        quiet(half, X, epochs=4, batch_size=10, seed=0, run=pa.Run(tmp_path, resume=True))
    assert same(whole, half) and str(newest) in caplog.text and f"resuming from {older}" in caplog.text
    for path in Checkpoints(tmp_path).paths():
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no checkpoint in .* can be used.*another format"):
        quiet(half, X, epochs=4, run=pa.Run(tmp_path, resume=True))


def test_a_second_run_in_the_folder_is_refused_unless_the_first_is_dead(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.lock").write_text("12345")
    with Checkpoints(tmp_path).locked(), pytest.raises(ValueError, match="another process trains in"):
        quiet(small_vae(), X, epochs=1, run=tmp_path)
    quiet(small_vae(), X, epochs=1, run=tmp_path)


def test_a_full_disk_does_not_stop_training_and_the_older_file_is_deleted(tmp_path, monkeypatch, caplog):
    ae, whole, write, full = small_vae_of(0), small_vae_of(0), checkpoints.write, []

    def writing(state, path):
        if full:
            raise OSError(28, "No space left on device")
        write(state, path)

    monkeypatch.setattr(checkpoints, "write", writing)
    with caplog.at_level(logging.WARNING, "pyroae"):
        quiet(ae, X, epochs=3, batch_size=10, seed=0, run=tmp_path, callbacks=[lambda row: full.append(row["epoch"] == 3)])
    assert "No space left" in caplog.text and Checkpoints(tmp_path).newest()["step"] in (0, 4, 8)
    full.clear()
    quiet(whole, X, epochs=3, batch_size=10, seed=0)
    again = small_vae()
    quiet(again, X, epochs=3, batch_size=10, seed=0, run=pa.Run(tmp_path, resume=True))
    assert same(ae, whole) and same(again, whole)


def test_a_state_is_restored_and_objects_are_refused(tmp_path):
    state = {
        "step": 1,
        "a": [(1, None), {"b": torch.ones(2, 3), 5: "five"}],
        "c": torch.tensor(2.0),
        "d": float("inf"),
        "e": torch.zeros(0),
        "f": torch.ones(()).expand(1),  # a view without a stride, as a column of width 1 of a Product has
    }
    checkpoints.write(state, tmp_path / "x.safetensors")
    again = checkpoints.read(tmp_path / "x.safetensors")
    assert repr(again) == repr(state)
    with pytest.raises(ValueError, match="cannot hold a/0, a Random"):
        checkpoints.write({"a": [random.Random()]}, tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


SCHEDULERS = [
    functools.partial(lr_scheduler.MultiStepLR, milestones=[1, 3]),
    functools.partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.5**epoch),
    functools.partial(lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=5),
    functools.partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2),
    functools.partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda made: made.func.__name__)
def test_schedulers_are_resumed(scheduler, tmp_path):
    go = functools.partial(quiet, batch_size=20, lr=0.01, scheduler=scheduler, seed=0)
    whole, half = small_vae_of(0), small_vae_of(0)
    rates = go(whole, X, epochs=5)["lr"]
    go(half, X, epochs=2, run=tmp_path)
    assert go(half, X, epochs=5, run=pa.Run(tmp_path, resume=True))["lr"] == rates and same(whole, half)


@pytest.fixture
def listening():
    """Python's default handlers for Ctrl-C and SIGTERM, also for tests in the background or under ``nohup``."""
    before = [(number, signal.signal(number, usual)) for number, usual in interrupt._DEFAULT_HANDLERS.items()]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupt._DEFAULT_HANDLERS)
def test_ctrl_c_or_sigterm_finishes_the_step_saves_it_and_says_how_to_resume(number, tmp_path, listening):
    whole, half, rows = small_vae_of(0), small_vae_of(0), []
    quiet(whole, X, epochs=4, batch_size=10, seed=0)
    half.encoder.register_forward_hook(lambda *_: rows.append(1) or (len(rows) == 7 and os.kill(os.getpid(), number)) or None)
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2 after 6 steps; continue with run="):
        quiet(half, X, epochs=4, batch_size=10, seed=0, run=tmp_path, compile="eager")
    assert Checkpoints(tmp_path).newest()["step"] == 6 and not half.training
    assert signal.getsignal(number) == interrupt._DEFAULT_HANDLERS[number]
    quiet(half, X, epochs=4, batch_size=10, seed=0, run=pa.Run(tmp_path, resume=True))
    assert same(whole, half)


def test_the_command_resumes_after_ctrl_c(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["train", "--epochs", "3", "--particles", "5"]
    assert main([*options, "--out", "whole"]) == 0
    count = loop.Training.count

    def pressing(self, loss):
        if self.step == 15:
            self.stop_requested.set()
        count(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "count", pressing)
        assert main([*options, "--out", "half"]) == 130
    assert "pyroae train --resume half" in capsys.readouterr().err
    assert main(["train", "--resume", "half"]) == 0
    assert same(pa.load("whole/model.safetensors"), pa.load("half/model.safetensors"))
    assert json.loads((tmp_path / "whole/settings.json").read_text()) == json.loads((tmp_path / "half/settings.json").read_text())
    assert main(["train", "--resume", "half", "--epochs", "4"]) == 0 and "4 epochs" in capsys.readouterr().out
    assert main(["train", "--resume", "none"]) == 2 and "--resume RUN" in capsys.readouterr().err


# --- divergence, clipping, parts, bfloat16 ---


class Bursting(torch.nn.Module):
    """A decoder whose output is infinite from one call on."""

    def __init__(self, after):
        super().__init__()
        self.layer = torch.nn.Linear(4, 64)
        self.register_buffer("calls", torch.zeros(()))
        self.after = after

    def forward(self, z):
        self.calls += self.training
        return self.layer(z) / (self.calls < self.after)


def test_divergence_names_step_and_site_and_restores_the_last_finite_weights(tmp_path):
    ae = small_vae().replace(decoder=Bursting(8))
    with pytest.raises(ValueError) as raised:
        quiet(ae, X, epochs=9, batch_size=10, seed=0, run=tmp_path)
    step = int(ae.decoder.calls) - 1  # one call looked at the programs
    said = str(raised.value)
    assert "is nan at step 7 (epoch 2): the model's log-density of the site 'x' is nan in 10 of 10 entries" in said, said
    assert f"those of step {step}" in said and str(tmp_path) in said and all(p.isfinite().all() for p in ae.parameters())
    assert all(w.isfinite().all() for w in Checkpoints(tmp_path).newest()["weights"].values())


def test_retries_halve_a_learning_rate_that_is_too_high(caplog):
    ae = small_vae()
    with caplog.at_level(logging.WARNING, "pyroae"):
        history = quiet(ae, X, lr=1e20, epochs=3, batch_size=10, seed=0, compile=pa.Step(retries=150))
    assert history["lr"][-1] < 1e20 and all(p.isfinite().all() for p in ae.parameters()) and "half the learning rate" in caplog.text


def test_an_infinite_weight_after_the_last_step_is_restored_too():
    whole = {"optimizer": torch.optim.SGD, "lr": 1e38, "epochs": 1, "batch_size": len(X), "seed": 0}
    refused, halved = small_vae(), small_vae()
    with pytest.raises(ValueError, match="at step 1 .* made a weight infinite.* again those from before training"):
        quiet(refused, X, **whole)
    assert quiet(halved, X, compile=pa.Step(retries=150), **whole)["lr"][-1] < 1e38
    assert all(p.isfinite().all() for ae in (refused, halved) for p in ae.parameters())


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_gradients_are_clipped(mode, vae):
    def svi(**more):
        optimizer, seen = torch.optim.SGD(vae.parameters(), lr=0.0), []
        optimizer.register_step_pre_hook(lambda *_: seen.append(torch.cat([p.grad.flatten() for p in vae.parameters()]) / len(X)))
        return pa.SVI(vae.model, vae.guide, optimizer, pa.objectives.IWAE(2), compile=pa.Step(mode, **more)), seen

    (free, whole), (clipped, short) = svi(), svi(clip=0.5)
    for _ in range(3):
        for each in (free, clipped):
            torch.manual_seed(0)
            each.step(X)
    for a, b in zip(whole, short, strict=True):
        assert a.norm() > 0.5 and torch.allclose(b, 0.5 * a / a.norm(), atol=1e-5)


def test_micro_batches_have_the_gradient_of_the_batch(digits):
    ends = []
    for parts in (1, 3):
        ae = small_vae_of(0, prior=pa.priors.Laplace(4), posterior=pa.posteriors.Delta())
        history = quiet(
            ae,
            digits.train.x[:200],
            epochs=2,
            batch_size=100,
            compile=pa.Step(accumulate=parts),
            optimizer=torch.optim.SGD,
            lr=1e-4,
            seed=0,
        )
        ends.append((torch.cat([p.flatten() for p in ae.parameters()]), history.loss[-1]))
    assert torch.allclose(ends[0][0], ends[1][0], atol=1e-5) and ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_mixed_precision_learns_the_same_with_float32_weights(mode, digits):
    losses, ran = {}, []
    for precision in ("highest", "bf16"):
        ae = small_vae_of(0)
        ae.encoder[0].register_forward_hook(lambda module, inputs, result: ran.append(torch.is_autocast_enabled("cpu")))
        losses[precision] = quiet(ae, digits.train, epochs=5, seed=0, compile=pa.Step(mode, precision)).loss
        assert all(p.dtype == torch.float32 for p in ae.parameters())
    assert losses["bf16"] == pytest.approx(losses["highest"], rel=0.01) and losses["bf16"] != losses["highest"] and {True, False} <= {*ran}
