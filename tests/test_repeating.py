"""``SVI.unchanged``: steps that compare what a compiled graph depends on once; the results are the same."""

import contextlib
import functools

import pyro
import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

import pyroae as pa
from pyroae.training.step import native, timing, updates
from pyroae.training.step.signature import Signature
from pyroae.training.step.specialization import Specialization

ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Compiling takes no time: a graph runs with torch's kernels."""
    monkeypatch.setenv("PYROAE_GRAPHS", "off")
    monkeypatch.setattr(native, "compiled", lambda module, inputs, key: lambda inputs: module(*inputs))


@pytest.fixture
def compared(monkeypatch):
    """The calls that compared what the graph depends on."""
    calls, matches = [], Signature.matches
    monkeypatch.setattr(Signature, "matches", lambda self, leaves: calls.append(1) or matches(self, leaves))
    return calls


def svi_of(elbo=None, optimizer=ADAM, mode="compiled"):
    torch.manual_seed(0)
    ae = small_vae()
    return pa.SVI(ae.model, ae.guide, optimizer(ae.parameters()), elbo or TraceMeanField_ELBO(), compile=mode, sync=False)


def batches(n=40, rows=8):
    return [(x,) for x in (torch.rand(n, rows, 64, generator=torch.Generator().manual_seed(1)) < 0.3).float()]


def one_by_one(svi, data):
    return [svi.step(*batch).item() for batch in data]


def each(svi, data):
    with svi.unchanged():
        return one_by_one(svi, data)


def state(svi):
    return [*svi.parameters, *(tensor for entry in svi.optim.state.values() for tensor in entry.values())]


@pytest.mark.parametrize(
    "elbo, optimizer",
    [
        (TraceMeanField_ELBO, ADAM),
        (functools.partial(pa.objectives.Tempered, beta=pa.schedules.Linear(30)), ADAM),
        (functools.partial(pa.objectives.Tempered, beta=lambda step: min(1.0, step / 30)), ADAM),
        (functools.partial(pa.objectives.IWAE, 3), functools.partial(torch.optim.AdamW, lr=1e-3, amsgrad=True)),
        (TraceMeanField_ELBO, functools.partial(torch.optim.SGD, lr=1e-4)),
        (TraceMeanField_ELBO, lambda parameters: ADAM([{"params": [p], "lr": 1e-3 * (i + 1)} for i, p in enumerate(parameters)])),
    ],
    ids=["ELBO", "schedule", "own schedule", "IWAE, AdamW", "SGD", "groups"],
)
def test_steps_are_those_of_step(elbo, optimizer):
    first, second = svi_of(elbo(), optimizer), svi_of(elbo(), optimizer)
    torch.manual_seed(3)
    expected = one_by_one(first, batches())
    torch.manual_seed(3)
    assert each(second, batches()) == expected and first.levels() == second.levels()
    assert all(torch.equal(a, b) for a, b in zip(state(first), state(second), strict=True))


@pytest.mark.parametrize("mode, beta, fewer", [("compiled", 1.0, True), ("traced", 1.0, False), ("compiled", lambda step: 1.0, False)])
def test_what_a_graph_depends_on_is_compared_once_where_nobody_can_change_it(mode, beta, fewer, compared):
    svi = svi_of(pa.objectives.Tempered(beta=beta), mode=mode)
    one_by_one(svi, batches(20))
    compared.clear()
    each(svi, batches(11))  # steps 21 to 31, between two proofs
    assert len(compared) == (1 if fewer else 11)


def test_an_objective_whose_code_runs_after_each_step_is_compared_wherever_it_is(compared):
    class Own(pa.objectives.Tempered):
        def advance(self, steps=1):
            super().advance(steps)

    for elbo in (Own(), pa.objectives.Penalised(pa.penalties.L2(0.1), Own())):
        svi = svi_of(elbo)
        one_by_one(svi, batches(20))
        compared.clear()
        each(svi, batches(11))
        assert len(compared) == 11


def test_a_graph_is_proved_all_the_same(monkeypatch):
    proofs, prove = [], Specialization._run_and_prove
    monkeypatch.setattr(Specialization, "_run_and_prove", lambda self, *args: proofs.append(self.runs + 1) or prove(self, *args))
    each(svi_of(), batches(70))
    assert proofs == [2, 4, 8, 16, 32, 64]


def test_other_shapes_are_steps_of_their_own():
    first, second = svi_of(), svi_of()
    data = [*batches(20), *batches(3, rows=5), *batches(20)]
    torch.manual_seed(3)
    expected = one_by_one(first, data)
    torch.manual_seed(3)
    assert each(second, data) == expected
    assert {rows: level for rows, level, _ in second.levels()["step"]} == {8: 2, 5: 2}


