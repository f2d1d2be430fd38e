"""Every setting, with its unit and range; each is read from the environment variable ``M3TR_<NAME>``.

``REDIS_URL``, ``QDRANT_URL`` and ``QDRANT_API_KEY`` are also read without the prefix. An empty variable counts as not set. A value
that is unsafe or out of range stops the start. What Kubernetes sets for a service of this name is no setting (see
``service.environment``).
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.environment import service_links
from service.store.redis.address import AddressError, parse_address

_KEY = re.compile(r"(ingest|predict|admin):[0-9a-f]{64}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """Settings of one service process."""

    model_config = SettingsConfigDict(
        env_prefix="M3TR_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given comes first, then the environment, without what an orchestrator has put there for others."""
        assert isinstance(env_settings, EnvSettingsSource)
        links = frozenset(name.lower() for name in service_links(os.environ))
        env_settings.env_vars = {name: value for name, value in env_settings.env_vars.items() if name not in links}
        return init_settings, env_settings

    bundle: Path
    """Folder of the bundle to serve."""
    bundles: Path | None = None
    """Folder whose sub-folders are bundles that can be activated; the choice is kept in the event store, and all services that
    share it follow. None: only ``bundle``."""
    models_kept: int = Field(1, ge=0, le=16)
    """Earlier models kept in memory, so that going back to them is quick (about 0.1 GB each)."""
    warm_videos: int = Field(1024, ge=0, le=10_000_000)
    """Videos, those asked for last, that a model forecasts before it is switched to."""
    shadow_share: float = Field(1.0, gt=0, le=1)
    """Part of the forecasts that a shadow model makes as well."""
    shadow_queue: int = Field(256, ge=1, le=1_000_000)
    """Forecasts waiting for the shadow model, at most; more are dropped."""
    host: str = "127.0.0.1"
    """Address to bind. Anything but loopback needs ``api_keys``."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port; 0 takes a free one."""
    data_dir: Path = Path("m3tr-data")
    """Folder for the embedded event store's files; one running service a folder."""
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field((), repr=False)
    """Accepted API keys as ``scope:sha256`` (scope: ingest, predict or admin; lower-case hex of the key's SHA-256),
    separated by commas or white space. Empty: no key is asked for, and only loopback is bound."""
    api_keys_file: Path | None = None
    """File with further ``api_keys``; a line that starts with # is a comment."""
    root_path: str = Field("", pattern=r"^(/[^/\s?#]+)*$")
    """Prefix under which a proxy serves this service, such as /m3tr; requests are taken with it and without."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Without ``api_keys``: further host names, separated by commas or white space, that the service is called by. Loopback's,
    addresses and names without a dot are always allowed; any other may be a page of another site (DNS rebinding)."""
    audit: bool = True
    """Whether each request that may change something is a line of the log: key, request id, what was done."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""

    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("M3TR_REDIS_URL", "REDIS_URL"))
    """Event store server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (see ``service.store.redis.address``);
    None starts the embedded one."""
    store_safety: Literal["warn", "refuse"] = "warn"
    """What to do about an event store that may lose data (a maxmemory-policy that evicts, or no persistence): warn in the log, in
    readiness and in metrics; or refuse to start, and to be ready."""
    store_binary: Path | None = None
    """Server binary of the embedded store; None takes the one that came with the package."""
    appendfsync: Literal["everysec", "always"] = "everysec"
    """When the embedded store syncs its log: each second (a power cut loses up to a second), or before each answer."""
    store_deadline_ms: int = Field(2000, ge=10, le=60_000)
    """Milliseconds that one event store call may take."""
    store_connections: int = Field(64, ge=1, le=10_000)
    """Connections to the event store, at most."""
    qdrant_url: SecretStr | None = Field(None, validation_alias=AliasChoices("M3TR_QDRANT_URL", "QDRANT_URL"))
    """Qdrant server that holds the bank; None opens the bundle's own."""
    qdrant_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("M3TR_QDRANT_API_KEY", "QDRANT_API_KEY")
    )
    """Key of the Qdrant server."""
    bank_deadline_ms: int = Field(500, ge=1, le=60_000)
    """Milliseconds that one bank query may take; a later one gives a forecast without neighbours."""

    dedup_ttl_s: int = Field(48 * 3600, ge=3600, le=30 * 86400)
    """Seconds for which an event id is remembered, at least."""
    park_rows: int = Field(2000, ge=0, le=1_000_000)
    """Rows kept for one video that is not registered yet."""
    park_videos: int = Field(5000, ge=0, le=1_000_000)
    """Unregistered videos that rows are kept for (a soft limit where several services share a store)."""
    park_share: float = Field(0.5, gt=0, le=1)
    """Part of those videos that rows of one API key may wait for; without keys, all are one client, which may have them all."""
    park_ttl_s: int = Field(24 * 3600, ge=60, le=30 * 86400)
    """Seconds for which parked rows wait for the registration, counted from the last of them."""
    retention_days: int = Field(0, ge=0, le=36_500)
    """Days without an engagement (without any: since its registration) after which a video's record ends, with its ids, labels
    and places in lists; what a bank has learned of it stays. 0 keeps videos for ever."""
    future_skew_s: float = Field(60, ge=0, le=3600)
    """Seconds that a time may lie ahead of this machine's clock."""
    max_body_bytes: int = Field(8 * 2**20, ge=1024, le=2**30)
    """Bytes of a request body, as sent and after unpacking; NDJSON may be longer."""
    max_body_values: int = Field(250_000, ge=1000, le=100_000_000)
    """Values in one JSON body, counted by its commas and opening brackets: parsing about a million takes 0.1 s, in which nobody
    else is answered."""
    body_memory_bytes: int = Field(256 * 2**20, ge=2**20, le=2**40)
    """Bytes of request bodies in memory over all requests, one client's at most half of it; more are refused with 503 or 429."""
    max_line_bytes: int = Field(64 * 1024, ge=1024, le=2**24)
    """Bytes of one line of NDJSON."""
    body_deadline_ms: int = Field(30_000, ge=10, le=600_000)
    """Milliseconds within which a request body must have arrived; of NDJSON, the next bytes of it."""
    max_batch_rows: int = Field(10_000, ge=1, le=1_000_000)
    """Rows in one request; NDJSON may have more, and is taken in batches of so many."""
    ingest_round_rows: int = Field(16_384, ge=1, le=1_000_000)
    """Rows of several requests that go to the event store together, about."""
    ingest_queue_rows: int = Field(200_000, ge=1, le=10_000_000)
    """Rows waiting for the event store, at most; more are refused with 503."""
    max_id_length: int = Field(256, ge=1, le=1024)
    """Characters of a video id or an event id."""
    max_horizons: int = Field(64, ge=1, le=1024)
    """Horizons in one request."""

    request_deadline_ms: int = Field(10_000, ge=10, le=300_000)
    """Milliseconds within which a forecast is answered; later is 503."""
    forecast_reuse_ms: int = Field(5000, ge=0, le=60_000)
    """Milliseconds for which a forecast is given again while nothing new is known of its video (and at most a thousandth
    of the video's age); 0 computes every forecast anew."""
    batch_forecasts: int = Field(32, ge=1, le=1024)
    """Forecasts computed together, at most."""
    batch_wait_ms: float = Field(1, ge=0, le=1000)
    """Milliseconds that a forecast waits for company."""
    queue_forecasts: int = Field(1024, ge=1, le=1_000_000)
    """Forecasts waiting for the model, at most; more are refused with 503."""
    max_batch_predictions: int = Field(256, ge=1, le=10_000)
    """Predictions in one request."""

    stream_interval_ms: int = Field(100, ge=0, le=60_000)
    """Milliseconds between two forecasts of a watched video, at least."""
    stream_refresh_s: float = Field(60, ge=0.05, le=86_400)
    """Seconds after which a watched forecast is made anew though nothing happened: it decays."""
    stream_subscribers: int = Field(2000, ge=0, le=1_000_000)
    """Clients that watch forecasts, at most; more are refused with 503."""
    stream_producers: int = Field(256, ge=0, le=1_000_000)
    """WebSocket connections that bring rows, at most; more are refused with 503."""
    stream_share: float = Field(0.5, gt=0, le=1)
    """Part of the two above that one API key may hold; over it is 429. Without keys, all are one client, which may hold all."""
    stream_window: int = Field(8, ge=1, le=1024)
    """Frames of one WebSocket that are read and not answered yet; the next one waits in the network."""
    ingest_stream: bool = True
    """Whether rows are taken from the Redis stream ``m3tr:ingest``."""
    ingest_claim_s: float = Field(30, ge=0.05, le=86_400)
    """Seconds after which an entry of that stream that somebody took and did not finish is taken over."""

    ranking_horizon_s: int = Field(86_400, ge=1, le=10 * 365 * 86_400)
    """Horizon of the forecasts that videos are listed by, seconds; the bundle's longest where that is shorter."""
    ranking_forecasts: int = Field(25, ge=0, le=10_000)
    """Forecasts a second that keep the lists current, at most; 0 leaves that to other replicas."""
    ranking_silent_s: float = Field(3 * 86_400, ge=1, le=365 * 86_400)
    """Seconds without an engagement after which a video is no longer listed as rising."""
    ranking_videos: int = Field(100_000, ge=1, le=100_000_000)
    """Videos in each list; the last ones drop out."""
    labels: int = Field(100_000, ge=0, le=10_000_000)
    """Forecasts kept in the event store until their outcome is known, at most, by all replicas together (about 0.4 KB each); 0 keeps
    none, scores none, and adapts nothing."""
    label_horizon_s: int = Field(7 * 86_400, ge=1, le=365 * 86_400)
    """Longest horizon of a forecast that is kept, seconds."""
    label_horizons_s: Annotated[tuple[Annotated[int, Field(ge=1, le=365 * 86_400)], ...], NoDecode] = Field(
        (15, 300, 3600, 4 * 3600, 12 * 3600, 86_400, 2 * 86_400, 3 * 86_400, 7 * 86_400), min_length=1, max_length=64
    )
    """Horizons of those forecasts, seconds, separated by commas; those beyond the bundle's longest are left out."""
    label_forecasts: float = Field(5, gt=0, le=1000)
    """Forecasts a second that are made to be scored, at most."""
    label_share: float = Field(0.5, gt=0, le=1)
    """Part of the room for them that the videos of one API key may take."""
    label_grace_s: int = Field(60, ge=0, le=86_400)
    """Seconds after its target time at which a forecast is scored, so that late rows are in."""
    quality_days: int = Field(7, ge=1, le=90)
    """Days over which scores are shown."""
    adaptive: bool = True
    """Whether intervals follow the coverage of the forecasts that were scored."""
    bank_after_s: int = Field(86_400, ge=0, le=365 * 86_400)
    """Age at which a video enters the bank, seconds, and again whenever its age has doubled; 0 leaves the bank as it is."""
    bank_videos: int = Field(100_000, ge=0, le=100_000_000)
    """Videos in the bank past which none enters any more."""
    bank_entries: float = Field(5, gt=0, le=1000)
    """Videos a second that enter the bank, at most."""

    cache_videos: int = Field(4096, ge=1, le=10_000_000)
    """Videos whose model state and histogram are cached."""

    reads_in_flight: int = Field(24, ge=1, le=100_000)
    """Forecasts and other reads handled at once; streams, probes and metrics are not counted."""
    reads_waiting: int = Field(16, ge=0, le=100_000)
    """Reads that wait until one of those ends, at most; more are refused with 503."""
    writes_in_flight: int = Field(8, ge=1, le=100_000)
    """Registrations and small batches of rows (up to 4 KB as sent) handled at once."""
    writes_waiting: int = Field(16, ge=0, le=100_000)
    """Such writes that wait, at most; more are refused with 503."""
    bulk_in_flight: int = Field(64, ge=1, le=100_000)
    """Larger batches of rows handled at once: many, because rows that meet are stored together."""
    bulk_waiting: int = Field(64, ge=0, le=100_000)
    """Larger batches that wait, at most; more are refused with 503."""
    wait_ms: int = Field(500, ge=1, le=60_000)
    """Milliseconds that a request waits for its turn; then it is refused with 503."""
    client_share: float = Field(1.0, gt=0, le=1)
    """Part of the above that one client (API key, or address without one) may hold; over it is 429."""
    max_connections: int = Field(4096, ge=8, le=1_000_000)
    """Connections at once, at most, and never more than the limit on open files leaves room for; then the one that has been silent
    longest makes room, or the new one gets 503."""
    max_header_bytes: int = Field(32 * 1024, ge=4096, le=2**20)
    """Bytes of a request's head; more is 431."""
    head_deadline_ms: int = Field(15_000, ge=100, le=600_000)
    """Milliseconds within which a new connection must have sent its first request's head, and a begun head must be whole."""
    keep_alive_s: float = Field(75, ge=1, le=3600)
    """Seconds for which a connection stays open between two requests; longer than what load balancers keep theirs (mostly 60)."""
    write_deadline_ms: int = Field(30_000, ge=100, le=600_000)
    """Milliseconds in which a client must take some of its answer; a connection whose client reads nothing is cut."""
    drain_s: float = Field(1.0, ge=0, le=600)
    """Seconds for which a stopping service is not ready but still answers, so that load balancers turn away first."""
    shutdown_s: int = Field(10, ge=0, le=600)
    """Seconds that requests in flight may take after that."""

    @field_validator("api_keys", "allowed_hosts", "label_horizons_s", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(re.split(r"[,\s]+", value.strip())) if isinstance(value, str) and value.strip() else value or ()

    @field_validator("redis_url")
    @classmethod
    def _address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parse_address(value.get_secret_value())
            except AddressError as error:
                # Settings name their variable themselves.
                raise ValueError(error.text) from None
        return value

    @field_validator("root_path", mode="before")
    @classmethod
    def _strip_slash(cls, value: object) -> object:
        return value.rstrip("/") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _safe(self) -> Self:
        keys = self.keys()
        if self.api_keys_file is not None and len(keys) == len(self.api_keys):
            raise ValueError(
                f"api_keys_file: {self.api_keys_file} holds no key; without one, everybody would be let in"
            )
        for key in keys:
            if not _KEY.fullmatch(key):
                raise ValueError("api_keys: each must be scope:sha256, with scope ingest, predict or admin")
        if not keys and not is_loopback(self.host):
            raise ValueError(
                f"host: {self.host} can be reached from outside this machine; set api_keys, or bind 127.0.0.1"
            )
        if self.bundles is not None and not self.bundles.is_dir():
            raise ValueError(f"bundles: {self.bundles} is no folder")
        if self.bank_deadline_ms > self.request_deadline_ms:
            raise ValueError("bank_deadline_ms: must not be longer than request_deadline_ms")
        return self

    def keys(self) -> tuple[str, ...]:
        """All accepted keys, those of the file included."""
        if self.api_keys_file is None:
            return self.api_keys
        try:
            text = self.api_keys_file.read_text("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"api_keys_file: {self.api_keys_file} is no text in UTF-8") from None
        lines = (line.strip() for line in text.splitlines())
        return self.api_keys + tuple(line for line in lines if line and not line.startswith("#"))
