"""Pyro's own examples and tests of SVI, with ``pa.SVI`` in the place of ``pyro.infer.SVI``.

git clone https://github.com/pyro-ppl/pyro && git -C pyro checkout <the tag of the installed version>
uv run python examples/pyro_examples.py pyro            # an hour or more; what is done is not done again

Each example, with the arguments that Pyro's own tests give it (but five steps or epochs for one or two), and each file of tests is a
process with a time limit. It runs with Pyro's SVI first, which shows what fails by itself. Then it runs with ``pa.SVI`` in two modes,
and the losses are compared. Of files with hundreds of tests every second, third ... is run. Data that examples would download are
random ones of the same shapes.
"""

import ast
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
from pyro_checkout import replaced, synthetic

PLAIN = "pyro"
LIBRARIES = {  # parts of Pyro that make an SVI for their caller
    "pyro.contrib.cevae": "contrib/cevae",
    "pyro.contrib.epidemiology": "contrib/epidemiology",
    "pyro.contrib.forecast": "contrib/forecast",
    "pyro.contrib.mue": "contrib/mue",
    "pyro.contrib.oed": "contrib/oed",
}
ONCE_MORE = "contrib/funsor"  # hmm.py again where the package funsor is not installed
TOO_LONG = ("tests/perf", "tests/test_examples.py")
Record = dict[str, Any]


def main(
    folder: str,
    only: str = "",
    modes: list[str] = ["auto", "traced"],
    limit: int = 300,
    test_limit: int = 20,
    records: str = "pyro_examples_records",
    out: str = "pyro_examples",
):
    """Run everything that makes an SVI, and write ``out.json`` and ``out.md``.

    Args:
        folder: a checkout of Pyro at the installed version.
        only: run those alone whose name has this text.
        modes: values of ``pa.SVI``'s ``compile``.
        limit: the longest that an example may take, in seconds; a file of tests may take three times as long.
        test_limit: the longest that a test may take.
        records: the folder of what has been run; its files are not made again.
        out: where the summary goes.
    """
    checkout, kept = Path(folder).resolve(), Path(records).resolve()
    kept.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        synthetic.write(Path(home))
        for name in examples(checkout):
            if only in name:
                for mode in [PLAIN, *modes]:
                    record(kept, f"{name} {mode}", limit, _example, checkout, name, mode, Path(home))
        for name in tests(checkout):
            if only in name:
                plain = record(kept, f"{name} {PLAIN}", 3 * limit, _tests, checkout, name, None, PLAIN, Path(home), test_limit)
                chosen = [test for test, result in plain.items() if test != "error" and result["steps"] and result["outcome"] == "passed"]
                for mode in modes if chosen else []:
                    record(kept, f"{name} {mode}", 3 * limit, _tests, checkout, name, chosen, mode, Path(home), 3 * test_limit)
    summary = {"examples": _summary(checkout, kept, modes), "tests": _tests_summary(checkout, kept, modes)}
    Path(f"{out}.json").write_text(json.dumps(summary, indent=1))
    Path(f"{out}.md").write_text(table(summary) + "\n")


def examples(checkout: Path) -> list[str]:
    """Names with arguments, out of the lists of Pyro's own test of its examples: those whose text, or the library they use, has an SVI."""
    tree = ast.parse((checkout / "tests/test_examples.py").read_text())
    lists = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
    strings = [node for name in ("CPU_EXAMPLES", "JIT_EXAMPLES") for node in getattr(lists[name], "elts", [])]
    names = [item.value for item in strings if isinstance(item, ast.Constant)]  # what is marked as failing is not a plain string
    names = [name if name.startswith("cvae") else re.sub(r"--num-(steps|epochs)([ =])[12]\b", r"--num-\1\g<2>5", name) for name in names]
    names = [" ".join(name.split()) for name in names if not name.startswith(ONCE_MORE)]
    return [name for name in dict.fromkeys(names) if _makes_svi(checkout / "examples" / name.split()[0], name)]


def _makes_svi(path: Path, name: str) -> bool:
    if "epidemiology" in name and "--svi" not in name:
        return False
    neighbours = path.parent.glob("*.py") if path.name == "main.py" else [path]
    text = "\n".join(file.read_text() for file in neighbours)
    return "SVI(" in text or any(library in text for library in LIBRARIES)


