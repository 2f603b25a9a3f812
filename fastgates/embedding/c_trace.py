"""C from equations: the Python functions of a cell run once on values that record what is done.

The equations are written once, as Python functions over SIMD values or numbers. Here they are
called with :class:`Value` objects; what comes out knows how it was computed, and is written as C
expressions over the type ``vec`` of :mod:`fastgates.embedding.c_source`. Branches on plain numbers,
such as the choice of an activation function, are taken while this happens.
"""

from __future__ import annotations

import builtins
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from .. import _simd, _vecmath
from .._jit import _Helper

__all__ = ["KEYWORDS", "Functions", "Value", "identifier", "literal", "named", "statements"]


class Value:
    """A number that remembers how it came about.

    Parameters
    ----------
    operation : str
        An operator, the name of a C function, "name" or "number".
    operands : tuple
        Values, or the name or the number.
    """

    # NumPy's scalars leave operations to the methods below.
    __array_ufunc__ = None

    def __init__(self, operation: str, *operands: Any) -> None:
        self.operation, self.operands = operation, operands

    def __add__(self, other: Any) -> Value:
        return Value("+", self, as_value(other))

    def __radd__(self, other: Any) -> Value:
        return Value("+", as_value(other), self)

    def __sub__(self, other: Any) -> Value:
        return Value("-", self, as_value(other))

    def __rsub__(self, other: Any) -> Value:
        return Value("-", as_value(other), self)

    def __mul__(self, other: Any) -> Value:
        return Value("*", self, as_value(other))

    def __rmul__(self, other: Any) -> Value:
        return Value("*", as_value(other), self)

    def __truediv__(self, other: Any) -> Value:
        return Value("/", self, as_value(other))

    def __rtruediv__(self, other: Any) -> Value:
        return Value("/", as_value(other), self)

    def __neg__(self) -> Value:
        return Value("neg", self)


def as_value(x: Any) -> Value:
    """Return a value, also from a plain number."""
    return x if isinstance(x, Value) else Value("number", np.float32(x))


def _number(value: Any) -> Any:
    """Return the number that a value is, or None."""
    if isinstance(value, Value):
        return value.operands[0] if value.operation == "number" else None
    return value


def _fma(a: Any, b: Any, c: Any) -> Value:
    return as_value(a) * b + c


def _where_less(a: Any, b: Any, x: Any, y: Any) -> Value:
    # Nothing is above infinity or below its negative: a clip that there is not.
    if _number(a) == np.inf or _number(b) == -np.inf:
        return as_value(y)
    return Value("where_less", *map(as_value, (a, b, x, y)))


def _call(name: str) -> Callable[..., Value]:
    return lambda *arguments: Value(name, *map(as_value, arguments))


_INTRINSICS: dict[int, Callable[..., Value]] = {
    id(_simd.fma): _fma,
    id(_simd.where_less): _where_less,
    id(_simd.absolute): _call("absolute"),
    id(_simd.with_sign_of): _call("with_sign_of"),
    id(_simd.power_of_two): _call("power_of_two"),
}