@pytest.mark.parametrize("other", [lambda x: x.T.contiguous().T, lambda x: torch.cat([x, x], 1)[:, :64]])
def test_other_layouts_are_steps_of_their_own(other):
    columns = lambda x: x.repeat(1, 2)[:, ::2]  # noqa: E731  not contiguous either
    first, second = svi_of(), svi_of()
    data = [(columns(x),) for (x,) in batches(20)] + [(other(columns(x)),) for (x,) in batches(4)]
    torch.manual_seed(3)
    expected = one_by_one(first, data)
    torch.manual_seed(3)
    assert each(second, data) == expected and len(second.levels()["step"]) == len(first.levels()["step"]) == 2


def test_small_batches_that_are_not_timed_leave_the_graph_of_others_in_use(monkeypatch):
    """After 50 calls without a graph every seventh is timed: of those calls, not of all."""
    monkeypatch.setattr(timing, "_COST", {"traced": (1e9, 0.0), "compiled": (1e9, 0.0)})
    ((x,),) = batches(1)
    svi = svi_of(mode="auto")
    svi.step(x)
    svi.rebuild_graph("step", 2, 1, x)
    for _ in range(80):
        svi.step(x[:3])
        svi.step(x)
    assert [entry for entry in svi.levels()["step"] if entry[0] == 8] == [(8, 2, 81)]


def test_a_change_before_the_next_block_counts():
    svi = svi_of()
    each(svi, batches())
    svi.optim.param_groups[0]["lr"] = 0.0
    before = [parameter.clone() for parameter in svi.parameters]
    each(svi, batches(3))
    assert all(map(torch.equal, before, svi.parameters))
    svi.model.train(False)  # another graph
    each(svi, batches(20))
    assert len(svi.levels()["step"]) == 2


@pytest.mark.parametrize(
    "optimizer, of_others",
    [
        (lambda: pyro.optim.Adam({"lr": 1e-3}), 1),
        (lambda: pyro.optim.Adam(lambda name: {"lr": 2e-3 if "bias" in name else 1e-3}), 8),
        (lambda: pyro.optim.ClippedAdam({"lr": 1e-3, "lrd": 0.9}), 8),
    ],
    ids=["Adam", "two rates", "ClippedAdam"],
)
def test_numbers_of_pyros_optimizers_are_computed_once_where_all_parameters_have_the_same(optimizer, of_others, monkeypatch):
    """Also once a parameter's rate has changed between two blocks, and with its own number of steps."""
    computed, numbers = [], updates._adam_numbers
    monkeypatch.setattr(updates, "_adam_numbers", lambda *args: computed.append(1) or numbers(*args))
    found = []
    for steps in (one_by_one, each):
        pyro.clear_param_store()
        torch.manual_seed(0)
        ae = small_vae()
        svi = pa.SVI(ae.model, ae.guide, optimizer(), TraceMeanField_ELBO(), compile="compiled", sync=False)
        losses = steps(svi, batches(19))
        computed.clear()
        losses += steps(svi, batches(11))
        computed_by_each = len(computed)
        next(iter(svi.optim.optim_objs.values())).param_groups[0]["lr"] *= 3
        losses += steps(svi, batches(11))
        found.append([losses, [parameter.sum().item() for parameter in ae.parameters()]])
    assert found[0] == found[1] and computed_by_each == 16 + 10 * of_others  # two times for all 8 parameters, then for 10 more steps


def test_an_operation_that_fails_in_native_code_is_an_error_of_the_program():
    svi = svi_of()
    each(svi, batches())
    spec = svi._gradients.last
    run, spec.run = spec.run, lambda inputs: (_ for _ in ()).throw(native.NativeError())
    random, data = torch.get_rng_state(), batches(2)
    each(svi, data[:1] * 2)  # the program runs, with the same noise
    spec.run = run
    after = torch.get_rng_state()
    torch.set_rng_state(random)
    svi._gradients.function(*data[0])
    svi._gradients.function(*data[0])
    assert torch.equal(torch.get_rng_state(), after)


def test_fit_compares_once_for_a_block_of_batches(compared, digits):
    x = digits.train.x[:640]
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    history = pa.fit(small_vae(), x, epochs=6, batch_size=10, optimizer=adam, seed=0, compile="compiled", progress=False)
    assert len(compared) < 30 and len(history.rows) == 6  # of 384 steps: those before the graph is final, proofs, and 6 blocks


def test_invalid_values_in_a_repeated_step_are_named():
    torch.manual_seed(0)
    ae = small_vae()
    with pyro.validation_enabled(True):
        svi = pa.SVI(ae.model, ae.guide, ADAM(ae.parameters()), TraceMeanField_ELBO(), compile="compiled")
        with svi.unchanged():
            for batch in batches(20):
                svi.step(*batch)
            with torch.no_grad():
                svi.parameters[0].fill_(float("nan"))
            with pytest.raises(ValueError, match="found invalid values"):
                svi.step(*batch)


def test_an_argument_that_a_program_holds_itself_is_read_there():
    data = torch.randn(30)

    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    losses = []
    for is_unchanged in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = pa.SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO(), compile="compiled")  # keeps x
        with svi.unchanged() if is_unchanged else contextlib.nullcontext():
            losses.append([svi.step(data) for _ in range(20)])
    assert losses[0] == losses[1]
