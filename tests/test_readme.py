"""The READMEs are short where they should be, name every part, and their links and code hold."""

import ast
import re
from pathlib import Path

import pytest

from pyroae import recipes, registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "pyroae/README.md", ROOT / "notebooks/README.md", *sorted((ROOT / "examples").rglob("README.md"))]
KINDS = "priors likelihoods posteriors nets conditions corruption penalties objectives".split()
NAMED_BY_ANOTHER = {"FromDistribution", "Network", "Objective"}  # a Pyro distribution given as it is; bases


def test_the_first_page_is_short():
    assert len(README.splitlines()) <= 130 and len(README.split()) <= 1500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert [target for target in targets if not target.startswith("http") and not (page.parent / target.partition("#")[0]).exists()] == []


def test_the_table_names_every_part():
    table = README.partition("## Parts")[2].partition("\n## ")[0]
    ours = {name for kind in KINDS for name, cls in registry.members(kind).items() if cls.__module__.startswith("pyroae.")}
    named = set(re.findall(r"`(\w+)", table))
    assert (ours | recipes.RECIPES.keys()) - NAMED_BY_ANOTHER - named == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_python_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(block)


def test_the_first_page_runs(tmp_path, monkeypatch, capsys):
    """All Python of the first page in one go, with fewer epochs and examples."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"P{i},{20 + i % 40}.5,{'Ulm' if i % 3 else ''},{'high' if i % 2 else 'low'}\n" for i in range(60))
    (tmp_path / "people.csv").write_text("name,age,town,income\n" + rows)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    code = re.sub(r"epochs=\d+", "epochs=1, progress=False", code)
    code = re.sub(r"log_likelihood\(vae, (\w+)\.test\)", r"log_likelihood(vae, \1.test[:3], particles=30)", code)
    code = code.replace("class Cauchy", "class ReadmeCauchy")  # others register one of that name
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out.count("nats/example") == 2 and names["data"].schema.columns[0].name == "age"
    assert names["ReadmeCauchy"](3).size == 3
