"""Scores of other programs than an Autoencoder's: exact, or refused by name, without side effects."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import nn

import pyroae as pa
from pyroae import programs
from pyroae.evaluation.particles import matrices, prepared
from pyroae.programs.probing import trials_of

X = torch.linspace(-2.0, 3.0, 150)
NORMAL = dist.Normal(0.0, 1.0)


def prepare(model, guide, x):
    with programs.eval_mode(model, guide, seed=0):
        return prepared(x, model, guide)[:2]


# --- z ~ N(0, 1), x ~ N(z + a, 1) for 3 x or one, a known; the guide is the exact posterior, so that one particle is exact ---


def exact(x, steps=1, a=0.0):
    """log p of ``steps`` observations, all equal to x."""
    covariance = torch.ones(steps, steps) + torch.eye(steps)
    return dist.MultivariateNormal(torch.zeros(steps), covariance).log_prob((x - a)[:, None].expand(-1, steps)).double()


def posterior(x, steps=1, a=0.0):
    return dist.Normal(steps * (x - a) / (1 + steps), (1 / (1 + steps)) ** 0.5)


OFFSET = torch.linspace(-5.0, 5.0, len(X))


def row_constants():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(z + OFFSET[: len(x)], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x, a=OFFSET[: len(x)]))

    return model, guide, exact(X, a=OFFSET)


def late_row_constants():
    """Constants that differ only after the first 100 rows."""
    late = torch.where(torch.arange(len(X)) < 100, 0.0, 3.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(z + late[: len(x)], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x, a=late[: len(x)]))

    return model, guide, exact(X, a=late)


def centred():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(z + x.mean(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x, a=x.mean()))

    return model, guide, exact(X, a=X.mean())


def fixed_size():
    def model(x):
        with pyro.plate("data", 150):
            pyro.sample("x", dist.Normal(pyro.sample("z", NORMAL), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 150):
            pyro.sample("z", posterior(x))

    return model, guide, exact(X)


def drawn_rows():
    def model(x):
        with pyro.plate("data", 150, subsample_size=64) as rows:
            pyro.sample("x", dist.Normal(pyro.sample("z", NORMAL), 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 150, subsample_size=64) as rows:
            pyro.sample("z", posterior(x[rows]))

    return model, guide, exact(X)


def batches_of_a_larger_set():
    def model(x):
        with pyro.plate("data", 10_000, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", NORMAL), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 10_000, subsample_size=len(x)):
            pyro.sample("z", posterior(x))

    return model, guide, exact(X)


def drawn_steps():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            for t in pyro.plate("t", 3, subsample_size=1):
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x, 3))

    return model, guide, exact(X, 3)


def drawn_steps_at_once():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            with pyro.plate("t", 3, subsample_size=2, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x, 3))

    return model, guide, exact(X, 3)


def data_on_the_left():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", NORMAL)
            with pyro.plate("t", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, None])

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", posterior(x[:, None], 3))

    return model, guide, exact(X, 3)


def scaled():
    model, guide, value = batches_of_a_larger_set()
    return poutine.scale(model, 0.01), poutine.scale(guide, 0.01), value


def relative_to_the_batch(statistic):
    """Every example has an offset that depends on all of them."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(z + statistic(x), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x, a=statistic(x)))

    return model, guide, exact(X, a=statistic(X))


def largest_of_sorted_data():
    return relative_to_the_batch(torch.max)


def previous_example():
    return relative_to_the_batch(lambda x: 0.5 * x.roll(1))


def few_row_constants():
    rare = torch.where(torch.arange(len(X)) % 50 == 17, 3.0, 0.0)
    return relative_to_the_batch(lambda x: rare[: len(x)])


EXACT = [
    largest_of_sorted_data,
    previous_example,
    few_row_constants,
    row_constants,
    late_row_constants,
    centred,
    fixed_size,
    drawn_rows,
    batches_of_a_larger_set,
    drawn_steps,
    drawn_steps_at_once,
    data_on_the_left,
    scaled,
]
WHOLE = (largest_of_sorted_data, previous_example, few_row_constants, row_constants, late_row_constants, centred, fixed_size, drawn_rows)


