"""Where rows come from and what their fields are called: the adapter of a source, as a schema.

configs/data/source/ has one file for each schema that people have; a new source is one such file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

# Optional[...] rather than `... | None`, and no Literal: OmegaConf reads these annotations at run time.
# ruff: noqa: UP045


@dataclass
class SourceConfig:
    """Files or a hub dataset, and what their fields are called. A field may be a path: `extra.problem`."""

    path: Optional[str] = None  # a file, a folder, a pattern with *, or with format=hub a dataset's name
    format: Optional[str] = None  # jsonl, parquet or hub; null: by the file's name
    subset: Optional[str] = None  # of a hub dataset, which calls it its config
    split: str = "train"  # of a hub dataset
    revision: Optional[str] = None  # pin a hub dataset to a commit
    curated: bool = False  # written by recipes/curate.py: its own rows, the field names below do not apply
    limit: Optional[int] = None  # read only so many rows

    # The problem.
    question_field: str = "question"  # with messages_field, the last user's turn instead
    starter_field: Optional[str] = None  # the beginning of a program, shown below the question where a row has one
    answer_field: Optional[str] = "answer"  # null: there is nothing to judge an answer by
    answer_after: Optional[str] = None  # the gold follows this mark ("####" in GSM8K)
    answer_in_box: bool = False  # the gold is the last \boxed{} of answer_field; without one, none is known
    unprovable_answers: list[str] = field(default_factory=list)  # such as "proof": no gold to verify; "": nor null
    tests_field: Optional[str] = None  # unit tests of a program: such rows need no answer
    tests_fields: list[str] = field(default_factory=list)  # the same in several columns, as LiveCodeBench has them
    choices_field: Optional[str] = None  # of multiple choice, shown as A. B. ...; the gold becomes the letter
    choices: list[str] = field(default_factory=list)  # fields that are a choice each
    shuffle_choices: bool = False  # by a hash of question and choices: where the right one always comes first
    uid_field: Optional[str] = None  # null: a hash of the question
    domain: str = "math"  # math, code, science or other; judged and mixed by this. With tests it is code
    domain_field: Optional[str] = None  # where rows say it themselves; null in a row: `domain`
    domain_names: dict[str, str] = field(default_factory=dict)  # theirs -> ours; "*": all others
    family: Optional[str] = None  # a finer name, the same for all rows: "safety", "tool_calling"
    family_field: Optional[str] = None  # where rows say it themselves; null in a row: `family`
    difficulty_field: Optional[str] = None  # easy, medium or hard, or a number to be graded
    difficulty_names: dict[str, str] = field(default_factory=dict)  # theirs -> easy, medium, hard, or "" for unknown
    difficulty_bounds: list[float] = field(default_factory=list)  # of a number: medium from the first, hard the second
    pass_rate_field: Optional[str] = None  # a share of right rollouts, measured by somebody
    language: Optional[str] = None  # the programming language that is asked for, the same for all rows
    language_field: Optional[str] = None  # where rows say it themselves; null in a row: `language`

    # The traces. One of reasoning_field, generations_field, generations, messages_field; or answer_after alone, or
    # response_field alone (no reasoning).
    reasoning_field: Optional[str] = None  # null: with `answer_after`, what precedes the mark
    response_field: Optional[str] = None  # null: what follows </think> in the reasoning
    generations_field: Optional[str] = None  # a list: each entry is a trace
    generations: list[str] = field(default_factory=list)  # fields that are a trace each, named after their teacher
    generation_text: Optional[str] = None  # where a generation is an object: its field with the text
    generation_verdict: Optional[str] = None  # ... and with its verdict
    verdict_field: Optional[str] = None  # true or false, or a list of as many as there are generations
    messages_field: Optional[str] = None  # a chat: a list of {role, content}
    role_field: str = "role"
    content_field: str = "content"
    message_reasoning_field: Optional[str] = None  # of an assistant's message, where it stands apart from the content
    role_names: dict[str, str] = field(default_factory=dict)  # theirs -> system, user, assistant, tool or tool_call
    system_field: Optional[str] = None  # the system turn, where it stands apart; rows may leave it out
    tools_field: Optional[str] = None  # signatures of the tools that a chat may call; rows may leave them out
    teacher: Optional[str] = None  # the same for all rows
    teacher_field: Optional[str] = None  # where rows say it themselves; null in a row: `teacher`
    weight_field: Optional[str] = None
    reasoning_marks: list[str] = field(default_factory=list)  # around the reasoning, if not <think> and </think>
    strip_pattern: Optional[str] = None  # a regular expression removed from the reasoning, before it is divided

    expected_samples: Optional[int] = None  # size of data that is not at hand; only dry runs reckon with it
    expected_tokens: Optional[int] = None  # the same, prompts and responses together
