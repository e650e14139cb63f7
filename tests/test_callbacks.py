"""Callbacks see the model and the step, and may stop training; those of the examples do what they say."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import small_vae
from test_examples import imported

import pyroae as pa

X = torch.rand(60, 64).round()


def fit(ae, callbacks, epochs=9, **more):
    return pa.fit(ae, X, epochs=epochs, batch_size=20, seed=0, lr=1e-2, progress=False, callbacks=callbacks, **more)


def stop_at(last):
    def callback(epoch):
        if epoch["epoch"] == last:
            raise pa.StopTraining

    return callback


def test_a_callback_sees_model_guide_and_step(vae):
    seen = []
    fit(vae, [lambda epoch: seen.append((epoch["epoch"], epoch.step, epoch.model is vae, epoch.guide))], epochs=2)
    assert seen == [(1, 3, True, None), (2, 6, True, None)]
    fit(vae.model, [lambda epoch: seen.append((epoch.model is vae.model, epoch.guide is vae.guide))], epochs=1, guide=vae.guide)
    assert seen[-1] == (True, True)


def test_stopping_ends_as_if_it_were_the_last_epoch():
    stopped, whole, seen = small_vae(), small_vae(), []
    whole.load_state_dict(stopped.state_dict())
    history = fit(stopped, [stop_at(3), lambda epoch: epoch.update(seen=1.0)])
    assert history["epoch"] == [1, 2, 3] and history["seen"] == [1.0] * 3 and not stopped.training
    fit(whole, [seen.append], epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(stopped.parameters(), whole.parameters()))


def test_with_patience_the_best_weights_come_back():
    ae, weights = small_vae(), {}

    def keep(epoch):
        weights[epoch["validation_loss"]] = [p.clone() for p in epoch.model.parameters()]
        if epoch["epoch"] == 6:
            raise pa.StopTraining

    validation = pa.Validation(torch.rand(60, 64).round(), patience=9)
    pa.fit(ae, X, epochs=9, lr=0.1, validation=validation, seed=0, progress=False, callbacks=[keep])
    assert len(weights) == 6 and all(torch.equal(a, b) for a, b in zip(ae.parameters(), weights[min(weights)]))


def test_a_run_that_was_stopped_is_kept_and_goes_on(tmp_path):
    ae = small_vae()
    assert len(fit(ae, [stop_at(2)], run=tmp_path).rows) == 2
    assert fit(ae, [], epochs=4, run=pa.Run(tmp_path, resume=True))["epoch"] == [1, 2, 3, 4]


def test_other_errors_of_callbacks_are_the_callers(vae):
    with pytest.raises(KeyError):
        fit(vae, [lambda epoch: epoch["no such column"]])


@pytest.fixture
def examples(monkeypatch):
    return imported("callbacks")


def test_early_stopping_puts_the_best_weights_back(examples, vae):
    stopping = examples.EarlyStopping(X[:20], every=1, patience=2, particles=30)
    history = fit(vae, [stopping], epochs=200)
    scores = history["log p(x)"]
    assert 3 <= len(scores) < 200 and max(scores) == stopping.best == scores[-3]
    assert pa.log_likelihood(vae, X[:20], particles=30).mean == pytest.approx(stopping.best, abs=1e-4)


def test_weights_and_biases_gets_every_number(examples, vae, monkeypatch):
    logged, inits = [], []
    run = SimpleNamespace(log=lambda row, step: logged.append((step, row)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: inits.append(settings) or run))
    history = fit(vae, [lambda epoch: epoch.update(bad=float("nan")), examples.WandB(project="p")], epochs=2)
    assert inits == [{"project": "p"}] and [step for step, _ in logged] == [3, 6]
    assert [row for _, row in logged] == [{name: value for name, value in row.items() if name != "bad"} for row in history.rows]


def test_mlflow_gets_every_number(examples, vae, monkeypatch):
    logged = []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_metrics=lambda row, step: logged.append((step, row))))
    history = fit(vae, [examples.MLflow()], epochs=2)
    assert logged == [(3, history.rows[0]), (6, history.rows[1])]


@pytest.mark.parametrize(
    "elbo, message",
    [
        ("IWAE", r"got 'IWAE'; make pa\.objectives\.IWAE\(\.\.\.\): pa\.objectives has CIWAE, .*Tempered.*pyro\.infer .*Trace_ELBO"),
        (pa.objectives.IWAE, r"make pa\.objectives\.IWAE\(\.\.\.\)"),
        ("Trace_Elbo", r"make pyro\.infer\.Trace_ELBO\(\.\.\.\)"),
        (3, "make one: pa.objectives has"),
    ],
)
def test_an_objective_that_is_none_lists_those_there_are(vae, elbo, message):
    with pytest.raises(ValueError, match=message):
        fit(vae, [], elbo=elbo)


def test_columns_that_callbacks_add_now_and_then_are_nan_elsewhere_and_resume(tmp_path):
    def sometimes(epoch):
        if epoch["epoch"] % 2 == 0:
            epoch.update(score=torch.tensor(1.5), name="even")

    fit(small_vae(), [sometimes], epochs=3, run=tmp_path)
    history = fit(small_vae(), [sometimes], epochs=5, run=pa.Run(tmp_path, resume=True))
    assert [row["score"] == 1.5 for row in history.rows] == [False, True, False, True, False]
    assert all(math.isnan(row["score"]) for row in history.rows[::2]) and history["name"][1] == "even"
    history.to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().splitlines()[1].endswith("nan,nan")


@pytest.mark.parametrize("value", [torch.zeros(3), [1.0], object()])
def test_values_that_no_history_can_keep_are_refused_when_they_are_added(value, vae):
    with pytest.raises(ValueError, match="expected a callback to add numbers or short text by name, got 'odd'"):
        fit(vae, [lambda epoch: epoch.update(odd=value)], epochs=1)
