"""What a caller has set for the whole process or thread, kept away from a training."""

import contextlib
import functools
from collections.abc import Callable

import numpy as np
import torch

from ipot import undisturbed


def unaffected(function: Callable) -> Callable:
    """The function, which computes the same whatever the caller has set, and leaves that as it is.

    torch's default device, gradient modes and autocast and NumPy's errors belong to a thread, whose
    other settings are used here. torch's default dtype and random generators belong to the process:
    all of this package name their own. Denormal numbers are taken for zero, because the weights of
    a neuron that dies become denormal, and arithmetic is slow on them. Threads that torch starts
    meanwhile keep to this; those that it had started before do not.
    """

    @undisturbed
    @functools.wraps(function)
    def run(*args, **options):
        usual = {"over": "warn", "divide": "warn", "invalid": "warn", "under": "ignore"}
        # Without inference mode there are gradients, whether or not the caller has these.
        with torch.inference_mode(False), np.errstate(**usual), no_denormals():
            return function(*args, **options)

    return run


@contextlib.contextmanager
def no_denormals():
    """Denormal numbers are zero in this thread, and in those that it starts."""
    as_found = bool(np.float64(2e-308) / 2 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(as_found)
