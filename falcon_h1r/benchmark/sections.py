"""A section of the page for each part that was measured: Markdown lines, empty where there are no figures."""

from __future__ import annotations

from typing import Any

from falcon_h1r.benchmark import bars
from falcon_h1r.benchmark.cases import BY_DOCUMENT, LEAKING, MIX_DOCUMENTS, MIX_SIGMA, OURS, PADDED, PEER
from falcon_h1r.benchmark.figures import Figures, Result, paths_of, result_of
from falcon_h1r.benchmark.flops import BACKWARD_TO_FORWARD, mfu
from falcon_h1r.benchmark.tables import GIB, NONE, Outcome, chunk, gib, judged, lap, memory_share, speedup, table, times

Case = dict[str, Any]


def _is_judged(figures: Figures, case: Case, from_tokens: int = bars.FROM_TOKENS) -> bool:
    """The bars are for long rows on a CPU."""
    return figures.environment["device"] == "cpu" and case["num_tokens"] >= from_tokens


# -----------------------------------------------------------------------------
# The mixer


def scan_section(figures: Figures) -> list[str]:
    cases = figures.of_part("scan")
    if not cases:
        return []
    lines = ["## A mixer on one long document", "", "in_proj, convolution, scan, gate and norm, out_proj.", ""]
    rows = []
    for case in cases:
        tokens = case["num_tokens"]
        bar = bars.SCAN_SPEED.get(tokens) if _is_judged(figures, case) else None
        is_long = _is_judged(figures, case, bars.SCAN_MEMORY_FROM_TOKENS)
        share_bar = bars.SCAN_MEMORY_SHARE if is_long else None
        rows.append(_compared(case, bar, share_bar))
    lines += table(COMPARED, rows)
    return lines + _growth(figures, cases)


def scan_alone_section(figures: Figures) -> list[str]:
    cases = figures.of_part("scan_alone")
    if not cases:
        return []
    lines = ["## The scan alone", "", "From x, dt, B and C to y, the same tensors on both sides.", ""]
    return lines + table(COMPARED, [_compared(case) for case in cases])


COMPARED = (
    "tokens", "ours fwd, s", "ours bwd, s", "transformers fwd, s", "bwd, s", "its chunk", "faster", "ours GiB",
    "transformers GiB", "share of memory", "gradient norms differ",
)  # fmt: skip


def _compared(case: Case, bar: float | None = None, share_bar: float | None = None) -> list[str]:
    ours, peer = result_of(case, OURS), result_of(case, PEER)
    return [
        f"{case['num_tokens']:,}",
        lap(ours, "forward") if isinstance(ours, Result) else str(ours),
        lap(ours, "backward"),
        lap(peer, "forward") if isinstance(peer, Result) else str(peer),
        lap(peer, "backward"),
        chunk(peer) if isinstance(peer, Result) else NONE,
        judged(speedup(ours, peer), bar),
        gib(ours.growth_bytes) if isinstance(ours, Result) else NONE,
        gib(peer.growth_bytes) if isinstance(peer, Result) else NONE,
        judged(memory_share(ours, peer), share_bar, at_most=True, unit="%"),
        _difference(ours, peer),
    ]


def _difference(ours: Outcome, peer: Outcome) -> str:
    """Between the norms of all gradients, relative."""
    if not (isinstance(ours, Result) and isinstance(peer, Result)):
        return NONE
    norms = ours.facts["grad_norm"], peer.facts["grad_norm"]
    return f"{abs(norms[0] - norms[1]) / max(norms[1], 1e-30):.0e}"


def _growth(figures: Figures, cases: list[Case]) -> list[str]:
    """Our seconds at twice the length, over those at the length."""
    ours = {case["num_tokens"]: result_of(case, OURS) for case in cases}
    lines = []
    for case in cases:
        tokens = case["num_tokens"]
        short, long = ours[tokens], ours.get(2 * tokens)
        if isinstance(short, Result) and isinstance(long, Result):
            growth = judged(
                long.training_seconds / short.training_seconds,
                bars.SCAN_GROWTH if _is_judged(figures, case) else None,
                at_most=True,
            )
            lines.append(f"- from {tokens:,} to {2 * tokens:,} tokens our time grows {growth}")
    return [*lines, ""] if lines else []


def model_section(figures: Figures) -> list[str]:
    lines: list[str] = []
    for case in figures.of_part("model"):
        ours = result_of(case, OURS)
        vocabulary = case["vocab_size"] or figures.shape["architecture"]["vocab_size"]
        lines += [
            f"## The model on {len(case['lengths'])} documents in {case['num_tokens']:,} tokens",
            "",
            f"Vocabulary {vocabulary:,}, cross-entropy of every token. transformers is right one document after",
            "the other and as a padded batch; as one row with `position_ids` its documents leak into each other, and",
            "it stands here for its speed only.",
            "",
        ]
        rows = []
        for path in paths_of(case):
            result = result_of(case, path)
            bar = bars.MODEL_SPEED if _is_judged(figures, case) else None
            faster = judged(speedup(ours, result), bar) if path != OURS else NONE
            rows.append([_who(path), *_speed_cells(case, result, figures), faster, _loss_cell(result)])
        lines += table(("", *SPEED, "ours is faster", "loss"), rows)
        lines += _agreement(case, ours)
    return lines


