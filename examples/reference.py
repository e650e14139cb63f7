"""The API reference: pages made from the docstrings, which can be searched and opened from disk without a network.

uv run python examples/reference.py        # writes reference/index.html
"""

import html
import inspect
import re
import textwrap
import types
import warnings
from pathlib import Path

import jinja2
import latex2mathml.converter
import pdoc
import pdoc.docstrings
import pdoc.render

import pyroae as pa

TASKS = {
    "Load data": "data",
    "Build a model": "Autoencoder recipes priors likelihoods posteriors nets conditions corruption register",
    "Train": "fit Step Validation Run History StopTraining callbacks SVI pretrain fit_prior distributed",
    "Swap the objective": "objectives penalties schedules Penalised with_weight_prior",
    "Score": "log_likelihood proposals cross_check compare ais bdmc elbo_terms decompose aggregate to_arviz",
    "Check": "predictive_check sbc active_units codes perplexity probe mig jacobian reconstruction_error sparsity denoising_gain",
    "Draw and fill in": "plots impute",
    "Save and use elsewhere": "save load export sklearn",
}
_TEMPLATE = """
{% extends "default/module.html.jinja2" %}
{% defaultmacro is_public(doc) %}
    {% if doc.kind == "module" or doc.name == "__init__" and doc.signature_without_self.parameters %}true
    {% elif doc.docstring and not doc.name.startswith("_") %}true
    {% endif %}
{% enddefaultmacro %}
{% defaultmacro decorators(doc) %}{% enddefaultmacro %}
{% defaultmacro bases(cls) %}
    {%- set shown = cls.bases | selectattr(0, "in", all_modules) | list -%}
    {%- if shown %}({% for base in shown %}{{ base[:2] | link(text=base[2]) }}{{ ", " if loop.nextitem }}{% endfor %}){% endif -%}
{% enddefaultmacro %}
{% defaultmacro docstring(doc) %}
    {% if doc.docstring and doc.name != "__init__" %}
        <div class="docstring">{{ doc.docstring | to_markdown | to_html | linkify(namespace=doc.qualname, shorten=False) }}</div>
    {% endif %}
{% enddefaultmacro %}
{% block nav_submodules %}
    <h2>Namespaces</h2>
    <ul>{% for name in all_modules %}
        <li><a href="{{ "../" * module.modulename.count(".") }}{{ name.replace(".", "/") }}.html">{{ name }}</a></li>
    {% endfor %}</ul>
{% endblock %}
"""
_STYLE = "math[display=block] { margin: .6em 0; font-size: 115%; } .pdoc .docstring dt { font-weight: 600; }"


def main(out: str = "reference"):
    """Write the pages.

    Args:
        out: the folder.
    """
    folder = Path(out)
    pages = {page.modulename: page for page in modules()}
    pdoc.render.configure(docformat="google", show_source=False, footer_text="pyroae", search=True)
    environment = pdoc.render.env
    templates = {"module.html.jinja2": _TEMPLATE, "custom.css": _STYLE}
    loaders = [jinja2.DictLoader(templates), environment.loader]
    environment.loader, environment.filters["to_markdown"] = jinja2.ChoiceLoader(loaders), markdown
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pdoc's, of annotations that exist for type checkers alone
        for name, page in pages.items():
            path = folder / f"{name.replace('.', '/')}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pdoc.render.html_module(page, pages), "utf-8")
        (folder / "search.js").write_text(pdoc.render.search_index(pages), "utf-8")
    (folder / "index.html").write_text(pdoc.render.html_index(pages), "utf-8")
    print(f"{folder / 'index.html'}: {len(pages)} pages")


def modules() -> list[pdoc.doc.Module]:
    """``pa`` and its namespaces as modules that hold their public names, whatever files these are defined in."""
    spaces = {name: getattr(pa, name) for name in dir(pa) if inspect.ismodule(getattr(pa, name))}
    own = {name: getattr(pa, name) for name in dir(pa) if name not in spaces}
    pages = [_module("pa", own, index())]
    return pages + [
        _module(f"pa.{name}", {each: getattr(space, each) for each in dir(space)}, space.__doc__) for name, space in spaces.items()
    ]


def _module(name: str, members: dict, text: str | None) -> pdoc.doc.Module:
    module = types.ModuleType(name, text)
    module.__dict__.update(members)
    module.__all__ = list(members)
    return pdoc.doc.Module(module)


def index() -> str:
    """The first page: every public name by task, with the first sentence of what it does."""
    lines = ["Autoencoders as Pyro probabilistic programs. All names are those of `import pyroae as pa`.\n"]
    for task, names in TASKS.items():
        lines += [f"## {task}\n", *(f"* `pa.{name}`: {_first_sentence(getattr(pa, name))}" for name in names.split()), ""]
    return "\n".join(lines)


def _first_sentence(thing) -> str:
    paragraph = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<!al)\. ", paragraph)[0].rstrip(",:.")


def markdown(text: str) -> str:
    """A docstring as Markdown: Google's sections, and formulas as MathML."""
    text = textwrap.dedent(text)
    text = re.sub(r"^\.\. math::(.*(?:\n[ \t]+.*)*)", lambda found: f"\n{_mathml(found[1], 'block')}\n", text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]*)`", lambda found: _mathml(found[1], "inline"), text)
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    return pdoc.docstrings.google(text)


def _mathml(formula: str, display: str) -> str:
    formula = formula.strip()
    trailing = re.search(r"[,.;]?$", formula)[0]
    made = latex2mathml.converter.convert(formula.removesuffix(trailing), display=display)
    return re.sub(r"[*_]", lambda found: f"&#{ord(found[0])};", made) + html.escape(trailing)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
