"""Several processes have the results of one: with DistributedDataParallel, and with ``pa.distributed``."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta

import pytest
import torch
from conftest import processes as fresh
from conftest import small_vae
from tape import record_on_cpu
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pyroae as pa
from pyroae.training import distributed as job
from pyroae.training import loop, saving
from pyroae.training.batches import Batches
from pyroae.training.blocks import shard
from pyroae.training.checkpoints import Checkpoints
from pyroae.training.step import svi

OBJECTIVES = {
    "IWAE": lambda: pa.objectives.IWAE(5),
    "DReG": lambda: pa.objectives.IWAE(5, gradient="dreg"),
    "PIWAE": lambda: pa.objectives.PIWAE(2, groups=3),
    "Tempered": lambda: pa.objectives.Tempered(pa.schedules.Linear(10, start=0.5)),
}


def model_and_data():
    torch.manual_seed(0)
    return small_vae(), torch.rand(32, 64).round()


def flat_gradients(ae):
    return torch.cat([p.grad.flatten() for p in ae.parameters()])


def worker(rank, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, make in OBJECTIVES.items():
        ae, x = model_and_data()
        loss = DistributedDataParallel(make()(ae.model, ae.guide))
        torch.manual_seed(rank)
        (loss(x.chunk(2)[rank]) / 16).backward()  # DDP averages over the processes
        found[name] = flat_gradients(ae)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path):
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    theirs = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, make in OBJECTIVES.items():
        ae, x = model_and_data()
        for rank in (0, 1):  # the same noise as the processes', in one batch's sum
            torch.manual_seed(rank)
            (make().differentiable_loss(ae.model, ae.guide, x.chunk(2)[rank]) / 32).backward()
        assert torch.equal(theirs[0][name], theirs[1][name])
        assert torch.allclose(theirs[0][name], flat_gradients(ae), rtol=1e-5, atol=1e-6), name


# --- pa.distributed ---

quiet = functools.partial(pa.fit, progress=False)


def _one(rank, processes, port, folder, what, patience):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.manual_seed(rank)  # processes start apart
    if patience is not None:
        job._TIMEOUT = timedelta(seconds=patience)
    try:
        with pa.distributed():
            found = what()
    except (ValueError, OSError) as error:
        found = error
    torch.save(found, f"{folder}/{rank}.pt")


def by_processes(processes, folder, what, patience=None):
    """The results of all processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [fresh().Process(target=_one, args=(rank, processes, port, str(folder), what, patience)) for rank in range(processes)]
    for each in started:
        each.start()
    for each in started:
        each.join(120)
        each.kill()
    paths = [folder / f"{rank}.pt" for rank in range(processes)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]


together = pytest.mark.skipif(not hasattr(os, "fork") or not distributed.is_available(), reason="needs Unix and torch.distributed")


@pytest.mark.parametrize("n, batch_size, processes", [(100, 10, 2), (103, 10, 3), (7, 4, 2), (9, 4, 2), (10, 16, 3), (5, 5, 5)])
def test_batches_are_sharded_without_overlap(n, batch_size, processes):
    order = torch.randperm(n)
    shares = [shard(order, batch_size, rank, processes) for rank in range(processes)]
    left_out = n % batch_size if n % batch_size < processes else 0
    assert sorted(torch.cat(shares).tolist()) == sorted(order[: n - left_out].tolist())
    sizes = [len(range(rank, batch_size, processes)) for rank in range(processes)]
    first = torch.cat([share[:size] for share, size in zip(shares, sizes)])
    assert sorted(first.tolist()) == sorted(order[:batch_size].tolist())


def points(objective=None):
    """An autoencoder without noise, so that results do not depend on the number of processes."""
    torch.manual_seed(5 + job.rank())
    return small_vae(posterior=pa.posteriors.Delta(), objective=objective)


def trained(compile):
    x = torch.rand(103, 64, generator=torch.Generator().manual_seed(1)).round()
    ae, gradients = points(), []

    def sgd(parameters):
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        optimizer.register_step_pre_hook(lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in ae.parameters()])))
        return optimizer

    history = quiet(ae, x, validation=x[:21], epochs=3, batch_size=20, seed=0, compile=compile, optimizer=sgd)
    return gradients[-1], torch.cat([p.detach().flatten() for p in ae.parameters()]), history.loss, history["validation_loss"]


@together
@pytest.mark.parametrize("processes, compile", [(2, "eager"), (3, "traced")])
def test_processes_have_the_gradients_losses_and_weights_of_one(processes, compile, tmp_path):
    alone = trained("eager")
    found = by_processes(processes, tmp_path, functools.partial(trained, compile))
    for gradients, weights, loss, validation in found:
        assert (gradients - alone[0]).abs().max() < 1e-6 * alone[0].abs().max()
        assert torch.allclose(weights, alone[1], rtol=1e-5, atol=1e-6) and torch.equal(weights, found[0][1])
        assert loss == pytest.approx(alone[2], rel=1e-6) and validation == pytest.approx(alone[3], rel=1e-6)


