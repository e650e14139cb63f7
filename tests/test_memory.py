"""What an evaluation does where the device's memory does not hold what it computes at once; memory that is freed and taken again."""

import logging
import os
import platform
import resource
import subprocess
import sys

import pytest
import torch
from conftest import small_vae

import pyroae as pa
from pyroae.evaluation import budget
from pyroae.evaluation.particles import rows_at_once

X = torch.rand(20, 64, generator=torch.Generator().manual_seed(0)).round()
EVALUATIONS = {  # and how many rows the networks may be given at once
    "log_likelihood": (lambda ae: pa.log_likelihood(ae, X, particles=100, proposal="guide").values, 100),
    "log_likelihood, adapted": (lambda ae: pa.log_likelihood(ae, X[:2], particles=50).values, 400),
    "elbo_terms": (lambda ae: pa.elbo_terms(ae, X, particles=100).elbo, 100),
    "ais": (lambda ae: pa.ais(ae, X, chains=8, temperatures=5).values, 100),
    "bdmc": (lambda ae: pa.bdmc(ae, X, chains=8, temperatures=5).lower.values, 100),
    "sbc": (lambda ae: pa.sbc(ae, X, draws=19).ranks, 15),
    "codes": (lambda ae: pa.codes(ae, X), 15),
    "reconstruction_error": (lambda ae: pa.reconstruction_error(ae, X), 15),
    "predictive_check": (lambda ae: pa.predictive_check(ae, X, draws=100, particles=100, proposal="guide").pit, 100),
}
EXACT = "codes", "reconstruction_error"  # no draws, so that the result is the same


def of_small_memory(ae, rows):
    """Its networks fail on more rows."""

    def look(module, inputs):
        if inputs[0].shape[:-1].numel() > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for network in (ae.encoder, ae.decoder):
        network.register_forward_pre_hook(look)
    return ae


@pytest.mark.parametrize("name", EVALUATIONS)
def test_it_goes_on_in_halves_and_says_so_once(name, caplog):
    torch.manual_seed(0)
    evaluation, rows = EVALUATIONS[name]
    expected = evaluation(small_vae())
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, "pyroae"):
        found = evaluation(of_small_memory(small_vae(), rows))
    assert found.shape == expected.shape and 0 < caplog.text.count("going on with half the batch") <= 2
    assert torch.allclose(found.double().mean(), expected.double().mean(), rtol=0.0 if name in EXACT else 0.2, atol=1e-6)


def test_what_does_not_fit_at_all_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        pa.log_likelihood(of_small_memory(small_vae(), 0), X, particles=10, proposal="guide")


def test_pieces_stay_small_once_one_did_not_fit():
    tried = []

    def run(start, stop):
        tried.append((start, stop))
        if stop - start > 3:
            raise torch.OutOfMemoryError
        return stop - start

    pieces = budget.MemoryBudget(10)
    assert sum(pieces.pieces(run, 10)) == 10 and tried == [(0, 10), (0, 5), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert list(pieces.pieces(run, 4)) == [2, 2] and pieces.at_once(per=2) == 1


def test_a_gpu_gives_a_quarter_of_its_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4e8, 16e9))
    assert budget.fitting_rows(1000, 100, torch.device("cuda")) == int(1e8 / 1000 / 32)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80e9, 80e9))
    assert budget.fitting_rows(1000, 100, torch.device("cuda")) == int(2e9 / 1000 / 32)


def test_memory_counts_the_places_of_convolutions():
    ae = small_vae()
    parts = {"likelihood": pa.likelihoods.Bernoulli((1, 16, 16)), "posterior": ae.posterior, "prior": ae.prior}
    ae = pa.Autoencoder(encoder=pa.nets.Conv([8]), decoder=pa.nets.Deconv([8]), **parts)
    assert rows_at_once(ae.model, ae.guide, (torch.zeros(3, 1, 16, 16),)) == int(32e6 / 32 / (8 * 8 * 8))


def test_memory_counts_what_a_mixture_holds():
    few, many = (small_vae(prior=pa.priors.VampPrior(4, components=k)) for k in (2, 500000))
    args = (torch.rand(10, 64).round(),)
    assert rows_at_once(few.model, few.guide, args) > 10 * rows_at_once(many.model, many.guide, args)


PASSES = """
import resource, torch
from pyroae.memory import keep_freed_memory
kept = keep_freed_memory()
def one_pass():
    return [torch.zeros(4_000_000) for _ in range(3)]
for _ in range(3):
    one_pass()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    one_pass()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
@pytest.mark.parametrize("settings, kept", [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, False)])
def test_a_pass_takes_the_memory_of_the_one_before_unless_the_user_has_set_something_else(settings, kept):
    found = subprocess.run([sys.executable, "-c", PASSES], check=True, capture_output=True, text=True, env=os.environ | settings)
    answer, faults = found.stdout.split()
    pages = 10 * 3 * 16_000_000 // resource.getpagesize()
    assert answer == str(kept) and (int(faults) < pages / 2 or not kept)  # with huge pages there are few in either case
