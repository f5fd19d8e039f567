"""A cost (n, m) that is read in blocks of rows: a matrix, or the distances between two clouds.

What solves a transport problem exactly needs three things of a cost: its rows, the smallest entry
of each row after a potential is subtracted, min_j (C_ij - g_j), and likewise of each column. The
last two are the c-transforms of g and of f. A block of rows is computed, used and forgotten, so
that a cloud's cost is never formed. Blocks are float64 whatever the input is.

Squared distances come in two ways, by one rule. Up to FEW dimensions they are sums of squared
differences, which are exact to a few roundings. Beyond, they are |x|^2 + |y|^2 - 2 <x, y> about the
mean of y, which is one product of matrices. What cancels there is at most `error`, a bound that the
certificates allow for.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ipot import EPS, near_power

# benchmarks/memory.py and benchmarks/solvers.py chose these.
FEW = 4  # dimensions up to which squared distances are sums of differences
BLOCK = 2**18  # entries of a block, which stays in a CPU's cache
GPU_BLOCK = 2**24  # entries of a block on a GPU; not measured


def row_slices(n: int, m: int, device: torch.device) -> Iterator[slice]:
    """Blocks of the rows of an n x m matrix."""
    size = max(1, (BLOCK if device.type == "cpu" else GPU_BLOCK) // m)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


class Rows:
    """A cost (n, m), read in blocks of rows, float64."""

    shape: tuple[int, int]
    device: torch.device
    error: float = 0.0  # what an entry may be off by
    rounding: float = 0.0  # likewise, relative to the entry
    searched: bool = False  # whether small reduced entries are found without reading all
    sorted: bool = False  # whether the points are in an order that suits this
    copies: tuple | None = None  # numbers of the points, where some are there more than once
    _scratch: Tensor | None = None

    def block(self, rows: slice) -> Tensor:
        """Rows of the cost, (k, m); valid until the next block is read, not to be written to."""
        raise NotImplementedError

    def restricted(self, rows: Tensor, columns: Tensor) -> "Rows":
        """The same cost between some of the points, their numbers in increasing order."""
        whole = (len(rows), len(columns)) == self.shape
        return self if whole else self._part(rows, columns)

    def _part(self, rows: Tensor, columns: Tensor) -> "Rows":
        raise NotImplementedError

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in row_slices(*self.shape, self.device):
            yield rows, self.block(rows)

    def extended(
        self, rows: Tensor, columns: Tensor, f: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Feasible potentials of some rows and columns, and the largest that these allow the
        others; float64."""
        everywhere = torch.arange(self.shape[0], device=f.device)
        f = self.restricted(everywhere, columns).row_minima(g).index_copy(0, rows, f)
        return f, self.column_minima(f).index_copy(0, columns, g)

    def reduced(self, C: Tensor, g: Tensor, f: Tensor | None = None) -> Tensor:
        """C - g - f, in scratch memory that the next call uses again."""
        if self._scratch is None or len(self._scratch) < len(C):
            self._scratch = torch.empty_like(C, memory_format=torch.contiguous_format)
        out = torch.sub(C, g, out=self._scratch[: len(C)])
        return out if f is None else out.sub_(f)

    def row_minima(self, g: Tensor) -> Tensor:
        """The c-transform min_j (C_ij - g_j), shape (n,)."""
        # Written in place: small tensors kept among large ones that come and go fragment the heap.
        least = torch.empty(self.shape[0], dtype=torch.float64, device=self.device)
        for rows, C in self.blocks():
            least[rows] = self.reduced(C, g).amin(1)
        return least

    def column_minima(self, f: Tensor) -> Tensor:
        """The c-transform min_i (C_ij - f_i), shape (m,)."""
        least = torch.full((self.shape[1],), torch.inf, dtype=torch.float64, device=self.device)
        for rows, C in self.blocks():
            least = torch.minimum(least, self.reduced(C, f[rows, None]).amin(0))
        return least


class MatrixRows(Rows):
    """A cost matrix, or the part of it between some rows and columns."""

    def __init__(self, C: Tensor, rows: Tensor | None = None, columns: Tensor | None = None):
        self.C, self.rows, self.columns = C, rows, columns
        self.shape = tuple(C.shape) if rows is None else (len(rows), len(columns))
        self.device = C.device

    def block(self, rows: slice) -> Tensor:
        C = self.C[rows] if self.rows is None else self.C[self.rows[rows]][:, self.columns]
        return C.double()

    def _part(self, rows: Tensor, columns: Tensor) -> "MatrixRows":
        # A copy is made where it is, with a kernel of its size, still smaller than a whole matrix.
        if self.rows is not None:
            rows, columns = self.rows[rows], self.columns[columns]
        if 2 * len(rows) * len(columns) <= self.C.numel():
            return MatrixRows(self.C[rows[:, None], columns])
        return MatrixRows(self.C, rows, columns)


