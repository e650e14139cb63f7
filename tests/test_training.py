import csv
import functools
import inspect
import traceback
from pathlib import Path

import pyro
import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyroae as pa
from pyroae.data import inputs

quiet = functools.partial(pa.fit, progress=False)


def test_every_recipe_learns(grey):
    for name, recipe in pa.recipes.RECIPES.items():
        history = quiet(recipe(grey), grey.train, epochs=8, batch_size=64, seed=0)
        assert history.loss[-1] < history.loss[0] - 0.1, name


ELBOS = [
    Trace_ELBO(),
    TraceGraph_ELBO(),
    TraceEnum_ELBO(max_plate_nesting=1),
    RenyiELBO(num_particles=3),
    ReweightedWakeSleep(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    pa.Penalised(pa.penalties.L2()),
]


@pytest.mark.parametrize("elbo", ELBOS, ids=lambda elbo: type(elbo).__name__)
def test_any_elbo(elbo, digits):
    history = quiet(small_vae(), digits.train, elbo=elbo, validation=digits.test, epochs=6, batch_size=32, seed=0)
    assert history.loss[-1] < history.loss[0] and history["validation_loss"][-1] < history["validation_loss"][0]


def test_data_in_any_form_trains_the_same(digits):
    """Without shuffling noise to compare: whole-batch steps."""
    x, losses = digits.train.x, []
    n = len(x)
    for data in (x, digits.train, TensorDataset(x), TensorDataset(x, digits.train.labels), DataLoader(x, batch_size=n)):
        torch.manual_seed(0)
        losses.append(quiet(small_vae(), data, epochs=30, batch_size=n, seed=0, lr=1e-2).loss[-1])
    assert max(losses) - min(losses) < 0.3 and losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD, functools.partial(torch.optim.AdamW, weight_decay=0.1), torch.optim.RMSprop])
def test_any_torch_optimizer(optimizer, digits):
    history = quiet(small_vae(), digits.train, optimizer=optimizer, lr=1e-3, epochs=3, seed=0)
    assert history.loss[-1] < history.loss[0] and history["lr"] == [1e-3] * 3


def test_an_optimizer_keeps_its_own_rate_by_default(digits):
    make = functools.partial(torch.optim.Adam, lr=0.02)
    assert quiet(small_vae(), digits.train, optimizer=make, epochs=1)["lr"] == [0.02]
    ae = small_vae()
    made = torch.optim.Adam(ae.parameters(), lr=0.03)
    assert quiet(ae, digits.train, optimizer=made, epochs=1)["lr"] == [0.03]


def test_schedulers_step_each_epoch(digits):
    history = quiet(small_vae(), digits.train, epochs=3, lr=0.01, scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1))
    assert history["lr"] == pytest.approx([0.01, 0.001, 0.0001])
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9)
    assert quiet(small_vae(), digits.train, epochs=3, lr=0.01, scheduler=plateau)["lr"][-1] < 0.01


def test_early_stopping_restores_the_best_weights(digits):
    ae, x = small_vae(z=16), digits.train.x[:40]
    history = quiet(ae, x, validation=pa.Validation(digits.test, patience=5), epochs=400, batch_size=40, lr=3e-2, seed=0)
    losses = history["validation_loss"]
    assert len(losses) < 400 and losses.index(min(losses)) == len(losses) - 6
    best = -pa.elbo_terms(ae, digits.test, particles=50).elbo.mean().item()
    assert best == pytest.approx(min(losses), abs=0.5) and best < losses[-1]


def test_early_stopping_compares_no_epochs_of_a_warm_up(digits):
    """With beta near 0 the loss is low; that must not be the best."""
    ae, warm_up = small_vae(), pa.objectives.Tempered(pa.schedules.Linear(150))  # 3 steps an epoch: 50 epochs
    history = quiet(
        ae,
        digits.train.x[:300],
        elbo=warm_up,
        validation=pa.Validation(digits.test, patience=5),
        epochs=300,
        batch_size=100,
        lr=2e-2,
        seed=0,
    )
    losses = history["validation_loss"]
    assert min(losses[:49]) < min(losses[49:]) and 54 < len(losses) < 300
    best = -pa.elbo_terms(ae, digits.test, particles=50).elbo.mean().item()
    assert best == pytest.approx(min(losses[49:]), abs=0.5)


