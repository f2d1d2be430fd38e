"""Stores labels, scores and the adaptive state in Redis, where all replicas share them.

A label is a forecast whose outcome is not known yet. Labels are grouped by horizon bucket. Each horizon bucket has its own capacity,
because labels of long horizons stay for days and must not take the space of labels of short horizons. Every Redis key has the cluster hash
tag ``{labels}``. Times are in microseconds.

    due:<bucket>       sorted set of label keys, ordered by the time at which the label is to be scored
    of:<bucket>        sorted set in text order; a member is a digest of a video's id, then a label key; used to find a video's labels
    made:<bucket>      Redis hash from label key to label (JSON); the replica that removes a label from this hash has scored it
    done:<bucket>      sorted set of scored labels' keys, ordered by the time until which no label with the same key is accepted
    day:<day>:<model>  Redis hash from "<metric>|<age bucket>:<horizon bucket>:<name>" to a sum over the labels scored on that day
    models             sorted set of model versions, ordered by the day on which one of their labels was last scored
    adaptive:<model>|<metric>   adaptive state (JSON) of a metric for videos that were registered without an API key
    adaptive:<model>|<metric>:<client>   adaptive state (JSON) for videos that were registered with this client's API key
    clients:<model>    set of names of the clients that have an adaptive state
    paced:<bucket>:<client>   sorted set of the client's recent label keys, ordered by due time; limits the client's rate
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import msgspec
import numpy as np
import structlog

from model.engagement.bins import SECOND_US
from model.quantiles.adaptive import Adaptive
from model.quantiles.calibration import N_COLUMNS
from service.quality.label import Label
from service.quality.scores import ScoresOfModel
from service.store.keys import label_key
from service.store.redis.connection import Command, RedisConnection

log = structlog.get_logger(__name__)

DAY_S: Final = 86_400
MODELS: Final = 4
"""Number of model versions whose scores are shown, the newest first."""
_ADAPTIVE_S: Final = 90 * DAY_S
_SHARE: Final = 20
"""Number of equal slices that the length of a horizon is divided into.
The labels that are due within one such slice of time may fill at most 1/20 of their horizon bucket's capacity. This limit spreads the
labels evenly over time.
"""
_SCANNED: Final = 1000
_DONE: Final = 2
"""Maximum number of scored labels' keys remembered per horizon bucket, as a multiple of the bucket's capacity."""

_KEEP: Final = """
local request = cmsgpack.unpack(ARGV[1])
local pending, kept, known = redis.call('HLEN', KEYS[2]), 0, 0
for _, label in ipairs(request.labels) do
  local key, due_us, since_us, packed, of = unpack(label)
  local due, since = string.format('%.0f', due_us), string.format('%.0f', since_us)
  if redis.call('HEXISTS', KEYS[2], key) == 1 or redis.call('ZSCORE', KEYS[3], key) then
    known = known + 1
  elseif pending < request.room and redis.call('ZCOUNT', KEYS[1], since, due) < request.pace
      and redis.call('ZCOUNT', KEYS[4], since, due) < request.own_pace then
    redis.call('ZADD', KEYS[1], due, key)
    redis.call('ZADD', KEYS[4], due, key)
    redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. since)
    redis.call('EXPIRE', KEYS[4], request.expire_s)
    redis.call('HSET', KEYS[2], key, packed)
    redis.call('ZADD', KEYS[5], 0, of .. key)
    kept, pending = kept + 1, pending + 1
  end
end
return {kept, known}
"""
# Change everything or nothing, because another replica may have scored some of these labels, or changed the adaptive state.
_SETTLE: Final = """
local request = cmsgpack.unpack(ARGV[1])
for _, done in ipairs(request.done) do
  if redis.call('HEXISTS', KEYS[2], done[1]) == 0 then return 0 end
end
if request.before ~= request.after then
  if (redis.call('GET', KEYS[6]) or '') ~= request.before then return 0 end
  redis.call('SET', KEYS[6], request.after, 'EX', request.adaptive_s)