class SquaredDistances:
    """|x_i - y_j|^2 between clouds (n, d) and (m, d), in blocks of rows and in their dtype."""

    def __init__(self, x: Tensor, y: Tensor):
        few = x.shape[1] <= FEW
        centre = 0.0 if few else y.mean(0)
        self.x, self.y = x - centre, (y - centre).T.contiguous()
        self.squares = None if few else (self.x.square().sum(1), self.y.square().sum(0))

    @property
    def error(self) -> float:
        """What cancels in float64 where the distances are not sums of differences."""
        if self.squares is None:
            return 0.0
        return (len(self.y) + 8) * EPS * float(sum(z.amax() for z in self.squares))

    def rows(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """(k, m); `out` is memory for it and for as many differences, shape (2, k, m)."""
        x = self.x[rows]
        C, difference = x.new_empty(2, len(x), self.y.shape[1]) if out is None else out
        if self.squares is not None:
            torch.addmm(self.squares[1], x, self.y, alpha=-2, out=C)
            return C.add_(self.squares[0][rows, None]).clamp_min_(0.0)
        torch.sub(x[:, :1], self.y[0], out=C).square_()
        for k in range(1, len(self.y)):
            torch.sub(x[:, k, None], self.y[k], out=difference)
            C.addcmul_(difference, difference)
        return C


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 for clouds (n, d) and (m, d), shape (n, m), in their dtype; no gradient."""
    return SquaredDistances(x.detach(), y.detach()).rows(slice(None))


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _cityblock(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, p=1.0)


def _unit(difference: Tensor) -> Tensor:
    largest = difference.abs().amax(1, keepdim=True)  # its square need not be representable
    difference = difference / torch.where(largest > 0, largest, 1.0)
    return difference / difference.norm(dim=1, keepdim=True).clamp_min(1.0)


def extent(z: Tensor) -> Tensor:
    """Half of the widest range of the points (n, d) along an axis, float64."""
    return (z.amax(0).double() / 2 - z.amin(0).double() / 2).amax()


def point_scale(extent: Tensor, *far: Tensor | float) -> Tensor:
    """The unit of points of this extent, see :func:`ipot.near_power`."""
    return near_power(extent, 20, *far)


METRICS = {"sqeuclidean": squared_distances, "euclidean": _euclidean, "cityblock": _cityblock}
SLOPES = {
    "sqeuclidean": lambda difference: 2 * difference,
    "euclidean": _unit,
    "cityblock": torch.sign,
}
"""The gradient of each metric in x, from the differences x - y (k, d); 0 where a norm has none."""


class Metric:
    """A cost between points, by name or by a callable from (n, d) and (m, d) to (n, m).

    Raises
    ------
    ValueError
        For an unknown name, and for a callable whose result has another shape.
    """

    def __init__(self, metric: str | Callable[[Tensor, Tensor], Tensor]):
        self.name = metric if isinstance(metric, str) else None
        if self.name not in METRICS and (self.name is not None or not callable(metric)):
            raise ValueError(f"metric must be {', '.join(METRICS)} or a callable; got {metric!r}")
        self.function = METRICS[metric] if self.name else metric

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        C = self.function(x, y)
        if not isinstance(C, Tensor) or C.shape != (len(x), len(y)):
            got = tuple(C.shape) if isinstance(C, Tensor) else type(C).__name__
            raise ValueError(f"metric must give a tensor of shape {(len(x), len(y))}; got {got}")
        return C.to(x.dtype)

    @property
    def degree(self) -> int:
        """The power of the points' scale by which a named cost grows."""
        return 2 if self.name == "sqeuclidean" else 1

    def rounding(self, x: Tensor) -> float:
        """Relative error of a cost between points like x: a callable computes in their dtype, and
        its products of matrices may be rounded otherwise from one block to the next."""
        return (x.shape[-1] + 4) * EPS if self.name else 4 * torch.finfo(x.dtype).eps


class CloudRows(Rows):
    """The cost between two clouds, (n, d) and (m, d), computed whenever it is read.

    `scale` is a power of two: what the points are divided by, or the cost of a callable, which sees
    the clouds as they are.
    """

    def __init__(self, X: Tensor, Y: Tensor, metric: Metric, scale: float = 1.0):
        self.X, self.Y, self.metric, self.scale = X, Y, metric, scale
        self.shape, self.device = (len(X), len(Y)), X.device
        self.x, self.y = (Z.double() / scale if metric.name else Z for Z in (X, Y))
        self.rounding, self.squared = metric.rounding(X), None
        if metric.name == "sqeuclidean":
            self.squared = SquaredDistances(self.x, self.y)
            self.error = self.squared.error
        self._block: Tensor | None = None

    def block(self, rows: slice) -> Tensor:
        if self.squared is None:
            with torch.no_grad():
                C = self.metric(self.x[rows], self.y).double()
            return C if self.metric.name else C / self.scale
        count = len(range(*rows.indices(self.shape[0])))
        if self._block is None or self._block.shape[1] < count:
            self._block = self.x.new_empty(2, count, self.shape[1])
        return self.squared.rows(rows, self._block[:, :count])

    def along(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The costs of some pairs, (k,), where there is an `error`: squared distances, by
        differences without one."""
        return (self.x[rows] - self.y[columns]).square().sum(1)

    def _part(self, rows: Tensor, columns: Tensor) -> "CloudRows":
        return CloudRows(self.X[rows], self.Y[columns], self.metric, self.scale)

    def span(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest cost; refuses NaN and inf."""
        low, high = zip(*((C.amin(), C.amax()) for _, C in self.blocks()))
        low, high = torch.stack(low).amin(), torch.stack(high).amax()
        if not bool(low.isfinite() & high.isfinite()):
            raise ValueError("metric(X_a, X_b) must be finite; got NaN or inf")
        return low, high

    def ends(self) -> "CloudRows":
        """Between the first and last points on a line only: the largest cost is among these."""
        x, y = (torch.stack((Z.amin(0), Z.amax(0))) for Z in (self.X, self.Y))
        return CloudRows(x, y, self.metric, self.scale)