def test_the_last_short_batch_counts(digits):
    rows = []
    ae = small_vae()
    ae.encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    quiet(ae, digits.train.x[:1000], epochs=2, batch_size=300)
    assert rows[1:] == 2 * [300, 300, 300, 100]  # the first run only looks for parameters


def test_every_epoch_shuffles_all_rows():
    from pyroae.training.batches import Batches

    batches = Batches(torch.arange(1000.0)[:, None], 7, torch.device("cpu"), shuffle=True)
    first, second = (torch.cat([x for (x,) in batches]) for _ in range(2))
    assert len(batches) == 143 and not torch.equal(first, second)
    assert first.sort(0).values.flatten().tolist() == second.sort(0).values.flatten().tolist() == list(range(1000))


def test_dynamic_binarization_is_drawn_in_every_epoch(grey):
    seen = []
    ae = small_vae()
    ae.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    quiet(ae, pa.data.load("digits", binarize="dynamic").train, epochs=2, batch_size=2000)
    _, first, second = seen
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert first.mean().item() == pytest.approx(grey.train.x.mean().item(), abs=0.01)
    order = lambda x: x[x.sum(1).argsort()]  # noqa: E731
    assert not torch.equal(order(first), order(second))


def test_a_seed_repeats_the_run_and_restores_the_callers_state(digits):
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        ae = small_vae(corruption=pa.corruption.Masking(0.2))
        torch.manual_seed(len(ends))  # the caller's state does not matter
        before = torch.get_rng_state()
        quiet(ae, digits.train, validation=digits.test, epochs=2, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(list(ae.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_fit_changes_no_global_state(digits):
    from pyro.infer.util import is_validation_enabled

    before = is_validation_enabled(), torch.get_default_dtype(), torch.is_grad_enabled()
    pyro.param("mine", torch.ones(1))
    quiet(small_vae(), digits.train, epochs=1)
    assert (is_validation_enabled(), torch.get_default_dtype(), torch.is_grad_enabled()) == before
    assert pyro.param("mine").item() == 1.0


def test_afterwards_it_is_in_evaluation_mode(vae, digits):
    quiet(vae, digits.train, epochs=1)
    assert not any(module.training for module in vae.modules())


def test_plain_pyro_functions_with_params_train_too():
    """mu learned by maximum likelihood: x ~ N(z, 1), z ~ N(mu, 1), with Pyro's own parameter store."""

    def model(x):
        mu = pyro.param("test_mu", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)

    def guide(x):
        mu = pyro.param("test_guide_mu", torch.tensor(0.0))
        scale = pyro.param("test_guide_scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x[:, 0] + mu) / 2, scale))

    x = 3.0 + 2**0.5 * torch.randn(2000, 1)
    quiet(model, x, guide=guide, epochs=60, lr=0.02, seed=0)
    assert pyro.param("test_mu").item() == pytest.approx(x.mean().item(), abs=0.1)
    assert pyro.param("test_guide_scale").item() == pytest.approx(0.5**0.5, abs=0.05)


def test_history_rows_callbacks_and_csv(vae, digits, tmp_path):
    rows = []
    history = quiet(vae, digits.train, validation=digits.test, epochs=3, callbacks=[rows.append])
    assert rows == history.rows and history["epoch"] == [1, 2, 3]
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in written] == history.loss and "3 epochs" in repr(history)


def test_the_progress_bar_shows_the_loss_in_nats(vae, digits, capsys):
    pa.fit(vae, digits.train, epochs=2)
    bar = capsys.readouterr().err
    assert "epoch 2/2" in bar and "nats/example" in bar and "24/24" in bar


def test_the_progress_bar_shows_that_a_graph_is_built(vae, digits, capsys):
    pa.fit(vae, digits.train, epochs=1, compile="traced")
    assert "tracing the step" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_trains_and_scores(digits):
    ae = small_vae(corruption=pa.corruption.SaltPepper(0.1))
    history = quiet(ae, digits.train, epochs=5, device="cuda", seed=0)
    assert ae.device.type == "cuda" and history.loss[-1] < history.loss[0]
    assert pa.log_likelihood(ae, digits.test, particles=100, proposal="guide").values.isfinite().all()


def test_a_pyro_program_of_x_and_y_is_trained_and_scored_on_a_tuple():
    """A regression with a latent offset for each example: x ~ N(a y, 1 + 1) once it is integrated out."""

    def model(x, y):
        slope = pyro.param("test_slope", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * y + z, 1.0), obs=x)

    def guide(x, y):
        slope = pyro.param("test_guess", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - slope * y) / 2, 0.5**0.5))

    y = torch.randn(500)
    x = 3 * y + 2**0.5 * torch.randn(500)
    for data in ((x, y), TensorDataset(x, y)):
        pyro.get_param_store().clear()
        pa.fit(model, data, guide=guide, epochs=60, lr=0.05, elbo=Trace_ELBO(), progress=False, seed=0)
        assert pyro.param("test_slope").item() == pytest.approx(3.0, abs=0.3)
    exact = dist.Normal(pyro.param("test_slope").detach() * y, 2**0.5).log_prob(x)
    assert torch.allclose(pa.log_likelihood(model, (x, y), guide=guide, particles=2000, proposal="guide").values.float(), exact, atol=0.15)
    with pytest.raises(ValueError, match="same number of rows"):
        pa.fit(model, (x, y[:3]), guide=guide)


