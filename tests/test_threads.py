"""Calls in two threads have the results of single calls."""

import tempfile
import threading

import pyro
import pytest
import torch
from conftest import small_vae

import pyroae as pa

X = torch.rand(60, 64, generator=torch.Generator().manual_seed(0)).round()


def trained(seed):
    torch.manual_seed(seed)
    ae = small_vae()
    return ae, lambda: pa.fit(ae, X, epochs=4, batch_size=10, seed=seed, progress=False, compile="eager").loss


def scored(seed):
    torch.manual_seed(seed)
    ae = small_vae()
    return ae, lambda: pa.log_likelihood(ae, X, particles=200).values.tolist()


def sampled(seed):
    torch.manual_seed(seed)
    ae = small_vae()
    return ae, lambda: [len(ae.sample(20)) for _ in range(100)]


def stepped(seed):
    torch.manual_seed(seed)
    ae = small_vae()
    svi = pa.SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO(), compile="eager")
    return ae, lambda: [svi.step(X[:10]) > 0 for _ in range(30)]


def made(seed):
    """Construct, change and load models, which draws initial weights."""
    ae = small_vae()

    def make(folder):
        pa.save(ae, f"{folder}/model.safetensors")
        for _ in range(10):
            pa.load(f"{folder}/model.safetensors")
            pa.recipes.sparse(X, hidden=8)
            ae.replace(prior=pa.priors.Flow(4), posterior=pa.posteriors.Flow())
            pa.priors.GaussianMixture(4), pa.priors.Clusters(4)
        return True

    def making():
        with tempfile.TemporaryDirectory() as folder:
            return make(folder)

    return ae, making


CALLS = {
    "two fits": (trained, trained),
    "two scores": (scored, scored),
    "a fit and a score": (trained, scored),
    "a fit and draws from p(x)": (trained, sampled),
    "a fit and a loop of one's own": (trained, stepped),
    "two loops of one's own": (stepped, stepped),
    "a fit and new models": (trained, made),
}


@pytest.mark.parametrize("name", CALLS)
def test_two_threads_do_not_affect_each_other(name):
    alone = [make(seed)[1]() for seed, make in enumerate(CALLS[name])]
    calls, results, start = [make(seed)[1] for seed, make in enumerate(CALLS[name])], [None, None], threading.Barrier(2)

    def run(i):
        start.wait()
        results[i] = calls[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == alone


def test_a_callback_may_score():
    ae, _ = trained(0)
    score = lambda row: row.update(score=pa.log_likelihood(ae, X[:5], particles=5).mean)
    assert len(pa.fit(ae, X, epochs=2, progress=False, callbacks=[score])["score"]) == 2