def trained_by_recordings():
    x = torch.rand(103, 64, generator=torch.Generator().manual_seed(1)).round()
    ae = points()
    with pytest.MonkeyPatch.context() as patch:
        tapes = record_on_cpu(patch)
        history = quiet(ae, x, epochs=6, batch_size=20, seed=0, compile=pa.Step("traced", clip=0.5))
    names = {str(operation[0]) for tape in tapes for operation in tape.operations}
    replays = [tape.replays for tape in tapes]
    return torch.cat([p.detach().flatten() for p in ae.parameters()]), history.loss, replays, {n for n in names if "reduce" in n}


@together
def test_processes_sum_gradients_between_two_recordings(tmp_path):
    alone = trained_by_recordings()
    assert len(alone[2]) == 2  # of whole batches, and of the last one of each epoch, which is short
    for weights, loss, replays, reductions in by_processes(2, tmp_path, trained_by_recordings):
        assert torch.allclose(weights, alone[0], atol=1e-5) and loss == pytest.approx(alone[1], rel=1e-6)
        assert len(replays) == 4 and replays[:2] == replays[:1] * 2 and sum(replays) == 2 * sum(alone[2])
        assert reductions == set()


def vae_trained():
    digits = pa.data.load("digits", binarize="dynamic")
    torch.manual_seed(job.rank())
    ae = pa.recipes.vae(digits, latent_dim=2)
    noise = []
    ae.guide.register_forward_hook(lambda module, inputs, z: noise.append(z.detach().clone()))
    quiet(ae, digits.train, epochs=1, batch_size=300, seed=0, compile="eager")
    return noise[1], [p.detach().clone() for p in ae.parameters()]


@together
def test_processes_have_different_noise_and_the_same_weights(tmp_path):
    (noise, weights), (others, theirs) = by_processes(2, tmp_path, vae_trained)
    assert len(noise) == len(others) == 150 and not torch.equal(noise, others)
    assert all(torch.equal(a, b) for a, b in zip(weights, theirs))


def scored(n):
    ae, x = small_vae(), torch.rand(n, 64, generator=torch.Generator().manual_seed(1)).round()
    for p in ae.parameters():
        torch.nn.init.constant_(p, 0.01)
    estimate = pa.log_likelihood(ae, x, particles=30, seed=4, proposal="guide")
    terms = pa.elbo_terms(ae, x, seed=4, particles=3)
    return estimate.values, estimate.errors, estimate.khat, terms.reconstruction, terms.kl


@together
@pytest.mark.parametrize("n", [200, 30])
def test_sharded_scores_equal_those_of_one_process(n, tmp_path):
    alone = scored(n)
    for found in by_processes(2, tmp_path, functools.partial(scored, n)):
        assert all(torch.equal(a, b) for a, b in zip(found, alone))
    assert len(alone[0].unique()) > n / 2  # keyed by the example, not the same noise for all


def scored_by_auto():
    torch.manual_seed(5)
    ae, x = small_vae(), torch.rand(150, 64, generator=torch.Generator().manual_seed(1)).round()
    estimate = pa.log_likelihood(ae, x, particles=128, seed=4)
    return estimate.values, estimate.errors, estimate.khat, estimate.fitted, estimate.modes


@together
def test_sharded_proposals_equal_those_of_one_process(tmp_path):
    alone = scored_by_auto()
    assert alone[3].any() and not alone[3].all()
    for found in by_processes(2, tmp_path, scored_by_auto):
        assert all(torch.allclose(a.double(), b.double(), atol=1e-5) for a, b in zip(found, alone))


def forms():
    """44 rows in every form of data."""
    x = torch.arange(44.0)[:, None]
    yield "tensor", lambda: x
    yield "Dataset", lambda: TensorDataset(x)
    yield "DataLoader", lambda: DataLoader(TensorDataset(x), 5, sampler=DistributedSampler(TensorDataset(x), 2, job.rank()))


def rows_seen(form):
    batches = Batches(dict(forms())[form](), 10, torch.device("cpu"), shuffle=True, sharded=True)
    epochs = [[(len(x), batches.rows, x) for x, *_ in batches] for _ in range(2)]
    return [torch.cat([x.flatten() for *_, x in epoch]) for epoch in epochs], [(local, rows) for local, rows, _ in epochs[0]]


@together
@pytest.mark.parametrize("form", dict(forms()))
def test_every_form_of_data_is_sharded(form, tmp_path):
    (ours, sizes), (theirs, _) = by_processes(2, tmp_path, functools.partial(rows_seen, form))
    for a, b in zip(ours, theirs):
        assert sorted([*a.tolist(), *b.tolist()]) == list(range(44))
    assert not torch.equal(ours[0], ours[1]) and all(local * 2 == rows for local, rows in sizes)


