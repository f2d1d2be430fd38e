"""A bundle: everything that a forecast needs, in one folder. When a bundle is loaded, all its files except the bank's are verified.

    manifest.json         description of the bundle, and the SHA-256 of every other file
    weights.safetensors   Mamba-Hawkes, intensity, n-gram table, trajectory space, cascade constants,
                          training range, rates
    content.onnx          text and metadata -> content vector
    trees.onnx            boosted trees, if the bundle has any: numbers, content, neighbours, horizon -> mean and median
    head.onnx             state, content, creator, neighbours -> quantile coefficients
    calibration.json      conformal stretch factors
    report.html           the evaluation, for human readers
    metrics/NAME/         the same for each further metric of the bundle: weights.safetensors (training range, rates, pace,
                          cascade constants), head.onnx, trees.onnx, calibration.json and report.html
    bank/                 past videos, which are not part of the bundle's version, because the bank grows

The version is the SHA-256 digest of the manifest. So bundles that differ in one byte have different versions. No file
is a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from model.ablation import WHOLE, Ablation
from model.engagement.bins import BINS_VERSION
from model.engagement.types import check_types, metric_types
from model.errors import BundleError, DataError
from model.features.attributes import Attribute
from model.features.schema import Schema
from model.features.signals import Signal
from model.mhp.shape import MHPShape
from model.quantiles.calibration import Calibration

FORMAT_VERSION: Final = 8
MANIFEST: Final = "manifest.json"
BANK: Final = "bank"
REPORT: Final = "report.html"
TREES: Final = "trees.onnx"
WEIGHTS: Final = "weights.safetensors"
HEAD: Final = "head.onnx"
CALIBRATION: Final = "calibration.json"
METRICS: Final = "metrics"
FILES: Final = (WEIGHTS, "content.onnx", HEAD, CALIBRATION, REPORT)
METRIC_FILES: Final = (WEIGHTS, HEAD, CALIBRATION, REPORT)
"""Files of a further metric, in its own folder."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a bundle.

    Attributes:
        version: SHA-256 of the manifest's content, in hex.
        schema: feature schema.
        shape: sizes of the Mamba-Hawkes network.
        encoder: id of the sentence encoder.
        content_weight: weight w of content similarity in the combined similarity.
        neighbours: number K of neighbours.
        ngram_buckets: number of hash buckets for n-grams.
        training: window, data fingerprint and settings of the training run.
        evaluation: table of scores on the last window before the as-of time.
        parts: parts of the method that are switched on.
        bins_version: version of the age grid.
    """

    version: str
    schema: Schema
    shape: MHPShape
    encoder: str
    content_weight: float
    neighbours: int
    ngram_buckets: int
    training: dict[str, Any]
    evaluation: dict[str, Any]
    parts: Ablation = WHOLE
    bins_version: int = BINS_VERSION

    @property
    def metric(self) -> str:
        """The first metric that is forecast: a counter column, an event type, or total."""
        return self.schema.metric

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that are forecast, the first metric first."""
        return self.schema.metrics

    def of(self, metric: str) -> Manifest:
        """Return the description of this bundle as if a further metric were its only metric.

        For the first metric, this is the description itself.
        """
        if metric == self.metric:
            return self
        schema = replace(self.schema, metric=metric, further=())
        training = self.training | self.training.get("further", {}).get(metric, {})
        return replace(
            self, schema=schema, training=training, evaluation=self.evaluation.get("further", {}).get(metric, {})
        )

    @property
    def types(self) -> tuple[str, ...]:
        """The engagement types that the model reads."""
        return self.schema.types

    @property
    def max_horizon_us(self) -> int:
        """The longest trained horizon in microseconds."""
        return self.schema.max_horizon_us


@dataclass(frozen=True, slots=True)
class MetricBundle:
    """What a bundle holds for one metric: a folder with ``head.onnx``, and ``trees.onnx`` if there are trees, weights and calibration."""

    path: Path
    weights: dict[str, NDArray[np.float32]]
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        path: the folder.
        manifest: the description.
        weights: the weights that all metrics share, and those of the first metric.
        calibration: the calibration of the first metric.
        further: what belongs to each further metric.
    """

    path: Path
    manifest: Manifest
    weights: dict[str, NDArray[np.float32]]
    calibration: Calibration
    further: dict[str, MetricBundle] = field(default_factory=dict)

    def of(self, metric: str) -> MetricBundle:
        """Return what belongs to a metric of the bundle."""
        return self.further.get(metric) or MetricBundle(self.path, self.weights, self.calibration)

    @property
    def dims(self) -> tuple[int, int]:
        """The dimensions of the content vectors and of the trajectory vectors."""
        return int(self.weights["content_dim"][0]), self.weights["trajectory.projection"].shape[1]


def metric_folder(metric: str) -> str:
    """Return the path of a further metric's folder inside a bundle. Any name of a metric gives a safe path."""
    return f"{METRICS}/{quote(metric, safe='').replace('.', '%2E')}"


