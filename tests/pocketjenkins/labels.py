"""Label expressions, as the field "Restrict where this project can be run" takes them: a && !(b || "c d")."""

import re
from collections.abc import Collection

TOKENS = re.compile(r'"[^"]*"|&&|\|\||[!()]|[^\s&|!()"]+')


def fits(expression: str, labels: Collection[str]) -> bool:
    """Return whether an expression allows a node with these labels; an empty one allows every node."""
    if expression in labels:
        return True
    tokens = TOKENS.findall(expression)
    if not tokens:
        return True
    tokens.reverse()
    return _any_of(tokens, labels)


def _any_of(tokens: list[str], labels: Collection[str]) -> bool:
    value = _all_of(tokens, labels)
    while tokens and tokens[-1] == "||":
        tokens.pop()
        value = _all_of(tokens, labels) or value
    return value


def _all_of(tokens: list[str], labels: Collection[str]) -> bool:
    value = _one(tokens, labels)
    while tokens and tokens[-1] == "&&":
        tokens.pop()
        value = _one(tokens, labels) and value
    return value


def _one(tokens: list[str], labels: Collection[str]) -> bool:
    token = tokens.pop() if tokens else ""
    if token == "!":
        return not _one(tokens, labels)
    if token == "(":
        value = _any_of(tokens, labels)
        if tokens:
            tokens.pop()
        return value
    return token.strip('"') in labels
