"""Interval-censored likelihood of the Mamba-Hawkes process.

Between two tokens, the intensity of type k depends on the state h_j *before* the interval. The intensity uses the
relative clock tau = (t - t_j) / (t_j + c):

    lambda_k(tau) = S_k softplus(alpha_k tau + c_k),   S_k = f_k exp(w_s h_j + b_s) prod_m R_km^v_km,  alpha_k <= 0

f_k is a factor that depends on the age t_j. It is fitted after training (``log_factor``), because the likelihood alone
does not make the expected and the real counts of all videos equal in sum.

With this form, the intensity can have any value from one view per day to a million views per hour. R is the video's
pace so far (``model.mhp.pace``). At the start of training, the exponents v sum to 1. So the Hawkes process first
continues at the video's pace, and training learns how the intensity deviates from this pace. The integral is exact:

    int softplus(alpha tau + c) dtau = [Li2(-e^{x0}) - Li2(-e^{x1})] / alpha,    x = alpha tau + c

The counts of a viral video are over-dispersed. So the intensity between two tokens is multiplied by a random factor with
mean 1, which is gamma distributed with shape r. The probability that nothing happens in a gap with the integral g is
(1 + g / r)^-r. After such a gap, the factor has shape r and mean r / (r + g). So the count of an interval with the
integral a is negative binomial with dispersion r and mean a r / (r + g). The probabilities of all possible next tokens,
and of no token, sum to 1.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.features.tokens import LOG_AGE_OFFSET_S
from model.mhp.pace import MEMORIES

_LOG_SCALE = 4
_ITERATIONS = 20
_SERIES = 44
"""Number of terms of the dilogarithm's series. Its argument is at most 1/2, so the rest is below 1e-16."""
_MIN_SUM = 1e-12
_LEAST_MEAN = 1e-12
FACTOR_KNOTS: Final = tuple(
    math.log(60 * minutes + LOG_AGE_OFFSET_S) for minutes in (0, 5, 20, 60, 240, 720, 2160, 7200, 28800)
)
"""Knots of the fitted factors: log(age + 1 minute) with the age in seconds. The ages range from 0 to 20 days."""
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
        # Horner's scheme, in place because this runs in every step of training.
        total = torch.zeros_like(w)
        for k in range(_SERIES, 0, -1):
            total.add_(1 / (k * k)).mul_(w)
        small = total.add_(torch.log1p(-z).square_(), alpha=0.5)
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


def gap_and_count_logpmf(count: Tensor, gap: Tensor, active: Tensor, dispersion: Tensor) -> Tensor:
    """Return log P(nothing in the gap) + log P(count in the interval after the gap), float64.

    Without ``dispersion``, that is with infinite dispersion, counts are Poisson. The arguments may have any broadcastable
    shapes.

    Args:
        count: counts n >= 0 of the interval.
        gap: integral g >= 0 of the intensity over the gap.
        active: integral a > 0 of the intensity over the interval. If the interval is empty, a = 0 and n = 0.
        dispersion: dispersion r > 0.
    """
    n, g, a, r = (x.double() for x in torch.broadcast_tensors(count, gap, active, dispersion))
    a = a.clamp(min=_LEAST_MEAN)
    poisson = torch.isinf(r)
    r = torch.where(poisson, torch.ones_like(r), r)
    after = r + g
    mixed = (
        torch.lgamma(n + r)
        - torch.lgamma(r)
        - r * (torch.log1p(g / r) + torch.log1p(a / after))
        + n * (torch.log(a) - torch.log(after + a))
    )
    return torch.where(poisson, n * torch.log(a) - a - g, mixed) - torch.lgamma(n + 1)


def mean_after_gap(gap: Tensor, active: Tensor, dispersion: Tensor) -> Tensor:
    """Return the expected count of an interval after an empty gap, a r / (r + g), float64; see ``gap_and_count_logpmf``."""
    return active.double() / (1 + gap.double() / dispersion.double())


def _usual_factor(counts: Tensor, exposure: Tensor) -> Tensor:
    """Return the maximum-likelihood factor f for the model that counts (n,) have means f * ``exposure`` (n,).

    The counts are negative binomial with dispersion 1.
    """
    f = (counts.sum() + 1) / (exposure.sum() + 1)
    for _ in range(_ITERATIONS):
        weight = 1 / (1 + f * exposure)
        f = (weight * counts).sum().clamp(min=_MIN_SUM) / (weight * exposure).sum().clamp(min=_MIN_SUM)
    return f


def factor_weights(age_s: Tensor) -> Tensor:
    """Return the weights of FACTOR_KNOTS at ages (...) in seconds, (..., len(FACTOR_KNOTS)) float64. They sum to 1."""
    knots = torch.tensor(FACTOR_KNOTS, dtype=torch.float64, device=age_s.device)
    x = torch.log(age_s.double() + LOG_AGE_OFFSET_S).clamp(float(knots[0]), float(knots[-1])).unsqueeze(-1)
    step = knots.diff()
    rising = (x[..., :] - knots[:-1]) / step
    one = torch.ones_like(x)
    left = torch.cat([one, rising], -1)
    right = torch.cat([1 - rising, one], -1)
    return torch.minimum(left, right).clamp(min=0)


