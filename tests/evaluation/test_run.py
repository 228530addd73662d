"""Running a task: every row once, whoever draws it, killed or not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.config_evaluate import WorkConfig
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.evaluation import run as run_module
from falcon_h1r.evaluation import work as work_module
from falcon_h1r.evaluation.merge import ONLINE_FILE, ONLINE_SUMMARY_FILE, SAMPLES_FILE, merge_task, remove_parts
from falcon_h1r.evaluation.rows import scored_trace
from falcon_h1r.evaluation.run import run_task
from falcon_h1r.evaluation.store import PARTS, Store
from falcon_h1r.evaluation.tasks import Judged, Task
from falcon_h1r.scaling.engine import GREEDY_INDEX, DrawnTrace
from falcon_h1r.scaling.online import OnlineSettings, OnlineVote
from falcon_h1r.types import InputError, Problem
from tests.evaluation.scripted import SCALING, ScriptedEngine, ScriptedScorer, scripted_task, scripted_trace

WORK = WorkConfig(claim_traces=2, lost_seconds=60.0)
FILES = (SAMPLES_FILE, ONLINE_FILE, ONLINE_SUMMARY_FILE)


@pytest.fixture(autouse=True)
def no_long_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "IDLE_SECONDS", 0.01)


def run(folder: Path, engine: Any = None, task: Task | None = None, **settings: Any) -> bool:
    engine, scorer = engine or ScriptedEngine(), settings.pop("scorer", None) or ScriptedScorer()
    arguments = {"others": {"model": "m"}, "scaling": SCALING, "work": WORK, **settings}
    return run_task(engine, scorer, task or scripted_task(), folder=folder, **arguments)


def merged(folder: Path, task: Task | None = None) -> dict[str, bytes]:
    merge_task(folder, task or scripted_task(), SCALING)
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def shard_keys(folder: Path) -> list[tuple[str, str, int]]:
    lines = [line for path in (folder / PARTS).glob("rows-*.jsonl") for line in path.read_text().split("\n")[:-1]]
    parsed = [json.loads(line) for line in lines]
    return [(each["kind"], each["row"]["problem_uid"], each["row"]["sample_index"]) for each in parsed]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run of one process leaves."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder)
    return merged(folder)


def rows(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


# -----------------------------------------------------------------------------
# One process


def test_every_sample_and_greedy_answer_is_drawn_once_and_ordered_by_problem(whole: dict[str, bytes]) -> None:
    found = [(row["problem_uid"], row["greedy"], row["sample_index"]) for row in rows(whole[SAMPLES_FILE])]
    assert found == [
        (problem.uid, greedy, index)
        for problem in scripted_task().problems
        for greedy, index in [*((False, index) for index in range(5)), (True, 0)]
    ]


def test_a_row_says_what_the_engine_drew_and_the_scorer_found(whole: dict[str, bytes]) -> None:
    drawn: list[Any] = []
    engine = ScriptedEngine()
    engine.submit([])
    for row in rows(whole[SAMPLES_FILE]):
        answer = row["response"].split()[-1]
        assert row["prediction"] == row["answer_key"] == (None if answer == "none" else answer)
        assert row["status"] == ("correct" if answer == row["gold"] else "wrong")
        assert row["response"].startswith(f"tokens {row['response_tokens']},")
        assert set(row["confidence"]) == {"top_k", "sampled"}
        drawn.append(row["greedy"])
    assert sum(drawn) == 5


def test_online_traces_are_those_of_a_vote_that_draws_them_itself(whole: dict[str, bytes], tmp_path: Path) -> None:
    task, engine = scripted_task(), ScriptedEngine()
    run(tmp_path, engine)
    online = {(request.problem.uid, request.sample_index): request for request in engine.ended if request.stop}
    summaries = {row["problem_uid"]: row for row in rows(whole[ONLINE_SUMMARY_FILE])}
    stored: dict[str, list[dict[str, Any]]] = {problem.uid: [] for problem in task.problems}
    for row in rows(whole[ONLINE_FILE]):
        stored[row["problem_uid"]].append(row)
    assert online and any(row["num_stopped"] for row in summaries.values())
    assert {row["ended_by"] for row in summaries.values()} == {"consensus", "budget"}
    for uid, traces in stored.items():
        vote = OnlineVote(OnlineSettings.of(SCALING, task.num_traces))
        for row in traces:
            assert vote.next_wave()[0] == row["sample_index"]
            assert row["threshold"] == vote.threshold
            if vote.threshold is not None:
                trace = scripted_trace(online[uid, row["sample_index"]])
                assert (trace.num_tokens, trace.text) == (row["response_tokens"], row["response"])
            vote.ended(scored_trace(row))
        result, summary = vote.result(), summaries[uid]
        assert (result.num_traces, result.num_stopped, result.tokens) == tuple(
            summary[name] for name in ("num_traces", "num_stopped", "tokens")
        )
        assert summary["votes"]["majority"]["answer"] == result.votes["majority"].winner
        assert summary["votes"]["lowest_group"]["right"] == result.votes["lowest_group"].right


def test_a_stopped_trace_is_not_judged(whole: dict[str, bytes], tmp_path: Path) -> None:
    scorer = ScriptedScorer()
    run(tmp_path, scorer=scorer)
    stopped = [row for row in rows(whole[ONLINE_FILE]) if row["was_stopped"]]
    assert stopped and all((row["stage"], row["answer_key"]) == ("stopped", None) for row in stopped)
    num_rows = len(rows(whole[SAMPLES_FILE])) + len(rows(whole[ONLINE_FILE]))
    assert scorer.num_judged == num_rows - len(stopped)


def test_the_engine_is_kept_full_across_problems(tmp_path: Path) -> None:
    engine = ScriptedEngine(slots=7)
    run(tmp_path, engine, scripted_task(num_traces=0))
    assert engine.most_running == 7


@pytest.mark.parametrize(("slots", "claim_traces"), [(1, 64), (100, 1), (4, 3)])
def test_neither_slots_nor_claims_show_in_the_result(
    slots: int, claim_traces: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run(tmp_path, ScriptedEngine(slots), work=WorkConfig(claim_traces))
    assert merged(tmp_path) == whole


def test_a_finished_task_draws_nothing_more(tmp_path: Path) -> None:
    run(tmp_path)
    engine = ScriptedEngine()
    assert run(tmp_path, engine)
    assert engine.ended == []


def test_without_a_budget_and_greedy_answers_there_are_samples_alone(tmp_path: Path) -> None:
    task = scripted_task(num_traces=0, greedy=False)
    engine = ScriptedEngine()
    engine.confidence = None
    assert run(tmp_path, engine, task)
    assert list(merged(tmp_path, task)) == [SAMPLES_FILE]
    assert all(request.sample_index != GREEDY_INDEX for request in engine.ended)
    assert all("confidence" not in row for row in rows((tmp_path / SAMPLES_FILE).read_bytes()))


def test_what_was_merged_is_removed_whole(tmp_path: Path, whole: dict[str, bytes]) -> None:
    run(tmp_path)
    merged(tmp_path)
    remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    "key", ["sampling.temperature", "model", "num_traces", "problems.digest", "scaling.keep_share"]
)
def test_another_configuration_is_refused_by_its_key(key: str, tmp_path: Path) -> None:

    task, settings = scripted_task(), {}
    run(tmp_path)
    if key == "sampling.temperature":
        task = replace(task, settings=replace(task.settings, temperature=0.5))
    elif key == "num_traces":
        task = replace(task, num_traces=10)
    elif key == "problems.digest":
        task = replace(task, problems=[*task.problems[:-1], Problem("p4", "4 + 1 = ?", "6", "sum", "easy")])
    elif key == "model":
        settings = {"others": {"model": "other"}}
    else:
        settings = {"scaling": replace(SCALING, keep_share=0.9)}
    engine = ScriptedEngine()
    with pytest.raises(InputError, match=rf"^{key}=.*was begun with .*goes on as it was begun$"):
        run(tmp_path, engine, task, **settings)
    assert engine.ended == []


# -----------------------------------------------------------------------------
# Interrupted


class Interrupted(ScriptedEngine):
    """Raises instead of the n-th advance."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self.after, self.error = after, error

    def advance(self) -> list[DrawnTrace]:
        if self.after == 0:
            raise self.error
        self.after -= 1
        return super().advance()


