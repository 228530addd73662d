"""A section of the page for each thing that was measured: Markdown lines, empty where there are no figures."""

from __future__ import annotations

from falcon_h1r.benchmark.tables import NONE, beside_bar, judged, table
from falcon_h1r.benchmark.verifier import bars
from falcon_h1r.benchmark.verifier.figures import VerifierFigures
from falcon_h1r.benchmark.verifier.judges import OURS, PEER, Judgement
from falcon_h1r.benchmark.verifier.pairs import Pair
from falcon_h1r.benchmark.verifier.scores import Judged, Latency, Score, agreement, is_right, kinds, latency, score

MIB = 1024**2


def _judges(figures: VerifierFigures) -> list[str]:
    """Those that took part, ours first."""
    return [name for name in (OURS, PEER) if any(name in measured.judgements for measured in figures.pairs.values())]


def _judged(figures: VerifierFigures, name: str, *, adversarial: bool | None = None) -> list[Judged]:
    """A judge's verdicts on all pairs, or on those that are adversarial or not."""
    return [
        (measured.pair, measured.judgements[name])
        for measured in figures.pairs.values()
        if name in measured.judgements and adversarial in (None, measured.pair.is_adversarial)
    ]


# -----------------------------------------------------------------------------
# Verdicts


def verdicts_section(figures: VerifierFigures) -> list[str]:
    names = _judges(figures)
    if not names:
        return []
    plain = {name: score(_judged(figures, name, adversarial=False)) for name in names}
    adversarial = {name: score(_judged(figures, name, adversarial=True)) for name in names}
    bar = {name: name == OURS for name in names}  # bars are for us
    rows = [
        ["right", *(_accuracy(plain[name], bars.ACCURACY if bar[name] else None) for name in names)],
        ["false negatives", *(f"{plain[name].false_negatives} of {plain[name].num_true}" for name in names)],
        [
            "false positives",
            *(_false_positives(plain[name], bars.FALSE_POSITIVES if bar[name] else None) for name in names),
        ],
        ["undecided", *(str(plain[name].undecided) for name in names)],
        ["adversarial: right", *(_accuracy(adversarial[name], None) for name in names)],
        [
            "adversarial: false positives",
            *(
                _false_positives(adversarial[name], bars.ADVERSARIAL_FALSE_POSITIVES if bar[name] else None)
                for name in names
            ),
        ],
        ["adversarial: undecided", *(str(adversarial[name].undecided) for name in names)],
    ]
    header = (f"{plain[OURS].num_pairs} pairs and {adversarial[OURS].num_pairs} adversarial ones", *names)
    return ["## Verdicts", "", *table(header, rows)]


def kinds_section(figures: VerifierFigures) -> list[str]:
    names = _judges(figures)
    found = kinds(measured.pair for measured in figures.pairs.values())
    if not names or not found:
        return []
    rows = []
    for kind in found:
        scores = [score(item for item in _judged(figures, name) if item[0].kind == kind) for name in names]
        rows.append([kind, str(scores[0].num_pairs), *(cell for one in scores for cell in _score_cells(one))])
    columns = [f"{name}: {what}" if what == "right" else what for name in names for what in _SCORE_COLUMNS]
    return ["## By kind", "", *table(("kind", "pairs", *columns), rows)]


_SCORE_COLUMNS = ("right", "false negatives", "false positives", "undecided")


def _score_cells(one: Score) -> list[str]:
    return [
        _accuracy(one, None),
        f"{one.false_negatives} of {one.num_true}",
        f"{one.false_positives} of {one.num_false}",
        str(one.undecided),
    ]


def _accuracy(one: Score, bar: float | None) -> str:
    if one.accuracy is None:
        return NONE
    shown = f"{one.accuracy:.2%}"
    return shown if bar is None else beside_bar(shown, f"{bar:.1%}", one.accuracy >= bar, at_most=False)


def _false_positives(one: Score, bar: int | None) -> str:
    shown = f"{one.false_positives} of {one.num_false}"
    return shown if bar is None else beside_bar(shown, str(bar), one.false_positives <= bar, at_most=True)


def disagreements_section(figures: VerifierFigures) -> list[str]:
    """Only where both judged the same pairs."""
    both = [
        (measured.pair, measured.judgements[OURS], measured.judgements[PEER])
        for measured in figures.pairs.values()
        if {OURS, PEER} <= measured.judgements.keys() and not measured.pair.any_verdict
    ]
    rows = []
    for kind in kinds(pair for pair, _, _ in both):
        counts = agreement(item for item in both if item[0].kind == kind)
        if counts.differ or counts.both_wrong:
            found = (counts.only_first_right, counts.only_second_right, counts.both_wrong, counts.both_right)
            rows.append([kind, *map(str, found)])
    if not rows:
        return []
    header = ("kind", "only ours right", f"only {PEER} right", "both wrong", "both right")
    return ["## Where the two judges differ", "", *table(header, rows)]


def differences_section(figures: VerifierFigures) -> list[str]:
    """Every labelled pair on which we are not of the label's opinion."""
    differing = [item for item in _judged(figures, OURS) if not item[0].any_verdict and not is_right(*item)]
    lines = ["## Where we differ from the label", ""]
    if not differing:
        return [*lines, "Nowhere.", ""]
    header = ("pair", "kind", "label", "ours", "stage", "answer", "gold")
    return lines + table(header, [_difference(*item) for item in differing])


def _difference(pair: Pair, judgement: Judgement) -> list[str]:
    verdict = {True: "correct", False: "wrong", None: "undecided"}[judgement.verdict]
    label = "correct" if pair.expected else "wrong"
    return [pair.id, pair.kind, label, verdict, judgement.note, _code(pair.prediction), _code(pair.gold)]


