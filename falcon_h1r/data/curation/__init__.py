"""Curation: from anybody's traces to what SFT learns from (Falcon-H1R report, 2.1 and 2.2).

    judge.py    chunk by chunk, in processes: filters, contamination, verdicts -> facts.py, a few numbers a trace
    reduce.py   over all facts: teacher, pass rates, difficulty, duplicates, traces a problem -> who stays
    mix.py      the shares of the domains and the order of the rows
    render.py   chunk by chunk again: rows kept and rows dropped, each with its reason
    corpus.py   the way through, and what a kill leaves
    summary.py  counts for summary.json and the report

Texts are read twice and never held: between the two readings a trace is the few numbers of its facts.
"""
