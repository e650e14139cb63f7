"""The page about a run: what is in it, that it needs nothing else, and that its explorer answers in a browser."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
import torch
from PIL import Image

import pyroae as pa
from pyroae.cli import main
from pyroae.experiment.atlas import atlas
from pyroae.experiment.report import page

QUICK = ["--epochs", "2", "--particles", "30", "--hidden", "16"]
UNSPOKEN = "<script>alert(1)</script>&"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose folder has a name that must be escaped."""
    folder = tmp_path_factory.mktemp("runs") / UNSPOKEN.replace("/", "")
    assert main(["train", "--latent_dim", "2", *QUICK, "--out", str(folder)]) == 0
    assert main(["report", str(folder)]) == 0
    return folder


class Reader(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "data", "action")]


def test_the_page_says_all_and_fetches_nothing(run):
    text = (run / "report.html").read_text()
    read, results = Reader(text), json.loads((run / "results.json").read_text())
    assert all(address.startswith(("data:", "#")) for address in read.addresses) and read.tags.count("img") >= 8
    assert "alert" not in re.sub(r"&lt;script&gt;alert\(1\)", "", text) and read.tags.count("script") == 3
    for said in (f"{results['log_likelihood']:.2f} ± {results['data_se']:.2g}", "Normal(event_shape=2)", "x ~ Bernoulli", "default-src"):
        assert said in text
    errors = np.genfromtxt(run / "results.csv", delimiter=",", names=True)["kl"]
    assert f"{results['kl']:.2f} ± {errors.std(ddof=1) / 360**0.5:.2g}" in text


def shown(found, tile, column, row):
    """The picture in a column from the left and a row from the bottom."""
    sprite = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["png"].partition(",")[2]))))
    top, left = (found["side"] - 1 - row) * tile[0], column * tile[1]
    return sprite[top : top + tile[0], left : left + tile[1]]


@pytest.mark.parametrize("code", [1, 2, 5])
def test_every_place_of_the_atlas_is_its_code_decoded(grey, code):
    ae = pa.recipes.vae(grey, latent_dim=code).replace(likelihood=pa.likelihoods.ContinuousBernoulli(64))
    found, means = atlas(ae, grey), pa.codes(ae, grey.test.x).float()
    middle, axes = torch.zeros(code), torch.eye(2)[:, :code]
    if code > 2:
        middle = means.mean(0)
        axes = torch.linalg.eigh((means - middle).T @ (means - middle)).eigenvectors.T.flip(0)[:2]
    place = [np.linspace(low, high, found["side"]) for low, high in zip(found["low"], found["high"])]
    dots = torch.tensor(found["dots"])
    for i in range(2 if code > 2 else 0):  # an axis has no sign
        axes[i] *= torch.sign((means - middle) @ axes[i] @ dots[:, i])
    for column, row in ((0, 0), (40, 7), (20, 33)):
        z = middle + torch.tensor([place[0][column], place[1][row]], dtype=torch.float32) @ axes
        expected = ae.likelihood.mean_or_mode(ae.decode(z[None])).detach().reshape(8, 8).numpy() * 255
        assert np.abs(shown(found, [8, 8], column, row) - expected).max() < 1.5


@pytest.mark.parametrize("prior, posterior", [("OneHot", "OneHot"), ("Sphere", "ProjectedNormal")])
def test_codes_without_a_plane_have_no_atlas(grey, prior, posterior):
    ae = pa.recipes.vae(grey).replace(prior=getattr(pa.priors, prior)(3), posterior=getattr(pa.posteriors, posterior)())
    assert atlas(ae, grey) is None


def tables():
    x = torch.cat([torch.randn(60, 2), torch.rand(60, 1).round()], 1)
    likelihood = pa.likelihoods.Product({"size": pa.likelihoods.Normal(2), "sex": pa.likelihoods.Bernoulli(1)})
    data = pa.data.load(x)
    return pa.recipes.vae(data, latent_dim=2, hidden=8).replace(likelihood=likelihood), data


def holes():
    x = torch.randn(60, 5)
    x[torch.rand(60, 5) < 0.2] = torch.nan
    data = pa.data.load(x, missing=True)
    return pa.recipes.vae(data, latent_dim=2, hidden=8).replace(likelihood=pa.likelihoods.Missing(pa.likelihoods.Normal(5))), data


def of_digits(recipe, prior=None, posterior=None, **options):
    data = pa.data.load("digits", binarize="threshold")
    ae = getattr(pa.recipes, recipe)(data, hidden=8, **options)
    return (ae if prior is None else ae.replace(prior=prior, posterior=posterior)), data