WRONG = {
    "a batch for fewer processes": (lambda: quiet(points(), torch.ones(20, 64), batch_size=1), "batch_size of at least 2"),
    "a loader that gives everybody the same": (
        lambda: quiet(points(), DataLoader(TensorDataset(torch.ones(20, 64)), 5)),
        "DistributedSampler",
    ),
    "a folder in which another run is": (lambda: in_use(), "another process trains in"),
    "what the first process finds wrong": (lambda: job.run_on_main(lambda: pa.data.load("nowhere.npy")), "no file nowhere.npy"),
}


def doing_wrong(name):
    WRONG[name][0]()


def in_use():
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder).locked():
        quiet(points(), torch.ones(20, 64), run=folder)


@together
@pytest.mark.parametrize("name", WRONG)
def test_errors_are_raised_in_all_processes(name, tmp_path):
    for error in by_processes(2, tmp_path, functools.partial(doing_wrong, name)):
        assert isinstance(error, ValueError) and WRONG[name][1] in str(error)


def queued(total, outputs):
    """A sum over processes as with NCCL: if one of them is dead it never completes and does not fail."""
    with contextlib.suppress(ConnectionError):
        return total(outputs)
    return outputs


def goes_on(folder, ends_after=None, how="dies"):
    """A run in a folder; of several processes the second one may die within an epoch, or stop answering."""
    after_step = loop.Training._after_step

    def ending(self):
        after_step(self)
        if self.step == ends_after and job.rank() == 1:
            time.sleep(6) if how == "hangs" else os._exit(9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "_after_step", ending)
        patch.setattr(loop, "_STEPS_BETWEEN_CHECKS", 4)
        patch.setattr(saving, "_COPY_INTERVAL", 0.0)
        if how == "dies, on CUDA":
            patch.setattr(svi, "_total", functools.partial(queued, svi._total))
        x = torch.rand(103, 64, generator=torch.Generator().manual_seed(1)).round()
        return quiet(points(), x, epochs=4, batch_size=10, compile="eager", seed=0, run=pa.Run(folder, resume=True)).loss


@together
@pytest.mark.parametrize("processes", [1, 3])
def test_a_dead_process_ends_the_job_and_any_number_of_processes_resumes(processes, tmp_path):
    (tmp_path / "whole").mkdir()
    alone = goes_on(tmp_path / "whole")
    (tmp_path / "run").mkdir()
    error, nothing = by_processes(2, tmp_path, functools.partial(goes_on, tmp_path / "run", ends_after=27))
    assert nothing is None and isinstance(error, OSError)  # ConnectionError, which torch.save stores so
    assert "another process of this job has died" in str(error) and "--resume" in str(error)
    kept = Checkpoints(tmp_path / "run").newest()
    assert kept["step"] == 24 and kept["seen"] == 20  # the last step after which all looked, two batches into the third epoch
    for loss in by_processes(processes, tmp_path, functools.partial(goes_on, tmp_path / "run")):
        assert loss == pytest.approx(alone, rel=1e-5)


@together
@pytest.mark.parametrize("how", ["dies, on CUDA", "hangs"])
def test_a_dead_process_is_detected_at_the_next_synchronization(how, tmp_path):
    (tmp_path / "run").mkdir()
    found = by_processes(2, tmp_path, functools.partial(goes_on, tmp_path / "run", ends_after=27, how=how), patience=2.0)
    assert isinstance(found[0], OSError) and "another process of this job has died or cannot be reached" in str(found[0])
    assert Checkpoints(tmp_path / "run").newest()["step"] == 24


def meets_infinity():
    """One process gets a row that is too large for its likelihood."""
    x = torch.rand(40, 64, generator=torch.Generator().manual_seed(1))
    x[7] = 3e38
    likelihood = pa.likelihoods.Normal(64, scale=1.0)
    return quiet(points().replace(likelihood=likelihood), x, batch_size=8, seed=0, lr=1e-9, compile="eager")


@together
def test_all_processes_name_step_and_site_of_a_divergence_in_one(tmp_path):
    said = [str(error) for error in by_processes(2, tmp_path, meets_infinity)]
    assert said[0] == said[1] and "(epoch 1): the model's log-density of the site 'z' is -inf in 1 of 4 entries" in said[0], said


def test_a_single_process_is_not_affected():
    with pa.distributed():
        assert (job.world_size(), job.rank(), job.is_main()) == (1, 0, True)
        tensor = torch.ones(2)
        assert job.all_reduce(tensor, None) == [tensor, None] and job.run_on_main(lambda: 7) == 7
    assert not distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_the_command_under_torchrun_equals_one_process(tmp_path):
    options = ["-m", "pyroae", "train", "--epochs", "40", "--particles", "200", "--out"]
    ways = {"one": [sys.executable], "two": ["torchrun", "--standalone", "--nproc-per-node", "2"]}
    results = {}
    for name, way in ways.items():
        done = subprocess.run(
            [*way, *options, str(tmp_path / name)], env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test ELBO") == 1  # one process speaks
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    assert abs(results["one"]["elbo"] - results["two"]["elbo"]) < 3 * results["one"]["data_se"]
