"""How long a call takes."""

import time
from collections.abc import Callable


def milliseconds(
    function: Callable[[], object],
    repeats: int = 1,
    choose: Callable[[list[float]], float] = min,
) -> tuple[float, object]:
    """The shortest of a few runs, or what else `choose` makes of them, and the last result."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        times.append(1e3 * (time.perf_counter() - started))
    return float(choose(times)), result


def rest() -> None:
    """Wait for other libraries' threads: after their work they spin for 0.1 s and hold up the next
    solver's."""
    time.sleep(0.2)
