"""The API reference has every public name, formulas and no link that leads nowhere."""

import inspect
import re
from pathlib import Path
from urllib.parse import unquote

import browser
import pytest
from test_examples import imported

import pyroae as pa


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The built pages: path -> text."""
    folder = tmp_path_factory.mktemp("reference")
    imported("reference").main(str(folder))
    return {path: path.read_text() for path in folder.rglob("*.html")}


def test_no_link_leads_nowhere(pages):
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    bad, links = [], 0
    for path, text in pages.items():
        for link in re.findall(r'(?:href|src|url)="?=?([^"\s]+)"', re.sub("<script>.*?</script>", "", text, flags=re.DOTALL)):
            if re.match(r"https?:|data:|mailto:", link):
                continue
            target, _, fragment = unquote(link).partition("#")
            file = (path.parent / target).resolve() if target else path
            links += 1
            if not file.exists() or (fragment and fragment not in ids.get(file, ())):
                bad.append((path.name, link))
    assert links > 500 and bad == []


def test_every_public_name_is_there_under_its_task(pages):
    tasks = imported("reference").TASKS
    listed = [name for names in tasks.values() for name in names.split()]
    assert sorted(listed) == sorted(dir(pa))
    text = {path.stem: text for path, text in pages.items()}
    spaces = [name for name in dir(pa) if inspect.ismodule(getattr(pa, name))]
    missing = [f"{space}.{name}" for space in spaces for name in dir(getattr(pa, space)) if f'id="{name}"' not in text[space]]
    assert missing == [] and all(f'href="#{name}"' in text["pa"] for name in listed if name not in spaces)


def test_formulas_are_mathml_and_nothing_is_left_of_their_source(pages):
    text = "".join(pages.values())
    assert text.count("<math") > 30 and '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"' in text
    assert not re.search(r":math:|\.\. math|\\frac|MathJax", text)


def test_pages_open_from_disk_and_can_be_searched(pages):
    if browser.PROGRAM is None:
        pytest.skip("needs a Chromium")
    index = next(path for path in pages if path.name == "pa.html")
    with browser.Page(f"{index.as_uri()}?search=log_likelihood") as page:
        page.until(lambda: page.value("!!document.querySelector('.search-result')"))
        assert page.complaints == [] and all(url.startswith(("file:", "data:")) for url in page.fetched)
        texts = page.value("[...document.querySelectorAll('.search-result')].map(each => each.innerText).join()")
        found = page.value("document.querySelector('.search-result a').href")
    assert "pa.log_likelihood" in texts
    assert Path(unquote(found.partition("#")[0].removeprefix("file://"))).exists()
