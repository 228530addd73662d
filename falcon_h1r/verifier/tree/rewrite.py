"""Rewriting trees before they are compared: variables, labels, plus-minus signs, vectors, matrices, logarithms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from falcon_h1r.verifier.tree.node import (
    MAX_ITEMS,
    BudgetExceeded,
    Node,
    NotationError,
    contains,
    free_symbols,
    negative,
    number,
)

_MAX_SIGNS = 6  # plus-minus signs of one tree: 64 values
_MAX_MATRIX_PRODUCTS = 150  # of entries, in one product of matrices
_MAX_DETERMINANT = 4  # rows
_MAX_POWER = 8  # of a matrix
_UNIT_VECTORS = ("hat(i)", "hat(j)", "hat(k)")


# ---------------------------------------------------------------------- variables
def substituted(node: Node, values: Mapping[str, Node]) -> Node:
    """The tree with variables replaced; one that a sum, a limit or an integral binds is not touched."""
    if node.op == "sym":
        return values.get(node.name, node)
    if node.op == "big":
        values = {name: value for name, value in values.items() if name != node.name.partition(":")[2]}
    if not node.args:
        return node
    return Node(node.op, tuple(substituted(a, values) for a in node.args), node.name, node.value, node.digits)


# ---------------------------------------------------------------------- labels
def is_equation(node: Node) -> bool:
    """A chain of equals signs only."""
    return node.op == "chain" and set(node.name.split()) == {"="}


def is_name(node: Node) -> bool:
    """Whether a side of an equation only names what the other side is: x, x_1, f(x), |AB|, NO/BO, (x, y),
    cos A.
    """
    if node.op == "sym":
        return not node.name.startswith("set:") and node.name not in ("pi", "e", "oo")
    if node.op == "text":
        return True
    if node.op == "mul" and node.args[0].name in ("d", "nabla", "partial") and len(node.args) == 2:  # dy/dx
        return is_name(node.args[1])
    if node.op == "mul":  # a segment or an angle: letters in capitals
        return all(a.op in ("sym", "mul") and is_name(a) and (a.op == "mul" or a.name[0].isupper()) for a in node.args)
    if node.op in ("div", "ratio", "tuple"):
        return all(is_name(a) for a in node.args)
    return node.op == "func" and len(node.args) == 1 and is_name(node.args[0])


def label_of(node: Node) -> str:
    """The name an equation gives to its value, "" when it gives none."""
    if not is_equation(node):
        return ""
    first, last = node.args[0], node.args[-1]
    named = first if is_name(first) else last if len(node.args) == 2 and last.op == "sym" and is_name(last) else None
    return "" if named is None else repr(named) if named.op != "sym" else named.name


def without_label(node: Node, any_side: bool = False) -> Node:
    """The value of a labelled answer; with `any_side` also of an equation whose left side is an expression.

    A chain that starts from a constant, 6/15 = 2/5, is a derivation, and its end is the answer.
    """
    if node.op == "chain" and node.name == "in" and is_name(node.args[0]):
        return node.args[1]
    if not is_equation(node):
        return node
    first, last = node.args[0], node.args[-1]
    if is_name(first) or last.op == "matrix":
        return last
    if len(node.args) == 2 and last.op == "sym" and is_name(last) and last.name not in free_symbols(first):
        return first
    if any_side or not free_symbols(first):
        return last
    return node


def named_coordinates(node: Node) -> Node:
    """(x, y) = (1, 2) as x = 1, y = 2: names go before positions."""
    if not is_equation(node) or len(node.args) != 2 or any(side.op != "tuple" for side in node.args):
        return node
    names, values = (side.args for side in node.args)
    if len(names) != len(values) or not all(is_name(name) and name.op == "sym" for name in names):
        return node
    return Node("list", tuple(Node("chain", pair, name="=") for pair in zip(names, values, strict=True)), name=",")


# ---------------------------------------------------------------------- plus-minus
def expand_signs(node: Node) -> list[Node]:
    """Every value of a tree with plus-minus signs: independent, unless a minus-plus ties them together."""
    signs = [n.name for n in node.walk() if n.op == "pm"]
    if not signs:
        return [node]
    if len(signs) > _MAX_SIGNS:
        raise BudgetExceeded(f"more than {_MAX_SIGNS} plus-minus signs")
    if "mp" in signs:
        choices: Iterator[tuple[bool, ...]] = iter([(True,) * len(signs), (False,) * len(signs)])
    else:
        choices = itertools.product((True, False), repeat=len(signs))
    return [_with_signs(node, iter(choice)) for choice in choices]


def _with_signs(node: Node, choice: Iterator[bool]) -> Node:
    if node.op == "pm":
        positive = next(choice) == (node.name == "pm")
        inner = _with_signs(node.args[0], choice)
        return inner if positive else negative(inner)
    if not node.args:
        return node
    return Node(node.op, tuple(_with_signs(a, choice) for a in node.args), node.name, node.value, node.digits)


def items_of(node: Node) -> tuple[list[Node], list[str]]:
    """The items of a list, set or single answer without their labels, plus-minus expanded, and the labels."""
    raw = list(node.args) if node.op in ("list", "set") else [node]
    items: list[Node] = []
    labels: list[str] = []
    for item in raw:
        expanded = expand_signs(without_label(item))
        items += expanded
        labels += [label_of(item)] * len(expanded)
        if len(items) > MAX_ITEMS:
            raise BudgetExceeded(f"more than {MAX_ITEMS} items")
    return items, labels


# ---------------------------------------------------------------------- vectors
def with_coordinates(node: Node) -> Node:
    """3i + 2j in unit vectors as the vector (3, 2): each coordinate is the sum at that unit vector."""
    names = {n.name for n in node.walk() if n.op == "sym" and n.name in _UNIT_VECTORS}
    if not names:
        return node
    if node.op not in ("add", "mul", "div", "sym", "pm"):
        return Node(node.op, tuple(with_coordinates(a) for a in node.args), node.name, node.value, node.digits)
    used = _UNIT_VECTORS if _UNIT_VECTORS[2] in names else _UNIT_VECTORS[:2]
    return Node(
        "tuple",
        tuple(substituted(node, {other: number(int(other == name)) for other in _UNIT_VECTORS}) for name in used),
        name="()",
    )


# ---------------------------------------------------------------------- matrices
def as_matrix(node: Node) -> Node:
    """[[1, 2], [3, 4]] as a matrix; any other tree as it is."""
    rows = node.args if node.op == "tuple" and node.name == "[]" else ()
    if not rows or any(row.op != "tuple" or row.name != "[]" or len(row.args) != len(rows[0].args) for row in rows):
        return node
    return Node("matrix", tuple(Node("row", row.args) for row in rows))


def evaluate_matrices(node: Node) -> Node:
    """Sums, products and determinants of matrices worked out, entries left as expressions."""
    if not contains(node, "matrix", "tuple"):
        return node
    args = tuple(evaluate_matrices(a) for a in node.args)
    if any(a.op == "tuple" and a.name == "()" for a in args) and node.op in ("add", "mul", "div"):
        return _vector(Node(node.op, args, node.name))
    node = Node(node.op, args, node.name, node.value, node.digits)
    if node.op == "matrix" and node.name == "det":
        return determinant([list(row.args) for row in args])
    if node.op == "func" and node.name in ("det", "abs") and args[0].op == "matrix":
        return determinant([list(row.args) for row in args[0].args])
    if (
        node.op == "pow"
        and args[0].op == "matrix"
        and args[1].op == "num"
        and args[1].value in range(1, _MAX_POWER + 1)
    ):
        power = args[0]
        for _ in range(int(args[1].value) - 1):
            power = _multiply(power, args[0])
        return power
    if node.op == "mul":
        product = args[0]
        for factor in args[1:]:
            product = _multiply(product, factor)
        return product
    if node.op == "add" and all(a.op == "matrix" for a in args):
        total = args[0]
        for other in args[1:]:
            total = _elementwise(total, other)
        return total
    return node


def _vector(node: Node) -> Node:
    """(1, 0) + t(3, 1) by coordinates; anything but sums and multiples of vectors as it is."""
    vectors = [a for a in node.args if a.op == "tuple"]
    sizes = {len(a.args) for a in vectors}
    whole = len(vectors) == len(node.args) if node.op == "add" else len(vectors) == 1
    if not whole or len(sizes) != 1 or (node.op == "div" and node.args[1].op == "tuple"):
        return node
    coordinates = (
        Node(node.op, tuple(a.args[k] if a.op == "tuple" else a for a in node.args)) for k in range(sizes.pop())
    )
    return Node("tuple", tuple(coordinates), name="()")


def _multiply(a: Node, b: Node) -> Node:
    if a.op != "matrix" and b.op != "matrix":
        return Node("mul", (a, b))
    if a.op != "matrix" or b.op != "matrix":
        scalar, matrix = (a, b) if b.op == "matrix" else (b, a)
        return Node(
            "matrix",
            tuple(Node("row", tuple(Node("mul", (scalar, c)) for c in row.args)) for row in matrix.args),
        )
    if len(a.args[0].args) != len(b.args):
        raise NotationError("matrices whose shapes do not fit")
    columns = list(zip(*(row.args for row in b.args), strict=True))
    if len(a.args) * len(columns) * len(b.args) > _MAX_MATRIX_PRODUCTS:
        raise BudgetExceeded("a product of large matrices")
    return Node("matrix", tuple(Node("row", tuple(_dot(row.args, column) for column in columns)) for row in a.args))


def _dot(row: tuple[Node, ...], column: tuple[Node, ...]) -> Node:
    return Node("add", tuple(Node("mul", pair) for pair in zip(row, column, strict=True)))


def _elementwise(a: Node, b: Node) -> Node:
    if shape(a) != shape(b):
        raise NotationError("matrices whose shapes do not fit")
    rows = zip(a.args, b.args, strict=True)
    return Node(
        "matrix",
        tuple(Node("row", tuple(Node("add", c) for c in zip(r.args, s.args, strict=True))) for r, s in rows),
    )


def shape(matrix: Node) -> tuple[int, int]:
    """Rows and columns."""
    return len(matrix.args), len(matrix.args[0].args)


def determinant(rows: list[list[Node]]) -> Node:
    """Laplace's expansion along the first row; small matrices only."""
    if len(rows) != len(rows[0]):
        raise NotationError("the determinant of a matrix that is not square")
    if len(rows) > _MAX_DETERMINANT:
        raise BudgetExceeded("the determinant of a large matrix")
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, entry in enumerate(rows[0]):
        minor = determinant([row[:column] + row[column + 1 :] for row in rows[1:]])
        term = Node("mul", (entry, minor))
        terms.append(negative(term) if column % 2 else term)
    return Node("add", tuple(terms))


# ---------------------------------------------------------------------- logarithms
def with_decimal_logarithms(node: Node) -> Node:
    r"""`\log` without a base read as the decimal logarithm: the other convention of the two in use."""
    args = tuple(with_decimal_logarithms(a) for a in node.args)
    if node.op == "func" and node.name == "log" and len(args) == 1:
        args = (args[0], number(10))
    return Node(node.op, args, node.name, node.value, node.digits)