class Functions:
    """The C functions that equations call: those of the vector maths, as they turn up."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def run(self, helper: Any, *arguments: Any) -> Any:
        """Call the Python function of a helper with values in place of numbers."""
        return self._traced(helper.py_func)(*arguments)

    def call(self, helper: Any, *arguments: Any) -> Value:
        """Return a call of one of the functions of the vector maths, which is written too."""
        name = f"vec_{helper.py_func.__name__}"
        if name not in self.texts:
            self.texts[name] = ""  # its place, before those that call it
            x = Value("name", "x")
            lines = statements([("return", self.run(helper, x))])
            body = "\n".join(f"    {line}" for line in lines)
            self.texts.pop(name)
            self.texts[name] = f"INLINE vec {name}(vec x)\n{{\n{body}\n}}\n"
        return Value(name, *map(as_value, arguments))

    def _traced(self, function: Any) -> Any:
        """Return a function whose helpers and intrinsics record instead of compile."""
        code = function.__code__
        names = {"__builtins__": builtins}
        for name in code.co_names:
            if name in function.__globals__:
                names[name] = self._replaced(function.__globals__[name])
        return FunctionType(
            code, names, function.__name__, function.__defaults__, function.__closure__
        )

    def _replaced(self, thing: Any) -> Any:
        if id(thing) in _INTRINSICS:
            return _INTRINSICS[id(thing)]
        if isinstance(thing, ModuleType):
            return _Traced(thing, self._replaced)
        if isinstance(thing, _Helper):
            module = thing.py_func.__module__
            whole = module == _vecmath.__name__ and thing.py_func.__name__ in _vecmath.__all__
            return lambda *a: self.call(thing, *a) if whole else self.run(thing, *a)
        return thing


class _Traced:
    """A module whose helpers record: what equations name through it."""

    def __init__(self, module: ModuleType, replaced: Callable[[Any], Any]) -> None:
        self._module, self._replaced = module, replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced(getattr(self._module, name))


def literal(number: Any) -> str:
    """Return a float32 as C writes it: the same number when it is read again.

    Raises
    ------
    ValueError
        If it is not finite.
    """
    number = np.float32(number)
    if not np.isfinite(number):
        raise ValueError(f"all numbers must be finite to be written as C, got {number}")
    text = np.format_float_positional(number, trim="0")
    if len(text) > 14:
        text = np.format_float_scientific(number, trim="0")
    return f"{text}f"


_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3}


def statements(
    results: Iterable[tuple[str, Any]], names: Mapping[int, str] | None = None
) -> list[str]:
    """Write values as C statements.

    Parameters
    ----------
    results : iterable of (str, Value)
        What is done with each value: a format with braces, or "return".
    names : mapping, optional
        Names for some of the values, by their ``id``.

    Returns
    -------
    list of str
    """
    wanted = [(how, as_value(value)) for how, value in results]
    order: list[Value] = []
    uses: Counter[int] = Counter(id(value) for _, value in wanted)
    seen: set[int] = set()

    def visit(value: Value) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if value.operation not in ("name", "number"):
            for operand in value.operands:
                uses[id(operand)] += 1
                visit(operand)
        order.append(value)

    for _, value in wanted:
        visit(value)
    known: dict[int, str] = {}
    lines: list[str] = []
    taken = {value.operands[0] for value in order if value.operation == "name"}
    taken |= {value.operation for value in order}  # of functions, which must not be hidden

    def fresh(base: str) -> str:
        name, number = base, 2
        while name in taken:
            name, number = f"{base}{number}", number + 1
        taken.add(name)
        return name

    def text(value: Value, precedence: int = 0, argument: bool = False) -> str:
        if id(value) in known:
            return known[id(value)]
        if value.operation == "name":
            return str(value.operands[0])
        if value.operation == "number":
            written = literal(value.operands[0])
            if argument:
                return f"splat({written})"
            return f"({written})" if written.startswith("-") else written
        if value.operation == "neg":
            written = text(value.operands[0], 3)
            return f"-({written})" if written.startswith("-") else f"-{written}"
        if value.operation in _PRECEDENCE:
            level = _PRECEDENCE[value.operation]
            left, right = value.operands
            both = all(operand.operation == "number" for operand in value.operands)
            written = f"{text(left, level, both)} {value.operation} {text(right, level + 1, both)}"
            return f"({written})" if level < precedence else written
        inner = ", ".join(text(operand, 0, True) for operand in value.operands)
        return f"{value.operation}({inner})"

    for value in order:
        if value.operation in ("name", "number"):
            continue
        preferred = (names or {}).get(id(value))
        if preferred is not None or uses[id(value)] > 1:
            written = text(value)
            name = fresh(identifier(preferred) if preferred is not None else "t")
            lines.append(f"const vec {name} = {written};")
            known[id(value)] = name
    for how, value in wanted:
        written = text(value, 0, True)
        lines.append(f"return {written};" if how == "return" else how.format(written))
    return lines


_KEYWORDS = (
    "auto break case char const continue default do double else enum extern float for goto if "
    "inline int long register restrict return short signed sizeof static struct switch typedef "
    "union unsigned void volatile while"
)
KEYWORDS = frozenset(_KEYWORDS.split())
# What else has a meaning where equations are written.
_LOCALS = {"vec", "load", "store", "splat", "k", "width", "slots", "constants", "source"}


def identifier(name: str, reserved: frozenset[str] = KEYWORDS | _LOCALS) -> str:
    """Return a name that C allows, made from any text."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not name or name[0].isdigit():
        return f"_{name}"
    return f"{name}_" if name in reserved else name


def identifiers(names: Sequence[str]) -> list[str]:
    """Return such names, each different from the others."""
    found: list[str] = []
    for name in names:
        base, number = identifier(name), 2
        while (each := base if number == 2 else f"{base}_{number - 1}") in found:
            number += 1
        found.append(each)
    return found


def named(vectors: Sequence[str]) -> tuple[Value, ...]:
    """Return values with these names."""
    return tuple(Value("name", name) for name in vectors)
