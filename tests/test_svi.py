"""Invariant 3: traced and compiled equal eager, in loss and gradients, for every pair of parts and every objective."""

import copy
import logging
import random

import pyro
import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoLowRankMultivariateNormal, AutoNormal
from test_bounds import ALL as BOUNDS
from test_pairs import COUNTED, HIERARCHICAL, LIKELIHOODS, POSTERIORS, PRIORS, make
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pyroae as pa
from pyroae.training.precision import matmul_precision
from pyroae.training.step import timing, tracing
from pyroae.training.step.graph import Outputs
from pyroae.training.step.tracing import Traced

STEPS = 4


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "pyroae")
    return lambda: [record.getMessage() for record in caplog.records]


def svi_of(ae, elbo, mode):
    """Steps without effect on the parameters, so that each can be compared."""
    return pa.SVI(ae.model, ae.guide, torch.optim.SGD(ae.parameters(), lr=0.0), elbo, compile=mode, sync=False)


def steps(svi, parameters, *args):
    """Loss and gradients of a few steps from the same seed."""
    torch.manual_seed(1)
    results, gradients = [], []
    svi.optim.register_step_pre_hook(lambda *_: gradients.extend(torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters))
    for _ in range(STEPS):
        loss = svi.step(*args)
        results.append([loss[0] if isinstance(loss, tuple) else loss, *gradients])
        gradients.clear()
    assert all(p.grad is None for p in parameters)
    return results


def level(svi):
    return [level for _, level, _ in svi.levels()["step"]]


def check(ae, elbo, *args, mode="traced", exact=True):
    """Losses and gradients equal bit for bit (or up to rounding), with new noise in every step."""
    parameters = list(ae.train().parameters())
    eager, quick = svi_of(ae, copy.deepcopy(elbo), "eager"), svi_of(ae, copy.deepcopy(elbo), mode)  # schedules go on
    before = [buffer.clone() for buffer in ae.buffers()]  # some programs change them, such as a codebook
    ours = steps(eager, parameters, *args)
    for buffer, value in zip(ae.buffers(), before, strict=True):
        buffer.copy_(value)
    theirs = steps(quick, parameters, *args)
    assert level(quick) == [{"traced": 1, "compiled": 2}[mode]]
    for a, b in zip(sum(ours, []), sum(theirs, []), strict=True):
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
    return [loss.item() for loss, *_ in theirs]


def fresh(losses):
    return len(set(losses)) == STEPS


PAIRS = [(prior, posterior) for prior in PRIORS for posterior in POSTERIORS]


@pytest.mark.parametrize("prior, posterior", PAIRS)
def test_every_prior_and_posterior(prior, posterior, digits, said):
    ae, x = make(PRIORS[prior], POSTERIORS[posterior], LIKELIHOODS["Bernoulli"]), digits.test.x[:16]
    if (prior, posterior) == ("VampPrior", "Flow"):  # the one pair left: inverting an autoregressive flow is a loop over a permutation
        stays_eager(ae, TraceMeanField_ELBO(), x, said, "control flow")
    else:
        assert fresh(check(ae, TraceMeanField_ELBO(), x))


def stays_eager(ae, elbo, x, said, words):
    """It stays eager and logs the reason once."""
    svi = svi_of(ae, elbo, "traced")
    torch.manual_seed(1)
    losses = [svi.step(x) for _ in range(STEPS)]
    assert fresh(losses) and level(svi) == [0]
    assert len(said()) == 1 and "cannot be traced and stays eager" in said()[0] and words in said()[0]


DISCRETE = {
    "OneHotStraightThrough": pa.priors.OneHot,
    "OneHotGumbel": pa.priors.OneHot,
    "BernoulliStraightThrough": pa.priors.Bernoulli,
    "BernoulliGumbel": pa.priors.Bernoulli,
    "RelaxedOneHot": pa.priors.RelaxedOneHot,
    "RelaxedBernoulli": pa.priors.RelaxedBernoulli,
    "ProjectedNormal": pa.priors.Sphere,
    "PowerSpherical": pa.priors.Sphere,
    "Delta": pa.priors.Laplace,
}


@pytest.mark.parametrize("posterior", DISCRETE)
def test_constrained_latents(posterior, digits):
    ae = make(lambda: DISCRETE[posterior](3), getattr(pa.posteriors, posterior), LIKELIHOODS["Bernoulli"])
    for elbo in (TraceMeanField_ELBO(), pa.objectives.IWAE(3)):
        losses = check(ae, elbo, digits.test.x[:16], exact=False)
        assert fresh(losses) or posterior == "Delta"


