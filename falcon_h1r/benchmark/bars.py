"""What has to be reached on a CPU at the benchmark's size: printed beside the figures, asserted nowhere."""

from __future__ import annotations

FROM_TOKENS = 8192  # smaller runs are not judged
SCAN_SPEED = {8192: 1.5, 32_768: 2.0, 49_152: 2.5}  # times transformers, forward and backward
SCAN_MEMORY_SHARE = 0.4  # of transformers' peak ...
SCAN_MEMORY_FROM_TOKENS = 32_768  # ... from here on
SCAN_GROWTH = 2.3  # of our seconds when the length doubles
MODEL_SPEED = 3.0  # times transformers on eight documents of 1k
LOSS_AGREEMENT = 1e-4
LONG_ROW_TOKENS = 49_152
TRAIN_ROW_GIB = 8.0  # the process, from there on
LOSS_GIB = 1.5  # beyond inputs and weights, from there on
CHECKPOINT_SHARE = 0.05  # of the time between two saves, held up by an asynchronous one
ROLLOUT_SPEED = 4.0  # times transformers' generate on ragged lengths
CURATION_MEMORY_GIB = 1.5  # all processes of a curation, whatever the corpus
