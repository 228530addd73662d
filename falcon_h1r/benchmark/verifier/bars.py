"""What has to be reached on a CPU: printed beside the figures, asserted nowhere."""

from __future__ import annotations

MEDIAN_SECONDS = 0.001  # of pairs that are not adversarial, as is the next
P99_SECONDS = 0.05
TIMES_PEER_THROUGHPUT = 20.0
ACCURACY = 0.975  # without adversarial pairs, as are the false positives
FALSE_POSITIVES = 3
ADVERSARIAL_FALSE_POSITIVES = 1
IMPORT_SECONDS = 0.2
BATCH_VERDICTS = 10_000  # smaller batches are not judged
BATCH_SECONDS = 10.0
