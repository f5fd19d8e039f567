"""How generated images compare with real ones, in whatever features these are given.

Each distance and each share has a value that real images reach against other real ones; that value
is to stand beside it. All sets of features are (n, d).
"""

import torch
from torch import Tensor

NEIGHBOURS = 5  # as Naeem et al. 2020 recommend; Kynkaanniemi et al. 2019 take 3
BLOCK = 2**24  # distances, or entries, at once
ROUNDING = 1e-6  # of distances, relative to the length of an image


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Frechet distance of the Gaussians with the means and covariances of x and y.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), the squared W2 distance of the Gaussians
    (Heusel et al. 2017, equation 6). It falls with the number of samples: compare equal numbers.
    """
    x, y = x.double(), y.double()
    covariances = [z.T.cov().reshape(z.shape[1], z.shape[1]) for z in (x, y)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt()  # root^T S_y root has the eigenvalues of S_x S_y
    mixed = torch.linalg.eigvalsh(root.T @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * mixed
    return max(float((x.mean(0) - y.mean(0)).square().sum() + spread), 0.0)


def precision_and_recall(x: Tensor, y: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of samples x that lie among the data y, and of data that lie among the samples.

    A point lies among others if it is at most as far from one of them as this one's k-th neighbour
    (Kynkaanniemi et al. 2019, equation 2).
    """
    radii_x, radii_y = _radii(x, k), _radii(y, k)
    covered = torch.cat([(d <= radii_y).any(1) for d in _distances(x, y)])
    reached = torch.cat([(d <= radii_x).any(1) for d in _distances(y, x)])
    return float(covered.double().mean()), float(reached.double().mean())


def density_and_coverage(x: Tensor, y: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """How densely samples x lie where the data y do, and the share of data that have one near.

    Both are about balls around the data that reach to their k-th neighbours (Naeem et al. 2020,
    equations 4 and 5). Density is 1 for the data's own law, and more where samples crowd at its
    centre. Fewer samples cover less: take as many as there are data.
    """
    radii, count = _radii(y, k), 0
    reached = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for block in _distances(x, y):
        inside = block <= radii
        count += int(inside.sum())
        reached |= inside.any(0)
    return count / (k * len(x)), float(reached.double().mean())


def nearer_share(x: Tensor, seen: Tensor, unseen: Tensor) -> float:
    """The share of x that is nearer to one of `seen` than to all of `unseen`.

    For images that a generator was trained on and images that it was not, it tells memorising: it
    is n / (n + m) for n and m images if the samples owe the first nothing, and 1 for copies. Blur
    changes both distances alike. A tie counts as half.
    """
    to_seen, to_unseen = (_nearest(x, others) for others in (seen, unseen))
    tie = (to_seen - to_unseen).abs() <= ROUNDING * x.double().square().sum(1).sqrt()
    return float(torch.where(tie, 0.5, (to_seen < to_unseen).double()).mean())


def share_of_the_unseen(seen: Tensor, unseen: Tensor) -> float:
    """What :func:`nearer_share` is for images that the generator cannot have learnt from.

    Half of the unseen images, drawn at random, take the part of the samples, the other half theirs.
    As many of the seen ones are left out, so that the two sets have the same ratio of sizes as all.
    """
    rng = torch.Generator().manual_seed(0)
    seen, unseen = (x[torch.randperm(len(x), generator=rng).to(x.device)] for x in (seen, unseen))
    half = len(unseen) // 2
    kept = max(1, len(seen) * (len(unseen) - half) // len(unseen))
    return nearer_share(unseen[:half], seen[:kept], unseen[half:])


def class_shares(classes: Tensor, due: Tensor) -> dict[str, float]:
    """How images spread over classes, whose shares among the data are `due` (m,).

    A class is found if at least a quarter of its due is in it. The shares of the smallest and of
    the largest class are in units of their due. Classes that are due nothing do not count.
    """
    shares = torch.bincount(classes, minlength=len(due)).double() / len(classes)
    relative = (shares / due.double())[due > 0]
    return {
        "classes_found": int((relative >= 0.25).sum()),
        "smallest_class": float(relative.min()),
        "largest_class": float(relative.max()),
    }


def _radii(y: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th neighbour among the others, (n,).

    Raises
    ------
    ValueError
        If there are not so many points.
    """
    if len(y) <= k:
        raise ValueError(f"{len(y)} images have no {k} neighbours each; accepts {k + 1} or more")
    return torch.cat([d.kthvalue(k + 1, 1).values for d in _distances(y, y)])


def _nearest(x: Tensor, y: Tensor) -> Tensor:
    """The distance of each x to the nearest y, (n,), by products of matrices."""
    x, found = x.double(), x.new_full((len(x),), torch.inf, dtype=torch.float64)
    for part in y.split(max(1, BLOCK // max(len(x), y.shape[1]))):
        distances = torch.cdist(x, part.double(), compute_mode="use_mm_for_euclid_dist")
        found = torch.minimum(found, distances.amin(1))
    return found


def _distances(x: Tensor, y: Tensor):
    """Distances between x and y in blocks of rows of x, (rows, len(y)).

    Differences are taken before squares: a product of matrices would not give 0 for equal points.
    """
    x, y = x.double(), y.double()
    rows = max(1, BLOCK // len(y))
    for block in x.split(rows):
        yield torch.cdist(block, y, compute_mode="donot_use_mm_for_euclid_dist")
