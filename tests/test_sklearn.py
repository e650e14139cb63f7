"""``pa.sklearn.Estimator`` by scikit-learn's own checks, in its pipelines and searches, and against the library's own functions."""

import pickle
import pickletools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_vae
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import pyroae as pa
from pyroae.sklearn import Estimator

BY_PLACE = "score_samples draws importance samples, and the draws of a row depend on its place among the rows"
EXPECTED = {"check_methods_sample_order_invariance": BY_PLACE, "check_methods_subset_invariance": BY_PLACE}
IRIS = load_iris().data


def small(recipe="vae", **more):
    return Estimator(recipe, **{"latent_dim": 2, "hidden": 8, "epochs": 2, "particles": 30, "random_state": 0} | more)


@parametrize_with_checks([Estimator(epochs=2, particles=5, random_state=0)], expected_failed_checks=lambda _: EXPECTED)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("recipe", [name for name in pa.recipes.RECIPES if name != "conditional"])
def test_every_recipe_in_a_pipeline(recipe):
    x, y = load_digits(n_class=3, return_X_y=True)
    features = small(recipe, latent_dim=4, **{"hidden": None} if recipe == "dictionary" else {})
    classifier = make_pipeline(features, StandardScaler(), LogisticRegression()).fit(x / 16, y)
    assert classifier.score(x / 16, y) > 0.4
    z = features.transform(x / 16)
    assert z.shape == (len(x), 4) and features.inverse_transform(z).shape == x.shape


def test_a_grid_over_the_latent_size_is_ranked_by_held_out_log_p():
    grid = GridSearchCV(small(epochs=20), {"latent_dim": [1, 3]}, cv=2).fit(IRIS)
    folds = [grid.cv_results_[f"split{i}_test_score"] for i in range(2)]
    np.testing.assert_allclose(np.mean(folds, 0), grid.cv_results_["mean_test_score"])
    assert grid.best_estimator_.transform(IRIS).shape == (150, grid.best_params_["latent_dim"])
    assert grid.best_score_ == grid.cv_results_["mean_test_score"].max()


def test_parts_can_be_searched():
    priors = [{"prior": pa.priors.Laplace(2)}, {"prior": pa.priors.GaussianMixture(2, components=3)}]
    grid = GridSearchCV(small(), {"parts": priors}, cv=2).fit(IRIS)
    assert type(grid.best_estimator_.autoencoder_.prior) is type(grid.best_params_["parts"]["prior"])
    assert np.isfinite(grid.cv_results_["mean_test_score"]).all()


def test_scores_and_codes_are_those_of_the_library():
    estimator = small().fit(IRIS)
    ae, seed = estimator.autoencoder_, int(np.random.RandomState(0).randint(2**31 - 1))
    for proposal in ("auto", "guide"):
        expected = pa.log_likelihood(ae, IRIS, particles=30, seed=seed, proposal=proposal)
        np.testing.assert_array_equal(estimator.set_params(proposal=proposal).score_samples(IRIS), expected.values)
    assert estimator.score(IRIS) == pytest.approx(expected.mean)
    np.testing.assert_array_equal(estimator.transform(IRIS), pa.codes(ae, IRIS))
    z = ae.latent_mean(torch.as_tensor(IRIS, dtype=torch.float32))
    np.testing.assert_allclose(estimator.inverse_transform(z.numpy()), ae.reconstruct(IRIS), rtol=1e-5)
    assert estimator.history_.rows[-1]["epoch"] == 2


def test_seeds_make_it_repeatable_and_leave_the_callers_alone():
    before = torch.get_rng_state()
    one, other = small().fit(IRIS), small().fit(IRIS)
    np.testing.assert_array_equal(one.score_samples(IRIS), other.score_samples(IRIS))
    np.testing.assert_array_equal(one.sample(3), other.sample(3))
    assert torch.equal(before, torch.get_rng_state())
    assert not np.array_equal(small(random_state=1).fit(IRIS).transform(IRIS), one.transform(IRIS))


PEOPLE = pd.DataFrame({"height": np.linspace(1.5, 1.9, 40), "smokes": ["yes", "no"] * 20}, index=range(100, 140))


def test_a_table_of_several_kinds_goes_in_and_comes_out():
    estimator = small().set_output(transform="pandas").fit(PEOPLE)
    codes = estimator.transform(PEOPLE)
    assert list(codes.columns) == ["estimator0", "estimator1"] and list(codes.index) == list(PEOPLE.index)
    for frame in (estimator.inverse_transform(codes.to_numpy()), estimator.sample(40)):
        assert list(frame.columns) == list(PEOPLE.columns) and set(frame["smokes"]) <= {"yes", "no"} and len(frame) == 40
    assert np.isfinite(estimator.score_samples(PEOPLE)).all()
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.transform(PEOPLE.rename(columns={"height": "size"}))


@pytest.mark.parametrize("data", [IRIS, pd.DataFrame(IRIS, columns=list("abcd"))], ids=["array", "table"])
def test_missing_values_are_left_out_of_the_score(data):
    estimator, holes = small(epochs=10).fit(data), data.copy()
    (holes.iloc if isinstance(data, pd.DataFrame) else holes)[:, 1] = np.nan
    scores = estimator.score_samples(holes)
    assert np.isfinite(scores).all() and not np.allclose(scores, estimator.score_samples(data))
    assert np.isfinite(estimator.transform(holes)).all()


def test_clones_and_pickles_hold_no_modules():
    estimator = small(recipe=small_vae(x=4, likelihood=pa.likelihoods.Normal(4)), latent_dim=None, hidden=None).fit(IRIS)
    pickled = pickle.dumps(estimator)
    modules = {argument.split()[0] for op, argument, _ in pickletools.genops(pickled) if op.name == "GLOBAL"}
    texts = {argument for op, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}
    assert not modules and not {text for text in texts if text.startswith(("torch", "pyro."))}
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.score_samples(IRIS), estimator.score_samples(IRIS))
    assert again.get_params().keys() == estimator.get_params().keys() and not again.autoencoder_.training
    fresh = clone(estimator)
    assert not hasattr(fresh, "autoencoder_") and fresh.recipe is not estimator.recipe


def test_the_users_autoencoder_is_not_trained_itself():
    ae = small_vae(x=4, likelihood=pa.likelihoods.Normal(4))
    before = [p.clone() for p in ae.parameters()]
    small(ae, latent_dim=None, hidden=None).fit(IRIS)
    assert all(torch.equal(a, b) for a, b in zip(before, ae.parameters()))


BAD = {
    "recipe": (lambda: small("vea").fit(IRIS), "no recipe 'vea'.*vae"),
    "function": (lambda: small(lambda x, **_: "no model").fit(IRIS), "to return an Autoencoder, got str"),
    "a size that a recipe lacks": (lambda: small("dictionary").fit(IRIS), "the recipe dictionary has no argument hidden; leave it out"),
    "sizes of a model": (lambda: small(small_vae(x=4)).fit(IRIS), "leave latent_dim and hidden out"),
    "condition": (lambda: small(lambda x, **_: small_vae(4, condition=pa.conditions.Labels(2))).fit(IRIS), r"pa.fit\(ae, \(x, y\)\)"),
    "no log p(x)": (lambda: small("autoencoder").fit(IRIS).score(IRIS), "prior"),
    "columns of Z": (lambda: small().fit(IRIS).inverse_transform(IRIS), "expected Z with 2 columns, got 4"),
    "sample of an improper prior": (lambda: small("autoencoder").fit(IRIS).sample(3), "improper"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
