"""The syntax tree of an answer: its nodes, what kind of answer it is, how it is rewritten before it is compared."""
