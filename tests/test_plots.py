"""What the pictures show."""

import dataclasses
import io
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import linear_gaussian, small_vae
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pyro import distributions as dist
from torch import nn

import pyroae as pa
from pyroae.evaluation.decomposition import Units
from pyroae.evaluation.importance import Estimate


@pytest.fixture
def ax():
    yield Figure().add_subplot()
    plt.close("all")


def canvas(ax):
    return np.asarray(ax.images[0].get_array())


def test_filters_are_the_weights_next_to_x_the_longest_first(grey, ax):
    ae = pa.recipes.contractive(grey, latent_dim=7)
    w = ae.encoder[0].weight.detach()
    longest = w[w.norm(dim=1).argmax()]
    drawn = canvas(pa.plots.filters(ae, (8, 8), ax=ax))
    assert np.allclose(drawn[:8, :8], (longest / longest.abs().max() / 2 + 0.5).reshape(8, 8), atol=1e-6)
    assert drawn.shape == (8, 10 * 9 - 1)


@pytest.mark.parametrize("name", ["linear", "atoms", "tied"])
def test_filters_of_the_decoder(grey, ax, name):
    ae = pa.recipes.sparse(grey, latent_dim=5) if name == "atoms" else pa.recipes.autoencoder(grey, latent_dim=5, hidden=[])
    ae = ae.replace(decoder=pa.nets.Tied()) if name == "tied" else ae
    columns = ae.decoder(torch.eye(5)) - ae.decoder(torch.zeros(1, 5))  # how x moves with each number of z
    first = columns[columns.norm(dim=1).argmax()].detach()
    drawn = canvas(pa.plots.filters(ae, (8, 8), n=1, decoder=True, columns=1, ax=ax))
    if name == "atoms":  # all of one length
        assert any(np.allclose(drawn, (c / c.abs().max() / 2 + 0.5).reshape(8, 8), atol=1e-5) for c in columns.detach())
    else:
        assert np.allclose(drawn, (first / first.abs().max() / 2 + 0.5).reshape(8, 8), atol=1e-5)


class Corner(nn.Module):
    """x = z, padded: what is drawn tells the z it was drawn for."""

    def forward(self, z):
        return torch.cat([z, torch.zeros(len(z), 2)], 1)


@pytest.mark.parametrize(
    "prior, span, ends",
    [
        (pa.priors.Normal(2), None, dist.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.9]))),
        (pa.priors.Laplace(2, scale=0.5), None, dist.Laplace(0.0, 0.5).icdf(torch.tensor([0.1, 0.9]))),
        (pa.priors.Uniform(2), None, torch.tensor([-0.8, 0.8])),
        (pa.priors.Flat(2), 2.0, torch.tensor([-2.0, 2.0])),
    ],
    ids=str,
)
def test_a_manifold_is_drawn_at_quantiles_or_equal_steps(ax, prior, span, ends):
    ae = pa.Autoencoder(prior, pa.likelihoods.Normal(4), pa.posteriors.Delta(), nn.Linear(4, 2), Corner())
    drawn = canvas(pa.plots.manifold(ae, (2, 2), (-5.0, 5.0), n=5, span=span, ax=ax)) * 10 - 5
    low, high = ends.tolist()
    assert drawn[0, [0, -2]] == pytest.approx([low, high], abs=1e-5)  # z_1 from left to right
    assert drawn[[0, -2], 1] == pytest.approx([high, low], abs=1e-5)  # z_2 from bottom to top


REFUSED = {
    "no pair": (lambda: pa.plots.manifold(small_vae(z=3), (8, 8)), r"z of shape \(2,\), got \(3,\)"),
    "no quantiles": (lambda: pa.plots.manifold(small_vae(prior=pa.priors.VampPrior(2))), "VampPrior has no inverse CDF; give span"),
    "convolutions": (lambda: pa.plots.filters(small_vae().replace(encoder=pa.nets.Conv([4])), (8, 8)), "stack of fully connected layers"),
    "deep": (lambda: pa.plots.filters(small_vae(), (4, 4)), "linear layer with 16 weights per unit, got 64"),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=list(REFUSED))
