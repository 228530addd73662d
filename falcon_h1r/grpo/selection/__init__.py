"""Choosing the problems that RL learns from, before it starts.

`screening` drops what no rollout is needed for, `sampling` has the SFT model try the rest, `rules` decides by how it
fared, `outcome` writes what recipes/selection.py leaves, and `handover` is GRPO's look at where its problems come from.
"""
