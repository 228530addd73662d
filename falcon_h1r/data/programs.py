"""In which language a program is written, and whether Python parses it. Nothing is compiled or run."""

from __future__ import annotations

import ast
import functools
import re
import warnings

from falcon_h1r.verifier.code.extract import _blocks

MAX_CHARACTERS = 100_000  # of a program that is parsed: a quarter of a second and some tens of MB at the worst

_ALIASES = {  # without the version at their end
    "py": "python", "pypy": "python", "c++": "cpp", "cc": "cpp", "cxx": "cpp", "js": "javascript", "node": "javascript",
    "nodejs": "javascript", "ts": "typescript", "golang": "go", "rs": "rust", "c#": "csharp", "cs": "csharp",
    "rb": "ruby", "kt": "kotlin", "sh": "bash", "shell": "bash", "zsh": "bash",
}  # fmt: skip
_LANGUAGES = {*_ALIASES.values(), *"c java php swift scala haskell lua perl r julia sql pascal dart ocaml".split()}

# What no program in another language has at the beginning of a line; asked only of one whose fence is silent, or
# that is called Python and is none. In this order: C++ looks like C, C# like Java. Each takes time linear in a line.
_SIGNS = {
    "cpp": r"using namespace std;|#include[ \t]*<(?:bits/stdc\+\+\.h|[is]o?stream|vector|string|algorithm|map|c\w+)>",
    "c": r"#include[ \t]*[<\"][\w/]+\.h[>\"]",
    "csharp": r"using System[\w.]*;",
    "java": r"import java[\w.]*\.(?:\w+|\*);|public (?:final )?class \w|[ \t]*public static void main\b",
    "go": r"package \w+[ \t]*$|func \(\w+ \*?\w+\) |func main\(\) \{",
    "rust": r"(?:pub )?fn \w+(?:<[^>\n]*>)?\([^)\n]*\)[^{\n]*\{|use std::",
    "php": r"<\?php",
    "javascript": r"(?:async )?function \w+[ \t]*\([^)\n]*\)[ \t]*\{|(?:const|let|var) \w+ = [^\n]*;[ \t]*$",
    "python": r"from [\w.]+ import [\w*]|[ \t]*(?:async def|def|if|for|while|with) [^\n]*:[ \t]*$",
}
_BY_SIGN = [(language, re.compile(rf"^(?:{signs})", re.MULTILINE)) for language, signs in _SIGNS.items()]


def program_language(response: str, program: str) -> str | None:
    """The language of the program that was extracted from a response; None where nothing tells.

    What its fence says counts, unless that is Python and it does not parse but has the signs of another language. A
    fence that says nothing, or no language (`text`, `output`), is judged by such signs alone.
    """
    labels = [label for label, content in _blocks(response) if content == program]
    fenced = canonical_language(labels[-1]) if labels else ""
    if fenced in _LANGUAGES and fenced != "python":
        return fenced
    called_python = "python" if fenced == "python" else None
    signed = _language_by_signs(program)
    if find_syntax_error(program) is None:  # also a comment of Python may read #include <stdio.h>
        return "python" if signed == "python" else called_python
    return signed or called_python


def canonical_language(name: str) -> str:
    """One name for a language: C++17, cxx and C++ (GCC 9) are cpp."""
    name = name.partition("(")[0].strip().lower().rstrip(".0123456789 ")
    return _ALIASES.get(name, name)


def same_language(one: str, other: str) -> bool:
    """C counts as C++, and JavaScript as TypeScript: their compilers take it."""
    pair = (canonical_language(one), canonical_language(other))
    return pair[0] == pair[1] or pair in (("c", "cpp"), ("javascript", "typescript"))


@functools.lru_cache(maxsize=4)
def find_syntax_error(program: str) -> str | None:
    """What keeps Python from parsing a program; None where it parses.

    Text from anywhere: the parser bounds its own recursion, and what it cannot hold is an error like any other.
    """
    if len(program) > MAX_CHARACTERS:
        return f"{len(program)} characters are too many to parse"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            ast.parse(program)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, a lone surrogate; too deeply nested
        return str(error) or "too deeply nested"
    return None


def _language_by_signs(program: str) -> str | None:
    sample = program[:MAX_CHARACTERS]
    return next((language for language, signs in _BY_SIGN if signs.search(sample)), None)