def _files(further: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the files that a bundle must have, and those that it may have."""
    folders = [metric_folder(metric) for metric in further]
    needed = [*FILES, *(f"{folder}/{name}" for folder in folders for name in METRIC_FILES)]
    return needed, [TREES, *(f"{folder}/{TREES}" for folder in folders)]


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _version(body: dict[str, Any]) -> str:
    rest = {key: value for key, value in body.items() if key != "version"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Complete a folder that holds a bundle's files: hash them and write the manifest with its ``version``. Return the version."""
    schema, shape = manifest.schema, manifest.shape
    needed, optional = _files(schema.further)
    body: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "bins_version": manifest.bins_version,
        "schema": {
            "types": list(schema.types),
            "metric": schema.metric,
            "metrics": list(schema.metrics),
            "max_horizon_us": schema.max_horizon_us,
            "max_age_us": schema.max_age_us,
            "categories": list(schema.categories),
            "languages": list(schema.languages),
            "attributes": [_attribute_json(attribute) for attribute in schema.attributes],
            "signals": [{"name": signal.name, "quantiles": list(signal.quantiles)} for signal in schema.signals],
        },
        "shape": {name: getattr(shape, name) for name in shape.__slots__},
        "encoder": manifest.encoder,
        "content_weight": manifest.content_weight,
        "neighbours": manifest.neighbours,
        "ngram_buckets": manifest.ngram_buckets,
        "parts": asdict(manifest.parts),
        "training": manifest.training,
        "evaluation": manifest.evaluation,
        "files": {name: _hash(folder / name) for name in (*needed, *(n for n in optional if (folder / n).exists()))},
    }
    body["version"] = _version(body)
    (folder / MANIFEST).write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return str(body["version"])


def _attribute_json(attribute: Attribute) -> dict[str, Any]:
    body: dict[str, Any] = {"name": attribute.name, "kind": attribute.kind}
    if attribute.kind == "number":
        return body | {"quantiles": list(attribute.quantiles)}
    if attribute.kind == "list":
        body["separator"] = attribute.separator
    return body | {"values": list(attribute.values)}


def _attribute_of(body: dict[str, Any]) -> Attribute:
    values, quantiles = tuple(body.get("values", ())), tuple(map(float, body.get("quantiles", ())))
    return Attribute(body["name"], body["kind"], values, quantiles, body.get("separator", ","))


def load_bundle(folder: Path) -> Bundle:
    """Load and verify a bundle.

    Raises:
        BundleError: a file is missing or altered, the format is not supported, an engagement type has a reserved
            name, or a declared attribute or signal is not valid.
    """
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = body["format_version"], body["bins_version"]
    except OSError as error:
        raise BundleError(
            f"{folder / MANIFEST}: {error.strerror}; a bundle is a folder that m3tr-build train wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST}: not a bundle's manifest ({error})") from None
    if found != (FORMAT_VERSION, BINS_VERSION):
        raise BundleError(
            f"{folder / MANIFEST}: format_version, bins_version: {found}; allowed: {(FORMAT_VERSION, BINS_VERSION)}; a bundle "
            "of another version must be trained again with m3tr-build train"
        )
    if body.get("version") != _version(body):
        raise BundleError(f"{folder / MANIFEST}: the version does not match the content: the file was altered")
    further = _further(folder, body["schema"])
    needed, optional = _files(further)
    for name in (*needed, *(name for name in optional if name in body["files"])):
        expected = body["files"].get(name)
        try:
            actual = _hash(folder / name)
        except OSError as error:
            raise BundleError(f"{folder / name}: {error.strerror}") from None
        if actual != expected:
            raise BundleError(
                f"{folder / name}: SHA-256 {actual[:16]}..., the manifest says {str(expected)[:16]}...: the file was altered"
            )
    schema = body["schema"]
    try:
        check_types(schema["types"])
    except DataError as error:
        raise BundleError(f"{folder / MANIFEST}: schema.types: {error}") from None
    try:
        attributes = tuple(_attribute_of(item) for item in schema.get("attributes", []))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST}: schema.attributes: {error}") from None
    try:
        signals = tuple(Signal(item["name"], tuple(item["quantiles"])) for item in schema.get("signals", []))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST}: schema.signals: {error}") from None
    manifest = Manifest(
        version=body["version"],
        schema=Schema(
            tuple(schema["types"]),
            schema["metric"],
            schema["max_horizon_us"],
            schema["max_age_us"],
            tuple(schema["categories"]),
            tuple(schema["languages"]),
            attributes,
            signals,
            further,
        ),
        shape=MHPShape(**body["shape"]),
        encoder=body["encoder"],
        content_weight=body["content_weight"],
        neighbours=body["neighbours"],
        ngram_buckets=body["ngram_buckets"],
        training=body["training"],
        evaluation=body["evaluation"],
        parts=Ablation(**body.get("parts", {})),
    )
    parts = {metric: _metric_bundle(folder / metric_folder(metric)) for metric in further}
    first = _metric_bundle(folder)
    return Bundle(folder, manifest, first.weights, first.calibration, parts)


def _further(folder: Path, schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the further metrics that a manifest declares."""
    metrics = schema.get("metrics", [schema["metric"]])
    try:
        if metrics[:1] != [schema["metric"]] or len(set(metrics)) != len(metrics):
            raise DataError(f"{metrics!r} must begin with {schema['metric']!r} and name each metric once")
        for metric in metrics[1:]:
            metric_types(metric, tuple(schema["types"]))
    except (DataError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST}: schema.metrics: {error}") from None
    return tuple(metrics[1:])


def _metric_bundle(folder: Path) -> MetricBundle:
    calibration = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
    return MetricBundle(folder, load_file(folder / WEIGHTS), Calibration.from_json(calibration))