@pytest.mark.parametrize("codes", ["OneHot", "Clusters"])
def test_enumerated_latents(codes, digits):
    prior = {"OneHot": lambda: pa.priors.OneHot(4), "Clusters": lambda: pa.priors.Clusters(4, 3)}[codes]
    ae = make(prior, getattr(pa.posteriors, codes), LIKELIHOODS["Bernoulli"])
    losses = check(ae, TraceEnum_ELBO(max_plate_nesting=1), digits.test.x[:16], exact=False)
    assert fresh(losses) or codes == "OneHot"


def test_an_affine_flow_as_prior(digits):
    ae = make(lambda: pa.priors.Flow(4, kind="affine", layers=2, hidden=8), POSTERIORS["Normal"], LIKELIHOODS["Bernoulli"])
    assert fresh(check(ae, TraceMeanField_ELBO(), digits.test.x[:16]))


@pytest.mark.parametrize("likelihood", LIKELIHOODS | COUNTED)
def test_every_likelihood(likelihood, grey):
    x = grey.test.x[:16] if likelihood in LIKELIHOODS else (16 * grey.test.x[:16]).round()
    x = x.round() if likelihood == "Bernoulli" else x
    ae = make(PRIORS["Normal"], POSTERIORS["Normal"], (LIKELIHOODS | COUNTED)[likelihood])
    assert fresh(check(ae, TraceMeanField_ELBO(), x))


