"""Where tensors are once a model is on CUDA: with fake tensors, which have a device and a shape but no values."""

import contextlib

import pyro
import pytest
import test_pairs
import test_parts
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyroae as pa
from pyroae.programs import randomness
from pyroae.training.step.static import Static

PARTS = {name: make for name, make in (test_parts.MODULES | test_parts.DISCRETE).items()} | {"prior Uniform": lambda: pa.priors.Uniform(3)}
UNDRAWN = "likelihood Beta", "likelihood from Pyro"  # torch knows no shape of their draws without a device
LEFT_OUT = {"aten._linalg_check_errors.default"}  # of a graph on CUDA
READS = {"aten._local_scalar_dense.default", "aten.nonzero.default"} | LEFT_OUT


class Watched(TorchDispatchMode):
    """Notes operations that wait for the device: reads of values, and copies between host and device of more than a number."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, got = (
            {t.device.type for t in tree_leaves(each) if isinstance(t, torch.Tensor) and t.dim()} for each in ((args, kwargs), result)
        )
        if str(func) in READS or (given | got) == {"cpu", "cuda"}:
            self.waits.append(str(func))
        return result


def fakes_gamma():
    with contextlib.suppress(NotImplementedError):
        return torch._standard_gamma(torch.empty(1, device="meta")).is_meta
    return False


@contextlib.contextmanager
def fake_cuda(module):
    """The module on a CUDA device; new tensors are fake."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # fake parameters take the place of real ones
    try:
        with pyro.validation_enabled(False), FakeTensorMode(allow_non_fake_inputs=True):
            yield module.to("cuda")
    except (NotImplementedError, RuntimeError) as error:
        if fakes_gamma() or not any(words in str(error) for words in ("_standard_gamma", "no NVIDIA driver")):
            raise
        pytest.skip("this version of torch has no fake draws from a Gamma")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.parametrize("name", PARTS)
def test_what_a_part_computes_is_where_the_part_is(name):
    with fake_cuda(PARTS[name]()) as part:
        h = (torch.empty(4, part.size, device="cuda"),) if getattr(part, "size", 0) else ()
        with Static(), Watched() as watched:
            d = part(*h)
            x = torch.empty(4, 3, device="cuda") if name in UNDRAWN else d.sample()
            log_p = d.log_prob(x)
    assert {x.device.type, log_p.device.type} == {"cuda"}
    assert set(watched.waits) <= LEFT_OUT


def vae(encoder=None, decoder=None, **parts):
    parts = {"prior": pa.priors.Normal(4), "likelihood": pa.likelihoods.Bernoulli(64), "posterior": pa.posteriors.Normal()} | parts
    return pa.Autoencoder(encoder=encoder or pa.nets.MLP(16), decoder=decoder or pa.nets.MLP(16), **parts).train()


def bounded(low):
    return pa.priors.FromDistribution(dist.Uniform(low, 2.0 * torch.ones(4)).to_event(1))


def measured(likelihood):
    likelihood.measure(torch.rand(20, 64))
    return likelihood


