"""Calls a running service over HTTP. A call is repeated while the service is busy or cannot be reached.

Every call is safe to repeat. Registering a video twice changes nothing. Rows have ids, so the service recognises
duplicates. Forecasts change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx
import orjson
import tenacity

from model.engagement.video import Video
from model.errors import M3TRError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY: Final = frozenset((429, 503))
_ABOUT_CONTENT: Final = frozenset((400, 409, 413, 414, 422, 431))
_BACKOFF: Final = tenacity.wait_exponential(multiplier=0.1, max=5.0)
"""Waiting times of 0.1 s, 0.2 s, ... up to 5 s between the attempts of a call."""


class ServiceError(M3TRError):
    """The service refused a call, or it was busy or unreachable for too long."""


class Refused(ServiceError):
    """The service refused the content of a call. A call with different content may succeed."""


class _Unavailable(Exception):
    """The service is busy or cannot be reached. The call should be retried after ``retry_after_s`` or later."""

    def __init__(self, problem: str, retry_after_s: float = 0.0) -> None:
        super().__init__(problem)
        self.problem, self.retry_after_s = problem, retry_after_s


def iso8601(time_us: int) -> str:
    """Return a time in microseconds UTC as ISO 8601 text."""
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")


class Client:
    """A connection to one service.

    Args:
        url: address of the service, such as ``http://127.0.0.1:8000``.
        api_key: API key that is sent as bearer token.
        timeout_s: time limit in seconds for one attempt of a call.
        patience_s: time limit in seconds for retrying a call.
        transport: replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, transport=transport)
        except (httpx.InvalidURL, ValueError) as error:
            raise ServiceError(f"url: {url!r} is not an address: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def register(self, video: Video) -> None:
        """Register a video.

        Raises:
            Refused: the service does not accept this video.
            ServiceError: the call failed for another reason.
        """
        body: dict[str, Any] = {"published_at": iso8601(video.published_us), **video.metadata()}
        self._call("PUT", f"/videos/{_segment(video.video_id)}", orjson.dumps(body), "application/json")

    def post_rows(self, path: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Send rows to ``/events`` or ``/counters``. Return the service's summary of the rows, including rejected rows."""
        body = b"\n".join(map(orjson.dumps, rows))
        return dict(self._call("POST", path, body, "application/x-ndjson", accept=_accounts_for_rows).json())

    def forecast(self, video_id: str, at_us: int, horizons_s: Sequence[int]) -> dict[str, Any]:
        """Return the forecast of a registered video at a time, for horizons in seconds."""
        query = httpx.QueryParams({"at": iso8601(at_us), "horizons_s": ",".join(map(str, horizons_s))})
        return dict(self._call("GET", f"/videos/{_segment(video_id)}/forecast?{query}").json())

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str | None = None,
        *,
        accept: Callable[[httpx.Response], bool] = lambda response: response.is_success,
    ) -> httpx.Response:
        """Call the service until it succeeds. Retry 429, 503 and network errors for ``patience_s``.

        Raises:
            ServiceError: the call was refused, or it still failed after ``patience_s``.
        """
        headers = {} if content_type is None else {"Content-Type": content_type}

        def attempt() -> httpx.Response:
            try:
                response = self._http.request(method, path, content=body, headers=headers)
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                raise ServiceError(f"url: {self.url!r} cannot be called: {error}") from None
            except httpx.TransportError as error:
                raise _Unavailable(f"{type(error).__name__}: {error}") from None
            if accept(response):
                return response
            if response.status_code in _BUSY:
                raise _Unavailable(_explain(response), _retry_after_s(response))
            error_type = Refused if response.status_code in _ABOUT_CONTENT else ServiceError
            raise error_type(f"{method} {self.url}{path}: {_explain(response)}")

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unavailable),
            wait=_wait_s,
            stop=tenacity.stop_before_delay(self._patience_s),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _Unavailable as error:
            raise ServiceError(
                f"{method} {self.url}{path}: given up after {self._patience_s:g} s: {error.problem}"
            ) from None


def _segment(video_id: str) -> str:
    """Return an id as one segment of a path. An id that consists only of dots is escaped, because it would change the path."""
    return quote(video_id, safe="") if video_id.strip(".") else video_id.replace(".", "%2E")


def _wait_s(state: tenacity.RetryCallState) -> float:
    """Return the seconds until the next attempt: the backoff, or the service's Retry-After if that is longer."""
    error = state.outcome.exception() if state.outcome is not None else None
    return max(_BACKOFF(state), error.retry_after_s if isinstance(error, _Unavailable) else 0.0)


def _retry_after_s(response: httpx.Response) -> float:
    """Return the seconds to wait that a Retry-After header gives as a number or a date. Return 0 without the header."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        time = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (time.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _accounts_for_rows(response: httpx.Response) -> bool:
    """Return whether a response reports on every row.

    A response with status 422 also reports on every row, if no row of the batch was accepted.
    """
    if response.status_code != httpx.codes.UNPROCESSABLE_ENTITY:
        return response.is_success
    try:
        return "rejections" in response.json()
    except ValueError:
        return False


def _explain(response: httpx.Response) -> str:
    try:
        problem = response.json()
        return f"{response.status_code} {problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"