OBJECTIVES = BOUNDS | {
    "Trace": Trace_ELBO,
    "three particles": lambda: Trace_ELBO(num_particles=3),
    "vectorized": lambda: TraceMeanField_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "TraceGraph": TraceGraph_ELBO,
    "RenyiELBO": lambda: RenyiELBO(num_particles=3),
    "RenyiELBO, vectorized": lambda: RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "Trace_MMD": lambda: Trace_MMD(RBF(64), num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "L2": lambda: pa.Penalised(pa.penalties.L2()),
    "Contractive": lambda: pa.Penalised(pa.penalties.Contractive(0.1)),
    "probes": lambda: pa.Penalised(pa.penalties.Contractive(0.1, probes=2)),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(objective, digits):
    assert fresh(check(small_vae(), OBJECTIVES[objective](), digits.test.x[:16]))


@pytest.mark.parametrize("recipe", pa.recipes.RECIPES)
def test_every_recipe(recipe, grey):
    ae = pa.recipes.RECIPES[recipe](grey)
    labels = [grey.test.labels[:16]] if ae.model.takes_labels else []
    check(ae, ae.objective or TraceMeanField_ELBO(), grey.test.x[:16], *labels)


def test_two_levels_missing_entries_and_corruption(digits):
    check(make(*HIERARCHICAL, LIKELIHOODS["Bernoulli"]), Trace_ELBO(), digits.test.x[:16])
    x = torch.randn(16, 5).masked_fill(torch.rand(16, 5) < 0.3, torch.nan)
    check(small_vae(5, likelihood=pa.likelihoods.Missing(pa.likelihoods.Normal(5))), TraceMeanField_ELBO(), x)
    for corruption in (pa.corruption.Masking(0.3), pa.corruption.SaltPepper(0.3), pa.corruption.Gaussian(0.3)):
        assert fresh(check(small_vae(corruption=corruption), TraceMeanField_ELBO(), digits.test.x[:16]))


# --- Inductor: one of everything here, more in the slow test ---


def test_compiled_equals_eager(digits):
    assert fresh(check(small_vae(), TraceMeanField_ELBO(), digits.test.x[:16], mode="compiled", exact=False))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["IWAE", "DReG", "CIWAE", "Tempered", "Contractive"])
def test_compiled_objectives_equal_eager(objective, digits):
    assert fresh(check(small_vae(), OBJECTIVES[objective](), digits.test.x[:16], mode="compiled", exact=False))


@pytest.mark.slow
@pytest.mark.parametrize("prior, posterior", [("VampPrior", "LowRankNormal"), ("Laplace", "FullNormal"), ("GaussianMixture", "Flow")])
def test_compiled_pairs_equal_eager(prior, posterior, digits):
    ae = make(PRIORS[prior], POSTERIORS[posterior], LIKELIHOODS["Bernoulli"])
    assert fresh(check(ae, TraceMeanField_ELBO(), digits.test.x[:16], mode="compiled", exact=False))


def test_without_a_compiler_it_stays_traced_and_warns_once(digits, said, monkeypatch):
    import torch._inductor

    def compile(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setenv("PYROAE_GRAPHS", "off")
    for name in ("compile", "aot_compile"):
        monkeypatch.setattr(torch._inductor, name, compile)
    svi = svi_of(small_vae(), TraceMeanField_ELBO(), "compiled")
    steps(svi, [], digits.test.x[:16])
    assert level(svi) == [1] and len(said()) == 1 and "cannot be compiled and stays traced: RuntimeError: No working C++" in said()[0]


# --- what may change between steps ---


def both(change, x, elbo=TraceMeanField_ELBO, ae=None):
    """Losses of three phases of eager and of traced steps; ``change(ae, svi, phase)`` returns the data of a phase."""
    losses = []
    for mode in ("eager", "traced"):
        torch.manual_seed(0)
        model = (ae or small_vae)()
        model.train()
        svi = pa.SVI(model.model, model.guide, torch.optim.Adam(model.parameters(), lr=0.01, fused=True), elbo(), compile=mode)
        losses.append([svi.step(change(model, svi, stretch, x)) for stretch in range(3) for _ in range(3)])
        losses[-1] += [p.abs().sum().item() for p in model.parameters()] + [b.double().sum().item() for b in model.buffers()]
    assert losses[0] == losses[1]
    return svi


def test_batch_size(digits):
    svi = both(lambda ae, svi, stretch, x: x[: (16, 7, 16)[stretch]], digits.test.x)
    assert level(svi) == [1, 1]


def test_train_and_eval_with_dropout_and_batch_normalisation(digits):
    def net():
        layers = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 8)
        parts = pa.priors.Normal(4), pa.likelihoods.Bernoulli(64), pa.posteriors.Normal(), nn.Sequential(*layers), pa.nets.MLP(16)
        return pa.Autoencoder(*parts)

    svi = both(lambda ae, svi, stretch, x: (ae.train(stretch != 1), x[:16])[1], digits.test.x, ae=net)
    assert level(svi) == [1, 1]


def test_beta_set_between_steps(digits):
    def change(ae, svi, stretch, x):
        svi.elbo.beta = (0.0, 0.5, 4.0)[stretch]
        return x[:16]

    both(change, digits.test.x, lambda: pa.objectives.Tempered(1.0))


def test_a_tensor_changed_in_place(digits):
    weight = torch.ones(())

    def change(ae, svi, stretch, x):
        weight.fill_(stretch)
        return x[:16]

    svi = both(change, digits.test.x, lambda: pa.Penalised(lambda x, z, q: weight * z.square().sum(-1).mean()))
    assert level(svi) == [1]


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_loaded_and_frozen_weights(digits):
    other = small_vae()

    def change(ae, svi, stretch, x):
        if stretch == 1:
            ae.load_state_dict(other.state_dict())
        ae.encoder[0].weight.requires_grad_(stretch != 2)
        return x[:16]

    both(change, digits.test.x)


def test_too_many_specializations_fall_back_to_eager(digits, said):
    svi = svi_of(small_vae(), TraceMeanField_ELBO(), "traced")
    losses = [svi.step(digits.test.x[:n]) for n in range(1, 15)]
    assert (
        len(losses) == 14
        and len(level(svi)) <= tracing._MAX_SPECIALIZATIONS + 1
        and ["more than 8 specializations" in line for line in said()] == [True]
    )


# --- programs of all sorts ---


def plain_program(noise=lambda: 0.0):
    """Functions with parameters in Pyro's store."""

    def model(x):
        mu = pyro.param("svi_mu", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z + noise(), 1.0), obs=x)

    def guide(x):
        scale = pyro.param("svi_scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    return model, guide


def test_equals_pyros_svi_with_pyros_optimizers():
    x, ends = torch.randn(50), []
    for kind in (pyro.infer.SVI, pa.SVI):
        pyro.get_param_store().clear()
        torch.manual_seed(0)
        options = {"compile": "traced"} if kind is pa.SVI else {}
        svi = kind(*plain_program(), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(), **options)
        losses = [float(svi.step(x)) for _ in range(20)]
        ends.append([*losses, float(svi.evaluate_loss(x)), pyro.param("svi_mu").item(), pyro.param("svi_scale").item()])
    assert level(svi) == [1]
    pyro.get_param_store().clear()
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def regression(x):
    w, s = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1)), pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w.sum(), s), obs=x)