MODELS = {
    **{f"prior {name}": lambda make=make: vae(prior=make()) for name, make in test_pairs.PRIORS.items()},
    **{f"posterior {name}": lambda make=make: vae(posterior=make()) for name, make in test_pairs.POSTERIORS.items()},
    **{
        f"likelihood {name}": lambda make=make: vae(likelihood=make())
        for name, make in (test_pairs.LIKELIHOODS | test_pairs.COUNTED).items()
    },
    **{f"corruption {name}": lambda make=make: vae(corruption=make()) for name, make in test_parts.CORRUPTIONS.items()},
    "Uniform and Delta": lambda: vae(prior=pa.priors.Uniform(4), posterior=pa.posteriors.Delta()),
    "a Uniform of tensors and Delta": lambda: vae(prior=bounded(torch.arange(-4.0, 0.0)), posterior=pa.posteriors.Delta()),
    "Flat and Delta": lambda: vae(prior=pa.priors.Flat(4, "unit_interval"), posterior=pa.posteriors.Delta()),
    "Sphere": lambda: vae(prior=pa.priors.Sphere(4), posterior=pa.posteriors.ProjectedNormal()),
    "PowerSpherical": lambda: vae(prior=pa.priors.Sphere(6), posterior=pa.posteriors.PowerSpherical()),
    "Hierarchical": lambda: vae(prior=pa.priors.Hierarchical(4, top=2), posterior=pa.posteriors.Hierarchical()),
    "TopDown": lambda: vae(prior=pa.priors.Hierarchical(4, top=2, skip=True), posterior=pa.posteriors.TopDown()),
    "OneHot": lambda: vae(prior=pa.priors.OneHot(4), posterior=pa.posteriors.OneHot()),
    "Clusters": lambda: vae(prior=pa.priors.Clusters(4), posterior=pa.posteriors.Clusters()),
    "Gumbel": lambda: vae(prior=pa.priors.Bernoulli(4), posterior=pa.posteriors.BernoulliGumbel()),
    "relaxed": lambda: vae(prior=pa.priors.RelaxedOneHot(4), posterior=pa.posteriors.RelaxedOneHot()),
    "SpikeSlab": lambda: vae(prior=pa.priors.SpikeSlab(4)),
    "labels": lambda: vae(condition=pa.conditions.Labels(3)),
    "labels of the prior": lambda: vae(condition=pa.conditions.Labels(3), prior=pa.priors.Conditioned(4)),
    "holes": lambda: vae(likelihood=pa.likelihoods.Missing(pa.likelihoods.Normal(64))),
    "Standardised": lambda: vae(likelihood=measured(pa.likelihoods.Standardised(pa.likelihoods.Normal(64)))),
    "LibrarySize": lambda: vae(likelihood=measured(pa.likelihoods.LibrarySize(pa.likelihoods.Poisson(64)))),
    "Product": lambda: vae(
        likelihood=pa.likelihoods.Product({"a": pa.likelihoods.Normal(60), "b": pa.likelihoods.Poisson(4)}),
    ),
    "convolutions": lambda: vae(pa.nets.Conv([4]), pa.nets.Deconv([4]), likelihood=pa.likelihoods.Bernoulli((1, 8, 8))),
    "gated": lambda: vae(pa.nets.GatedMLP([8]), pa.nets.Residual(8), likelihood=pa.likelihoods.Bernoulli(64)),
    "dropout": lambda: vae(pa.nets.MLP(16, dropout=0.1)),
}
OBJECTIVES = {
    "IWAE": lambda: pa.objectives.IWAE(3),
    "DReG": lambda: pa.objectives.IWAE(3, gradient="dreg"),
    "Renyi": lambda: pa.objectives.Renyi(0.5, particles=3),
    "Tempered": lambda: pa.objectives.Tempered(pa.schedules.Linear(30)),
    "FreeBits": lambda: pa.objectives.FreeBits(0.5),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "MMD": lambda: pa.Penalised(pa.penalties.MMD(3.0)),
    "TotalCorrelation": lambda: pa.Penalised(pa.penalties.TotalCorrelation(1437)),
}


def waits(ae, elbo):
    """The loss's device, and what waits in computing it, after a first time on a CPU."""
    args = [torch.zeros(10, *ae.likelihood.event_shape), *([torch.zeros(10).long()] if ae.condition is not None else [])]
    store = pyro.get_param_store()
    with store.scope(), pyro.validation_enabled(False):
        elbo.differentiable_loss(ae.model, ae.guide, *args)
    with store.scope(), fake_cuda(ae):
        args = [each.to("cuda") for each in args]
        if hasattr(elbo, "to"):
            elbo.to(torch.device("cuda"))
        with Static(), Watched() as watched:
            loss = elbo.differentiable_loss(ae.model, ae.guide, *args)
    return loss.device.type, set(watched.waits)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of what transforms remember, read to copy it
@pytest.mark.parametrize("name", MODELS)
def test_a_loss_is_computed_on_the_models_device_without_a_wait(name):
    ae = MODELS[name]()
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if name in ("OneHot", "Clusters") else Trace_ELBO()
    device, waited = waits(ae, elbo)
    assert device == "cuda" and waited <= LEFT_OUT


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_computed_on_the_models_device_without_a_wait(name):
    assert waits(vae(), OBJECTIVES[name]()) == ("cuda", set())


X = torch.zeros(5, 64)
METHODS = {  # of a model on CUDA, called with data on the CPU
    "encode": lambda ae: ae.encode(X).mean,
    "decode": lambda ae: ae.decode(torch.zeros(5, 4)).mean,
    "reconstruct": lambda ae: ae.reconstruct(X),
    "centre": lambda ae: ae.latent_mean(X),
    "sample": lambda ae: ae.sample(3),
}
EVALUATIONS = {
    "codes": lambda ae: pa.codes(ae, X),
    "reconstruction_error": lambda ae: pa.reconstruction_error(ae, X),
    "elbo_terms": lambda ae: pa.elbo_terms(ae, X, particles=3).elbo,
    "log_likelihood": lambda ae: pa.log_likelihood(ae, X, particles=3, compile="eager").values,
    "log_likelihood from the prior": lambda ae: pa.log_likelihood(ae, X, particles=3, proposal=pa.proposals.prior).values,
    "sbc": lambda ae: pa.sbc(ae, X, draws=3).ranks,
    "active_units": lambda ae: pa.active_units(ae, X).variance,
}


class Answered(TorchDispatchMode):
    """Reads of fake tensors find 1."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else 1.0 if args[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_models_methods_take_data_from_the_cpu(name):
    with fake_cuda(vae()) as ae:
        assert METHODS[name](ae).device.type == "cuda"


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_takes_data_from_the_cpu_and_gives_its_results_there(name, monkeypatch):
    monkeypatch.setattr(randomness, "_gpus", lambda device: [])  # a generator of a GPU needs one
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1e9, 1e9))
    with fake_cuda(vae()) as ae, Answered():
        assert EVALUATIONS[name](ae).device.type == "cpu"