@pytest.mark.parametrize("error", [StopRequested(), InputError("server gone")], ids=["stop", "server"])
def test_an_interrupted_evaluation_keeps_what_was_drawn_and_frees_its_claims(
    error: BaseException, whole: dict[str, bytes], tmp_path: Path
) -> None:
    drawn = set()
    for after in (0, 3, 5, 9):
        engine = Interrupted(after, error)
        with pytest.raises(type(error)):
            run(tmp_path, engine)
        assert engine.running == {} and engine.waiting == []
        drawn |= {request.key for request in engine.ended if request.stop is None}
        assert len(shard_keys(tmp_path)) >= len(drawn)
        assert list((tmp_path / PARTS / "owners").iterdir()) == []
    assert run(tmp_path)
    assert merged(tmp_path) == whole
    assert len(shard_keys(tmp_path)) == len(set(shard_keys(tmp_path)))


def test_a_stop_that_is_heard_while_waiting_ends_the_wait(tmp_path: Path) -> None:
    class Stops(Watch):
        @property
        def stop_requested(self) -> bool:
            return True

    claims = other_process(tmp_path)
    with claims, pytest.raises(StopRequested):
        run(tmp_path, watch=Stops())


def test_an_error_of_the_judge_is_raised_and_nothing_is_lost(whole: dict[str, bytes], tmp_path: Path) -> None:
    class Fails(ScriptedScorer):
        def judge(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
            if self.num_judged > 10:
                raise RuntimeError("the judge has fallen ill")
            return super().judge(responses, problems)

    with pytest.raises(RuntimeError, match="fallen ill"):
        run(tmp_path, scorer=Fails())
    assert run(tmp_path)
    assert merged(tmp_path) == whole
    assert len(shard_keys(tmp_path)) == len(set(shard_keys(tmp_path)))


def killed_process(folder: Path, work: Any) -> None:
    """Call `work` in a forked process, which is expected to die of SIGKILL."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL


def die_within_a_line(folder: Path, num_lines: int, num_bytes: int) -> None:
    """SIGKILL itself when so many rows have been appended, and `num_bytes` of the next."""
    append = Store.append
    left = num_lines

    def torn(store: Store, kind: str, row: Any) -> None:
        nonlocal left
        if left == 0:
            line = json.dumps({"kind": kind, "row": row}) + "\n"
            with open(store.own, "ab", buffering=0) as file:
                file.write(line.encode()[:num_bytes])
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        append(store, kind, row)

    Store.append = torn  # type: ignore[method-assign]  # of this process, which dies
    run(folder)


def test_killed_at_any_moment_and_restarted_it_ends_with_the_same_rows(whole: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random(0)
    for num_lines in (0, 1, 7, 12, 20):
        num_bytes = rng.choice([0, 1, 200, 10**6])  # the last: the whole line, its end included
        killed_process(tmp_path, lambda n=num_lines, b=num_bytes: die_within_a_line(tmp_path, n, b))
    assert len(list((tmp_path / PARTS / "owners").iterdir())) == 5
    engine = ScriptedEngine()
    assert run(tmp_path, engine)
    assert merged(tmp_path) == whole
    keys = shard_keys(tmp_path)
    assert len(keys) == len(set(keys))
    assert len(engine.ended) <= len(keys) - sum((0, 1, 7, 12, 20))


# -----------------------------------------------------------------------------
# Several processes


def other_process(folder: Path, num_pieces: int = 100, **settings: Any) -> Any:
    """Somebody who has claimed pieces, and does nothing."""
    from falcon_h1r.evaluation.pieces import pieces_of
    from falcon_h1r.evaluation.work import Claims

    class Idle(Claims):
        def __enter__(self) -> Idle:
            super().__enter__()
            assert all(self.take(piece.name) for piece in pieces_of(scripted_task(), 2)[:num_pieces])
            return self

    return Idle(folder / PARTS, settings.get("lost_seconds", 60.0))


def test_what_another_holds_is_left_to_it_where_nobody_waits(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with other_process(tmp_path, 3):
        assert not run(tmp_path, wait=False)
    assert run(tmp_path)
    assert merged(tmp_path) == whole


def test_the_claims_of_an_owner_without_a_sign_of_life_are_taken(tmp_path: Path, whole: dict[str, bytes]) -> None:
    claims = other_process(tmp_path, 3)
    claims._beat = lambda: None
    claims.__enter__()
    path = tmp_path / PARTS / "owners" / claims.owner
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "elsewhere"}))
    assert run(tmp_path, work=WorkConfig(2, lost_seconds=0.3))
    assert merged(tmp_path) == whole
    assert not any(claims.holds(piece) for piece in list(claims._held))


def test_one_that_is_taken_for_dead_drops_its_rows_and_ends_with_the_rest(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """It loses all its claims in the midst of drawing, to somebody who does them."""

    class Robbed(ScriptedEngine):
        def advance(self) -> list[DrawnTrace]:
            if not self.ended:
                for path in list((tmp_path / PARTS / "claims").iterdir()):
                    (path.parent / f"{path.name.removesuffix('.0')}.1").symlink_to("thief")
                (tmp_path / PARTS / "owners" / "thief").write_text(json.dumps({"host": "elsewhere"}))
                append_samples(tmp_path, "thief", rows(whole[SAMPLES_FILE]))
            return super().advance()

    engine = Robbed(slots=4)
    assert run(tmp_path, engine)
    assert merged(tmp_path) == whole
    assert len(shard_keys(tmp_path)) == len(set(shard_keys(tmp_path)))
    assert len(engine.ended) > len(rows(whole[ONLINE_FILE]))  # what was dropped had been drawn


def append_samples(folder: Path, owner: str, found: list[dict[str, Any]]) -> None:
    with Store(folder / PARTS, owner) as store:
        for row in found:
            store.append("greedy" if row["greedy"] else "samples", row)


def test_a_process_begins_with_its_share_of_the_pieces(tmp_path: Path) -> None:
    class Counts(ScriptedEngine):
        first: int | None = None

        def advance(self) -> list[DrawnTrace]:
            self.first = self.first or len(list((tmp_path / PARTS / "claims").iterdir()))
            return super().advance()

    engine = Counts(slots=100)
    assert run(tmp_path, engine, num_processes=4)
    assert engine.first == 5  # of 20


def test_what_an_owner_wrote_last_is_not_drawn_again_by_its_successor(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "LOOK_SECONDS", 60.0)
    monkeypatch.setattr(work_module, "LOOK_SECONDS", 0.0)
    owner = other_process(tmp_path, 3).__enter__()  # all of the first problem's samples

    class Leaves(ScriptedEngine):
        def advance(self) -> list[DrawnTrace]:
            if not self.ended:
                append_samples(tmp_path, owner.owner, rows(whole[SAMPLES_FILE])[:6])
                owner.__exit__(None, None, None)
            return super().advance()

    class Slow(ScriptedScorer):  # so that no row of our own has us read the others'
        def judge(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
            time.sleep(0.0 if self.num_judged else 0.3)
            return super().judge(responses, problems)

    engine = Leaves()
    assert run(tmp_path, engine, scorer=Slow())
    assert merged(tmp_path) == whole
    drawn = [request for request in engine.ended if request.settings.temperature != SCALING.temperature]
    assert {request.problem.uid for request in drawn} == {"p1", "p2", "p3", "p4"}


class Together(ScriptedEngine):
    """Draws nothing before so many processes have claims."""

    def __init__(self, folder: Path, num_processes: int) -> None:
        super().__init__(slots=3)
        self.claims, self.num_processes = folder / PARTS / "claims", num_processes

    def advance(self) -> list[DrawnTrace]:
        while len({path.readlink() for path in self.claims.iterdir()}) < self.num_processes:
            time.sleep(0.01)
        return super().advance()


@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_share_the_work_and_end_with_the_same_rows(
    num_processes: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path, Together(tmp_path, num_processes))
    settings = {"num_processes": num_processes}
    processes = [context.Process(target=run, args=arguments, kwargs=settings) for _ in range(num_processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * num_processes
    shards = [path for path in (tmp_path / PARTS).glob("rows-*.jsonl") if path.stat().st_size]
    assert len(shards) == num_processes
    assert len(shard_keys(tmp_path)) == len(set(shard_keys(tmp_path)))
    assert merged(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_killed_at_random_leave_the_others_and_their_successors_to_end_the_work(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    context, rng = multiprocessing.get_context("fork"), random.Random(1)

    def start() -> Any:
        process = context.Process(target=run, args=(tmp_path, ScriptedEngine(slots=2, seconds=0.01)))
        process.start()
        return process

    processes = [start() for _ in range(3)]
    for _ in range(15):
        time.sleep(rng.uniform(0.01, 0.15))
        victim = processes.pop(rng.randrange(3))
        victim.kill()
        victim.join()
        processes.append(start())
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 3
    assert merged(tmp_path) == whole
    assert len(shard_keys(tmp_path)) == len(set(shard_keys(tmp_path)))
