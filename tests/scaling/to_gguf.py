"""A folder with a Falcon-H1 as a GGUF file in float32, by llama.cpp's own converter: to_gguf.py LLAMA_CPP MODEL FILE.

The converter knows tokenizers by what they make of one text, and ours is none of those. The name only says how text is
cut before the merges: "smollm" cuts digit by digit, as ours does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def convert(llama_cpp: Path, model: Path, file: Path) -> None:
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import gguf
    from conversion.falcon_h1 import FalconH1Model

    class Tiny(FalconH1Model):
        model_arch = FalconH1Model.model_arch

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            return "smollm"

    hparams = FalconH1Model.load_hparams(model, False)
    hparams.setdefault("head_dim", hparams["hidden_size"] // hparams["num_attention_heads"])
    Tiny(model, gguf.LlamaFileType.ALL_F32, file, hparams=hparams).write()


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:]))