OTHERS = {
    "point posterior": lambda: of_digits("denoising"),
    "sigmoid units": lambda: of_digits("sparse_kl", latent_dim=3),
    "labels": lambda: of_digits("conditional", latent_dim=2),
    "categories": lambda: of_digits("vae", pa.priors.OneHot(3), pa.posteriors.OneHot()),
    "two levels": lambda: of_digits("vae", pa.priors.Hierarchical(3, top=2), pa.posteriors.Hierarchical()),
    "clusters": lambda: of_digits("vae", pa.priors.Clusters(3), pa.posteriors.Clusters()),
    "mixed table": tables,
    "holes": holes,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=list(OTHERS))
def test_a_page_for_every_kind_of_model(make, tmp_path, monkeypatch):
    """Pictures are drawn but not written; and the run was stopped before its scores."""
    monkeypatch.setattr("pyroae.experiment.report._uri", lambda figure: "data:,")
    (tmp_path / "settings.json").write_text("{}")
    text = page(*make(), tmp_path)
    assert "not scored yet" in text and text.count('src="data:,"') >= 3


DAMAGED = {
    "scores that are empty": ("results.json", ""),
    "scores cut off": ("results.json", '{"elbo": -20.1, "re'),
    "scores that are a list": ("results.json", "[1]"),
    "scores nested without end": ("results.json", "[" * 100_000),
    "particles as text": ("results.json", '{"particles": "many"}'),
    "scores without the ELBO": ("results.json", '{"particles": 30}'),
    "scores without their errors": ("results.json", '{"log_likelihood": -20.1, "particles": 30}'),
    "text among the data's scores": ("results.csv", "khat,elbo\n.3,-20\nx,y\n"),
    "the data's scores without log p(x)": ("results.csv", "khat\n.3\n"),
    "a history of text": ("history.csv", "epoch,loss\n1,low\n"),
    "a history without losses": ("history.csv", "epoch\n1\n"),
    "a history with rows too long": ("history.csv", "epoch,loss\n1,2,3\n"),
    "a history without epochs": ("history.csv", "loss\n1\n"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(name, run, tmp_path, monkeypatch, capsys):
    for drawn in ("pyroae.experiment.report.atlas", "pyroae.experiment.figures.figures", "pyroae.experiment.figures.diagnostics"):
        monkeypatch.setattr(drawn, lambda *_: ())
    file, content = DAMAGED[name]
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / file).write_text(content)
    assert main(["report", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pyroae: report: in {tmp_path / 'run'} ") and f"{file} " in said and "is damaged" in said, said


@pytest.mark.parametrize("file", ["history.csv", "results.csv", "evaluation-900.csv"])
def test_the_tables_of_a_run_have_a_limit(file, run, tmp_path, monkeypatch, capsys):
    for drawn in ("pyroae.experiment.report.atlas", "pyroae.experiment.figures.figures", "pyroae.experiment.figures.diagnostics"):
        monkeypatch.setattr(drawn, lambda *_: ())
    shutil.copytree(run, tmp_path / "run")
    scores = json.loads((run / "results.json").read_text()) | {"particles": 900}
    (tmp_path / "run/evaluation-900.json").write_text(json.dumps(scores))
    table = tmp_path / "run" / file
    table.write_text("elbo,kl,reconstruction\n" + "-20,1,-19\n" * 50_000)
    assert main(["report", str(tmp_path / "run"), "--limit", "5e6"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pyroae: report: {table} would take ") and "raise it by limit=6.6e+0" in said and "(--limit)" in said
    table.write_text("," * 50_000 + "\n")
    assert main(["report", str(tmp_path / "run"), "--limit", "7e6"]) == 2 and f"the 50,001 columns of {table}" in capsys.readouterr().err


def test_whatever_the_files_of_a_run_say_is_escaped(tmp_path, monkeypatch):
    monkeypatch.setattr("pyroae.experiment.report._uri", lambda figure: "data:,")
    settings = {UNSPOKEN: UNSPOKEN, "data": UNSPOKEN, "prior": {"class_path": UNSPOKEN, "init_args": {UNSPOKEN: [UNSPOKEN]}}}
    scores = {
        "elbo": -1.0,
        "kl": 1.0,
        "reconstruction": 1.0,
        "particles": 5,
        "linear_probe": 0.5,
        UNSPOKEN: UNSPOKEN,
        "objective": UNSPOKEN,
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "results.json").write_text(json.dumps(scores))
    ae, data = OTHERS["labels"]()
    text = page(ae, replace(data, name=UNSPOKEN), tmp_path)
    assert "<script>alert" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    assert Reader(text).tags.count("script") in (1, 3)


def test_what_is_no_run_is_refused(tmp_path, run, capsys):
    assert main(["report", str(tmp_path)]) == 2 and "expected a run folder" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(tmp_path / "none" / "x.html")]) == 2 and "create it first" in capsys.readouterr().err


@pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium")
def test_the_explorer_answers_in_a_browser(run):
    found = json.loads(re.search(r'id="atlas">(.*?)</script>', (run / "report.html").read_text()).group(1))
    with browser.Page((run / "report.html").as_uri()) as tab:
        where = lambda: tab.value("document.getElementById('where').textContent")
        tab.until(lambda: where() != "")
        tab.value("document.getElementById('plane').scrollIntoView()")
        box = tab.value("JSON.parse(JSON.stringify(document.getElementById('plane').getBoundingClientRect()))")
        seen = []
        for share in (0.0, 0.5, 0.75):
            tab.ask("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + share * box["width"] + 1, y=box["y"] + 0.25 * box["height"])
            across, down = re.match(r"z1 = (\S+), z2 = ([^;]+);", where()).groups()
            step = (found["high"][0] - found["low"][0]) / (found["side"] - 1)
            assert float(across) == pytest.approx(found["low"][0] + share * (found["high"][0] - found["low"][0]), abs=step)
            assert float(down) == pytest.approx(found["low"][1] + 0.75 * (found["high"][1] - found["low"][1]), abs=2 * step + 0.1)
            column = round((float(across) - found["low"][0]) / step)
            row = round((float(down) - found["low"][1]) / (found["high"][1] - found["low"][1]) * (found["side"] - 1))
            pixel = "[...document.getElementById('decoded').getContext('2d').getImageData({0}, {1}, 1, 1).data][0]"
            grey = [[tab.value(pixel.format(35 * j + 17, 35 * i + 17)) for j in range(8)] for i in range(8)]
            assert np.abs(np.array(grey) - shown(found, [8, 8], column, row).astype(float)).max() <= 1
            seen.append(where())
        tab.value("document.getElementById('plane').focus()")
        tab.ask("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
        tab.until(lambda: where() != seen[-1])
        ours = [said for said in tab.complaints if "getImageData" not in str(said)]  # advice about how this test reads pixels
        assert len(set(seen)) == 3 and ours == []
        assert all(address.startswith(("data:", "file:")) for address in tab.fetched)


def test_a_page_says_no_error_that_is_not_known(tmp_path):
    """One particle has no Monte-Carlo error."""
    folder = tmp_path / "one"
    assert main(["train", "--epochs", "1", "--particles", "1", "--hidden", "8", "--out", str(folder)]) == 0
    assert main(["report", str(folder)]) == 0
    assert "(test data) nats/example" in (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
    """A run on a table with a column of text."""
    folder = tmp_path_factory.mktemp("table")
    rows = "".join(f"{20 + i % 40}.5,{('Ulm', 'Bonn', 'Kiel')[i % 3]},{i % 7}\n" for i in range(80))
    (folder / "people.csv").write_text("age,town,children\n" + rows)
    options = ["--epochs", "2", "--particles", "30", "--hidden", "8", "--latent_dim", "3", "--out", str(folder / "run")]
    assert main(["train", "vae", "--data", str(folder / "people.csv"), *options]) == 0
    assert main(["report", str(folder / "run"), "--projection", "tsne"]) == 0
    return folder / "run"


def test_the_explorer_has_the_numbers_of_a_table(table_run):
    text = (table_run / "report.html").read_text()
    numbers = json.loads(re.search(r'id="atlas">(.*?)</script>', text).group(1))["numbers"]
    assert numbers["names"] == ["age", "town", "children"] and len(numbers["rows"]) == 41**2
    for age, town, children in numbers["rows"][::100]:
        assert 10 < float(age) < 70 and town in ("Ulm", "Bonn", "Kiel") and -1 < float(children) < 7
    assert all(f"<td>{name}</td><td></td>" in text for name in numbers["names"])


@pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium")
def test_the_numbers_follow_the_pointer(table_run):
    atlas = json.loads(re.search(r'id="atlas">(.*?)</script>', (table_run / "report.html").read_text()).group(1))
    cells = "[...document.querySelectorAll('#numbers td:last-child')].map(each => each.textContent)"
    with browser.Page((table_run / "report.html").as_uri()) as tab:
        tab.until(lambda: tab.value(cells)[0] != "")
        middle = 20 * 41 + 20  # of 41 rows and columns
        assert tab.value(cells) == atlas["numbers"]["rows"][middle] and tab.complaints == []
        tab.value("document.getElementById('plane').focus()")
        tab.ask("Input.dispatchKeyEvent", type="keyDown", key="ArrowUp", code="ArrowUp", windowsVirtualKeyCode=38)
        tab.until(lambda: tab.value(cells) == atlas["numbers"]["rows"][middle - 41])


def test_umap_is_named_where_it_is_absent(table_run, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["report", str(table_run), "--projection", "umap"]) == 2 and "pyroae[umap]" in capsys.readouterr().err