def _code(text: str) -> str:
    """Inline code in a table's cell, whatever the text holds."""
    text = text.replace("|", "\\|")
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text or not text.strip() else f"{fence}{text}{fence}"


# -----------------------------------------------------------------------------
# Time and memory


def latency_section(figures: VerifierFigures, plot: str | None) -> list[str]:
    names = _judges(figures)
    if not names:
        return []
    lines = [
        "## Latency",
        "",
        "A call's round trip through the pipe. Our worker is started before the first line is read.",
        "",
    ]
    if plot is not None:
        lines += [f"![share of pairs settled over milliseconds]({plot})", ""]
    rows: list[list[str]] = []
    plain: dict[str, Latency] = {}
    for is_adversarial in (False, True):
        for name in names:
            found = latency([judgement for _, judgement in _judged(figures, name, adversarial=is_adversarial)])
            if found is not None:
                rows.append(_latency_row(name, is_adversarial, found))
                plain[name] = plain.get(name, found)
    header = (
        "pairs",
        "judge",
        "calls",
        "median, ms",
        "p90, ms",
        "p99, ms",
        "longest, ms",
        "pairs/s",
        "hangs",
        "crashes",
    )
    lines += table(header, rows)
    if len(plain) == 2:
        lines += _throughput(plain[OURS], plain[PEER])
    peaks = {name: max(judgement.peak_bytes for _, judgement in _judged(figures, name)) for name in names}
    memory = ", ".join(f"{name} {peak / MIB:.0f} MiB" for name, peak in peaks.items())
    return [*lines, f"- the most memory of a judge and its workers together: {memory}", ""]


def _throughput(ours: Latency, peer: Latency) -> list[str]:
    shown = judged(ours.calls_per_second / peer.calls_per_second, bars.TIMES_PEER_THROUGHPUT)
    line = f"- throughput on pairs that are not adversarial: {shown} that of {PEER}"
    if ours.steady_calls_per_second is not None and peer.steady_calls_per_second is not None:
        line += (
            f"; without each judge's longest call {ours.steady_calls_per_second / peer.steady_calls_per_second:.2f}x"
        )
    return [line]


def _latency_row(name: str, is_adversarial: bool, found: Latency) -> list[str]:
    has_bar = name == OURS and not is_adversarial
    return [
        "adversarial" if is_adversarial else "others",
        name,
        str(found.num_calls),
        _milliseconds(found.median, bars.MEDIAN_SECONDS if has_bar else None),
        _milliseconds(found.p90, None),
        _milliseconds(found.p99, bars.P99_SECONDS if has_bar else None),
        _milliseconds(found.longest, None),
        f"{found.calls_per_second:,.0f}",
        str(found.hangs),
        str(found.crashes),
    ]


def _milliseconds(seconds: float, bar: float | None) -> str:
    shown = f"{1000 * seconds:,.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"
    return shown if bar is None else beside_bar(shown, f"{1000 * bar:g}", seconds <= bar, at_most=True)


def start_section(figures: VerifierFigures) -> list[str]:
    lines: list[str] = []
    if (start := figures.start) is not None:
        names = [name for name in (OURS, PEER) if name in start]
        rows = [
            [name, *(f"{start[name][what]:.2f}" for what in ("first_seconds", "algebra_seconds"))] for name in names
        ]
        header = ("", "to the first verdict, s", "then the first that needs algebra, s")
        lines += [f"Medians of {start['repeats']} fresh processes.", "", *table(header, rows)]
    if (imports := figures.imports) is not None:
        seconds, bar = imports["seconds"], bars.IMPORT_SECONDS
        shown = beside_bar(f"{seconds:.3f} s", f"{bar:g} s", seconds <= bar, at_most=True)
        loaded = [library for library in ("torch", "sympy") if imports[f"loads_{library}"]]
        lines += [
            f"- `import falcon_h1r.verifier`: {shown}, median of {imports['repeats']} fresh interpreters (longest "
            f"{imports['longest_seconds']:.3f} s); loads "
            + (f"**{' and '.join(loaded)}**" if loaded else "neither torch nor sympy"),
            "",
        ]
    return ["## Start", "", *lines] if lines else []


def batch_section(figures: VerifierFigures) -> list[str]:
    batch = figures.batch
    if batch is None:
        return []
    number, seconds, bar = batch["num_verdicts"], batch["seconds"], bars.BATCH_SECONDS
    shown = f"{seconds:.2f} s"
    if number >= bars.BATCH_VERDICTS:
        shown = beside_bar(shown, f"{bar:g} s", seconds <= bar, at_most=True)
    statuses = ", ".join(f"{status} {count:,}" for status, count in sorted(batch["statuses"].items()))
    runs = "one run" if batch["repeats"] == 1 else f"median of {batch['repeats']} runs"
    return [
        "## A batch as in GRPO",
        "",
        f"{batch['num_problems']:,} problems with {batch['num_rollouts']} rollouts each on {batch['num_golds']:,} "
        f"golds of the pairs: traces of {batch['mean_chars'] / 1000:.1f} kB",
        f"through `Verifier.score` with {batch['num_workers']} workers, which start with it, and an empty cache.",
        "",
        f"- {number:,} verdicts in {shown}, {runs} (longest {batch['longest_seconds']:.2f} s): "
        f"{number / seconds:,.0f} verdicts/s",
        f"- answer and gold came before: {batch['repeated_share']:.1%}; "
        f"served by the cache: {batch['cached_share']:.1%}",
        f"- {statuses}; workers killed at their deadline: {batch['deadline_kills']}",
        "",
    ]
