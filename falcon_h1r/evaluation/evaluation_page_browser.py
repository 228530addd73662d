"""The transcripts that the evaluation page carries, and how they get into it.

A page that holds every response of a long evaluation opens in no browser, so it carries at most `MAX_BYTES` of them,
by a rule that depends on nothing that reads well: a response is cut to its beginning and end (MAX_CHARACTERS); each
benchmark has an equal share of the bytes, and what one does not need goes to the others; within its share a benchmark
shows rows in the order of a hash of their problem, kind and index, which is arbitrary but fixed. The page says how
many of how many it shows.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from falcon_h1r.evaluation.transcripts import cut_in_the_middle
from falcon_h1r.scaling.traces import SCORES
from falcon_h1r.types import content_hash

MAX_BYTES = 12_000_000  # of all benchmarks together
KINDS = ("sampled", "greedy", "online")
Row = Mapping[str, Any]


@dataclass
class Shelf:
    """Rows of one benchmark, one at a time: of all that were put in, the first by hash that fit into MAX_BYTES."""

    num_seen: int = 0
    _heap: list[tuple[int, int, bytes]] = field(default_factory=list)  # (-hash, tie, entry): the last by hash on top
    _num_bytes: int = 0
    _end: int = 1 << 64  # the hash from which on nothing fits

    def put(self, row: Row, kind: str) -> None:
        self.num_seen += 1
        rank = int(content_hash(f"{row['problem_uid']} {kind} {row['sample_index']}"), 16)
        if rank >= self._end:
            return
        entry = _encode(_entry(row, kind))
        heapq.heappush(self._heap, (-rank, self.num_seen, entry))
        self._num_bytes += len(entry)
        while self._num_bytes > MAX_BYTES:
            rank, _, dropped = heapq.heappop(self._heap)
            self._end = -rank
            self._num_bytes -= len(dropped)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def first(self, max_bytes: int) -> list[dict[str, Any]]:
        """Entries in the order of their hashes, up to the first that is beyond max_bytes."""
        entries, left = [], max_bytes
        for _, _, entry in sorted(self._heap, key=lambda item: (-item[0], item[1])):
            left -= len(entry)
            if left < 0:
                break
            entries.append(json.loads(entry))
        return entries


def _entry(row: Row, kind: str) -> dict[str, Any]:
    response, left_out = cut_in_the_middle(row.get("response") or "")
    scores = {
        measure: {name: parts[name] for name in SCORES if parts[name] is not None}
        for measure, parts in (row.get("confidence") or {}).items()
    }
    was_stopped = row.get("stop_reason") == "confidence" or bool(row.get("was_stopped"))
    return {
        "uid": row["problem_uid"],
        "question": row.get("question") or "",
        "gold": row.get("gold"),
        "family": row.get("family"),
        "kind": kind,
        "index": row["sample_index"],
        "status": "stopped" if was_stopped else row["status"],
        "reason": row.get("reason") or "",
        "prediction": row.get("prediction"),
        "tokens": row["response_tokens"],
        "stop": row["stop_reason"],
        "scores": scores,
        "response": response,
        "left_out": left_out,
    }


def _encode(content: Any) -> bytes:
    """JSON in UTF-8. Half a surrogate pair, which models do write, has no UTF-8 and stays an escape."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def shares_of(needs: Sequence[int], total: int) -> list[int]:
    """An equal share of the total for each, where what one does not need goes to the others."""
    shares, left, waiting = [0] * len(needs), total, sorted(range(len(needs)), key=lambda index: needs[index])
    while waiting:
        index = waiting[0]
        shares[index] = min(needs[index], left // len(waiting))
        left -= shares[index]
        waiting = waiting[1:]
    return shares


def browser_data(shelves: Mapping[str, Shelf]) -> dict[str, Any]:
    """What the page's browser reads: problems once each, and the rows that refer to them, by benchmark and hash."""
    shares = shares_of([shelf.num_bytes for shelf in shelves.values()], MAX_BYTES)
    problems: dict[tuple[str, str], int] = {}
    shown_problems: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for (name, shelf), share in zip(shelves.items(), shares, strict=True):
        for entry in shelf.first(share):
            key = (name, entry.pop("uid"))
            problem = {"uid": key[1], "benchmark": name}
            problem |= {part: entry.pop(part) for part in ("question", "gold", "family")}
            if key not in problems:
                problems[key] = len(shown_problems)
                shown_problems.append(problem)
            rows.append(entry | {"problem": problems[key]})
    num_seen = sum(shelf.num_seen for shelf in shelves.values())
    return {"problems": shown_problems, "rows": rows, "num_seen": num_seen}


def script_json(content: Any) -> str:
    """JSON that can stand in a script element of a page: no text in it can end the element or open another."""
    text = _encode(content).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