def tests(checkout: Path) -> list[str]:
    """Files of tests that name an SVI or belong to a library that makes one."""
    folders = tuple(f"tests/{folder}" for folder in LIBRARIES.values())
    files = [path for path in sorted((checkout / "tests").rglob("test_*.py"))]
    named = [(str(path.relative_to(checkout)), path.read_text()) for path in files]
    return [name for name, text in named if ("SVI(" in text or name.startswith(folders)) and not name.startswith(TOO_LONG)]


def record(folder: Path, name: str, limit: int, run: Callable, *args) -> Record:
    """What one process leaves, made once; a process that is stopped leaves what it has, with a reason."""
    out = folder / (name.replace("/", "_").replace(" ", "_") + ".json")
    if not out.exists():
        unfinished = out.with_suffix(".unfinished")
        process = multiprocessing.get_context("fork").Process(target=_logged, args=(out.with_suffix(".log"), run, *args, unfinished))
        process.start()
        process.join(limit)
        error = None
        if process.is_alive():
            process.kill()
            process.join()
            error = f"stopped after {limit} seconds"
        elif process.exitcode:
            error = f"the process ended with {process.exitcode}"
        result = json.loads(unfinished.read_text()) if unfinished.exists() else {}
        unfinished.unlink(missing_ok=True)
        out.write_text(json.dumps(result | ({"error": error} if error else {})))
        print(f"{name}: {error or result.get('error') or 'done'}", flush=True)
    return json.loads(out.read_text())


