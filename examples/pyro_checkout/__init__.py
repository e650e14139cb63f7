"""Parts of ``pyro_examples.py``: random data in place of downloads, and ``pa.SVI`` in place of ``pyro.infer.SVI``."""
