"""What a solver is doing, as messages of the logger "exactot"."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("exactot")


class _Elapsed(logging.Formatter):
    """Messages behind the seconds since it was made."""

    def __init__(self):
        super().__init__("%(message)s")
        self.started = time.perf_counter()

    def format(self, record: logging.LogRecord) -> str:
        return f"{time.perf_counter() - self.started:7.1f} s  {super().format(record)}"


@contextmanager
def shown(verbose: bool) -> Iterator[None]:
    """Print the messages to stderr meanwhile, if wanted; the logger is left as it was."""
    if not verbose:
        yield
        return
    handler, level = logging.StreamHandler(), log.level
    handler.setFormatter(_Elapsed())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
