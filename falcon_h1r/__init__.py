"""falcon_h1r: train a reasoning model on the Falcon-H1 hybrid, from cold-start SFT to GRPO to evaluation."""

__version__ = "0.1.0"
