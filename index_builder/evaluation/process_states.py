"""States of the Mamba-Hawkes process before each scored row, computed for whole videos at once."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index_builder.datasets.observed import Observed
from index_builder.samples.exposure import Exposure, exposure_of
from model.bundle import Bundle
from model.engagement.rows import cells_at
from model.features.tokens import Tokens, tokenize
from model.mhp.likelihood import IntensityHead
from model.mhp.network import MambaHawkes
from model.mhp.pace import pace_rows

_BATCH_TOKENS: Final = 20_000


def tokens_of(observed: Observed, videos: NDArray[np.int64], until_us: int) -> Tokens:
    """Return the tokens of ``videos`` from rows up to ``until_us``."""
    published = observed.data.published_us[videos]
    now = np.maximum(until_us, published)
    n_types = len(observed.data.types)
    cells = cells_at(observed.events, observed.counters, videos, now, published, n_types)
    return tokenize(cells, published, now, n_types)


def _module(bundle: Bundle, prefix: str, module: nn.Module, defaults: dict[str, Tensor] | None = None) -> None:
    state = {n.removeprefix(prefix): torch.from_numpy(w) for n, w in bundle.weights.items() if n.startswith(prefix)}
    module.load_state_dict((defaults or {}) | state)


def intensity_of(bundle: Bundle) -> IntensityHead:
    """Return the bundle's intensity head. In a bundle without fitted factors, the factors are 1."""
    head = IntensityHead(bundle.manifest.shape.d_model, bundle.manifest.shape.n_types)
    _module(bundle, "intensity.", head, {"log_factor": head.log_factor})
    return head


def network_of(bundle: Bundle) -> MambaHawkes:
    """Return the bundle's Mamba-Hawkes network."""
    network = MambaHawkes(bundle.manifest.shape)
    _module(bundle, "mhp.", network)
    return network


@torch.no_grad()
def states_after(network: MambaHawkes, tokens: Tokens) -> Tensor:
    """Return the hidden state (n, d_model) of the network after each token. The network is on the CPU."""
    shape = network.shape
    lengths = np.diff(tokens.offsets)
    order = np.argsort(lengths, kind="stable")
    out = torch.zeros(len(tokens.counts), shape.d_model)
    at = int(np.searchsorted(lengths[order], 1))
    while at < len(order):
        # Videos are sorted by length, so the last video of a batch is the longest.
        stop = at + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - at) <= _BATCH_TOKENS:
            stop += 1
        part = order[at:stop]
        step = np.arange(lengths[part].max())[:, None]
        index = tokens.offsets[part][None] + np.minimum(step, lengths[part] - 1)
        none = torch.zeros(len(part), 1, 2, shape.n_features)
        hidden, _ = network(
            torch.from_numpy(tokens.features[index]),
            torch.from_numpy(tokens.clock[index]),
            torch.zeros(len(part), 1, dtype=torch.int64),
            none,
            none[..., :2],
            torch.zeros(len(part), 1, dtype=torch.bool),
        )
        real = step < lengths[part]
        out[torch.from_numpy(index[real])] = hidden[torch.from_numpy(real)]
        at = stop
    return out


def before_rows(network: MambaHawkes, head: IntensityHead, tokens: Tokens, exposure: Exposure) -> tuple[Tensor, Tensor]:
    """Return the state (m, d_model) and the pace (m, K, len(MEMORIES), 2) before each of m rows of the exposure."""
    # Index -1 is the state without any token.
    states = torch.cat([states_after(network, tokens), head.start.detach()[None]])
    return states[torch.from_numpy(exposure.before)], torch.from_numpy(pace_rows(tokens)[exposure.before])


def scored_rows(
    observed: Observed, videos: NDArray[np.int64], until_us: int, max_age_us: int
) -> tuple[Tokens, Exposure]:
    """Return the tokens of ``videos`` from rows up to ``until_us``, and their exposure up to an age of ``max_age_us``."""
    tokens = tokens_of(observed, videos, until_us)
    return tokens, exposure_of(observed, videos, tokens, until_us, max_age_us)