def subsampled(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=10) as rows:
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[rows])


def masked(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x > 0):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu[k], 1.0), obs=x)


def chain(x):
    p, mu = pyro.sample("p", dist.Dirichlet(torch.ones(2, 2)).to_event(1)), pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    z = 0
    for t in pyro.markov(range(5)):
        z = pyro.sample(f"z{t}", dist.Categorical(p[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"x{t}", dist.Normal(mu[z], 1.0), obs=x[t])


def point(*names):
    return lambda model: AutoDelta(pyro.poutine.block(model, expose=names))


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize(
    "model, guide, elbo",
    [
        (regression, AutoNormal, Trace_ELBO()),
        (regression, AutoLowRankMultivariateNormal, Trace_ELBO()),
        (regression, AutoIAFNormal, Trace_ELBO()),
        (subsampled, AutoNormal, Trace_ELBO()),
        (masked, AutoNormal, TraceMeanField_ELBO()),
        (mixture, point("weights", "mu"), TraceEnum_ELBO(max_plate_nesting=1)),
        (chain, point("p", "mu"), TraceEnum_ELBO(max_plate_nesting=0)),
    ],
    ids=["mean field", "low rank", "flow", "subsampled", "masked", "enumerated mixture", "enumerated chain"],
)
def test_programs_of_other_styles(model, guide, elbo):
    x, losses = torch.randn(40), []
    for mode in ("eager", "traced"):
        pyro.get_param_store().clear()
        torch.manual_seed(0)
        svi = pa.SVI(model, guide(model), pyro.optim.Adam({"lr": 0.02}), elbo, compile=mode)
        losses.append([svi.step(x) for _ in range(6)])
    pyro.get_param_store().clear()
    assert level(svi) == [1] and len(set(losses[1])) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_entries_behind_a_mask_that_are_summed_are_traced():
    x = torch.randn(20)
    traced = Traced(lambda x: Outputs([x.exp()[x > 0].sum()]), mode="traced")
    for sign in (1, 1, 1, -1):
        assert torch.allclose(traced(sign * x)[0], (sign * x).exp()[sign * x > 0].sum())
    assert [spec.level for spec in traced.specializations] == [1]


def test_operations_on_the_number_of_masked_entries_are_not_traced(said):
    x = torch.randn(20)
    traced = Traced(lambda x: Outputs([x[x > 0].sort().values[:1]]), mode="traced")
    for sign in (1, 1, 1, -1):
        assert torch.equal(traced(sign * x)[0], (sign * x)[sign * x > 0].min()[None])
    assert traced.mode == "eager" and "sort of the entries that a mask takes out" in said()[0]


@pytest.mark.parametrize(
    "noise, words",
    [
        (random.Random(0).random, "a Random, in which changes cannot be seen"),
        (lambda: 1.0 if pyro.param("svi_mu") > 0 else 2.0, "control flow"),
    ],
    ids=["Python's random numbers", "a branch on a value"],
)
def test_the_reason_why_a_program_cannot_be_traced_is_logged(noise, words, said):
    svi = pa.SVI(*plain_program(noise), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(), compile="traced")
    losses = [svi.step(torch.ones(50)) for _ in range(5)]
    pyro.get_param_store().clear()
    assert len(set(losses)) == 5 and level(svi) == [0] and len(said()) == 1 and words in said()[0]


def test_mode_changes_of_modules_that_are_only_called_are_noticed():
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z[:, None])[:, 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x))

    svi = pa.SVI(model, guide, torch.optim.SGD(net.parameters(), lr=0.0), Trace_ELBO(), compile="traced")
    x = torch.ones(20)
    training = {svi.step(x) for _ in range(4)}
    net.eval()
    judging = {svi.step(x) for _ in range(4)}
    pyro.get_param_store().clear()
    assert len(training) > 1 and len(judging) == 1 and level(svi) == [1, 1]


# --- when ---


