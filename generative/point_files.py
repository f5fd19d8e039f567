"""A user's points: a .npy file, which is mapped to memory and never held whole."""

import hashlib
import math
import os
from collections.abc import Iterator

import numpy as np

from generative.ranks import by_first

LARGEST = 784  # dimensions
FEWEST = 100  # points
EXTREME = 1e303  # the largest entry; the smallest range is its inverse
FAR = 1000  # times their range: data so far from 0 are shown from a point beside them
PART = 2**22  # entries that are looked at together


class Points:
    """Points (n, d) of a file in standard units, float32, each read where it is asked for.

    In standard units the mean is 0 and the columns' mean variance is 1.

    Attributes
    ----------
    index : int array (n,)
        Rows of the file.
    origin : array (d,)
        A round number next to the data if they lie far from 0; integers where the data are.
    offset, scale : array (d,) and float
        The mean less the origin, and the length that is 1.
    digest : str
        SHA-256 of the file.
    """

    def __init__(self, path: str):
        """Open a file.

        Raises
        ------
        ValueError
            If the file is no array of shape (n, d), n at least 100, d up to 784, of finite real
            numbers, or if their spread is zero, too small or too large to compute with.
        """
        self._file = _opened(path)
        self._stamp = stamp(self._file)
        self.index = np.arange(len(self._file))
        found = by_first(lambda: _surveyed(self._file, path))
        self.origin, self.offset, self.scale, self.digest = found

    def part(self, which: np.ndarray) -> "Points":
        """Some of the points, which stay unread."""
        found = object.__new__(Points)
        vars(found).update(vars(self), index=self.index[which])
        return found

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which) -> np.ndarray:
        check_unchanged(self._file, self._stamp)
        index = self.index[which]
        found = np.empty((len(index), self._file.shape[1]), np.float32)
        step = max(1, PART // found.shape[1])
        for first in range(0, len(index), step):
            rows = self.exact(index[first : first + step])
            found[first : first + step] = (rows - self.offset) / self.scale
        return found

    def exact(self, index: np.ndarray) -> np.ndarray:
        """These rows of the file beyond the origin, float64."""
        return _beyond(self._file[index], self.origin)


def stamp(file: np.memmap) -> tuple[int, int]:
    """Size and time of a mapped file, which change when it is written anew."""
    found = os.stat(file.filename)
    return found.st_size, found.st_mtime_ns


def check_unchanged(file: np.memmap, before: tuple[int, int]) -> None:
    """ValueError if a mapped file has changed, as its rows would be others or none."""
    try:
        same = stamp(file) == before
    except OSError:  # deleted: what is mapped stays
        same = True
    if not same:
        raise ValueError(f"data_path: {file.filename} has changed since the run began")


def _opened(path: str) -> np.ndarray:
    """The array of a file, mapped to memory."""
    accepted = f"accepts a .npy file of shape (n, d), n from {FEWEST} up, d up to {LARGEST}"
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"data_path: there is no file {path}; {accepted}") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"data_path: {path} cannot be read ({error}); {accepted}") from None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "biuf":
        kind = getattr(rows, "dtype", type(rows).__name__)
        raise ValueError(f"data_path: {path} holds {kind}, not real numbers; {accepted}")
    if rows.ndim != 2 or len(rows) < FEWEST or not 0 < rows.shape[1] <= LARGEST:
        raise ValueError(f"data_path: {path} has shape {rows.shape}; {accepted}")
    return rows


def _surveyed(file: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray, float, str]:
    """Origin, mean beyond it, spread and digest of the rows of a file, in three walks through it.

    The spread is the root of the columns' mean variance. One scale for all columns keeps the
    geometry, as squared distances mix them.
    """
    low, high = _ends(file, path)
    width, largest = max(b - a for a, b in zip(low, high)), max(map(abs, low + high))
    if width == 0:
        raise ValueError(f"data_path: all rows of {path} are equal; accepts rows that differ")
    if largest > EXTREME or width < 1 / EXTREME:
        raise ValueError(
            f"data_path: entries of {path} are up to {largest:.3g} and differ by {width:.3g}; "
            f"accepts entries up to {EXTREME:g} that differ by {1 / EXTREME:g} or more"
        )
    kind = np.float64 if file.dtype.kind in "bf" else file.dtype
    origin = np.array([_origin(a, width) for a in low], dtype=kind)
    ends = np.array((low, high), dtype=kind)
    largest = float(abs(_beyond(ends, origin)).max())

    def relative() -> Iterator[np.ndarray]:  # sums cannot overflow, nor squares underflow
        return (_beyond(rows, origin) / largest for rows in _parts(file))

    mean = sum(rows.sum(0) for rows in relative()) / len(file)
    variance = sum(np.square(rows - mean).sum(0) for rows in relative()) / len(file)
    offset, scale = largest * mean, largest * float(np.sqrt(variance.mean()))
    standard = ((_beyond(ends, origin) - offset) / scale).astype(np.float32)
    if (standard[0] == standard[1]).all():
        raise ValueError(equal_in_float32(path))
    with open(path, "rb") as content:
        return origin, offset, scale, hashlib.file_digest(content, "sha256").hexdigest()


def equal_in_float32(path: str) -> str:
    return (
        f"data_path: the rows of {path} are equal in float32 but for a few that lie very far "
        f"from them; leave those out"
    )


def _ends(file: np.ndarray, path: str) -> tuple[list, list]:
    """Smallest and largest entries of the columns: Python's numbers, which do not overflow."""
    low = high = None
    for rows in _parts(file):
        if rows.dtype.kind in "bf":
            with np.errstate(over="ignore"):  # of numbers longer than float64
                rows = rows.astype(np.float64)
            if not np.isfinite(rows).all():
                raise ValueError(f"data_path: {path} has entries that are not finite")
        ends = rows.min(0), rows.max(0)
        low = ends[0] if low is None else np.minimum(low, ends[0])
        high = ends[1] if high is None else np.maximum(high, ends[1])
    return low.tolist(), high.tolist()


def _parts(file: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a file, some at a time."""
    step = max(1, PART // file.shape[1])
    return (file[first : first + step] for first in range(0, len(file), step))


def _beyond(rows: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Rows less their origin, float64."""
    return (rows.astype(origin.dtype, copy=False) - origin).astype(np.float64)


def _origin(entry: float, width: float) -> float:
    """A round number next to an entry of data of this range if they lie far from 0, else 0.

    It has the type of the entry, in which it can be subtracted from the data without rounding.
    """
    if abs(entry) <= FAR * width:
        return 0
    step = type(width)(10) ** math.floor(math.log10(10 * width))
    if isinstance(entry, float):
        return float(f"{round(entry / step) * step:.15g}")
    return int(math.copysign(1, entry)) * (abs(entry) // step * step)  # never beyond the dtype