def test_pictures_that_do_not_exist(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("z", [1, 2, 5])
def test_codes_by_label(grey, ax, z):
    vae, split = small_vae(z=z, likelihood=pa.likelihoods.Normal(64)), grey.test
    dots = pa.plots.latent(vae, split.x, split.labels, ax=ax).collections[0]
    means = vae.encode(split.x).mean.detach()
    assert np.allclose(dots.get_offsets()[:, 0], means[:, 0], atol=1e-5) or z == 5
    if z == 5:  # principal components keep what varies most
        assert np.var(dots.get_offsets()[:, 0]) == pytest.approx(torch.linalg.eigvalsh(means.T.cov(correction=0))[-1].item(), rel=1e-4)
    assert np.array_equal(dots.get_array(), split.labels.numpy()) and len(ax.figure.axes) == 2  # a colour bar
    assert len({tuple(colour) for colour in dots.cmap(range(10))}) == 10


def test_codes_of_many_values_or_without_labels(grey, ax):
    vae = small_vae(z=2, likelihood=pa.likelihoods.Normal(64))
    assert pa.plots.latent(vae, grey.test.x, torch.arange(360), ax=ax).collections[0].cmap.name == "viridis"
    pa.plots.latent(vae, grey.test.x[:9], ax=Figure().add_subplot())


def test_training_draws_what_callbacks_add(grey, ax):
    vae = small_vae(likelihood=pa.likelihoods.Normal(64))
    added = lambda row: row.update(reconstruction=-3.0 * row["epoch"], kl=2.0)
    history = pa.fit(vae, grey.train, epochs=3, progress=False, callbacks=[added])
    lines = [list(line.get_ydata()) for line in pa.plots.training(history, ax=ax).lines]
    assert lines == [history.loss, [3.0, 6.0, 9.0], [2.0] * 3] and len({line.get_linestyle() for line in ax.lines}) == 3


def test_a_walk_ends_at_the_reconstructions_of_both_data(grey, ax):
    vae, x = small_vae(likelihood=pa.likelihoods.Normal(64)), grey.test.x[:4]
    drawn = canvas(pa.plots.interpolation(vae, x, (8, 8), steps=3, ax=ax))
    both = torch.cat([x, vae.reconstruct(x)]).clamp(0, 1).reshape(-1, 8, 8)
    at = lambda row, column: drawn[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
    for row, (start, end) in enumerate([(0, 1), (2, 3)]):
        shown = [at(row, column) for column in (0, 1, 3, 4)]
        assert np.allclose(shown, both[[start, 4 + start, 4 + end, end]], atol=1e-5)


def test_a_traversal_moves_one_number_from_end_to_end(ax):
    ae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Normal(4), pa.posteriors.Delta(), nn.Linear(4, 2), Corner())
    x = torch.randn(300, 4)
    codes = ae.latent_mean(x)
    order = codes.var(0).argsort(descending=True).tolist()
    drawn = canvas(pa.plots.traversal(ae, x, (2, 2), (-9.0, 9.0), steps=3, ax=ax)) * 18 - 9
    for row, moved in enumerate(order):
        low, high = np.quantile(codes[:, moved].numpy(), [0.01, 0.99])
        at = [drawn[3 * row, 3 * column + moved] for column in range(3)]
        assert at == pytest.approx([low, (low + high) / 2, high], abs=1e-4)
        assert drawn[3 * row, 1 - moved] == pytest.approx(codes[0, 1 - moved].item(), abs=1e-4)


def test_bars_of_active_units(ax):
    pa.plots.units(Units(torch.tensor([0.5, 0.001, 0.9]), 0.01), ax=ax)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.9, 0.5, 0.001])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["3", "1", "2"]
    active, _, idle = (bar.get_facecolor() for bar in ax.patches)
    assert active != idle


def test_the_aggregate_posterior_beside_the_prior(ax):
    exact = linear_gaussian(k=2)
    x = exact.ae.sample(4000)
    pa.plots.aggregate(exact.ae, x, ax=ax)
    narrow, wide = [pair[:, 1] for pair in ax.collections[0].get_segments()], [pair[:, 1] for pair in ax.collections[1].get_segments()]
    for ends, share in ((narrow, 0.95), (wide, 0.75)):  # data of the model itself: q(z) is the prior
        assert np.array(ends) == pytest.approx(
            np.array([[-1.0, 1.0]] * 2) * dist.Normal(0.0, 1.0).icdf(torch.tensor(share)).item(), abs=0.15
        )
    with pytest.raises(ValueError, match="improper"):
        pa.plots.aggregate(exact.ae.replace(prior=pa.priors.Flat(2), posterior=pa.posteriors.Delta()), x)


