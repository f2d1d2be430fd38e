"""Subscriptions to forecasts.

Each forecast of a video, with its horizons, thresholds and metrics, is computed once for all its subscribers. They always get the newest
one.

stream of changes -> topic (video, question) -> forecast -> event -> one slot per subscriber -> its connection
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from model.bank.tombstone import tombstone
from service.forecasts.forecast_result import ForecastResult
from service.problems import Internal, OverShare, Problem, Unavailable, separate
from service.settings import StreamSettings
from service.store.change_publisher import Change
from service.streaming.pacing import PacedSlots
from service.streaming.topic import Subscription, Topic, end_event

log = structlog.get_logger(__name__)

EVENTS_PER_S: Final = 2000
"""Approximate maximum number of events per second over all subscribers, however many videos change."""
Question = tuple[tuple[int, ...], tuple[float, ...], tuple[str, ...]]
"""Horizons in microseconds, thresholds, and metrics (none: the bundle's first one)."""
Key = tuple[str, Question]


class ForecastSubscriptions:
    """Holds all subscriptions.

    ``in_progress``: maximum number of forecasts in progress.
    ``share``: fraction of the allowed subscribers that one client may have.
    """

    def __init__(
        self,
        forecast: Callable[[str, None, tuple[int, ...], tuple[float, ...], tuple[str, ...]], Awaitable[ForecastResult]],
        encode: Callable[[ForecastResult], bytes],
        settings: StreamSettings,
        *,
        in_progress: int,
        share: float = 1,
    ) -> None:
        self._forecast, self._encode = forecast, encode
        self._interval_s, self._refresh_s = settings.stream_interval_ms / 1000, settings.stream_refresh_s
        self._limit = settings.stream_subscribers
        self._client_limit = max(1, int(self._limit * share))
        self._by_client: Counter[bytes] = Counter()
        self._slots = PacedSlots(in_progress)
        self._topics: dict[str, dict[Question, Topic]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.subscribers = 0
        """Present number of subscribers."""
        self.forecasts = 0
        """Number of forecasts made for subscribers so far."""

    async def subscribe(self, video_id: str, question: Question, client: bytes = b"") -> Subscription:
        """Return a subscription that already holds its first event. Call ``leave`` when the subscription is no longer needed.

        Raises Unavailable if there are too many subscribers, OverShare if this client has too many subscriptions, and any Problem of the
        first forecast, such as NotFound.
        """
        if self._stopping:
            raise Unavailable("the service is stopping")
        if self.subscribers >= self._limit:
            raise Unavailable("there are too many subscribers", retry_after_s=5, part="stream", allowed=self._limit)
        if self._by_client[client] >= self._client_limit:
            raise OverShare(
                "this client has too many subscriptions", retry_after_s=5, part="stream", allowed=self._client_limit
            )
        topic = self._topics.get(video_id, {}).get(question) or self._open((video_id, question))
        subscription = Subscription()
        topic.join(subscription)
        self.subscribers += 1
        self._by_client[client] += 1

        def leave() -> None:
            subscription.leave = lambda: None
            topic.subscriptions.discard(subscription)
            self.subscribers -= 1
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]
            if not topic.subscriptions:
                self._remove((video_id, question), topic)
                topic.task.cancel()

        subscription.leave = leave
        try:
            await asyncio.shield(topic.first)
        except BaseException as error:
            subscription.leave()
            raise separate(error) from error
        return subscription

    def changed(self, changes: Sequence[Change]) -> None:
        """Wake the topics of changed videos."""
        if self._topics:
            for video_id, version in changes:
                if not version:
                    self._on_deleted(video_id)
                for topic in self._topics.get(video_id, {}).values():
                    topic.changed(version)

    def _on_deleted(self, deleted: str) -> None:
        for video_id, topics in self._topics.items():
            if tombstone(video_id) == deleted:
                for topic in topics.values():
                    topic.changed()

    def missed(self) -> None:
        """Wake every topic, because changes may have been missed."""
        for topics in self._topics.values():
            for topic in topics.values():
                topic.changed()

    async def close(self) -> None:
        """End every subscription, and accept no more."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _open(self, key: Key) -> Topic:
        async def make() -> tuple[int, bytes]:
            async with self._slots:
                result = await self._forecast(key[0], None, *key[1])
            self.forecasts += 1
            version = result.snapshot.version
            return version, b"id: %d\nevent: forecast\ndata: %b\n\n" % (version, self._encode(result))

        topic = Topic(make, self._pause_s, self._refresh_s)
        self._topics.setdefault(key[0], {})[key[1]] = topic
        topic.task = asyncio.create_task(self._run(key, topic))
        self._tasks.add(topic.task)
        topic.task.add_done_callback(self._tasks.discard)
        return topic

    def _pause_s(self) -> float:
        """Return the minimum time in seconds between two events of a topic.

        This time grows with the number of subscribers, so that all subscribers together get at most ``EVENTS_PER_S`` events per second.
        """
        return max(self._interval_s, self.subscribers / EVENTS_PER_S)

    def _remove(self, key: Key, topic: Topic) -> None:
        topics = self._topics.get(key[0], {})
        if topics.get(key[1]) is topic:
            del topics[key[1]]
            if not topics:
                del self._topics[key[0]]

    async def _run(self, key: Key, topic: Topic) -> None:
        problem: Problem = Unavailable("the service is stopping")
        reason = "stopping"
        try:
            reason = await topic.run()
        except Problem as error:
            problem, reason = error, "failed"
        except Exception:
            log.exception("a forecast for subscribers failed")
            problem, reason = Internal("the service failed; its log has the reason"), "failed"
        finally:
            self._remove(key, topic)
            if not topic.first.done():
                topic.first.set_exception(problem)
                topic.first.exception()
            for subscription in topic.subscriptions:
                subscription.end(end_event(reason))
