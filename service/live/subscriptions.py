"""Forecasts as they change: one computation a (video, horizons) for all who watch it, and the newest wins.

stream of changes -> topic (video, horizons) -> forecast -> event -> a place for each client -> its connection
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from model.bank.tombstone import tombstone
from service.forecasts.answer import Answer
from service.live.push import Push
from service.live.topic import Subscription, Topic, end_event
from service.problems import Internal, OverShare, Problem, Unavailable, separate
from service.settings import StreamSettings
from service.store.change_publisher import Change

log = structlog.get_logger(__name__)

EVENTS_A_S: Final = 2000
"""Events sent in a second to all who watch, about, however many they are and however much changes."""
Key = tuple[str, tuple[int, ...]]


class ForecastSubscriptions:
    """Everybody who watches a forecast."""

    def __init__(
        self,
        forecast: Callable[[str, None, tuple[int, ...]], Awaitable[Answer]],
        encode: Callable[[Answer], bytes],
        settings: StreamSettings,
        *,
        in_flight: int,
        share: float = 1,
    ) -> None:
        self._forecast, self._encode = forecast, encode
        self._interval_s, self._refresh_s = settings.stream_interval_ms / 1000, settings.stream_refresh_s
        self._most = settings.stream_subscribers
        self._most_of_one = max(1, int(self._most * share))
        self._of: Counter[bytes] = Counter()
        self._push = Push(in_flight)
        self._topics: dict[str, dict[tuple[int, ...], Topic]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.subscribers = 0
        """Clients that watch now."""
        self.forecasts = 0
        """Forecasts made for them."""

    async def subscribe(self, video_id: str, horizons_us: tuple[int, ...], client: bytes = b"") -> Subscription:
        """A subscription with its first event in it; call ``leave`` at its end.

        Raises NotFound or another Problem of the first forecast, Unavailable when there are too many, and OverShare when too
        many of this client are.
        """
        if self._stopping:
            raise Unavailable("the service is stopping")
        if self.subscribers >= self._most:
            raise Unavailable("too many clients are watching", retry_after_s=5, part="stream", allowed=self._most)
        if self._of[client] >= self._most_of_one:
            raise OverShare(
                "this client is watching too many", retry_after_s=5, part="stream", allowed=self._most_of_one
            )
        topic = self._topics.get(video_id, {}).get(horizons_us) or self._open((video_id, horizons_us))
        subscription = Subscription()
        topic.join(subscription)
        self.subscribers += 1
        self._of[client] += 1

        def leave() -> None:
            subscription.leave = lambda: None
            topic.subscriptions.discard(subscription)
            self.subscribers -= 1
            self._of[client] -= 1
            if not self._of[client]:
                del self._of[client]
            if not topic.subscriptions:
                self._forget((video_id, horizons_us), topic)
                topic.task.cancel()

        subscription.leave = leave
        try:
            await asyncio.shield(topic.first)
        except BaseException as error:
            subscription.leave()
            raise separate(error) from error
        return subscription

    def changed(self, changes: Sequence[Change]) -> None:
        """Wake whoever watches one of these."""
        if self._topics:
            for video_id, version in changes:
                if not version:
                    self._deleted(video_id)
                for topic in self._topics.get(video_id, {}).values():
                    topic.changed(version)

    def _deleted(self, mark: str) -> None:
        for video_id, topics in self._topics.items():
            if tombstone(video_id) == mark:
                for topic in topics.values():
                    topic.changed()

    def missed(self) -> None:
        """Look at every watched video again."""
        for topics in self._topics.values():
            for topic in topics.values():
                topic.changed()

    async def close(self) -> None:
        """Say good-bye to every client; nobody can come any more."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _open(self, key: Key) -> Topic:
        async def make() -> tuple[int, bytes]:
            async with self._push:
                answer = await self._forecast(key[0], None, key[1])
            self.forecasts += 1
            version = answer.snapshot.version
            return version, b"id: %d\nevent: forecast\ndata: %b\n\n" % (version, self._encode(answer))

        topic = Topic(make, self._pause_s, self._refresh_s)
        self._topics.setdefault(key[0], {})[key[1]] = topic
        topic.task = asyncio.create_task(self._serve(key, topic))
        self._tasks.add(topic.task)
        topic.task.add_done_callback(self._tasks.discard)
        return topic

    def _pause_s(self) -> float:
        """Seconds between two events of a topic: longer the more watch, so that all of them get ``EVENTS_A_S`` at most."""
        return max(self._interval_s, self.subscribers / EVENTS_A_S)

    def _forget(self, key: Key, topic: Topic) -> None:
        topics = self._topics.get(key[0], {})
        if topics.get(key[1]) is topic:
            del topics[key[1]]
            if not topics:
                del self._topics[key[0]]

    async def _serve(self, key: Key, topic: Topic) -> None:
        problem: Problem = Unavailable("the service is stopping")
        reason = "stopping"
        try:
            reason = await topic.run()
        except Problem as error:
            problem, reason = error, "failed"
        except Exception:
            log.exception("a watched forecast failed")
            problem, reason = Internal("the service failed; its log has the reason"), "failed"
        finally:
            self._forget(key, topic)
            if not topic.first.done():
                topic.first.set_exception(problem)
                topic.first.exception()
            for subscription in topic.subscriptions:
                subscription.end(end_event(reason))
