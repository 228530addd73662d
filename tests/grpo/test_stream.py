"""Which problems can be used, and the order in which they are drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config import Config
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.stream import ProblemStream, open_stream
from falcon_h1r.types import InputError, Problem
from tests.grpo.conftest import stream_of


def test_unusable_problems_are_left_out_and_counted(tokenizer, verifier) -> None:
    config = Config(system_prompt="")
    config.grpo.limits.prompt_tokens = 60
    config.grpo.problems_per_step = 1
    problems = [
        Problem.from_question("Compute 1+1.", "2"),
        Problem.from_question("Compute 1+2.", r"\frac{1}{"),
        Problem.from_question("Compute 1+3. " * 30, "4"),
        Problem.from_question("Compute 1+1.", "2"),
        Problem.from_question("Write a haiku.", "2", domain="other"),
    ]
    stream, counts = open_stream(problems, tokenizer, config, Scorer(verifier, config.grpo).check_problem)
    assert counts == {"other_domain": 1, "repeated": 1, "unverifiable_gold": 1, "prompt_too_long": 1}
    assert stream.draw() == problems[0].uid
    config.grpo.data = SourceConfig(path="rl.jsonl")
    with pytest.raises(InputError, match="rl.jsonl: 0 usable problems are fewer than grpo.problems_per_step=1"):
        open_stream(problems[1:3], tokenizer, config, Scorer(verifier, config.grpo).check_problem)


def test_the_stream_visits_every_problem_once_an_epoch() -> None:
    stream = stream_of([0, 1, 2, 3, 4])
    uids = [stream.draw() or "" for _ in range(15)]
    assert [sorted(uids[i : i + 5]) for i in (0, 5, 10)] == [["0/0", "1/1", "2/2", "3/3", "4/4"]] * 3
    assert len({tuple(uids[i : i + 5]) for i in (0, 5, 10)}) > 1


@given(num_problems=st.integers(1, 9), in_use=st.sets(st.integers(0, 8)), solved=st.lists(st.integers(0, 8)))
def test_a_draw_is_of_a_problem_not_in_use_and_unsolved_where_there_is_one(
    num_problems: int, in_use: set[int], solved: list[int]
) -> None:
    stream = stream_of(range(num_problems), skip_solved_steps=5)
    stream.begin_step()
    names = {f"{index}/{index}" for index in range(num_problems)}
    used = {f"{index}/{index}" for index in in_use} & names
    done = [name for index in solved if (name := f"{index}/{index}") in names]
    for name in done:
        stream.mark_solved(name)
    drawn = stream.draw(used)
    if names == used:
        assert drawn is None
    elif names - used - set(done):
        assert drawn in names - used - set(done)
    else:
        least_recent = [name for name in done if name not in used]
        assert drawn == min(least_recent, key=lambda name: len(done) - done[::-1].index(name))


def test_what_is_to_be_drawn_again_comes_before_others() -> None:
    stream = stream_of([0, 1, 2, 3])
    stream.draw_again("2/2")
    stream.draw_again("3/3")
    assert [stream.draw({"2/2"}), stream.draw(), stream.num_drawn] == ["3/3", "2/2", 2]


def test_a_stream_goes_on_from_its_state_and_from_no_other_problems() -> None:
    def moved(stream: ProblemStream) -> list[str | None]:
        uids = []
        for _ in range(4):
            stream.begin_step()
            uids += [stream.draw(), stream.draw()]
            stream.mark_solved(uids[-1] or "")
        return [*uids, str(stream.num_drawn)]

    stream = stream_of(range(7), seed=3, skip_solved_steps=2)
    moved(stream)
    stream.draw_again("5/5")
    state = stream.state_dict()
    expected = moved(stream)
    again = stream_of(range(7), seed=3, skip_solved_steps=2)
    again.load_state_dict(state)
    assert moved(again) == expected
    with pytest.raises(InputError, match="grpo.data: 6 usable problems, where the checkpoint counts 7"):
        stream_of(range(6)).load_state_dict(state)


def test_the_state_of_an_older_checkpoint_is_a_position() -> None:
    stream = stream_of(range(7), seed=3)
    expected = [stream.draw() for _ in range(9)]
    again = stream_of(range(7), seed=3)
    again.load_state_dict({"position": 5, "num_problems": 7})
    assert [again.draw() for _ in range(4)] == expected[5:]


def test_while_it_is_held_a_stream_tells_the_state_before_what_is_drawn() -> None:
    stream = stream_of(range(7))
    stream.begin_step()
    before = stream.state_dict()
    stream.hold()
    stream.draw()
    stream.mark_solved("1/1")
    assert stream.state_dict() == before
    stream.release()
    assert stream.state_dict() != before
