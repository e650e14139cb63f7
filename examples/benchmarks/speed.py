"""The speed tables of the README beside it, from the records of `training.py`, each with its machine.

python examples/benchmarks/speed.py
"""

import json
from pathlib import Path

from training import table

HERE = Path(__file__).parent
CLOCKS = {"wall": "wall time", "processor": "processor time"}


def text() -> str:
    """Markdown: a heading and tables for each record."""
    found = []
    for path in sorted(HERE.glob("training*.json")):
        record = json.loads(path.read_text())
        settings, results = record["settings"], record["seconds"]
        usual, versions = settings["usual"], ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
        how = f"{CLOCKS[settings['clock']]}, {settings['rounds']} rounds, load before {settings['load before']}"
        threads = f"{usual['threads']} thread{'s' * (usual['threads'] > 1)}"
        work = f"{usual['rows']:,} rows an epoch and batches of {usual['batch']} unless a column says otherwise, {threads}"
        found.append(f"### {settings['machine']}\n\n{how}; {work}; {versions} (`{path.name}`)")
        found += [table(name, each) for name, each in results.items()]
    return "\n\n".join(found)


def main():
    """Print the tables."""
    print(text())


if __name__ == "__main__":
    main()