@pytest.mark.parametrize("cost, calls, level", [(0.0, 1000, 1), (0.0, 5, 0), (1e9, 1000, 0), (0.0, None, 1), (1e9, None, 0)])
def test_auto_builds_a_graph_if_the_calls_repay_it(cost, calls, level, monkeypatch):
    monkeypatch.setattr(timing, "_COST", {"traced": (cost, 0.0), "compiled": (1e9, 0.0)})
    x, traced = torch.ones(3), Traced(lambda x: Outputs([x.exp()]), calls=calls)
    for _ in range(9):
        assert torch.equal(traced(x)[0], x.exp())
    assert [each[1] for each in traced.levels()] == [1] * level


def test_auto_walks_a_program_only_for_a_worthwhile_graph(monkeypatch):
    walks, look = [], Traced.walk
    monkeypatch.setattr(Traced, "walk", lambda self, objects=(): walks.append(1) or look(self, objects))
    monkeypatch.setattr(timing, "_COST", {"traced": (0.0, 1e9), "compiled": (1e9, 0.0)})
    whole, part, traced = torch.ones(8), torch.ones(3), Traced(lambda x: Outputs([x.exp()]))
    for _ in range(20):
        traced(whole)
    assert not walks and not traced.levels()
    traced.times[next(iter(traced.times))].operations = 0  # counted again, and free
    monkeypatch.setattr(timing, "_COST", {"traced": (0.0, 0.0), "compiled": (1e9, 0.0)})
    for _ in range(10):
        traced(whole)
    before = len(walks)
    for x in (part, whole) * 2:  # calls that stay eager do not make the graph's be looked at again
        assert torch.equal(traced(x)[0], x.exp())
    assert traced.levels()[0][:2] == (8, 1) and before == len(walks) > 0


def test_calls_of_one_structure_share_their_times_until_they_are_distinguished(monkeypatch):
    monkeypatch.setattr(timing, "_COST", {"traced": (0.0, 0.0), "compiled": (1e9, 0.0)})
    model = nn.Dropout(0.5)
    traced = Traced(lambda x: Outputs([model(x).sum() * 0.0 + model.p]), [model])
    for i in range(40):
        model.train(i % 2 == 0)
        assert traced(torch.ones(4))[0] == 0.5
    assert [level for _, level, _ in traced.levels()] == [1, 1]


def test_auto_uses_a_rebuilt_graph(monkeypatch):
    monkeypatch.setattr(timing, "_COST", {"traced": (1e9, 0.0), "compiled": (1e9, 0.0)})  # none of its own
    vae, x = small_vae(), torch.ones(8, 64)
    svi = pa.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), Trace_ELBO())
    svi.step(x)
    svi.rebuild_graph("step", 1, 7, x)
    for _ in range(3):
        svi.step(x)
    assert svi.levels()["step"] == [(8, 1, 10)]
    (spec,) = svi._gradients.specializations
    assert spec.times.operations == len(spec.graph) > 0  # so that it may still be compiled


def test_steps_and_losses_share_a_budget():
    vae = small_vae()
    svi = pa.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), Trace_ELBO())
    assert svi._gradients.budget is svi._losses.budget
    graph = timing.CallTimes(svi._losses.budget)
    graph.timed, graph.seconds, graph.done, graph.operations = 5, 0.05, 10**6, 100
    assert graph.repays("traced", None)
    svi._gradients.budget.spent = 0.15  # 0.15 s behind already, and 0.07 to come
    assert not graph.repays("traced", None) and graph.repays("traced", 1000.0)


def test_a_traced_graph_saves_what_is_around_operations_however_long_they_take():
    times = timing.CallTimes(timing.TimeBudget())
    times.timed, times.seconds, times.operations = 5, 0.5, 100  # a call of 0.1 s, of which it can save 0.5 ms; 0.08 s to trace
    assert not times.repays("traced", 100.0) and times.repays("traced", 200.0)


def test_fit_traced_equals_eager(digits):
    """Last short batches, validation and early stopping included."""
    ends = []
    for mode in ("eager", "traced"):
        torch.manual_seed(0)
        ae = small_vae(corruption=pa.corruption.Masking(0.2))
        x = digits.train.x[:300]
        history = pa.fit(
            ae, x, validation=pa.Validation(digits.test, patience=1), epochs=3, batch_size=64, seed=0, compile=mode, progress=False
        )
        ends.append([history.loss, history["validation_loss"], [p.abs().sum().item() for p in ae.parameters()]])
    assert ends[0] == ends[1]


