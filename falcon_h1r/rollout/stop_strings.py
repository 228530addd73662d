"""Finding stop strings in what is being drawn, wherever tokens cut them.

Only a few tokens can end a stop string: those whose own text holds its last character, and those whose bytes are no
whole character. They are found once for a vocabulary. After any other token nothing is decoded; after one of these,
the response's last tokens are, as many as the longest stop string has bytes, since each holds a byte at least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what bytes decode to that are no whole character


class StopStrings:
    """The stop strings of one request."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...]) -> None:
        self.tokenizer, self.strings = tokenizer, strings
        self.window = max(len(string.encode()) for string in strings)
        last = {string[-1] for string in strings}
        any_may = any(char.isspace() for char in last)  # a decoder may drop the blank of a token that stands alone
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        may_end = [any_may or BROKEN in text or not last.isdisjoint(text) for text in texts]
        self.may_end: NDArray[np.bool_] = np.array(may_end)

    def ended_by(self, response_ids: NDArray[np.int64]) -> bool:
        """Whether this response's newest token ends a stop string; earlier ones were asked about before."""
        newest = int(response_ids[-1])
        if newest < len(self.may_end) and not self.may_end[newest]:
            return False
        tail = str(self.tokenizer.decode(response_ids[-self.window :].tolist()))
        return any(string in tail for string in self.strings)
