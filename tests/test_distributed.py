"""Objectives as modules under DistributedDataParallel: two processes have the gradient that one has."""

import os

import pytest
import torch
from conftest import small_vae
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import pyroae as pa

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
