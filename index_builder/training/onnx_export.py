"""Writes the weights and the ONNX files of a bundle from a trained network."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from index_builder.training.model_fit import TrainedModel
from index_builder.trees.export import write_trees
from model.bank.neighbours import N_NEIGHBOUR
from model.bundle import HEAD, TREES, WEIGHTS
from model.features.creator import N_CREATOR
from model.features.schema import N_STATIC
from model.features.signals import N_SIGNAL
from model.features.summary import n_summary
from model.network import CONTENT_DIM, M3TR, NGRAM_DIM, SENTENCE_DIM
from model.quantiles.support import Support
from model.rates import Rates

_ROWS: Final = 4
"""Number of rows of the example inputs with which graphs are exported."""


class _Head(nn.Module):
    """Combines target, fusion and head in one graph."""

    def __init__(self, net: M3TR) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        hidden: Tensor,
        read: Tensor,
        last: Tensor,
        summary: Tensor,
        content: Tensor,
        creator: Tensor,
        static: Tensor,
        category: Tensor,
        language: Tensor,
        neighbours: Tensor,
        mask: Tensor,
        attributes: Tensor | None = None,
        signals: Tensor | None = None,
    ) -> Tensor:
        known = hidden, read, last, summary, content, creator, static, category, language
        target = self.net.target(*known, attributes, signals)
        out: Tensor = self.net.head(target, self.net.fusion(target, neighbours, mask))
        return out


def _export(module: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=1 << 20)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval().cpu(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["out"],
            dynamo=True,
            verbose=False,
            dynamic_shapes={name: {0: batch} for name in inputs},
        )
    assert program is not None
    # The metadata contains paths of source files on this machine. The metadata is removed so that the paths are not
    # published.
    graph = program.model.graph
    for part in (
        graph,
        *graph,
        *graph.inputs,
        *graph.initializers.values(),
        *(v for node in graph for v in node.outputs),
    ):
        part.metadata_props.clear()
    program.save(path)


def write_network(model: TrainedModel, neighbours: int, support: Support, rates: Rates, folder: Path) -> None:
    """Write weights.safetensors, content.onnx, head.onnx and trees.onnx. The head reads ``neighbours`` neighbours."""
    net = model.objective.net.eval().cpu()
    prefixes = ("mhp.", "intensity.", "ngrams.")
    weights = {name: value.numpy() for name, value in net.state_dict().items() if name.startswith(prefixes)}
    weights |= model.space.arrays()
    weights["content_dim"] = np.array([CONTENT_DIM], dtype=np.int64)
    write_metric(model, neighbours, support, rates, folder, weights)
    n = _ROWS
    _export(
        net.content,
        {
            "sentence": torch.zeros(n, SENTENCE_DIM),
            "ngrams": torch.zeros(n, NGRAM_DIM),
            "has_text": torch.ones(n, 1),
            "category": torch.zeros(n, dtype=torch.int64),
            "language": torch.zeros(n, dtype=torch.int64),
            "static": torch.zeros(n, N_STATIC),
        },
        folder / "content.onnx",
    )


def write_metric(
    model: TrainedModel,
    neighbours: int,
    support: Support,
    rates: Rates,
    folder: Path,
    shared: Mapping[str, NDArray[np.generic]] | None = None,
) -> None:
    """Write what belongs to one metric: weights.safetensors with the ``shared`` weights, head.onnx and trees.onnx."""
    net, cascade, weights = model.objective.net.eval().cpu(), model.cascade, dict(shared or {})
    weights["pace"], weights["base_growth"] = model.pace, model.base
    if cascade is not None:
        weights["cascade.constants"], weights["cascade.correction"] = cascade.constants, cascade.correction
    weights |= support.arrays() | rates.arrays()
    if model.trees is not None:
        weights |= model.trees.arrays()
        write_trees(model.trees, folder / TREES)
    if model.simple is not None:
        weights |= model.simple.arrays()
    _save(weights, folder)
    n, shape, further = _ROWS, net.mhp.shape, {}
    if net.attributes is not None:
        further["attributes"] = torch.zeros(n, net.attributes.layout.width)
    if net.signals is not None:
        further["signals"] = torch.zeros(n, net.signals.n_signals * N_SIGNAL)
    _export(
        _Head(net),
        {
            "hidden": torch.zeros(n, shape.d_model),
            "read": torch.zeros(n, shape.n_features),
            "last": torch.zeros(n, shape.n_features),
            "summary": torch.zeros(n, n_summary(shape.n_types) + net.n_cascade),
            "content": torch.zeros(n, CONTENT_DIM),
            "creator": torch.zeros(n, N_CREATOR),
            "static": torch.zeros(n, N_STATIC),
            "category": torch.zeros(n, dtype=torch.int64),
            "language": torch.zeros(n, dtype=torch.int64),
            "neighbours": torch.zeros(n, neighbours, N_NEIGHBOUR),
            "mask": torch.ones(n, neighbours),
            **further,
        },
        folder / HEAD,
    )


def write_rates(rates: Rates, folder: Path) -> None:
    """Replace the rates in weights.safetensors."""
    _save(load_file(folder / WEIGHTS) | rates.arrays(), folder)


def _save(weights: dict[str, NDArray[np.generic]], folder: Path) -> None:
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / WEIGHTS)