@pytest.mark.parametrize("program", EXACT, ids=lambda program: program.__name__)
def test_scores_are_exact_for_all_kinds_of_rows_and_plates(program):
    model, guide, value = program()
    assert torch.allclose(pa.log_likelihood(model, X, guide, particles=3).values, value, atol=1e-4)
    terms = pa.elbo_terms(model, X, guide, particles=4000)
    assert torch.allclose(terms.elbo, value, atol=0.35) and terms.elbo.mean().item() == pytest.approx(value.mean().item(), abs=0.02)
    assert trials_of(prepare(model, guide, X)[0]).splits == (program not in WHOLE)
    assert pa.codes(model, X, guide).shape == (150, 1)


def test_annealing_and_proposals_use_all_rows_too():
    model, guide, value = row_constants()
    assert torch.allclose(pa.ais(model, X, guide, chains=2, temperatures=3).values, value, atol=1e-4)
    assert torch.allclose(pa.log_likelihood(model, X, guide, particles=3, proposal=pa.proposals.Laplace(5)).values, value, atol=2e-3)
    assert torch.allclose(pa.codes(model, X, guide)[:, 0], posterior(X, a=OFFSET).mean.double(), atol=1e-6)


def chained(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", NORMAL)
        pyro.sample("x", dist.Normal(z.cumsum(-1), 1.0), obs=x)


def as_many_columns(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("t", 150, dim=-1):
        pyro.sample("x", NORMAL, obs=x[:, None])


def prior_of_z(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", NORMAL)


REFUSED = {
    "latents of others": (chained, "an example depends on the latents of others", prior_of_z),
    "two plates of one size": (as_many_columns, "the plates 'data' and 't' both have size 150"),
    "a sequential plate": (lambda x: [pyro.sample(f"x{i}", NORMAL, obs=x[i]) for i in pyro.plate("rows", len(x))], "'rows' is sequential"),
    "no plate": (
        lambda x: pyro.sample("x", NORMAL.expand([len(x)]).to_event(1), obs=x),
        "site 'x' is not inside a plate.*the 150 examples",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_programs_that_do_not_split_into_examples_are_refused(name):
    model, words, *guide = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        pa.log_likelihood(model, X, guide[0] if guide else lambda x: None, particles=3)


def test_a_model_with_noise_outside_its_sites_gets_no_proposal():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(z, 1.0 + torch.rand(())), obs=x)

    with pytest.raises(ValueError, match="draws random numbers outside its sample statements"):
        pa.log_likelihood(model, 5.0 + X, prior_of_z, particles=200)


@pytest.mark.parametrize("program", [drawn_steps, fixed_size, row_constants], ids=lambda program: program.__name__)
def test_more_rows_than_fit_into_memory_are_probed_in_part(program, monkeypatch):
    """Probed on 20 rows; a program for all rows only is run on all."""
    monkeypatch.setattr("pyroae.programs.probing._MAX_ACTIVATIONS", 20)
    model, guide, value = program()
    assert torch.allclose(pa.log_likelihood(model, X, guide, particles=3).values, value, atol=1e-4)


# --- masks ---

SEEN = torch.arange(60) % 2 == 0


def masked(fn, guide_fn, guide_is_masked):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn, obs=x, obs_mask=SEEN)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=~SEEN if guide_is_masked else torch.tensor(True)):
            pyro.sample("x_unobserved", guide_fn)

    return model, guide


@pytest.mark.parametrize("guide_is_masked", [True, False])
def test_half_of_the_data_observed(guide_is_masked):
    classes, fn = torch.arange(60) % 3, dist.Categorical(torch.tensor([0.2, 0.3, 0.5]))
    pair = masked(fn, dist.Categorical(torch.tensor([0.6, 0.3, 0.1])), guide_is_masked)
    value = torch.where(SEEN, fn.log_prob(classes), 0.0).double()
    score = pa.log_likelihood(pair[0], classes, pair[1], particles=20_000)
    assert torch.allclose(score.values, value, atol=0.05) and torch.allclose(score.values[SEEN], value[SEEN], atol=1e-6)
    assert (pa.elbo_terms(pair[0], classes, pair[1]).elbo[SEEN] - value[SEEN]).abs().max() < 1e-6


@pytest.mark.parametrize("guide_is_masked", [True, False])
def test_half_of_real_numbers_observed(guide_is_masked):
    x, pair = X[:60], masked(dist.Normal(1.0, 2.0), dist.Normal(0.0, 3.0), guide_is_masked)
    value = torch.where(SEEN, dist.Normal(1.0, 2.0).log_prob(x), 0.0).double()
    estimates = {
        "guide": pa.log_likelihood(pair[0], x, pair[1], particles=2000).values,
        "Laplace": pa.log_likelihood(pair[0], x, pair[1], particles=2000, proposal=pa.proposals.Laplace(5)).values,
        "annealed": pa.ais(pair[0], x, pair[1], chains=8, temperatures=30).values,
    }
    for name, values in estimates.items():
        assert torch.allclose(values[SEEN], value[SEEN], atol=0.05 if name == "annealed" else 1e-4), name
        assert torch.allclose(values, value, atol=0.35), name
    assert (pa.elbo_terms(pair[0], x, pair[1], particles=50).elbo <= value + 0.35).all()


# --- networks that take one batch dimension alone ---


class Upsampling(nn.Module):
    """A decoder to images of 4 x 4 by ``view``."""

    def __init__(self):
        super().__init__()
        self.linear, self.convolution = nn.Linear(2, 16), nn.ConvTranspose2d(4, 1, 2, 2)

    def forward(self, z):
        return self.convolution(self.linear(z).relu().view(-1, 4, 2, 2)).flatten(1)


class Columns(nn.Module):
    """A decoder that takes z's columns by position."""

    def forward(self, z):
        return torch.stack([z[:, 0] * z[:, 1] + i for i in range(16)], 1)


class LeadingDimensions(nn.Module):
    """A network that accepts any dimensions left of the last."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z):
        return self.network(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)


NETWORKS = {
    "view": Upsampling,
    "batch normalisation": lambda: nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16)),
    "as many channels as rows": lambda: nn.Sequential(nn.Linear(2, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 16)),
    "unflatten": lambda: nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 4, 1), nn.Flatten()),
    "columns": Columns,
}
PIXELS = (torch.rand(12, 16, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def image_pair(decoder, encoder, rows=None):
    def model(x):
        with pyro.plate("data", rows or len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", rows or len(x)):
            h = encoder(x)
            pyro.sample("z", dist.Normal(h[..., :2], h[..., 2:].exp()).to_event(1))

    return model, guide


SCORES = {
    "IWAE": lambda model, guide: torch.tensor(pa.objectives.IWAE(5).loss(model, guide, PIXELS)),
    "DReG": lambda model, guide: torch.tensor(pa.objectives.IWAE(3, groups=2, gradient="dreg").loss(model, guide, PIXELS)),
    "PIWAE": lambda model, guide: torch.tensor(pa.objectives.PIWAE(3, groups=2).loss(model, guide, PIXELS)),
    "FreeBits": lambda model, guide: torch.tensor(pa.objectives.FreeBits(0.1, particles=4).loss(model, guide, PIXELS)),
    "log_likelihood": lambda model, guide: pa.log_likelihood(model, PIXELS, guide, particles=40, proposal="guide", compile="eager").values,
    "traced": lambda model, guide: pa.log_likelihood(model, PIXELS, guide, particles=40, proposal="guide", compile="traced").values,
    "elbo_terms": lambda model, guide: pa.elbo_terms(model, PIXELS, guide).elbo,
    "ais": lambda model, guide: pa.ais(model, PIXELS, guide, chains=3, temperatures=8, leapfrog=2).values,
    "predictive_check": lambda model, guide: pa.predictive_check(model, PIXELS, guide, draws=5).pit,
}


def scores_of(pair, names=tuple(SCORES)):
    found = {}
    for name in names:
        torch.manual_seed(0)
        found[name] = SCORES[name](*pair)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_leading_dimensions_do_not_change_scores(name):
    decoder, encoder = NETWORKS[name](), nn.Linear(16, 4)
    for batch in PIXELS.split(4):  # statistics of batches
        decoder(encoder(batch)[:, :2])
    decoder.eval()
    pair = image_pair(decoder, encoder)
    assert [trials_of(program).how for program in prepare(*pair, PIXELS)] == ["fold", "plate"]
    expected = scores_of(image_pair(LeadingDimensions(decoder), encoder))
    for score, value in scores_of(pair).items():
        assert torch.allclose(value, expected[score], rtol=1e-4, atol=1e-4), score


def test_a_program_for_all_rows_without_leading_dimensions_runs_particle_by_particle():
    decoder, encoder = Upsampling(), nn.Linear(16, 4)
    pair, names = image_pair(decoder, encoder, rows=12), ("IWAE", "DReG", "PIWAE", "log_likelihood", "traced", "elbo_terms", "ais")
    prepared_pair = prepare(*pair, PIXELS)
    assert [trials_of(program).how for program in prepared_pair] == ["loop", "plate"] and not trials_of(prepared_pair[0]).splits
    expected = scores_of(image_pair(LeadingDimensions(decoder), encoder), names)
    for score, value in scores_of(pair, names).items():
        assert torch.allclose(value, expected[score], rtol=1e-4, atol=1e-4), score


@pytest.mark.parametrize("rows", [None, 12])
def test_a_guide_of_two_levels_without_leading_dimensions(rows):
    upper = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    encoder = nn.Linear(16, 4)

    def pair_with(network):
        def model(x):
            with pyro.plate("data", rows or len(x)):
                z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                z1 = pyro.sample("z1", dist.Normal(network(z2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z1.sum(-1, keepdim=True), 1.0).expand_by([]).to_event(1), obs=x[:, :1])

        def guide(x):
            with pyro.plate("data", rows or len(x)):
                h = encoder(x)
                z2 = pyro.sample("z2", dist.Normal(h[..., :2], h[..., 2:].exp()).to_event(1))
                pyro.sample("z1", dist.Normal(network(z2), 1.0).to_event(1))

        return model, guide

    own, reference = pair_with(upper), pair_with(LeadingDimensions(upper))
    assert [trials_of(program).how for program in prepare(*own, PIXELS)] == 2 * ["loop" if rows else "fold"]
    assert [trials_of(program).how for program in prepare(*reference, PIXELS)] == ["plate", "plate"]
    for make in (lambda: pa.objectives.IWAE(2000), lambda: pa.objectives.Renyi(1.0, 2000)):
        ours, theirs = (make().loss(*pair, PIXELS) for pair in (own, reference)) if rows is None else (0.0, 0.0)
        assert ours == pytest.approx(theirs, abs=3.0)
    values = [pa.log_likelihood(pair[0], PIXELS, pair[1], particles=1500, proposal="guide").values for pair in (own, reference)]
    assert torch.allclose(*values, atol=0.3) and values[0].mean().item() == pytest.approx(values[1].mean().item(), abs=0.1)


def test_gradients_of_a_folded_model_equal_those_with_leading_dimensions():
    decoder, encoder, gradients = Upsampling(), nn.Linear(16, 4), []
    for network in (decoder, LeadingDimensions(decoder)):
        torch.manual_seed(0)
        loss = pa.objectives.IWAE(6, gradient="dreg").differentiable_loss(*image_pair(network, encoder), PIXELS)
        gradients.append(torch.autograd.grad(loss, [*decoder.parameters(), *encoder.parameters()]))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*gradients))


def test_probing_inside_a_trace_leaves_no_operations_in_the_graph():
    from torch.fx.experimental.proxy_tensor import make_fx

    pair, losses = image_pair(Upsampling(), nn.Linear(16, 4)), []
    with pyro.validation_enabled(False):
        loss = lambda x: pa.objectives.IWAE(5).differentiable_loss(*pair, x)  # noqa: E731
        for run in (loss, make_fx(loss)(PIXELS)):
            torch.manual_seed(0)
            losses.append(run(PIXELS).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_decoders_that_need_the_loop_are_trained_with_particles():
    """``pa.fit`` with IWAE on a decoder that Trace_ELBO trains."""
    decoder, encoder = Upsampling(), nn.Linear(16, 4)
    model, guide = image_pair(decoder, encoder)

    def registered(x):
        pyro.module("decoder", decoder)
        return model(x)

    def registered_guide(x):
        pyro.module("encoder", encoder)
        return guide(x)

    losses = [Trace_ELBO(50).loss(registered, registered_guide, PIXELS)]
    pa.fit(registered, PIXELS, guide=registered_guide, elbo=pa.objectives.IWAE(5), epochs=60, lr=0.02, progress=False, seed=0)
    losses.append(Trace_ELBO(50).loss(registered, registered_guide, PIXELS))
    assert losses[1] < 0.95 * losses[0]
    pyro.get_param_store().clear()


# --- nothing is changed ---


def test_frozen_weights_stay_frozen_without_gradients():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.decoder = PyroModule[nn.Linear](2, 16).requires_grad_(False)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    model, encoder = Model(), PyroModule[nn.Linear](16, 4)
    _, guide = image_pair(None, encoder)
    for program in (model, lambda x: model(x)):
        pa.log_likelihood(program, PIXELS, guide, particles=5)
        pa.log_likelihood(program, PIXELS, guide, particles=5, proposal=pa.proposals.Laplace(2))
        pa.elbo_terms(program, PIXELS, guide)
        pa.active_units(program, PIXELS, guide)
        pa.ais(program, PIXELS[:2], guide, chains=2, temperatures=2)
        assert not any(p.requires_grad for p in model.parameters()) and all(p.requires_grad for p in encoder.parameters())
        assert all(p.grad is None for p in (*model.parameters(), *encoder.parameters()))
    assert not list(pyro.get_param_store().keys())


class Both(PyroModule):
    """Model and guide as methods, with a frozen decoder and dropout that reads ``training``."""

    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](1, 1).requires_grad_(False)
        self.encoder = PyroModule[nn.Linear](1, 1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            loc = nn.functional.dropout(self.decoder(z[..., None])[..., 0], 0.5, self.training)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x[..., None])[..., 0], 1.0))


def both_as_methods():
    both = Both()
    return both, both.model, both.guide


def both_in_closures():
    both = Both()
    return both, lambda x: both.model(x), lambda x: both.guide(x)


@pytest.mark.parametrize("make", [both_as_methods, both_in_closures])
def test_modules_behind_functions_are_scored_in_evaluation_mode_and_fit_leaves_them_frozen(make):
    torch.manual_seed(0)
    both, model, guide = make()
    before = both.decoder.weight.detach().clone()
    scores, terms = [], []
    for mode in (True, False):
        both.train(mode)
        scores.append(pa.log_likelihood(model, X, guide, particles=20).values)
        terms.append(pa.elbo_terms(model, X, guide).elbo)
        assert both.training == mode
    assert torch.equal(*scores) and torch.equal(*terms)
    pa.fit(model, X, guide=guide, epochs=2, progress=False)
    assert torch.equal(both.decoder.weight, before) and not both.decoder.weight.requires_grad


OUTSIDE = {
    "grey values": (dist.Bernoulli(0.4), torch.tensor([0.0, 0.3, 1.0])),
    "beyond the interval": (dist.Beta(2.0, 3.0), torch.tensor([0.1, 2.0])),
    "fractions of counts": (dist.Poisson(3.0), torch.tensor([1.0, 2.5])),
    "negative counts": (dist.Poisson(3.0), torch.tensor([1.0, -1.0])),
    "a class too many": (dist.Categorical(torch.ones(3) / 3), torch.tensor([0, 3])),
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("score", [pa.log_likelihood, pa.elbo_terms])
def test_data_outside_the_support_are_refused_if_validation_is_on(name, score):
    fn, x = OUTSIDE[name]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", NORMAL)
            pyro.sample("x", fn, obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", NORMAL)

    with pytest.raises(ValueError, match="site 'x'.*support"):
        score(model, x, guide, particles=2)
    assert score(model, fn.sample(x.shape), guide, particles=2)
    if name == "grey values":
        with pyro.validation_enabled(False):
            assert score(model, x, guide, particles=2)


def test_the_precision_depends_on_the_matrices_in_products():
    weights = pyro.param("test_foreign_weights", torch.randn(16, 2))
    pair = image_pair(lambda z: z @ pyro.param("test_foreign_weights").T, nn.Linear(16, 4))
    with programs.eval_mode(*pair, seed=0):
        found = matrices(*prepared(PIXELS, *pair)[:2])
    assert {tuple(sorted(w.shape)) for w in found} >= {(2, 16), (4, 16)} and weights.shape == (16, 2)
    pyro.get_param_store().clear()


# --- flows without an inverse, shared layers, torch's distributions, orders of latents ---


@pytest.mark.parametrize("make", [transforms.planar, transforms.radial])
def test_flows_without_an_inverse_are_scored_at_their_own_draws_only(make):
    flow, encoder = make(2), nn.Linear(16, 4)
    model, _ = image_pair(LeadingDimensions(nn.Linear(2, 16)), None)

    def guide(x):
        with pyro.plate("data", len(x)):
            h = encoder(x)
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1), [flow]))

    iwae = sum(pa.objectives.IWAE(200).loss(model, guide, PIXELS) for _ in range(5)) / 5
    assert -iwae / 12 == pytest.approx(pa.log_likelihood(model, PIXELS, guide, particles=5000).mean, abs=0.3)
    refused = {
        "gradient='dreg'.*ConditionedPlanar|gradient='dreg'.*ConditionedRadial": lambda: pa.objectives.IWAE(3, gradient="dreg").loss(
            model, guide, PIXELS
        ),
        "no inverse.*use a flow with one": lambda: pa.aggregate(model, PIXELS, guide),
        "no inverse.*proposal=pa.proposals.prior": lambda: pa.ais(model, PIXELS, guide, chains=2, temperatures=2),
    }
    for words, call in refused.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_one_layer_shared_by_encoder_and_decoder():
    shared = nn.Linear(6, 6)
    ae = pa.Autoencoder(
        pa.priors.Normal(6), pa.likelihoods.Normal(6), pa.posteriors.Normal(scale=0.5), nn.Sequential(shared), nn.Sequential(shared)
    )
    assert ae.encoder[0].weight is ae.decoder[0].weight and len(list(ae.parameters())) == 3
    x, before = torch.randn(60, 6), set(pyro.get_param_store().keys())
    losses = pa.fit(ae, x, epochs=30, lr=0.02, progress=False, seed=0).loss
    assert losses[-1] < losses[0] and ae.encoder[0].weight is ae.decoder[0].weight
    assert pa.log_likelihood(ae, x, particles=50).mean > pa.elbo_terms(ae, x).elbo.mean() and set(pyro.get_param_store().keys()) == before


TORCH = {
    "Normal": torch.distributions.Normal(torch.zeros(4), 2.0),
    "Independent": torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(4), 1.0), 1),
    "mixture": torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2)),
        torch.distributions.Independent(torch.distributions.Normal(torch.ones(2, 4), 1.0), 1),
    ),
    "transformed": torch.distributions.TransformedDistribution(
        torch.distributions.Normal(torch.zeros(4), 1.0), [torch.distributions.AffineTransform(1.0, 2.0)]
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_a_distribution_of_torch_is_a_prior(name, tmp_path):
    prior = TORCH[name]
    ae = pa.Autoencoder(prior, pa.likelihoods.Normal(6), pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    z, x = torch.randn(5, 4), torch.randn(20, 6)
    log_p = prior.log_prob(z)
    assert torch.allclose(ae.prior().log_prob(z), log_p.sum(-1) if log_p.dim() > 1 else log_p)
    pa.fit(ae, x, epochs=1, progress=False)
    pa.save(ae, tmp_path / "model.safetensors")
    assert torch.equal(pa.load(tmp_path / "model.safetensors").prior().log_prob(z), ae.prior().log_prob(z)) and ae.sample(3).shape == (3, 6)
    assert type(prior).__module__.startswith("torch.")


def test_an_unknown_distribution_is_named():
    class Own(torch.distributions.Normal):
        pass

    with pytest.raises(ValueError, match="Pyro has no Own; make it a subclass of pyro.distributions.TorchDistribution"):
        pa.priors.FromDistribution(Own(torch.zeros(4), 1.0))


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO(), pa.objectives.Tempered(2.0, TraceMeanField_ELBO())])
def test_the_mean_field_elbo_warns_of_latents_in_another_order(elbo):
    """z -> a in the guide, a -> z in the model: the KL of each site in closed form is wrong."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", NORMAL)
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("test_foreign_scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, scale.exp()))
            pyro.sample("a", dist.Normal(z, 1.0))

    with pytest.warns(UserWarning, match="draws z, a in this order, the model a, z.*use Trace_ELBO"):
        pa.fit(model, X, guide=guide, elbo=elbo, epochs=1, progress=False)
    pa.fit(model, X, guide=guide, elbo=Trace_ELBO(), epochs=1, progress=False)
    pyro.get_param_store().clear()