def _logged(log: Path, run: Callable, *args):
    """Run with all that is written going to a file."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        run(*args)
        sys.stdout.flush(), sys.stderr.flush()


def _version(checkout: Path) -> str:
    return re.search(r'version_prefix = "(.*)"', (checkout / "pyro/__init__.py").read_text())[1]


def _example(checkout: Path, name: str, mode: str, home: Path, out: Path):
    path, *arguments = name.split()
    replaced.prepare(home, _version(checkout))
    os.chdir(home / "work")
    replaced.run_script(checkout / "examples" / path, arguments, mode, out)


def _tests(checkout: Path, name: str, chosen: list[str] | None, mode: str, home: Path, limit: int, out: Path):
    replaced.prepare(home, _version(checkout))
    os.chdir(checkout)
    replaced.run_tests(Path(name), chosen, mode, out, limit)


def verdict(plain: Record, ours: Record) -> str:
    """One cell: ``equal``, from which loss on the two differ, or the reason of a failure."""
    if ours.get("error"):
        return f"fails: {ours['error']}"
    if len(ours["losses"]) != len(plain["losses"]):
        return f"{len(ours['losses'])} losses, Pyro {len(plain['losses'])}"
    for i, (a, b) in enumerate(zip(ours["losses"], plain["losses"])):
        for x, y in zip(*(value if isinstance(value, list) else [value] for value in (a, b)), strict=True):
            if not math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-6) and not (math.isnan(x) and math.isnan(y)):
                return f"differs at loss {i + 1}: {x:.6g}, Pyro {y:.6g}"
    return "equal"


def _read(kept: Path, name: str) -> Record | None:
    path = kept / (name.replace("/", "_").replace(" ", "_") + ".json")
    return json.loads(path.read_text()) if path.exists() else None


def _summary(checkout: Path, kept: Path, modes: list[str]) -> dict[str, Record]:
    rows = {}
    for name in examples(checkout):
        plain = _read(kept, f"{name} {PLAIN}")
        if plain is None or not (plain.get("steps") or plain.get("error")):
            continue  # not run, or without a step of an SVI
        text = (checkout / "examples" / name.split()[0]).read_text()
        row = {"losses": plain.get("steps", 0), "data": ", ".join(sorted({data for key, data in synthetic.SOURCES.items() if key in text}))}
        row[PLAIN] = f"fails: {plain['error']}" if plain.get("error") else "passes"
        for mode in modes:
            ours = _read(kept, f"{name} {mode}")
            if ours is not None:
                row[mode] = {"verdict": _same_failure(plain, ours) or verdict(plain, ours), "eager": _why_eager(ours)}
        rows[name] = row
    return rows


def _same_failure(plain: Record, ours: Record) -> str | None:
    """Where Pyro fails too, in the same way, the losses until then can be compared, no more."""
    if not plain.get("error") or ours.get("error") != plain["error"]:
        return None
    return f"{verdict(plain, ours | {'error': None})} until then" if plain.get("steps") else "as Pyro"


def _why_eager(ours: Record) -> str:
    """Why the program was not traced, where the log says so."""
    reasons = [message.partition("stays eager: ")[2] for message in ours.get("messages", [])]
    return next((reason.splitlines()[0][:200] for reason in reasons if reason), "")


def _tests_summary(checkout: Path, kept: Path, modes: list[str]) -> dict[str, Record]:
    rows = {}
    for name in tests(checkout):
        plain = _read(kept, f"{name} {PLAIN}")
        if not plain:
            continue
        results = {test: result for test, result in plain.items() if test != "error"}
        with_svi = {test: result for test, result in results.items() if result["steps"]}
        passed = {test: result for test, result in with_svi.items() if result["outcome"] == "passed"}
        if not with_svi:
            continue
        row = {"with an SVI": len(with_svi), PLAIN: len(passed)}
        for mode in modes:
            ours = _read(kept, f"{name} {mode}") or {}
            ran = {test: ours[test] for test in passed if test in ours}
            good = [test for test, result in ran.items() if result["outcome"] == "passed"]
            cells = {test: verdict(passed[test], ran[test]) for test in good}
            failures = {test.partition("::")[2]: result["error"] or result["outcome"] for test, result in ran.items() if test not in good}
            failures |= {test.partition("::")[2]: "did not run" for test in passed if test not in ran}
            different = {test.partition("::")[2]: cell for test, cell in cells.items() if cell != "equal"}
            row[mode] = {"passed": len(good), "equal": len(good) - len(different), "failures": failures, "different": different}
        rows[name] = row
    return rows


def table(summary: Record) -> str:
    """Both tables in Markdown."""
    lines = []
    for kind, rows in summary.items():
        if rows:
            modes = [key for key in next(iter(rows.values())) if key not in ("losses", "data", "with an SVI", PLAIN)]
            make = {"examples": _examples_table, "tests": _tests_table}[kind]
            lines += [*make(rows, modes), ""]
    return "\n".join(lines).rstrip()


def _examples_table(rows: dict[str, Record], modes: list[str]) -> list[str]:
    lines = [f"| example | random data for | losses | Pyro | {' | '.join(modes)} |", "| --- | --- | ---: | --- |" + " --- |" * len(modes)]
    eager: dict[str, list[str]] = {}
    for name, row in rows.items():
        ours = [row.get(mode, {"verdict": "", "eager": ""}) for mode in modes]
        cells = [cell["verdict"] + (", stays eager" if cell["eager"] else "") for cell in ours]
        lines.append(
            f"| `{name}` | {row['data']} | {row['losses']} | {' | '.join(cell.replace('|', '/') for cell in (row[PLAIN], *cells))} |"
        )
        for reason in {cell["eager"] for cell in ours if cell["eager"]}:
            eager.setdefault(reason, []).append(f"`{name}`")
    if eager:
        lines += ["", "What stays eager, and why:", "", *(f"* {reason}: {', '.join(names)}" for reason, names in eager.items())]
    return lines


def _tests_table(rows: dict[str, Record], modes: list[str]) -> list[str]:
    heads = " | ".join(f"{mode}: passed | equal losses" for mode in modes)
    lines = [f"| tests with an SVI | run | Pyro: passed | {heads} |", "| --- |" + " ---: |" * (2 + 2 * len(modes))]
    for name, row in rows.items():
        cells = [f"{row[mode]['passed']} | {row[mode]['equal']}" for mode in modes]
        lines.append(f"| `{name}` | {row['with an SVI']} | {row[PLAIN]} | {' | '.join(cells)} |")
    reasons: dict[str, None] = {}
    for name, row in rows.items():
        for mode in modes:
            for test, reason in (row[mode]["failures"] | row[mode]["different"]).items():
                reasons[f"* `{name.removeprefix('tests/')}::{test}`, {mode}: {reason}"] = None
    return [*lines, "", *reasons]


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