class IntensityHead(nn.Module):
    """Computes each type's intensity from a hidden state (..., d_model) and the pace so far (..., n_types, len(MEMORIES), 2)."""

    usual: Tensor
    log_factor: Tensor

    def __init__(self, d_model: int, n_types: int) -> None:
        super().__init__()
        self.n_types = n_types
        self.start = nn.Parameter(torch.zeros(d_model))
        self.project = nn.Linear(d_model, 4 * n_types)
        self.exponents = nn.Parameter(torch.full((n_types * len(MEMORIES),), 1 / len(MEMORIES)))
        self.register_buffer("usual", torch.ones(n_types))
        self.register_buffer("log_factor", torch.zeros(n_types, len(FACTOR_KNOTS)))

    def fit(self, counts: Tensor, bounds_s: Tensor, previous_s: Tensor, pace: Tensor) -> None:
        """Set the parameters before training to the maximum-likelihood values of a simpler model.

        The simpler model ignores the state, so every video keeps its pace. Counts range from one per day to millions
        per hour. With random parameters, the first epochs would be spent on finding this scale.

        Args:
            counts: (m, n_types) counts.
            bounds_s: (m, n_types, 3) ages; see ``log_likelihood``.
            previous_s: (m,) age at the newest token before.
            pace: (m, n_types, len(MEMORIES), 2) pace at ``previous_s``.
        """
        known = torch.isfinite(bounds_s[..., 0])
        begin, _, end = bounds_s.nan_to_num().unbind(-1)
        seen = [k for k in range(self.n_types) if counts[known[:, k], k].any()]
        with torch.no_grad():
            self.project.weight.zero_()
            exposure = torch.log((end + LOG_AGE_OFFSET_S) / (begin + LOG_AGE_OFFSET_S))
            for k in seen:
                self.usual[k] = _usual_factor(counts[known[:, k], k], exposure[known[:, k], k])
            clock = (end - begin) / (previous_s + LOG_AGE_OFFSET_S).unsqueeze(-1)
            expected = math.log(2) * clock * torch.exp(self._log_pace(pace).double())
            for k in seen:
                own = _usual_factor(counts[known[:, k], k], expected[known[:, k], k])
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
            value = self.log_likelihood(no_state, pace[rows], previous_s[rows], bounds_s[rows], counts[rows])
            gradients = torch.autograd.grad(-value.sum() / known[rows].sum().clamp(min=1), constants)
            for constant, gradient in zip(constants, gradients, strict=True):
                constant.grad = gradient
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()

    def _log_pace(self, pace: Tensor) -> Tensor:
        """Return the log of the pace, which is the product of R_km^v_km: (..., n_types)."""
        rate = torch.log((pace[..., 0] + 1) / (pace[..., 1] + 1 / self.usual.unsqueeze(-1)))
        return (rate * self.exponents.view(self.n_types, -1)).sum(-1)

    def forward(self, hidden: Tensor, pace: Tensor, age_s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log S, c, alpha (<= 0) and dispersion (> 0). Each has shape (..., n_types).

        ``hidden`` and ``pace`` are known at the ages ``age_s`` (...) in seconds.
        """
        log_scale, c, alpha, dispersion = self.project(hidden).chunk(4, dim=-1)
        log_scale = (_LOG_SCALE * log_scale + self._log_pace(pace)).clamp(-20, 30)
        log_scale = log_scale + factor_weights(age_s) @ self.log_factor.double().t()
        return log_scale, c, -F.softplus(alpha), F.softplus(dispersion + 1) + 1e-3

    def integrals(
        self, hidden: Tensor, pace: Tensor, previous_s: Tensor, bounds_s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the integral of each type's intensity over the gap and over the interval, float64, and the dispersion.

        All three have shape (..., n_types). The arguments are those of ``log_likelihood``. Unknown bounds give NaN.
        """
        log_scale, c, alpha, dispersion = self(hidden, pace, previous_s)
        clock = (bounds_s - previous_s[..., None, None]) / (previous_s + LOG_AGE_OFFSET_S)[..., None, None]
        scale = torch.exp(log_scale.double())
        gap, active = (softplus_integral(alpha, c, clock[..., i], clock[..., i + 1]) for i in range(2))
        return scale * gap, scale * active, dispersion

    def log_likelihood(
        self, hidden: Tensor, pace: Tensor, previous_s: Tensor, bounds_s: Tensor, counts: Tensor
    ) -> Tensor:
        """Return the log-likelihood (..., n_types) of counts for each type, float64. It is 0 where the bounds are NaN.

        Args:
            hidden: (..., d_model) state after the newest token before the gap.
            pace: (..., n_types, len(MEMORIES), 2) pace at the same time.
            previous_s: (...) age in seconds at the end of this token.
            bounds_s: (..., n_types, 3) float64, age in seconds at the start of the gap, the end of the gap, and the end
                of the interval. There was no engagement in the gap. The bounds are NaN where a count is not known.
            counts: (..., n_types) counts of the interval.
        """
        known = torch.isfinite(bounds_s[..., 0])
        bounds_s = torch.where(known.unsqueeze(-1), bounds_s, previous_s[..., None, None].to(bounds_s.dtype))
        gap, active, dispersion = self.integrals(hidden, pace, previous_s, bounds_s)
        value = gap_and_count_logpmf(torch.where(known, counts, 0.0), gap, active, dispersion)
        return torch.where(known, value, 0.0)
