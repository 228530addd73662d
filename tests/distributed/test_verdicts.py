"""The rules by which a job ends, on what is known of its ranks."""

from __future__ import annotations

import socket
from dataclasses import replace

from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.distributed.lines import Line
from falcon_h1r.distributed.posts import MainPost
from falcon_h1r.distributed.verdicts import (
    STOPPED,
    Ending,
    RankState,
    find_deadlock,
    find_forsaken,
    find_overdue,
    find_silent,
)

NOW = 1000.0
AT_WORK = RankState(0, "one", step=17, phase="sampling", heard_at=NOW - 1, changed_at=NOW - 500)
WAITS = replace(AT_WORK, rank=1, host="two", phase="verifying", is_waiting=True)
LEFT = replace(AT_WORK, rank=2, left_with=0, heard_at=0.0)


def test_a_rank_that_gives_no_sign_of_life_is_lost_and_one_that_has_left_is_not() -> None:
    assert find_silent([AT_WORK, WAITS, LEFT], NOW, lost_seconds=30) is None
    found = find_silent([replace(AT_WORK, heard_at=NOW - 31), WAITS], NOW, lost_seconds=30)
    assert found is not None and found.lost == [0] and found.status == 1
    assert found.text.startswith("error: rank 0 (one) was lost in step 17, sampling: no sign of life for 31 s")


def test_ranks_that_wait_for_one_at_work_are_no_deadlock_however_long() -> None:
    assert find_deadlock([AT_WORK, WAITS], NOW, silent_seconds=1) is None


def test_ranks_that_all_wait_are_a_deadlock_after_a_while() -> None:
    other = replace(WAITS, rank=0, host="one")
    assert find_deadlock([other, WAITS], NOW, silent_seconds=501) is None
    found = find_deadlock([other, WAITS], NOW, silent_seconds=499)
    assert found is not None
    assert "rank 1 (two): in step 17, verifying, waiting for others, without progress for 500 s" in found.text
    assert find_deadlock([replace(other, changed_at=NOW), WAITS], NOW, silent_seconds=499) is None


def test_waiting_for_one_that_has_ended_is_a_deadlock() -> None:
    found = find_deadlock([LEFT, WAITS], NOW, silent_seconds=400)
    assert found is not None and "rank 2 (one): has ended" in found.text


def test_after_a_stop_nobody_waits_for_those_who_have_left() -> None:
    stopped = replace(LEFT, left_with=STOPPED)
    assert find_forsaken([LEFT, WAITS], NOW) is None
    assert find_forsaken([stopped, WAITS, AT_WORK], NOW) is None, "it may be saving what the other waits for"
    found = find_forsaken([stopped, WAITS], NOW)
    assert found is not None and found.status == STOPPED and not found.text


def test_a_wait_beyond_its_limit_ends_the_job() -> None:
    assert find_overdue([AT_WORK, WAITS], NOW, wait_seconds=501) is None
    found = find_overdue([AT_WORK, WAITS], NOW, wait_seconds=499)
    assert found is not None and found.text.startswith("error: rank 1 (two) has waited for others")


# -----------------------------------------------------------------------------
# Rank 0's post, and its lines


def main_post() -> tuple[MainPost, Line]:
    here, there = socket.socketpair()
    states = {rank: RankState(rank, heard_at=NOW, changed_at=NOW) for rank in (0, 1)}
    return MainPost(0, {1: Line(here)}, states, SupervisionConfig()), Line(there)


def test_the_first_ending_that_rank_0_hears_of_counts() -> None:
    post, line = main_post()
    line.send(Ending("error: rank 1 failed", 1).as_message())
    line.close()  # ... and the rank is gone: what it said comes first
    post.receive(NOW)
    post.receive(NOW)
    post.propose(Ending("error: too late", 2), NOW)
    assert post.ending == Ending("error: rank 1 failed", 1)


def test_a_line_that_closes_without_a_word_is_a_lost_rank() -> None:
    post, line = main_post()
    line.close()
    post.receive(NOW)
    assert post.ending is not None and post.ending.lost == [1]


def test_a_process_that_was_suspended_blames_nobody() -> None:
    post, _ = main_post()
    post.forgive(NOW + 100)
    post.report(NOW + 101)
    assert post.ending is None


def test_messages_arrive_whole_however_they_are_cut() -> None:
    here, there = socket.socketpair()
    line = Line(there)
    text = b'{"kind": "stop", "signal": "SIGTERM"}\n'
    for place in range(len(text)):
        here.sendall(text[place : place + 1])
        received = line.receive()
    assert received == [{"kind": "stop", "signal": "SIGTERM"}]


def test_nobody_waits_for_a_line_that_is_not_read() -> None:
    here, there = socket.socketpair()
    sender, receiver = Line(here), Line(there)
    for _ in range(100):
        sender.send({"text": "x" * 100_000})  # far beyond what a socket holds
    received = []
    while len(received) < 100:
        received += receiver.receive()
        sender.flush()
    assert {len(message["text"]) for message in received} == {100_000}
