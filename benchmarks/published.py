"""The published algorithms, transcribed plainly: what the solver is held against.

NumPy, float64, after the formulas of the paper (Xie, Wang, Wang, Zha, UAI 2019), with no care for
speed or for the range of floating-point numbers. The tests use these as independent truth and the
benchmarks as the baseline.
"""

import numpy as np
import torch


def algorithm_1(mu, nu, C, beta, max_iter, inner_iter=1, warm=True, with_loss=True):
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
        if with_loss:
            loss.append(float(np.sum(Gamma * C)))
    return Gamma, loss


def initialise(generator, rng):
    """The published script's first weights: Xavier normal, zero biases, BatchNorm as it comes."""
    for layer in generator.layers:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.xavier_normal_(layer.weight, generator=rng)
        if hasattr(layer, "bias"):
            torch.nn.init.zeros_(layer.bias)


def training_step(generator, optimizer, z, y, beta, max_iter):
    """One update of a generator as the published script makes it: cost, plan and gradient in
    NumPy."""
    x = generator(z)
    points, data = x.detach().double().numpy(), y.double().numpy()
    cost = np.sum((points[:, None, :] - data[None, :, :]) ** 2, axis=2)
    cost /= cost.max()
    uniform = np.full(len(x), 1 / len(x))
    plan, _ = algorithm_1(uniform, uniform, cost, beta, max_iter, with_loss=False)
    gradient = 2 * (plan.sum(1)[:, None] * points - plan @ data)
    optimizer.zero_grad()
    x.backward(torch.from_numpy(gradient).float())
    optimizer.step()


def algorithm_2(P, C, beta, weights, max_iter):
    """Algorithm 2 with L = 1: the barycenter q of the columns of P, as it stands (not
    renormalised).

    The three formulas of a step in the order b, q, a, which leaves prod_k a_k^lambda_k = 1 as the
    constraint of a common marginal asks. In the order a, b, q, with the q of the step before, that
    is lost when G enters H, and the iteration goes to another point than the barycenter.
    """
    n, count = P.shape
    G = np.exp(-C / beta)
    Gamma = np.ones((count, n, n))
    a = np.ones((count, n))
    for _ in range(max_iter):
        H = G * Gamma
        b = np.stack([P[:, k] / (H[k].T @ a[k]) for k in range(count)])
        row = np.stack([H[k] @ b[k] for k in range(count)])
        q = np.prod([(a[k] * row[k]) ** weights[k] for k in range(count)], axis=0)
        a = q / row
        Gamma = a[:, :, None] * H * b[:, None, :]
    return q
