"""The second opinion, asked of a real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from falcon_h1r.config import Config
from falcon_h1r.config_data import SecondCheckConfig
from falcon_h1r.data.curation import second_check
from falcon_h1r.data.curation.check import check_sources
from falcon_h1r.data.curation.judge import ChunkJudge
from falcon_h1r.data.curation.second_check import SecondCheck
from falcon_h1r.types import InputError, Problem, Trace, Verdict


class Endpoint(ThreadingHTTPServer):
    """Answers by what the question says, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str | None, dict[str, Any]]] = []
        self.statuses: list[int] = []  # to be given before the next answers
        self.breaks_off: list[bool] = []  # whether the next answers do

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.headers["Authorization"], body))
        status = self.server.statuses.pop() if self.server.statuses else 200
        text = body["messages"][1]["content"]
        said = "I cannot tell." if "unclear" in text else f"VERDICT: {'WRONG' if 'bad' in text else 'CORRECT'}"
        if "says CORRECT first" in text:
            said = "VERDICT: CORRECT would be hasty.\nVERDICT: WRONG"
        reply = {} if "empty" in text else {"choices": [{"message": {"content": said}}]}
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header(
            "Content-Length", str(len(content) + (9 if self.server.breaks_off and self.server.breaks_off.pop() else 0))
        )
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(second_check, "PAUSE_SECONDS", 0.01)
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def check(endpoint: Endpoint) -> Iterator[SecondCheck]:
    asking = SecondCheck(SecondCheckConfig(url=endpoint.url, model="judge", concurrency=4, timeout_seconds=5))
    yield asking
    asking.close()


def trace(question: str) -> Trace:
    return Trace(Problem.from_question(question, "2"), "a", "1+1=2", r"\boxed{2}")


def test_answers_come_in_order_and_the_last_verdict_counts(check: SecondCheck) -> None:
    questions = ["fine", "bad", "unclear", "says CORRECT first", "fine"]
    objections = check.objections([trace(question) for question in questions])
    assert objections == [
        "",
        "the model: VERDICT: WRONG",
        "the model gave no verdict",
        "the model: VERDICT: CORRECT would be hasty.\nVERDICT: WRONG",
        "",
    ]


def test_question_gold_and_response_are_shown_and_the_key_is_sent(
    check: SecondCheck, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    check.objections([trace("What is 1+1?")])
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    check.objections([trace("What is 1+1?")])
    (without, body), (key, _) = endpoint.asked
    assert (without, key) == (None, "Bearer secret")
    assert (body["model"], body["temperature"]) == ("judge", 0)
    for part in ("What is 1+1?", "<reference>\n2\n</reference>", r"\boxed{2}"):
        assert part in body["messages"][1]["content"]


def test_a_busy_endpoint_is_asked_again(check: SecondCheck, endpoint: Endpoint) -> None:
    endpoint.statuses = [503, 429]
    assert check.objections([trace("fine")]) == [""]
    assert len(endpoint.asked) == 3


def test_an_answer_that_breaks_off_is_asked_for_again(check: SecondCheck, endpoint: Endpoint) -> None:
    endpoint.breaks_off = [True]
    assert check.objections([trace("fine")]) == [""]
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(("status", "times"), [(401, 1), (500, second_check.ATTEMPTS)])
def test_one_that_refuses_ends_the_run_in_one_line(
    check: SecondCheck, endpoint: Endpoint, status: int, times: int
) -> None:
    endpoint.statuses = [status] * times
    with pytest.raises(InputError, match=rf"curate\.second_check\.url=http://127.*: HTTP {status}"):
        check.objections([trace("fine")])
    assert len(endpoint.asked) == times


def test_one_that_is_not_there_or_says_something_else_ends_it_too(check: SecondCheck) -> None:
    with pytest.raises(InputError, match="answered without choices"):
        check.objections([trace("empty")])
    nobody = SecondCheck(SecondCheckConfig(url="http://127.0.0.1:9/v1", model="judge"))
    with pytest.raises(InputError, match=r"url=http://127\.0\.0\.1:9/v1: .*refused"):
        nobody.objections([trace("fine")])
    nobody.close()


def test_only_what_the_verifier_found_right_is_asked_about(endpoint: Endpoint) -> None:
    config = Config()
    config.curate.filters.second_check = "llm"
    with pytest.raises(InputError, match=r"curate\.second_check\.url is not set"):
        check_sources(config.curate)
    config.curate.second_check = SecondCheckConfig(url=endpoint.url, model="judge")

    def score(predictions: Any, golds: Any) -> list[Verdict]:
        return [Verdict(status, "string", "") for status in ("correct", "correct", "wrong")]

    judge = ChunkJudge(config, score, score, lambda gold: True)
    judged = judge.judge([trace("fine"), trace("bad"), trace("other")])
    judge.close()
    assert [one.reason for one in judged] == ["", "second_check", "wrong"]
    assert len(endpoint.asked) == 2
