"""`m3tr-build index`: fills a bank, or updates a bank with later data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index_builder.bundles.fill_bank import bank_members, fill_bank
from index_builder.datasets.load import load_and_report
from index_builder.datasets.observed import Observed
from index_builder.progress import progress
from model.bank import Bank, EmbeddedBank, EmptyBank, ServerBank
from model.bundle import BANK, load_bundle
from model.engagement.types import metric_types
from model.errors import DataError
from model.forecaster import Forecaster


def index(bundle: Path, data: Path, *, as_of_us: int, qdrant_url: str | None = None, bank: Path | None = None) -> None:
    """Fill a bank with what was observed up to ``as_of_us``.

    If ``qdrant_url`` is given, the bank is on the Qdrant server at this URL. Otherwise the bank is the folder ``bank``,
    or the bundle's own bank if ``bank`` is None. A folder is replaced as a whole, and only when the new bank is
    complete. On a server, points are added or replaced.

    Raises:
        DataError: the data set cannot be used with this bundle.
        BankError: the bank cannot be written.
    """
    loaded = load_bundle(bundle)
    forecaster = Forecaster(loaded, EmptyBank(), device="cpu")
    dataset = load_and_report(data, before_us=as_of_us)
    metric = loaded.manifest.metric
    metric_types(metric, dataset.types)
    if missing := [kind for kind in dataset.types if kind not in loaded.manifest.types]:
        raise DataError(f"{data}: engagement type {missing[0]!r}; this bundle knows {', '.join(loaded.manifest.types)}")
    observed = Observed.of(dataset, metric)
    limit = int(loaded.manifest.training["settings"]["bank_videos"])
    members = bank_members(observed, as_of_us, limit)
    with (
        progress("fill bank", len(members)) as bar,
        _target(bundle, loaded.dims, loaded.manifest.version, qdrant_url, bank) as target,
    ):
        fill_bank(target, forecaster, observed, as_of_us, members, advance=bar.advance)


@contextmanager
def _target(bundle: Path, dims: tuple[int, int], version: str, url: str | None, folder: Path | None) -> Iterator[Bank]:
    if url is not None:
        with ServerBank.build(url, version[:16], *dims) as server:
            yield server
        return
    with EmbeddedBank.build(folder or bundle / BANK, *dims) as bank:
        yield bank
