"""Lists that say more than their items: a modulus behind the last residue, dots in a progression."""

from __future__ import annotations

import itertools
import re

from falcon_h1r.verifier.tree.node import MAX_ITEMS, BudgetExceeded, Node, free_symbols, number
from falcon_h1r.verifier.tree.rewrite import substituted

_MAX_PERMUTED = 4  # items of a tuple: 24 orders
_MAX_VALUES = 40  # of an index


def with_shared_modulus(items: list[Node]) -> list[Node]:
    r"""n \equiv 1, 3 \pmod 4: the modulus behind the last residue is that of all."""
    if len(items) < 2 or items[-1].op != "mod" or any(_has_modulus(item) for item in items[:-1]):
        return items
    modulus = items[-1].args[1]
    shared: list[Node] = []
    for item in items[:-1]:
        if item.op == "chain":
            residue = Node("mod", (item.args[-1], modulus))
            shared.append(Node("chain", (*item.args[:-1], residue), name=item.name))
        else:
            shared.append(Node("mod", (item, modulus)))
    return [*shared, items[-1]]


def _has_modulus(item: Node) -> bool:
    return item.op == "mod" or any(arg.op == "mod" for arg in item.args)


def with_progression(items: list[Node]) -> tuple[Node, ...]:
    """1, 3, ..., 9 written out: whole numbers in equal steps around dots; any other list as it is."""
    position = next((k for k, item in enumerate(items) if item == Node("sym", name="dots")), 0)
    if not 0 < position == len(items) - 2 or any(item.op != "num" for item in (*items[:position], items[-1])):
        return tuple(items)
    values = [item.value for item in items if item.op == "num"]
    step = values[1] - values[0] if position > 1 else values[0] * 0 + 1
    if step == 0 or any(value - values[0] != k * step for k, value in enumerate(values[:-1])):
        return tuple(items)
    count = (values[-1] - values[0]) / step
    if count.denominator != 1 or count < position:
        return tuple(items)
    if count > MAX_ITEMS:
        raise BudgetExceeded(f"more than {MAX_ITEMS} items")
    return tuple(number(values[0] + k * step) for k in range(int(count) + 1))


def joined_solutions(items: list[Node], separators: list[str]) -> Node | None:
    """a=2, b=5 or a=5, b=2: solutions joined by a word, each a tuple of named values; None for any other list."""
    for joiner in ("or", "and"):
        if joiner not in separators or len(separators) != len(items) - 1:
            continue
        parts: list[list[Node]] = [[]]
        for item, separator in zip(items, [*separators, ""], strict=True):
            parts[-1].append(item)
            if separator == joiner:
                parts.append([])
        names = [sorted(_label(item) for item in part) for part in parts]
        if len(set(names[0])) > 1 and "" not in names[0] and all(n == names[0] for n in names):
            solutions = (tuple(sorted(part, key=_label)) for part in parts)
            return Node("list", tuple(Node("tuple", solution, name="()") for solution in solutions), name=joiner)
    return None


def _label(item: Node) -> str:
    return item.args[0].name if item.op == "chain" and item.name == "=" else ""


# ---------------------------------------------------------------------- written out from a remark
_INDEX_VALUES = re.compile(r"\W{0,20}(?:for )?([a-zA-Z])\s*(?:=|\\in\s*\\\{)\s*([-\d,\s]+)(?:\\\})?")


def enumerated(node: Node, listing: str) -> Node | None:
    """An answer written out as a remark says: "k = 0, 1, 2" or "and its permutations"."""
    if "permutation" in listing:
        return _permuted(node, cyclic="cyclic" in listing)
    match = _INDEX_VALUES.fullmatch(listing)
    if match is None:
        return None
    name = match.group(1)
    values = [number(int(value)) for value in match.group(2).split(",") if value.strip(" -").isdigit()]
    if not 0 < len(values) <= _MAX_VALUES or name not in free_symbols(node):
        return None
    items = node.args if node.op == "list" else (node,)
    return Node("list", tuple(substituted(item, {name: value}) for value in values for item in items), name=",")


def _permuted(node: Node, cyclic: bool) -> Node | None:
    tuples = node.args if node.op == "list" else (node,)
    if any(item.op != "tuple" or len(item.args) > _MAX_PERMUTED for item in tuples):
        return None
    orders: dict[Node, None] = {}
    for item in tuples:
        args = item.args
        turns = (args[k:] + args[:k] for k in range(len(args))) if cyclic else itertools.permutations(args)
        orders.update((Node("tuple", turn, name=item.name), None) for turn in turns)
    return Node("list", tuple(orders), name=",")
