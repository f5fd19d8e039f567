"""The published algorithms, transcribed plainly: what the solver is held against.

NumPy, float64, line by line after the paper (Xie, Wang, Wang, Zha, UAI 2019), with no care for
speed or for the range of floating-point numbers. The tests use these as independent truth and the
benchmarks as the baseline.
"""

import numpy as np


def algorithm_1(mu, nu, C, beta, max_iter, inner_iter=1, warm=True):
    """Algorithm 1: the plan after `max_iter` proximal steps and <Gamma, C> after each of them."""
    G = np.exp(-C / beta)
    Gamma = np.ones_like(C)
    b = np.full(len(nu), 1 / len(nu))
    loss = []
    for _ in range(max_iter):
        Q = G * Gamma
        if not warm:
            b = np.full(len(nu), 1 / len(nu))
        for _ in range(inner_iter):
            a = mu / (Q @ b)
            b = nu / (Q.T @ a)
        Gamma = a[:, None] * Q * b[None, :]
        loss.append(float(np.sum(Gamma * C)))
    return Gamma, loss


def algorithm_2(P, C, beta, weights, max_iter):
    """Algorithm 2 with L = 1: the barycenter q of the columns of P, as it stands (not
    renormalised)."""
    n, count = P.shape
    G = np.exp(-C / beta)
    Gamma = np.ones((count, n, n))
    b = np.full((count, n), 1 / n)
    q = np.full(n, 1 / n)
    for _ in range(max_iter):
        H = G * Gamma
        a = np.stack([q / (H[k] @ b[k]) for k in range(count)])
        b = np.stack([P[:, k] / (H[k].T @ a[k]) for k in range(count)])
        q = np.prod([(a[k] * (H[k] @ b[k])) ** weights[k] for k in range(count)], axis=0)
        Gamma = a[:, :, None] * H * b[:, None, :]
    return q
