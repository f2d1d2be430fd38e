"""Defines the command ``m3tr-serve``, which runs the service in one Python process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from model.errors import M3TRError
from service.deployment.loading import load_model
from service.environment import PREFIX, service_links, unknown
from service.server import serve
from service.settings import Settings
from service.store.health import StoreRefused
from service.store.redis.embedded_server import EmbeddedError
from service.wiring import new_metrics

_KNOWN_VARIABLES = ("M3TR_TEST_DATA",)
"""Environment variables that have the prefix M3TR_ but are not settings of the service."""

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def run(
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle to serve.")] = None,
    bundles: Annotated[Path | None, typer.Option(help="Folder of bundles that can be activated.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind. Addresses other than loopback require API keys.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on. With 0, a free port is chosen and printed.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the embedded event store.")] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="URL of the event store to use instead of the embedded one.")
    ] = None,
    qdrant_url: Annotated[
        str | None,
        typer.Option(help="URL of a Qdrant server to use instead of the bundle's bank."),
    ] = None,
    appendfsync: Annotated[
        str | None, typer.Option(help="When the embedded store syncs its log: everysec or always.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where the model runs: auto, cpu or cuda.")] = None,
) -> None:
    """Serve forecasts. Every setting can also be given as an environment variable M3TR_<NAME>."""
    given = {name: value for name, value in locals().items() if value is not None}
    try:
        settings = Settings(**given)
        _warn_of_variables()
        metrics = new_metrics(settings)
        deployment = load_model(settings, settings, metrics)
        try:
            serve(settings, metrics, deployment)
        finally:
            deployment.close()
    except ValidationError as errors:
        for error in errors.errors(include_url=False, include_input=False):
            typer.echo(
                f"m3tr-serve: {_source(error['loc'], given)}{error['msg'].removeprefix('Value error, ')}", err=True
            )
        raise typer.Exit(2) from None
    except SettingsError as error:
        # Print only the first line, because the other lines may show the setting's value.
        typer.echo(f"m3tr-serve: {str(error).partition(chr(10))[0]}", err=True)
        raise typer.Exit(2) from None
    except (M3TRError, EmbeddedError, StoreRefused, OSError) as error:
        typer.echo(f"m3tr-serve: {error}", err=True)
        raise typer.Exit(1) from None


def _source(location: tuple[int | str, ...], given: Mapping[str, object]) -> str:
    """Return the name of the option or environment variable that an error concerns, depending on where the value was given."""
    if not location:
        return ""
    name = str(location[0])
    variable = name.upper() if name.upper().startswith(PREFIX) else PREFIX + name.upper()
    return f"{name}: " if name in given or variable not in os.environ else f"{variable}: "


def _warn_of_variables() -> None:
    """Print the names of environment variables that are ignored or unknown."""
    if links := service_links(os.environ):
        names = ", ".join(links)
        typer.echo(
            f"m3tr-serve: variables ignored because Kubernetes set them for a Service of this name: {names}", err=True
        )
    for line in unknown(os.environ, Settings.model_fields, _KNOWN_VARIABLES):
        typer.echo(f"m3tr-serve: {line}", err=True)


def main() -> None:
    """Run ``m3tr-serve``."""
    cli()


if __name__ == "__main__":
    main()
