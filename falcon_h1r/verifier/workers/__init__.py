"""Processes that may be killed, and what the kernel keeps them from."""
