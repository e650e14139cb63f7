from .answer import Answer


def report(run: str, out: str | None = None) -> Answer:
    """Write one HTML page."""