end
for _, done in ipairs(request.done) do
  redis.call('HDEL', KEYS[2], done[1])
  redis.call('ZREM', KEYS[1], done[1])
  redis.call('ZREM', KEYS[8], done[3] .. done[1])
  redis.call('ZADD', KEYS[3], string.format('%.0f', done[2]), done[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', request.now_us))
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -request.remembered - 1)
for field, value in pairs(request.sums) do
  local text = string.format('%.17g', value)
  -- A stored value that is not a number is replaced.
  if not pcall(redis.call, 'HINCRBYFLOAT', KEYS[4], field, text) then redis.call('HSET', KEYS[4], field, text) end
end
redis.call('EXPIRE', KEYS[4], request.day_s)
redis.call('ZADD', KEYS[5], request.day, request.model)
if request.client ~= '' then
  redis.call('SADD', KEYS[7], request.client)
  redis.call('EXPIRE', KEYS[7], request.adaptive_s)
end
return 1
"""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Scored labels of one horizon bucket, model, metric and client.

    ``sums``: amounts that the labels add to the score sums.
    ``before``: stored adaptive state that the scorer read.
    ``after``: adaptive state to store.
    """

    done: Sequence[Label]
    sums: Mapping[str, float]
    before: str
    after: str


class LabelStore:
    """Labels, scores and adaptive state. Every method raises Unavailable if Redis does not answer.

    ``capacity``: maximum number of pending labels, over all horizon buckets.
    ``share``: fraction of the rate limit for new labels that the videos of one client may use.
    ``days``: number of days over which scores are summed.
    """

    def __init__(self, redis: RedisConnection, *, capacity: int, days: int, share: float = 1.0) -> None:
        self._redis = redis
        self._capacity = max(1, capacity // N_COLUMNS)
        self._share = share
        self._days = days

    async def keep(self, bucket: int, labels: Sequence[Label], grace_us: int) -> tuple[int, int]:
        """Store labels of one horizon bucket and one client. Return the number of stored labels and the number that existed already.

        The remaining labels exceed a limit and are dropped.
        """
        rows = [
            [
                label.key,
                due := label.target_us + grace_us,
                due - label.horizon_us // _SHARE,
                msgspec.json.encode(label).decode(),
                _of(label.video_id),
            ]
            for label in labels
        ]
        pace = -(-self._capacity // _SHARE)
        request = {
            "labels": rows,
            "room": self._capacity,
            "pace": pace,
            "own_pace": max(1, int(pace * self._share)),
            "expire_s": max(label.horizon_us for label in labels) // SECOND_US + DAY_S,
        }
        paced = label_key(f"paced:{bucket}:{labels[0].client}")
        keys = [*_keys(bucket, "due", "made", "done"), paced, *_keys(bucket, "of")]
        kept, known = await self._run(_KEEP, keys, request)
        return int(kept), int(known)

    async def due(self, bucket: int, now_us: int, limit: int) -> list[Label]:
        """Return up to ``limit`` due labels of a horizon bucket, the most overdue first."""
        due, made, _ = _keys(bucket, "due", "made", "done")
        found = (await self._redis.pipeline("labels", [["ZRANGE", due, "-inf", now_us, "BYSCORE", "LIMIT", 0, limit]]))[
            0
        ]
        if not found:
            return []
        packed = (await self._redis.pipeline("labels", [["HMGET", made, *found]]))[0]
        labels = [_parse(value) for value in packed]
        if lost := [key for key, label in zip(found, labels, strict=True) if label is None]:
            await self._redis.pipeline("labels", [["ZREM", due, *lost], ["HDEL", made, *lost]])
        return [label for label in labels if label is not None]

    async def later(self, bucket: int, labels: Mapping[str, int]) -> None:
        """Postpone labels. ``labels`` maps each label key to its new due time (us). Labels that are already scored stay removed."""
        if labels:
            flat = [part for key, at_us in labels.items() for part in (at_us, key)]
            await self._redis.pipeline("labels", [["ZADD", _keys(bucket, "due")[0], "XX", *flat]])

    async def settle(self, bucket: int, settlement: Settlement, now_us: int) -> bool:
        """Remove scored labels and add their scores, atomically.

        Return False, with nothing changed, if another replica has scored one of the labels or changed the adaptive state.
        """
        first, day = settlement.done[0], now_us // SECOND_US // DAY_S
        model = first.model_version
        request = {
            "done": [[label.key, label.key_until_us, _of(label.video_id)] for label in settlement.done],
            "sums": dict(settlement.sums),
            "before": settlement.before,
            "after": settlement.after,
            "now_us": now_us,
            "remembered": _DONE * self._capacity,
            "day": day,
            "day_s": (self._days + 1) * DAY_S,
            "adaptive_s": _ADAPTIVE_S,
            "model": model,
            "client": first.client,
        }
        keys = [
            *_keys(bucket, "due", "made", "done"),
            _day_key(day, model),
            label_key("models"),
            _adaptive_key(model, first.metric, first.client),
            _clients_key(model),
            *_keys(bucket, "of"),
        ]
        return bool(await self._run(_SETTLE, keys, request))

    async def forget(self, video_id: str) -> None:
        """Remove every label of a video."""
        of = _of(video_id)
        for bucket in range(N_COLUMNS):
            due, made, index = _keys(bucket, "due", "made", "of")
            found, labels, indexed = await self._redis.pipeline(
                "labels",
                [["ZRANGE", index, f"[{of}", f"[{of}~", "BYLEX"], ["HLEN", made], ["ZCARD", index]],
            )
            names = [name.decode()[len(of) :] for name in found]
            if labels > indexed:
                # Some labels were stored by an earlier release, which had no index.
                names += await self._scan_labels(made, video_id)
            if names:
                commands: list[Command] = [["HDEL", made, *names], ["ZREM", due, *names]]
                await self._redis.pipeline("labels", [*commands, ["ZREM", index, *(of + name for name in names)]])

    async def _scan_labels(self, made: str, video_id: str) -> list[str]:
        names: list[str] = []
        cursor = 0
        while True:
            reply = (await self._redis.pipeline("labels", [["HSCAN", made, cursor, "COUNT", _SCANNED]]))[0]
            cursor, fields = int(reply[0]), reply[1]
            pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
            for name, packed in pairs:
                label = _parse(packed)
                if label is not None and label.video_id == video_id:
                    names.append(name.decode())
            if not cursor:
                return names

    async def adaptive(self, model: str, metric: str, client: str = "") -> str:
        """Return the stored adaptive state of a model's metric for a client's videos, or "" before the first outcome."""
        found = (await self._redis.pipeline("labels", [["GET", _adaptive_key(model, metric, client)]]))[0]
        return found.decode() if found else ""

    async def adaptives(self, model: str, metrics: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the stored adaptive states of each metric of a model, keyed by client. Clients without a state are left out."""
        found = (await self._redis.pipeline("labels", [["SMEMBERS", _clients_key(model)]]))[0]
        clients = ["", *sorted(name.decode() for name in found)]
        asked = [(metric, client) for metric in metrics for client in clients]
        keys = [_adaptive_key(model, metric, client) for metric, client in asked]
        states = (await self._redis.pipeline("labels", [["MGET", *keys]]))[0]
        out: dict[str, dict[str, str]] = {metric: {} for metric in metrics}
        for (metric, client), state in zip(asked, states, strict=True):
            if state:
                out[metric][client] = state.decode()
        return out

    async def pending(self) -> int:
        """Return the number of labels whose outcome is not known yet."""
        commands: list[Command] = [["HLEN", _keys(bucket, "made")[0]] for bucket in range(N_COLUMNS)]
        return sum(await self._redis.pipeline("labels", commands))

    async def scores_by_model(self, now_us: int) -> dict[str, ScoresOfModel]:
        """Return the scores of the last ``days`` days, keyed by model version, the newest version first."""
        today = now_us // SECOND_US // DAY_S
        found = await self._redis.pipeline("labels", [["ZRANGE", label_key("models"), 0, MODELS - 1, "REV"]])
        models = [name.decode() for name in found[0]]
        scores_by_model = {model: ScoresOfModel() for model in models}
        days = range(today - self._days + 1, today + 1)
        asked = [(model, _day_key(day, model)) for model in models for day in days]
        replies = await self._redis.pipeline("labels", [["HGETALL", key] for _, key in asked]) if asked else []
        for (model, _), flat in zip(asked, replies, strict=True):
            scores_by_model[model].add(_fields(flat))
        return {model: scores for model, scores in scores_by_model.items() if scores.by_metric}

    async def _run(self, script: str, keys: Sequence[str], request: Mapping[str, Any]) -> Any:
        packed = msgspec.msgpack.encode(request)
        return (await self._redis.pipeline("labels", [["EVAL", script, len(keys), *keys, packed]]))[0]


def parse_adaptive(text: str) -> Adaptive:
    """Decode a stored adaptive state. Return a new state if the text is empty or cannot be read."""
    try:
        state, new = Adaptive.from_json(msgspec.json.decode(text)) if text else Adaptive.new(), Adaptive.new()
        for name in ("overall", "by_horizon", "by_cell", "seen"):
            values = getattr(state, name)
            if values.shape != getattr(new, name).shape or not np.isfinite(values).all():
                raise ValueError(name)
        return state
    except (msgspec.MsgspecError, ArithmeticError, KeyError, TypeError, ValueError):
        log.error("the stored adaptive state cannot be read and is reset")
        return Adaptive.new()


def encode_adaptive(state: Adaptive) -> str:
    """Encode an adaptive state as text. This is the inverse of ``parse_adaptive``."""
    return msgspec.json.encode(state.to_json()).decode()


def _parse(packed: bytes | None) -> Label | None:
    """Decode a label. Return None if the label no longer exists, or was written by a release with a different format."""
    try:
        return None if packed is None else msgspec.json.decode(packed, type=Label)
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _of(video_id: str) -> str:
    return hashlib.blake2b(video_id.encode(), digest_size=12).hexdigest()


def _keys(bucket: int, *names: str) -> list[str]:
    return [label_key(f"{name}:{bucket}") for name in names]


def _day_key(day: int, model: str) -> str:
    return label_key(f"day:{day}:{model}")


def _adaptive_key(model: str, metric: str, client: str) -> str:
    name = f"adaptive:{model}|{quote(metric, safe='')}"
    return label_key(f"{name}:{client}" if client else name)


def _clients_key(model: str) -> str:
    return label_key(f"clients:{model}")


def _fields(reply: Any) -> dict[str, float]:
    """Return the numeric fields of a Redis hash from a reply. The reply is a list in RESP2 and a map in RESP3."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    found: dict[str, float] = {}
    for name, value in pairs:
        with suppress(ValueError):
            found[name.decode()] = float(value)
    return found
