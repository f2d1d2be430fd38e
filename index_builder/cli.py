"""Command line of the builder, ``m3tr-build``.

Each command imports its modules only when it runs, so help and shell completion are fast. If the user can fix an error,
the command prints one line to standard error and exits with code 2.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from model.errors import M3TRError

_TIMES: Final = "2026-06-01, 2026-06-01T12:30 or 2026-06-01T12:30:00+02:00; UTC without a zone"


def parse_time(text: str) -> int:
    """Parse an ISO 8601 date or time to microseconds since 1970 UTC. The default zone is UTC.

    Raises:
        typer.BadParameter: the text is not a date or time.
    """
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time; allowed: {_TIMES}") from None
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    delta = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def parse_hours(option: str, text: str) -> list[float]:
    """Parse a comma-separated list of hours > 0.

    Raises:
        typer.BadParameter: the text is not a list of hours > 0.
    """
    try:
        hours = [float(part) for part in text.split(",")]
    except ValueError:
        hours = []
    if not hours or not all(0 < hour < float("inf") for hour in hours):
        raise typer.BadParameter(
            f"{option}: {text!r} is not allowed; allowed: hours above 0, separated by commas, such as 24,72"
        )
    return hours


app = typer.Typer(
    name="m3tr-build",
    help="Simulate, check, train, evaluate, forecast and replay: the offline part of M3TR Online.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="Folder of a data set: videos.parquet, and events.parquet or counters.parquet."
    ),
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle written by the command train.")]
AsOf = Annotated[
    int, typer.Option("--as-of", parser=parse_time, metavar="TIME", help=f"Use only data up to this time: {_TIMES}.")
]
GrowingBank = Annotated[
    bool,
    typer.Option("--growing-bank", help="Also use videos published after the training as neighbours, as in a service."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write the data set to.")],
    videos: Annotated[int, typer.Option(min=1, help="Number of videos.")] = 1000,
    seed: Seed = 0,
    days: Annotated[float, typer.Option(min=1, help="Number of days over which videos are published.")] = 60,
    start: Annotated[
        int | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Time of the first publication. [default: 2025-09-01]"),
    ] = None,
    counters: Annotated[bool, typer.Option("--counters", help="Write counter snapshots instead of events.")] = False,
    shapes: Annotated[
        int,
        typer.Option(
            min=0, help="Number of classes of curves. The shape of a curve tells its growth. Writes hourly counters."
        ),
    ] = 0,
    drift: Annotated[
        int | None,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help="With --shapes: each class of videos grows differently from then on.",
        ),
    ] = None,
) -> None:
    """Write a SYNTHETIC data set.

    Engagement follows a marked self-exciting point process with power-law memory. The content of a video influences its
    engagement.
    """
    from index_builder.simulation.simulate import DEFAULT_START_US
    from index_builder.simulation.simulate import simulate as run

    start_us = DEFAULT_START_US if start is None else start
    made = run(
        out, videos=videos, seed=seed, days=days, start_us=start_us, counters=counters, shapes=shapes, drift_us=drift
    )
    typer.echo(f"{out}: synthetic, {videos:,} videos, {int(made.counts.sum()):,} engagements")


@app.command()
def check(data: Data) -> None:
    """Report what is wrong with a data set.

    Faults are listed by file, column and row. The exit code is 1 if there are errors.
    """
    from index_builder.datasets.check import check_dataset
    from index_builder.datasets.findings import console, report

    if not report(check_dataset(data), console()):
        raise typer.Exit(1)


@app.command()
def train(
    data: Data,
    as_of: AsOf,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric to forecast: views, likes, ..., an event type, or total (the sum of all). Repeat the option for more "
            "metrics in the same bundle, the most important first. [default: each counted type that most videos have]"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device to train on: auto, cpu or cuda.")] = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Number of passes over the data. [default: set by --config]")
    ] = None,
    seed: Seed = 0,
    config: Annotated[Path | None, typer.Option(help="TOML file with training settings.")] = None,
) -> None:
    """Train a model and write its bundle.

    The model is trained, calibrated and evaluated on what was known at --as-of. The bundle's own bank is filled.
    """
    from index_builder.training.train import train as run

    summary = run(
        data, as_of_us=as_of, metric=metric or (), out=out, device=device, epochs=epochs, seed=seed, config=config
    )
    if summary is not None:
        typer.echo(summary)


@app.command()
def index(
    bundle: Bundle,
    data: Data,
    as_of: AsOf,
    qdrant_url: Annotated[str | None, typer.Option(help="Qdrant server to fill.")] = None,
    bank: Annotated[
        Path | None, typer.Option(help="Folder of an embedded bank to fill. [default: BUNDLE/bank]")
    ] = None,
) -> None:
    """Fill a bank with what was observed up to --as-of."""
    from index_builder.bundles.index import index as run

    if qdrant_url is not None and bank is not None:
        raise typer.BadParameter("--qdrant-url and --bank cannot be used together; give one of them")
    run(bundle, data, as_of_us=as_of, qdrant_url=qdrant_url, bank=bank)


@app.command()
def forecast(
    bundle: Bundle,
    data: Data,
    queries: Annotated[
        Path, typer.Argument(help="Parquet file with the columns video_id, metric, now and target_time.")
    ],
    out: Annotated[Path, typer.Option(help="Parquet file to write: the queries with mean and q0.05 to q0.95.")],
    growing_bank: GrowingBank = False,
) -> None:
    """Forecast a file of queries.

    Each query is answered from rows up to its own "now". A query that cannot be answered gets empty columns. The
    number of these queries and the reasons are printed.
    """
    from index_builder.bundles.forecast import forecast as run

    run(bundle, data, queries, out, growing_bank=growing_bank)


@app.command()
def evaluate(
    bundle: Bundle,
    data: Data,
    published_from: Annotated[
        int, typer.Option(parser=parse_time, metavar="TIME", help="Score only videos published at or after this time.")
    ],
    published_before: Annotated[
        int | None,
        typer.Option(
            parser=parse_time, metavar="TIME", help="Score only videos published before this time. [default: no limit]"
        ),
    ] = None,
    ages: Annotated[str, typer.Option(metavar="HOURS", help="Ages at which to forecast.")] = "24,48",
    horizons: Annotated[str, typer.Option(metavar="HOURS", help="Horizons to forecast.")] = "24,72,120",
    out: Annotated[Path | None, typer.Option(help="JSON file for the table of scores.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Hours by which a counter's outcome may miss the wanted horizon.")
    ] = 6.0,
    boosting: Annotated[
        bool,
        typer.Option(
            "--boosting",
            help="Also compare with gradient boosting (LightGBM) that reads the model's inputs. This takes minutes.",
        ),
    ] = False,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Also compare log-likelihoods with those of simple point processes.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="HTML file for a report with tables, charts and examples.")
    ] = None,
    growing_bank: GrowingBank = False,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric to score. Repeat the option for more. [default: all of the bundle]")
    ] = None,
) -> None:
    """Compare a bundle with simple baselines.

    Scores are listed by age and horizon. Only videos published in the given period are scored.
    """
    from index_builder.evaluation.evaluate import evaluate as run

    run(
        bundle,
        data,
        published_from_us=published_from,
        published_before_us=published_before,
        ages_h=parse_hours("--ages", ages),
        horizons_h=parse_hours("--horizons", horizons),
        out=out,
        boosting=boosting,
        report=report,
        growing_bank=growing_bank,
        metrics=metric or (),
        tolerance_h=tolerance,
    )
    if likelihood:
        from index_builder.evaluation.likelihood import score_likelihood

        score_likelihood(bundle, data, published_from_us=published_from, published_before_us=published_before)


@app.command()
def replay(
    data: Data,
    url: Annotated[str, typer.Option(help="Address of a running service, such as http://127.0.0.1:8000.")],
    from_: Annotated[
        int | None,
        typer.Option("--from", parser=parse_time, metavar="TIME", help="Time of the first row to send. [default: all]"),
    ] = None,
    to: Annotated[
        int | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Time of the last row to send. [default: the end]"),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Rows per second. [default: as fast as possible]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of rows per request.")] = 1000,
    api_key: Annotated[
        str | None, typer.Option(envvar="M3TR_API_KEY", show_envvar=True, help="API key that has the scope ingest.")
    ] = None,
) -> None:
    """Send a data set's rows to a running service.

    Rows are sent in order of time. Each row has an id. If a row is sent again while the service remembers its id,
    nothing changes. Videos that have rows in the period, or are published in the period, are registered first. If a
    video was published before --from, the service does not learn its earlier events. Counters already include the past.
    """
    from index_builder.replay.replay import replay as run

    counts = run(data, url, from_us=from_, to_us=to, rate=rate, batch_rows=batch, api_key=api_key)
    typer.echo(str(counts))
    if counts.rejected or counts.refused:
        raise typer.Exit(1)


@app.command()
def export(
    out: Annotated[Path, typer.Option(metavar="DATA", help="Folder to write the data set to.")],
    redis_url: Annotated[
        str | None, typer.Option(envvar="REDIS_URL", show_envvar=True, help="URL of a service's event store.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder of a service with the embedded store. The service must be stopped.")
    ] = None,
) -> None:
    """Export the data that a service has collected to a data set for training.

    The store keeps one bin for each interval of a video's age. Each bin becomes one row. Rows of unregistered videos
    are left out.
    """
    from index_builder.datasets.export import export_store as run

    if data_dir is not None:
        redis_url = None
    elif redis_url is None:
        raise typer.BadParameter("give --redis-url or --data-dir")
    made = run(out, redis_url=redis_url, data_dir=data_dir)
    typer.echo(f"{out}: " + ", ".join(f"{n:,} rows in {name}" for name, n in made.rows.items()))
    for video_id, why in made.damaged.items():
        typer.echo(f"left out: video {video_id!r}, whose stored record cannot be read ({why})", err=True)
    for name, n in made.left_out.items():
        typer.echo(f"left out: {n:,} counts of type {name!r}, which has no column in counters.parquet", err=True)


@app.command()
def demo(
    dir: Annotated[
        Path,
        typer.Option(help="Folder for data, bundle and store. An earlier demo in this folder is replaced."),
    ] = Path("demo"),
    videos: Annotated[int, typer.Option(min=100, help="Number of simulated videos.")] = 400,
    seed: Seed = 7,
    keep_serving: Annotated[
        bool | None,
        typer.Option("--keep-serving/--no-keep-serving", help="Serve until Ctrl-C. [default: in a terminal]"),
    ] = None,
) -> None:
    """Run the whole workflow on synthetic data.

    Simulate, train, index and serve. Then replay the end of the data as a live stream and compare the forecasts with
    what really happened.
    """
    from index_builder.demo import demo as run

    run(dir, videos=videos, seed=seed, keep_serving=sys.stdout.isatty() if keep_serving is None else keep_serving)


def main() -> None:
    """Run ``m3tr-build``."""
    try:
        app()
    except (M3TRError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
