"""What a run leaves on disk to go on from: models that stages hand over, and the whole state of training.

`models` publishes and opens model folders. A training state is written by `saver` (when, and agreed by all ranks) from
`state` (what), through `files` (how: hashed, whole or not at all), and read back by `stored`, whatever ranks wrote it.
`stopping` lets all ranks leave a step together.
"""

from falcon_h1r.checkpoint.models import (
    check_training,
    open_policy,
    publish_model,
    publish_policy,
    publish_random_base,
)

__all__ = ["check_training", "open_policy", "publish_model", "publish_policy", "publish_random_base"]