def test_dots_of_weights(ax):
    khat = torch.tensor([0.1, 0.9, 0.5])
    found = Estimate(torch.zeros(3), torch.zeros(3), torch.tensor([30.0, 2.0, 9.0]), khat, 40, 5)
    good, bad = pa.plots.weights(found, ax=ax).collections
    assert np.allclose(good.get_offsets(), [[0.1, 30], [0.5, 9]]) and np.allclose(bad.get_offsets(), [[0.9, 2]])
    assert "33.3%" in ax.get_title()
    with pytest.raises(ValueError, match="at least 25"):
        pa.plots.weights(dataclasses.replace(found, khat=torch.full((3,), torch.nan)))


@pytest.mark.parametrize("widen, sign", [(1.0, 0), (0.5, -1), (2.0, 1)])
def test_calibration_lies_on_its_side_of_the_diagonal(ax, widen, sign):
    exact = linear_gaussian(widen=widen)
    lines = pa.plots.calibration(pa.sbc(exact.ae, exact.x.repeat(20, 1)), ax=ax).lines[1:]
    expected = 100 * (2 * dist.Normal(0.0, 1.0).cdf(widen * dist.Normal(0.0, 1.0).icdf(torch.tensor(0.75))).item() - 1)
    assert len(lines) == 3 and all(line.get_ydata()[50] == pytest.approx(expected, abs=6) for line in lines)
    assert sign * (expected - 50) >= 0


def test_codes_in_two_by_neighbourhood(grey, ax):
    vae = small_vae(z=5, likelihood=pa.likelihoods.Normal(64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pa.plots.latent(vae, grey.test.x[:60], method="tsne", ax=ax).get_xlabel() == "t-SNE 1"
    with pytest.raises(ValueError, match="'pca', 'tsne' or 'umap'"):
        pa.plots.latent(vae, grey.test.x[:60], method="mds")


def test_a_saved_figure_cuts_nothing(grey):
    """By the caller's own savefig: everything on the new figure lies inside it, long names of columns and rows too."""
    table = pa.data.load(pd.DataFrame({f"a column with a long name {i}": torch.randn(40).numpy() for i in range(3)}))
    vae = pa.recipes.vae(table, latent_dim=2, hidden=4)
    check = pa.predictive_check(vae, table.test)
    for draw in (
        lambda: pa.plots.samples(vae),
        lambda: pa.plots.reconstructions(vae, table.test.x),
        lambda: pa.plots.calibration(check),
        lambda: pa.plots.latent(vae, table.test.x),
    ):
        figure = draw().figure
        figure.savefig(io.BytesIO())
        inside = figure.get_tightbbox(figure.canvas.get_renderer())
        width, height = figure.get_size_inches()
        assert inside.x0 > -0.01 and inside.y0 > -0.01 and inside.x1 < width + 0.01 and inside.y1 < height + 0.01
        plt.close(figure)


def test_a_small_figure_holds_its_title_and_a_split_is_drawn_as_it_is(grey):
    vae = pa.recipes.vae(grey)
    figure, ax = plt.subplots(figsize=(3.3, 2.0))
    pa.plots.reconstructions(vae, grey.test, ax=ax)
    figure.canvas.draw()
    box = ax.title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and ax.images[0].get_array().shape[1] == 20 * 9 - 1
    assert pa.plots.latent(vae, grey.test).collections[0].get_array() is not None  # coloured by the split's labels
    plt.close("all")


def test_filters_of_a_table_have_its_columns_names(ax):
    frame = pd.DataFrame(torch.randn(30, 3).numpy(), columns=["a", "b", "c"])
    pa.plots.filters(pa.recipes.vae(frame), ax=ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"] and ax.get_ylabel() == "unit"
    mixed = pa.recipes.vae(frame.assign(b=range(30), d=["x", "y"] * 15))
    pa.plots.filters(mixed, ax=plt.figure().gca())
    assert plt.gca().get_xlabel() == "entry of x"


def test_images_are_drawn_without_being_told_their_shape():
    """Of a model that was built by hand and never trained."""
    drawn = pa.plots.samples(small_vae(x=64), 20)
    assert drawn.images[0].get_array().shape == (17, 89) and not drawn.get_xlabel()
    plt.close(drawn.figure)


def test_classes_have_their_names():
    flowers = pd.DataFrame({"petal": [1.4, 4.7, 1.3, 4.5] * 8, "sepal": [5.0, 6.1, 4.9, 6.3] * 8, "species": ["setosa", "virginica"] * 16})
    data = pa.data.load(flowers, labels="species")
    ax = pa.plots.latent(pa.recipes.vae(data, latent_dim=2, hidden=4), data.train.x, data.train.labels)
    assert {text.get_text() for text in ax.texts} == {"setosa", "virginica"}
    plt.close(ax.figure)
