"""Runs ONNX graphs so that a row's result does not depend on its batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_ROWS: Final = 16
"""Number of rows in every run. This number is constant, because matrix kernels choose their order of summation by the number of rows."""


class Graph:
    """An exported graph that accepts inputs with any number of rows. The class is thread-safe."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._output = self._session.get_outputs()[0].name

    def __call__(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Run the graph on inputs with N rows each. N may be 0.

        The rows are run in blocks of a fixed size. The last block is padded with zeros.
        """
        n = len(next(iter(inputs.values())))
        outputs = []
        for start in range(0, n, _ROWS):
            block = {}
            for name, value in inputs.items():
                rows = value[start : start + _ROWS]
                if len(rows) < _ROWS:
                    rows = np.concatenate([rows, np.zeros((_ROWS - len(rows), *rows.shape[1:]), rows.dtype)])
                block[name] = rows
            outputs.append(self._session.run([self._output], block)[0][: n - start])
        return np.concatenate(outputs) if outputs else np.zeros((0,), np.float32)
