"""Exact, certified optimal transport, fast at every size.

    solve                    a cost matrix, or a batch of them: exact, or to a certified gap
    solve_sample             two point clouds, without their cost matrix
    barycenter               histograms on any bins or on a grid
    free_support_barycenter  point clouds, by points that move
    couplings                pairs for flow matching
    certify, certify_sample  how far from optimal somebody else's plan or potentials are

The package stands on `ipot`, the proximal-point method of the paper in one file: the answers are
those of `ipot.solve`, and so are the conventions. NumPy in, NumPy out; torch in, torch out, on the
same device and in the same dtype; leading dimensions are a batch.

A forked process may call the solvers after its parent did. torch's own operations may wait there
for threads that only the parent has, as in a backward pass: call `torch.set_num_threads(1)` first.
"""

from exactot import couplings
from exactot.barycenters import Barycenter, barycenter
from exactot.certify import Certificate, certify, certify_sample
from exactot.free_support import PointBarycenter, free_support_barycenter
from exactot.plans import ExactTransport
from exactot.solve import solve, solve_sample
from ipot import Transport

__all__ = [
    "Barycenter",
    "Certificate",
    "ExactTransport",
    "PointBarycenter",
    "Transport",
    "barycenter",
    "certify",
    "certify_sample",
    "couplings",
    "free_support_barycenter",
    "solve",
    "solve_sample",
]
__version__ = "0.2.0"