def test_a_callback_that_clears_its_row_does_not_change_the_history(vae):
    history = pa.fit(vae, torch.rand(20, 64).round(), epochs=2, progress=False, callbacks=[lambda row: row.clear()])
    assert history["epoch"] == [1, 2] and len(history.loss) == len(history["seconds"]) == 2


def test_five_calls_lead_from_fit_to_the_elbo():
    calls, inside = [], str(Path(pa.__file__).parent)

    class Noted(Trace_ELBO):
        def differentiable_loss(self, model, guide, *args, **kwargs):
            calls.append(
                [frame.f_code.co_name for frame, _ in traceback.walk_stack(inspect.currentframe()) if inside in frame.f_code.co_filename]
            )
            return super().differentiable_loss(model, guide, *args, **kwargs)

    quiet(small_vae(), torch.rand(20, 64).round(), elbo=Noted(), epochs=1, compile="eager")
    assert calls[0] == ["_loss_and_gradients", "__call__", "step", "run", "fit"]


def test_data_are_checked_once(monkeypatch):
    lengths, check = [], pa.likelihoods.Bernoulli.check
    monkeypatch.setattr(pa.likelihoods.Bernoulli, "check", lambda self, x: (lengths.append(len(x)), check(self, x))[1])
    quiet(small_vae(), torch.rand(20, 64).round(), epochs=3, batch_size=5)
    assert lengths == [20]


class Other(nn.Module):
    """A Pyro program with attributes of the names that an Autoencoder has, which mean something else."""

    def __init__(self, as_module):
        super().__init__()
        self.decoder = nn.Linear(2, 64)
        if as_module:
            self.likelihood = self.objective = nn.Linear(64, 64)
        self.as_module = as_module

    def __getattr__(self, name):
        if name in ("likelihood", "objective") and not self.__dict__.get("as_module", True):
            return lambda z: z
        return super().__getattr__(name)

    def forward(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.likelihood(self.decoder(z)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))


@pytest.mark.parametrize("as_module", [False, True])
def test_a_users_model_may_have_a_likelihood_and_an_objective_of_its_own(as_module):
    model = Other(as_module)
    history = quiet(model, torch.randn(30, 64), guide=model.guide, epochs=2)
    assert len(history.rows) == 2
    assert pa.log_likelihood(model, torch.randn(5, 64), guide=model.guide, particles=30).values.isfinite().all()
    assert pa.elbo_terms(model, torch.randn(5, 64), guide=model.guide).elbo.isfinite().all()


def test_a_run_that_fails_before_its_first_step_leaves_evaluation_mode(vae):
    vae.eval()
    for wrong in ({"optimizer": lambda parameters: 1 / 0}, {"scheduler": lambda optimizer: 1 / 0}, {"elbo": "IWAE"}):
        with pytest.raises((ValueError, ZeroDivisionError)):
            quiet(vae, torch.rand(20, 64).round(), **wrong)
        assert not vae.training


def test_mean_and_scale_come_from_a_part_of_a_loader(monkeypatch):
    """Of the batches of a loader only as many rows are kept as mean and scale are computed from."""
    seen = []

    class Measured(pa.likelihoods.Standardised):
        def measure(self, x):
            seen.append(len(x))
            super().measure(x)

    monkeypatch.setattr(inputs, "LOOK", 100)
    ae = small_vae(likelihood=Measured(pa.likelihoods.Normal(64)))
    quiet(ae, DataLoader(TensorDataset(torch.randn(300, 64)), 30), epochs=1)
    assert seen == [120]
