"""Writes boosted trees as an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from index_builder.trees.fit import FittedTrees
from model.quantiles.head import N_CENTRE

_NODE_FIELDS: Final = (
    "treeids",
    "nodeids",
    "featureids",
    "values",
    "modes",
    "truenodeids",
    "falsenodeids",
    "missing_value_tracks_true",
)


def write_trees(trees: FittedTrees, path: Path) -> None:
    """Write the trees as one ONNX graph with the input ``x`` (rows, features) and the output (rows, N_CENTRE)."""
    nodes: dict[str, list[Any]] = {name: [] for name in _NODE_FIELDS}
    leaves: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    tree_id = 0
    for target, booster in enumerate(trees.boosters):
        for tree in booster.dump_model()["tree_info"]:
            _add_tree(tree["tree_structure"], tree_id, target, nodes, leaves)
            tree_id += 1
    attributes: dict[str, Any] = {f"nodes_{name}": values for name, values in nodes.items()}
    attributes |= {f"target_{name}": values for name, values in leaves.items()}
    width = trees.boosters[0].num_feature()
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["out"],
        domain="ai.onnx.ml",
        n_targets=N_CENTRE,
        aggregate_function="SUM",
        post_transform="NONE",
        **attributes,
    )
    graph = helper.make_graph(
        [ensemble],
        "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["rows", N_CENTRE])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def _add_tree(
    root: Mapping[str, Any], tree_id: int, target: int, nodes: dict[str, list[Any]], leaves: dict[str, list[Any]]
) -> None:
    pending = [(root, 0)]
    size = 1
    while pending:
        node, at = pending.pop()
        if "leaf_value" in node:
            values: tuple[Any, ...] = (tree_id, at, 0, 0.0, "LEAF", 0, 0, 0)
            for name, value in zip(leaves, (tree_id, at, target, float(node["leaf_value"])), strict=True):
                leaves[name].append(value)
        else:
            left, right = size, size + 1
            size += 2
            pending += [(node["left_child"], left), (node["right_child"], right)]
            threshold = _float32_below(float(node["threshold"]))
            values = (tree_id, at, int(node["split_feature"]), threshold, "BRANCH_LEQ", left, right, 0)
        for name, value in zip(_NODE_FIELDS, values, strict=True):
            nodes[name].append(value)


def _float32_below(threshold: float) -> float:
    """Return the largest float32 that is at most ``threshold``, so that float32 inputs fall on the same side of it."""
    near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))
