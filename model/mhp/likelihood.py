"""Interval-censored likelihood of the Mamba-Hawkes process.

Between two tokens, the intensity of type k depends on the state h_j *before* the interval. The intensity uses the
relative clock tau = (t - t_j) / (t_j + c):

    lambda_k(tau) = S_k softplus(alpha_k tau + c_k),   S_k = exp(w_s h_j + b_s) prod_m R_km^v_km,  alpha_k <= 0

With this form, the intensity can have any value from one view per day to a million views per hour. R is the video's
pace so far (``model.mhp.pace``). At the start of training, the exponents v sum to 1. So the Hawkes process first
continues at the video's pace, and training learns how the intensity deviates from this pace. The integral is exact:

    int softplus(alpha tau + c) dtau = [Li2(-e^{x0}) - Li2(-e^{x1})] / alpha,    x = alpha tau + c

The count of an interval is negative binomial with this mean, because the counts of a viral video are over-dispersed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.features.tokens import LOG_AGE_OFFSET_S
from model.mhp.pace import MEMORIES

_LOG_SCALE = 4
_ITERATIONS = 20
_MIN_SUM = 1e-12
_FIT_STEPS, _FIT_TOKENS, _FIT_RATE = 300, 4000, 0.03
_NODES = (-0.9061798459386640, -0.5384693101056831, 0.0, 0.5384693101056831, 0.9061798459386640)
_WEIGHTS = (0.2369268850561891, 0.4786286704993665, 0.5688888888888889, 0.4786286704993665, 0.2369268850561891)


class _NegativeDilog(torch.autograd.Function):
    """The function -Li2(-e^x). Its derivative is softplus(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        z = -torch.exp(-x.abs())
        # Landen's identity, Li2(z) = -Li2(z / (z - 1)) - ln(1 - z)^2 / 2, maps the argument to [0, 1/2]. The series converges there.
        w = z / (z - 1)
        total, power = torch.zeros_like(w), torch.ones_like(w)
        for k in range(1, 48):
            power = power * w
            total = total + power / (k * k)
        small = total + torch.log1p(-z).square() / 2
        # For x > 0, the inversion formula is used: Li2(-e^x) = -pi^2 / 6 - x^2 / 2 - Li2(-e^-x).
        return torch.where(x > 0, math.pi**2 / 6 + x.square() / 2 - small, small)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * F.softplus(x)


def softplus_integral(alpha: Tensor, c: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the integral of softplus(alpha tau + c) over [start, end], float64.

    The arguments must satisfy alpha <= 0 and end >= start >= 0. If the argument of softplus changes by less than 0.5,
    the closed form would lose digits. Then a quadrature with five Gauss-Legendre nodes is used, which is exact to
    1e-12. Otherwise the dilogarithm is used.
    """
    alpha, c, start, end = (x.double() for x in torch.broadcast_tensors(alpha, c, start, end))
    move = alpha * (end - start)
    near = move.abs() < 0.5
    safe_alpha = torch.where(near, torch.ones_like(alpha), alpha)
    x0 = torch.where(near, torch.zeros_like(c), alpha * start + c)
    x1 = torch.where(near, torch.zeros_like(c), alpha * end + c)
    exact = (_NegativeDilog.apply(x1) - _NegativeDilog.apply(x0)) / safe_alpha  # type: ignore[no-untyped-call]
    half, middle = (end - start) / 2, (end + start) / 2
    quadrature = torch.zeros_like(c)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        quadrature = quadrature + weight * F.softplus(alpha * (middle + half * node) + c)
    return torch.where(near, half * quadrature, exact)


def negative_binomial_logpmf(n: Tensor, mean: Tensor, dispersion: Tensor) -> Tensor:
    """Return log P(n) of a negative binomial with variance mean + mean^2 / dispersion, float64.

    The arguments may have any broadcastable shapes. ``mean`` and ``dispersion`` are > 0.
    """
    n, mean, r = n.double(), mean.double().clamp(min=1e-12), dispersion.double()
    return (
        torch.lgamma(n + r)
        - torch.lgamma(r)
        - torch.lgamma(n + 1)
        - r * torch.log1p(mean / r)
        + n * (torch.log(mean) - torch.log(r + mean))
    )


def _usual_factor(counts: Tensor, exposure: Tensor) -> Tensor:
    """Return the maximum-likelihood factor f for the model that counts (n,) have means f * ``exposure`` (n,).

    The counts are negative binomial with dispersion 1.
    """
    f = (counts.sum() + 1) / (exposure.sum() + 1)
    for _ in range(_ITERATIONS):
        weight = 1 / (1 + f * exposure)
        f = (weight * counts).sum().clamp(min=_MIN_SUM) / (weight * exposure).sum().clamp(min=_MIN_SUM)
    return f


class IntensityHead(nn.Module):
    """Computes each type's intensity from a hidden state (..., d_model) and the pace so far (..., n_types, len(MEMORIES), 2)."""

    usual: Tensor

    def __init__(self, d_model: int, n_types: int) -> None:
        super().__init__()
        self.n_types = n_types
        self.start = nn.Parameter(torch.zeros(d_model))
        self.project = nn.Linear(d_model, 4 * n_types)
        self.exponents = nn.Parameter(torch.full((n_types * len(MEMORIES),), 1 / len(MEMORIES)))
        self.register_buffer("usual", torch.ones(n_types))

    def fit(self, counts: Tensor, interval_s: Tensor, observed: Tensor, pace: Tensor) -> None:
        """Set the parameters before training to the maximum-likelihood values of a simpler model.

        The simpler model ignores the state, so every video keeps its pace. Counts range from one per day to millions
        per hour. With random parameters, the first epochs would be spent on finding this scale.

        Args:
            counts: (n, n_types) counts of the tokens.
            interval_s: (n, 3) intervals as in ``Tokens``.
            observed: (n, n_types) bool, whether each type was observed.
            pace: (n, n_types, len(MEMORIES), 2) pace before each token.
        """
        with torch.no_grad():
            self.project.weight.zero_()
            exposure = torch.log((interval_s[:, 2] + LOG_AGE_OFFSET_S) / (interval_s[:, 0] + LOG_AGE_OFFSET_S))
            clock = (interval_s[:, 2] - interval_s[:, 0]) / (interval_s[:, 0] + LOG_AGE_OFFSET_S)
            seen = [k for k in range(self.n_types) if observed[:, k].any()]
            for k in seen:
                self.usual[k] = _usual_factor(counts[observed[:, k], k], exposure[observed[:, k]])
            expected = math.log(2) * clock.unsqueeze(-1) * torch.exp(self._log_pace(pace).double())
            for k in seen:
                own = _usual_factor(counts[observed[:, k], k], expected[observed[:, k], k])
                self.project.bias[k] = float(torch.log(own)) / _LOG_SCALE
        if not seen:
            return
        constants = [self.project.bias, self.exponents]
        optimizer = torch.optim.Adam(constants, lr=_FIT_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / _FIT_STEPS)
        generator = torch.Generator().manual_seed(0)
        for _ in range(_FIT_STEPS):
            rows = torch.randint(len(counts), (min(_FIT_TOKENS, len(counts)),), generator=generator).to(counts.device)
            no_state = self.start.detach().expand(len(rows), -1)
            previous, start, end = interval_s[rows].T
            value = self.log_likelihood(no_state, pace[rows], previous, start, end, counts[rows])
            gradients = torch.autograd.grad(
                -(value * observed[rows]).sum() / observed[rows].sum().clamp(min=1), constants
            )
            for constant, gradient in zip(constants, gradients, strict=True):
                constant.grad = gradient
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()

    def _log_pace(self, pace: Tensor) -> Tensor:
        """Return the log of the pace, which is the product of R_km^v_km: (..., n_types)."""
        rate = torch.log((pace[..., 0] + 1) / (pace[..., 1] + 1 / self.usual.unsqueeze(-1)))
        return (rate * self.exponents.view(self.n_types, -1)).sum(-1)

    def forward(self, hidden: Tensor, pace: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log S, c, alpha (<= 0) and dispersion (> 0). Each has shape (..., n_types)."""
        log_scale, c, alpha, dispersion = self.project(hidden).chunk(4, dim=-1)
        log_scale = _LOG_SCALE * log_scale + self._log_pace(pace)
        return log_scale.clamp(-20, 30), c, -F.softplus(alpha), F.softplus(dispersion + 1) + 1e-3

    def expected(
        self, hidden: Tensor, pace: Tensor, previous_s: Tensor, start_s: Tensor, end_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean count of each type on [start, end], float64, and the dispersion. Both have shape (..., n_types).

        ``hidden`` and ``pace`` are the state and the pace at ``previous_s``. Times are ages in seconds, float64, with
        the shape of ``hidden`` without its last axis.
        """
        log_scale, c, alpha, dispersion = self(hidden, pace)
        clock = (previous_s + LOG_AGE_OFFSET_S).unsqueeze(-1)
        begin = (start_s - previous_s).unsqueeze(-1) / clock
        end = (end_s - previous_s).unsqueeze(-1) / clock
        return torch.exp(log_scale.double()) * softplus_integral(alpha, c, begin, end), dispersion

    def log_likelihood(
        self, hidden: Tensor, pace: Tensor, previous_s: Tensor, start_s: Tensor, end_s: Tensor, counts: Tensor
    ) -> Tensor:
        """Return the log-likelihood of tokens for each type.

        A token means that there was no engagement in the gap from ``previous_s`` to ``start_s``, and then ``counts``
        (..., n_types) engagements until ``end_s``.
        """
        silent, dispersion = self.expected(hidden, pace, previous_s, previous_s, start_s)
        active, _ = self.expected(hidden, pace, previous_s, start_s, end_s)
        gap = negative_binomial_logpmf(torch.zeros_like(counts), silent, dispersion)
        has_gap = (start_s > previous_s).unsqueeze(-1)
        return torch.where(has_gap, gap, torch.zeros_like(gap)) + negative_binomial_logpmf(counts, active, dispersion)
