"""Which transcripts the report shows: one problem before and after, right and wrong, from many families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from falcon_h1r.evaluation.run_folder import Row

MAX_CHARACTERS = 6000
# (right before the last stage, right after it): title, how many to show
KINDS = {
    (False, True): ("Learnt in the last stage", 3),
    (True, True): ("Right before and after", 1),
    (False, False): ("Still wrong", 2),
    (True, False): ("Lost in the last stage", 1),
}
KINDS_OF_ONE_MODEL = {True: ("Right", 3), False: ("Wrong", 3)}
ROLLOUT_STEPS = 4
ROLLOUTS_A_STEP = 3


def pick_transcripts(evaluations: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Groups of problems with one response of each model.

    It is the greedy one, else the first sample. The choice depends on the uids alone (hashes: arbitrary but
    fixed), never on what reads well.
    """
    by_stage = {stage: _first_responses(rows) for stage, rows in evaluations.items()}
    if not by_stage:
        return []
    stages = list(by_stage)
    shared = sorted(set.intersection(*(set(responses) for responses in by_stage.values())))

    def kind_of(uid: str) -> Any:
        right = [by_stage[stage][uid]["status"] == "correct" for stage in stages[-2:]]
        return tuple(right) if len(stages) > 1 else right[0]

    groups = []
    for kind, (title, wanted) in (KINDS if len(stages) > 1 else KINDS_OF_ONE_MODEL).items():
        of_kind = [by_stage[stages[-1]][uid] for uid in shared if kind_of(uid) == kind]
        problems = [
            {
                "problem": row,
                "responses": {stage: _shown(by_stage[stage][row["problem_uid"]]) for stage in stages},
            }
            for row in _spread_over_families(of_kind, wanted)
        ]
        if problems:
            groups.append({"title": title, "num_of_kind": len(of_kind), "problems": problems})
    return groups


def _first_responses(rows: Sequence[Row]) -> dict[str, Row]:
    """One response of each problem: greedy before sampled, then by index."""
    chosen: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (not row["greedy"], row["sample_index"])):
        chosen.setdefault(row["problem_uid"], row)
    return chosen


def _spread_over_families(rows: Sequence[Row], wanted: int) -> list[Row]:
    """The first rows of so many different families; families again only when there are no others."""
    times_seen: dict[str, int] = {}
    ranked = []
    for index, row in enumerate(rows):
        family = row.get("family", "")
        times_seen[family] = times_seen.get(family, 0) + 1
        ranked.append((times_seen[family], index))
    return [rows[index] for _, index in sorted(ranked)[:wanted]]


def _shown(row: Row) -> Row:
    """The row with its response cut in two at the end of the thinking, and to a length that can be read."""
    response, left_out = cut_in_the_middle(row.get("response", ""))
    thinking, closing, answer = response.partition("</think>")
    return {**row, "thinking": thinking + closing, "answer": answer, "left_out": left_out}


def cut_in_the_middle(response: str) -> tuple[str, int]:
    """Its beginning and its end, MAX_CHARACTERS together, and how many characters that leaves out."""
    left_out = max(0, len(response) - MAX_CHARACTERS)
    if left_out:
        response = response[: MAX_CHARACTERS // 2] + "\n[...]\n" + response[-MAX_CHARACTERS // 2 :]
    return response, left_out


def pick_rollouts(rows: Sequence[Row]) -> list[Row]:
    """Training rollouts from steps spread over the run: the best, a middling and the worst reward."""
    steps = sorted({row["step"] for row in rows if "step" in row})
    if not steps:
        return []
    last = len(steps) - 1
    spread = sorted({steps[round(index * last / (ROLLOUT_STEPS - 1))] for index in range(ROLLOUT_STEPS)})
    picked = []
    for step in spread:
        at_step = sorted((row for row in rows if row.get("step") == step), key=lambda row: -row.get("reward", 0.0))
        middle = at_step[len(at_step) // 2 : len(at_step) // 2 + 1] if len(at_step) > 2 else []
        picked += [_shown(row) for row in [*at_step[:1], *middle, *at_step[1:][-1:]][:ROLLOUTS_A_STEP]]
    return picked
