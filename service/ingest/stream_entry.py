"""An entry of the Redis stream of rows, as it was delivered."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

from model.engagement.history import Mode
from service.problems import Malformed
from service.store import keys
from service.store.rows.row_fields import ID
from service.strict_json import parse_json


@dataclass(slots=True)
class StreamEntry:
    """One entry of the stream.

    ``dead``: (row, reason) pairs for rows that can never be stored. The row is None if the reason concerns the whole entry.
    ``later``: whether the entry must be delivered again.
    """

    entry_id: bytes
    fields: dict[bytes, bytes]
    dead: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    later: bool = False

    def rows(self) -> tuple[Mode, list[Any]]:
        """Return the kind and the rows of the entry. Raise Malformed if the entry is not valid.

        An event without an id gets an id made of the entry's id and the row's position.
        """
        kind = self.fields.get(b"kind", b"").decode("utf-8", "replace")
        if kind not in ("events", "counters"):
            raise Malformed("kind: must be events or counters", field="kind", value=kind[:100])
        one, many = self.fields.get(b"row"), self.fields.get(b"rows")
        if (one is None) == (many is None):
            raise Malformed("an entry has either the field row or the field rows", field="row")
        value = parse_json(cast(bytes, many if one is None else one))
        items = [value] if one is not None else value
        if not isinstance(items, list):
            raise Malformed("rows: must be a JSON list", field="rows")
        if kind == "events":
            name = self.entry_id.decode()
            items = [
                {**item, ID: f"{keys.INGEST}:{name}:{i}"} if isinstance(item, dict) and item.get(ID) is None else item
                for i, item in enumerate(items)
            ]
        return cast(Mode, kind), items

    def dead_entry(self, row: Any, why: dict[str, Any]) -> dict[Any, Any]:
        """Return the fields of a dead letter about one row, or about the whole entry if ``row`` is None."""
        letter: dict[Any, Any] = {"entry": self.entry_id, "reason": json.dumps(why)}
        if row is None:
            letter.update({name: value for name, value in self.fields.items() if name in (b"kind", b"row", b"rows")})
        else:
            letter.update({"kind": self.fields[b"kind"], "row": json.dumps(row)})
        return letter