def _agreement(case: Case, ours: Outcome) -> list[str]:
    if not isinstance(ours, Result):
        return []
    gaps = {}
    for path in (BY_DOCUMENT, PADDED, LEAKING):
        peer = result_of(case, path)
        if isinstance(peer, Result):
            gaps[path] = abs(ours.facts["loss"] - peer.facts["loss"])
    right = [gap for path, gap in gaps.items() if path != LEAKING]
    lines = []
    if right:
        met = "met" if max(right) <= bars.LOSS_AGREEMENT else "**missed**"
        lines.append(
            f"Our loss differs from the correct ones by {max(right):.1e} (at most {bars.LOSS_AGREEMENT:g}: {met})"
        )
    if LEAKING in gaps:
        lines.append(f"{'and from' if right else 'Our loss differs from'} the leaking row's by {gaps[LEAKING]:.1e}.")
    return [*lines, ""]


SPEED = ("its chunk", "fwd, tokens/s", "fwd + bwd, tokens/s", "MFU", "peak, GiB")


def _speed_cells(case: Case, result: Outcome, figures: Figures) -> list[str]:
    if not isinstance(result, Result):
        return [NONE, str(result), NONE, NONE, NONE]
    tokens, forward = case["num_tokens"], sum(case["forward_flops"].values())
    share = mfu((1 + BACKWARD_TO_FORWARD) * forward, result.total_seconds, figures.peak["flops_per_second"])
    return [
        chunk(result),
        f"{tokens / result.seconds['forward']:,.0f}",
        f"{tokens / result.training_seconds:,.0f}",
        f"{share:.1%}",
        gib(result.growth_bytes),
    ]


def _who(path: str) -> str:
    return path if path == OURS else f"transformers, {path}"


def _loss_cell(result: Outcome) -> str:
    return f"{result.facts['loss']:.6f}" if isinstance(result, Result) else NONE


LAYOUT_NAMES = {"one": "one", "eight": "eight", "mixed": "log-normal mix"}


def lengths_section(figures: Figures, plot: str | None) -> list[str]:
    cases = figures.of_part("lengths")
    if not cases:
        return []
    lines = [
        "## Row lengths",
        "",
        f"The same model and loss. The mix is {MIX_DOCUMENTS} documents of log-normal lengths (sigma {MIX_SIGMA}); for",
        "transformers it is padded to its longest, and tokens are the real ones.",
        "",
    ]
    lines += [f"![tokens per second over row lengths]({plot})", ""] if plot else []
    rows = []
    for case in cases:
        ours = result_of(case, OURS)
        for path in paths_of(case):
            result = result_of(case, path)
            padding = 1 - case["num_tokens"] / (len(case["lengths"]) * max(case["lengths"]))
            who = _who(path) + (f" ({padding:.0%} pads)" if path == PADDED else "")
            faster = times(speedup(ours, result)) if path != OURS else NONE
            documents = LAYOUT_NAMES[case["layout"]]
            rows.append([f"{case['num_tokens']:,}", documents, who, *_speed_cells(case, result, figures), faster])
    return lines + table(("tokens", "documents", "", *SPEED, "ours is faster"), rows)


def row_section(figures: Figures) -> list[str]:
    cases = figures.of_part("row")
    if not cases:
        return []
    vocabulary = f"{figures.shape['architecture']['vocab_size']:,}"
    lines = ["## A training step on one long row", ""]
    lines += [f"Forward, loss, backward and AdamW through `TorchEngine`, vocabulary {vocabulary}.", ""]
    rows = []
    for case in cases:
        ours = result_of(case, OURS)
        cells = [f"{case['num_tokens']:,}", str(len(case["lengths"])), case["recompute"]]
        if not isinstance(ours, Result):
            rows.append([*cells, str(ours), *[NONE] * 5])
            continue
        has_bar = _is_judged(figures, case, bars.LONG_ROW_TOKENS)
        laps = [lap(ours, name) for name in ("forward", "backward", "step")]
        peak = judged(ours.peak_bytes / GIB, bars.TRAIN_ROW_GIB if has_bar else None, at_most=True, unit=" GiB")
        flops = (1 + BACKWARD_TO_FORWARD) * sum(case["forward_flops"].values())
        share = mfu(flops, ours.total_seconds, figures.peak["flops_per_second"])
        rows.append([*cells, *laps, f"{case['num_tokens'] / ours.total_seconds:,.0f}", f"{share:.1%}", peak])
    what = "the process's peak" if figures.environment["device"] == "cpu" else "peak, weights included"
    header = ("tokens", "documents", "recomputed", "fwd, s", "bwd, s", "AdamW, s", "tokens/s", "MFU", what)
    return lines + table(header, rows)


def loss_section(figures: Figures) -> list[str]:
    cases = figures.of_part("loss")
    if not cases:
        return []
    lines = [
        "## Logprobs of the head",
        "",
        f"Vocabulary {figures.shape['architecture']['vocab_size']:,}, hidden "
        f"{figures.shape['architecture']['hidden_size']}; logprobs and entropies, gradients to hidden states and head.",
        "",
    ]
    rows = []
    for case in cases:
        ours = result_of(case, OURS)
        for path in paths_of(case):
            result = result_of(case, path)
            cells = [f"{case['num_tokens']:,}", path]
            if not isinstance(result, Result):
                rows.append([*cells, str(result), *[NONE] * 4])
                continue
            has_bar = path == OURS and _is_judged(figures, case, bars.LONG_ROW_TOKENS)
            peak = judged(result.growth_bytes / GIB, bars.LOSS_GIB if has_bar else None, at_most=True, unit=" GiB")
            faster = times(speedup(ours, result)) if path != OURS else NONE
            rows.append([*cells, lap(result, "forward"), lap(result, "backward"), peak, faster, _loss_cell(result)])
    return lines + table(("tokens", "", "fwd, s", "bwd, s", "peak", "ours is faster", "loss"), rows)