@pytest.mark.parametrize("precision", ["auto", "highest", "medium"])
def test_precision_ends_with_the_call(precision, digits):
    inside = []
    ae = small_vae()
    setting, words = torch.backends.mkldnn.matmul, {"highest": "ieee", "medium": "bf16"}
    before = setting.fp32_precision
    ae.encoder.register_forward_hook(lambda *_: inside.append(setting.fp32_precision))
    pa.fit(ae, digits.train.x[:64], epochs=2, progress=False, compile=pa.Step(precision=precision))
    pa.log_likelihood(ae, digits.test.x[:2], particles=3, precision=precision, proposal="guide")
    assert precision == "auto" or set(inside[1:]) == {words[precision]}
    assert setting.fp32_precision == before and torch.get_float32_matmul_precision() == "highest"


def test_tf32_set_by_either_interface_is_restored(digits):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"  # torch's older getter refuses to answer from here on
        pa.fit(small_vae(), digits.train.x[:64], epochs=1, progress=False)
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("precision, inside", [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_precision_on_cuda_applies_to_products_and_convolutions(precision, inside):
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [place.fp32_precision for place in places]
    with FakeTensorMode(), matmul_precision(precision, [torch.empty(2, 2, device="cuda")]):
        assert [place.fp32_precision for place in places] == [inside, inside]
    assert [place.fp32_precision for place in places] == before


@pytest.mark.parametrize("wrong, words", [({"compile": "fast"}, "'compiled', got 'fast'"), ({"precision": "low"}, "'bf16', got 'low'")])
def test_bad_modes_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        pa.Step(**wrong)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["traced", "compiled"])
def test_the_whole_step_is_one_cuda_graph(mode, digits):
    """Losses equal eager ones, with new noise in every replay, a new learning rate, a short batch; no synchronization."""
    ends = []
    for how in ("eager", mode):
        torch.manual_seed(0)
        ae = small_vae().cuda().train()
        svi = pa.SVI(ae.model, ae.guide, torch.optim.Adam(ae.parameters(), fused=True), TraceMeanField_ELBO(), compile=how, sync=False)
        torch.manual_seed(1)
        losses = []
        for stretch in range(3):
            svi.optim.param_groups[0]["lr"] = (1e-3, 1e-2, 1e-3)[stretch]
            x = digits.train.x[: (128, 128, 50)[stretch]].cuda()
            losses += [svi.step(x) for _ in range(8)]
        ends.append(torch.stack(losses).tolist())
    assert len(svi._recorder.recordings) == 2 and len(set(ends[1])) == 24
    assert ends[0] == pytest.approx(ends[1], rel=1e-2)
    for _ in range(3):
        svi.step(x)  # the 8th call of a graph is a proof, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        svi.step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- evaluation ---


@pytest.mark.parametrize("name", ["plain", "two levels", "flow", "labels"])
def test_traced_evaluation_equals_eager(name, digits, monkeypatch):
    parts = {
        "plain": {},
        "two levels": {"prior": pa.priors.Hierarchical(4, top=2, hidden=8), "posterior": pa.posteriors.Hierarchical(hidden=8)},
        "flow": {"posterior": pa.posteriors.Flow(hidden=8)},
        "labels": {"condition": pa.conditions.Labels(10)},
    }[name]
    ae, rows = small_vae(**parts), []
    x = digits.test.x[:100], digits.test.labels[:100]
    x = x if name == "labels" else x[0]
    eager = pa.log_likelihood(ae, x, particles=6000, compile="eager", proposal="guide")
    forward = type(ae.decoder).forward
    counted = lambda self, x: (self is ae.decoder and rows.append(len(x)), forward(self, x))[1]
    monkeypatch.setattr(type(ae.decoder), "forward", counted)
    traced = pa.log_likelihood(ae, x, particles=6000, compile="traced", proposal="guide")
    assert torch.equal(eager.values, traced.values) and torch.equal(eager.khat, traced.khat)
    assert sum(rows) < 100 * 6000 / 2  # Python has run for a few passes only


def test_compiled_evaluation_equals_eager(digits):
    ae, x = small_vae(), digits.test.x[:64]
    eager, compiled = (pa.log_likelihood(ae, x, particles=3000, compile=mode, proposal="guide").values for mode in ("eager", "compiled"))
    assert torch.allclose(eager, compiled, atol=1e-4)
