"""A model as C99: two files without malloc, globals or libm, a test and a Makefile."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._atomic import replacing
from .._parameters import Module
from .._vecmath import exp_of_minus, relu, sigmoid, tanh
from .._version import __version__
from ..dense import Dense
from ..layers import Recurrent
from ..sequential import Scaling, deployed
from .c_trace import (
    KEYWORDS,
    Functions,
    Value,
    identifier,
    identifiers,
    literal,
    named,
    statements,
)
from .program import flat_modules, program_of, round_up
from .streaming import Stream

__all__ = ["CSource", "SizeReport", "to_c"]

_PAD = 8  # numbers that the units of a layer are padded to, for vectors of 4 and of 8
_GROUPS = (8, 4, 2, 1)  # times as many sums lie side by side, as many as are left at most
_TEST_STEPS = 24


class SizeReport(NamedTuple):
    """What a model in C takes.

    Attributes
    ----------
    weights : int
        Bytes of constants (flash); the code comes on top, a few KiB.
    state : int
        Bytes of ``sizeof(model_state)`` (RAM): states and room to work in.
    multiply_adds : int
        Of a step, without padding.
    functions : int
        tanh, sigmoid and the like of a step.
    """

    weights: int
    state: int
    multiply_adds: int
    functions: int

    def __str__(self) -> str:
        return (
            f"{self.weights} bytes of weights (flash), {self.state} bytes of state (RAM), "
            f"{self.multiply_adds} multiply-adds and {self.functions} tanh and sigmoid a step"
        )


class CSource(NamedTuple):
    """The files of a model in C, by their names.

    Attributes
    ----------
    name : str
        What all public names begin with.
    files : dict of str to str
        ``NAME.h`` and ``NAME.c``; ``NAME_test.c``, which compares with fastgates; and ``Makefile``.
    report : SizeReport
    """

    name: str
    files: dict[str, str]
    report: SizeReport

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Write the files into a directory, which is made if need be.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for file_name, text in self.files.items():
            with replacing(folder / file_name) as temporary:
                Path(temporary).write_text(text, encoding="ascii", newline="\n")


def to_c(model: Module, name: str = "model", *, scalar: bool = False) -> CSource:
    """Return a model as C99, see ``model.to_c``."""
    if identifier(name, KEYWORDS) != name or not name.isascii():
        raise ValueError(f"name must be an identifier of C, got {name!r}")
    return _Writer(deployed(model), name, 1 if scalar else _PAD).write()


_HEADER = """\
{about}
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

enum {{ {name}_input_size = {inputs}, {name}_output_size = {outputs} }};

/* What the model remembers, and room to work in. */
typedef struct {{
{members}
}} {name}_state;

/* Begin a sequence. */
void {name}_init({name}_state *state);

/* Advance by one step: read {name}_input_size numbers, write {name}_output_size. */
void {name}_step({name}_state *state, const float *x, float *y);

/* Advance by some steps, which lie one after the other. */
void {name}_run({name}_state *state, const float *x, int steps, float *y);

#ifdef __cplusplus
}}
#endif

#endif
"""

_SCALAR = """\
/* One number at a time. */
typedef float vec;

enum { LANES = 1 };

typedef union {
    float number;
    uint32_t bits;
} both;

INLINE vec load(const float *p) { return *p; }

INLINE void store(float *p, vec x) { *p = x; }

INLINE vec splat(float x) { return x; }

INLINE vec where_less(vec a, vec b, vec x, vec y) { return a < b ? x : y; }

INLINE vec absolute(vec x)
{
    both value;
    value.number = x;
    value.bits &= UINT32_C(0x7fffffff);
    return value.number;
}

/* |x| with the sign of y; x is not negative. */
INLINE vec with_sign_of(vec x, vec y)
{
    both value, sign;
    value.number = x;
    sign.number = y;
    value.bits |= sign.bits & UINT32_C(0x80000000);
    return value.number;
}

/* 2^k of k + 12583039: the low bits of that number are the exponent of a float. */
INLINE vec power_of_two(vec x)
{
    both value;
    value.number = x;
    value.bits <<= 23;
    return value.number;
}
"""

_VECTOR = """\
#ifndef __GNUC__
#error "GCC's vector extension is needed: export with --scalar for other compilers"
#endif

/* As many numbers at a time as a register holds; PAD is a multiple of them. */
#ifdef __AVX__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec load(const float *p) { return *(const loose *)p; }

INLINE void store(float *p, vec x) { *(loose *)p = x; }

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec where_less(vec a, vec b, vec x, vec y)
{
    const bits yes = (bits)(a < b);
    return (vec)((yes & (bits)x) | (~yes & (bits)y));
}

INLINE vec absolute(vec x) { return (vec)((bits)x & UINT32_C(0x7fffffff)); }

/* |x| with the sign of y; x is not negative. */
INLINE vec with_sign_of(vec x, vec y)
{
    return (vec)((bits)x | ((bits)y & UINT32_C(0x80000000)));
}

/* 2^k of k + 12583039: the low bits of that number are the exponent of a float. */
INLINE vec power_of_two(vec x) { return (vec)((bits)x << 23); }
"""

_PRODUCTS = """\
/* Add the products of `count` numbers with weights to `width` sums. The weights lie in groups as
   wide as 8, 4, 2 or 1 times PAD sums, in each group those of a number one after the other. */
static void add_products(
    const float *weights, const float *numbers, int count, int width, float *sums)
{
    while (width > 0) {
        const int parts = width / PAD;
        const int group = PAD * (parts >= 8 ? 8 : parts >= 4 ? 4 : parts >= 2 ? 2 : 1);
        int first = 0;
        while (first < group) {
            const int n = (group - first) / LANES;
            if (n >= 8) {
                tile_8(weights + first, group, numbers, count, sums + first);
                first += 8 * LANES;
            } else if (n >= 4) {
                tile_4(weights + first, group, numbers, count, sums + first);
                first += 4 * LANES;
            } else if (n >= 2) {
                tile_2(weights + first, group, numbers, count, sums + first);
                first += 2 * LANES;
            } else {
                tile_1(weights + first, group, numbers, count, sums + first);
                first += LANES;
            }
        }
        weights += group * count;
        sums += group;
        width -= group;
    }
}
"""

_COPY = """\
static void copy(const float *source, int count, float *target)
{
    int k;
    for (k = 0; k < count; ++k)
        target[k] = source[k];
}
"""


def _tile(n: int) -> str:
    """Write the product with one group: the sums are variables, which every compiler keeps."""

    def places(base: str) -> list[str]:
        return [base, f"{base} + LANES", *(f"{base} + {v} * LANES" for v in range(2, n))][:n]

    lines = [f"vec s{v} = load({place});" for v, place in enumerate(places("sums"))]
    lines += ["int k;", "for (k = 0; k < count; ++k) {", "    const vec x = splat(numbers[k]);"]
    lines += [f"    s{v} = x * load({place}) + s{v};" for v, place in enumerate(places("weights"))]
    lines += ["    weights += stride;", "}"]
    lines += [f"store({place}, s{v});" for v, place in enumerate(places("sums"))]
    body = "\n".join(f"    {line}" for line in lines)
    parameters = "const float *weights, int stride, const float *numbers, int count, float *sums"
    return f"static void tile_{n}(\n    {parameters})\n{{\n{body}\n}}\n"


_SOFTMAX = """\
/* The softmax of `count` numbers; there is room for whole vectors. */
static void softmax(float *z, int count)
{
    float largest = z[0], total = 0.0f;
    int k;
    for (k = 1; k < count; ++k)
        largest = largest < z[k] ? z[k] : largest;
    for (k = 0; k < count; k += LANES)
        store(z + k, vec_exp_of_minus(splat(largest) - load(z + k)));
    for (k = 0; k < count; ++k)
        total += z[k];
    for (k = 0; k < count; ++k)
        z[k] /= total;
}
"""

_TEST = """\
/* Compare {name} with what fastgates gave. */
#include "{name}.h"

#include <stdio.h>

#define STEPS {steps}

static const float inputs[STEPS * {inputs}] = {{
{x}
}};

static const float expected[STEPS * {outputs}] = {{
{y}
}};

int main(void)
{{
    static {name}_state state;
    static float y[STEPS * {outputs}], again[STEPS * {outputs}];
    double worst = 0.0, largest = 1.0;
    int t, k, differ = 0;
    {name}_init(&state);
    for (t = 0; t < STEPS; ++t)
        {name}_step(&state, inputs + t * {inputs}, y + t * {outputs});
    {name}_init(&state);
    {name}_run(&state, inputs, STEPS, again);
    for (k = 0; k < STEPS * {outputs}; ++k) {{
        const double size = expected[k] < 0 ? -(double)expected[k] : (double)expected[k];
        double error = (double)y[k] - (double)expected[k];
        error = error < 0 ? -error : error;
        if (!(error <= worst))
            worst = error;
        if (size > largest)
            largest = size;
        if (again[k] < y[k] || again[k] > y[k])
            differ = 1;
    }}
    printf("%d steps: largest error %.3g, largest output %.3g\\n", STEPS, worst, largest);
    printf("%d bytes of state\\n", (int)sizeof(state));
    if (differ)
        printf("{name}_run differs from {name}_step\\n");
    return !differ && worst <= 1e-6 * largest ? 0 : 1;
}}
"""

_MAKEFILE = """\
CFLAGS = -std=c99 -O3 -march=native -ffp-contract=fast -Wall -Wextra -Wconversion -pedantic

{name}_test: {name}.c {name}_test.c {name}.h
\t$(CC) $(CFLAGS) -o $@ {name}.c {name}_test.c

{name}.o: {name}.c {name}.h
\t$(CC) $(CFLAGS) -c {name}.c

.PHONY: test size clean

test: {name}_test
\t./{name}_test

size: {name}.o
\tsize {name}.o

clean:
\trm -f {name}_test {name}.o
"""


def _comment(text: str) -> str:
    """Write a text as a comment, which nothing in it ends."""
    return f"/* {text.replace('*/', '* /')} */"


def _numbers(values: Any, indent: str = "    ") -> str:
    """Write numbers as lines of an initialiser."""
    texts = [literal(value) for value in np.ravel(values)]
    lines: list[str] = []
    line = indent
    for text in texts:
        if len(line) + len(text) + 1 > 100:
            lines.append(line.rstrip())
            line = indent
        line += f"{text}, "
    return "\n".join([*lines, line.rstrip().removesuffix(",")])


class _Writer:
    """Writes the modules of a model one after the other."""

    def __init__(self, model: Module, name: str, pad: int) -> None:
        self._model, self._name, self._pad = model, name, pad
        self._modules = flat_modules(model)
        self._functions = Functions()
        self._units: dict[Any, tuple[str, str]] = {}  # of a cell: the names of its two functions
        self._calls: dict[str, int] = {}  # of such a function: how many functions a unit calls
        self._texts: list[str] = []  # of the cells' functions
        self._constants: list[str] = []
        self._members: list[tuple[str, int]] = []
        self._resets: list[tuple[str, int]] = []
        self._steps: list[str] = []
        self._n_weights = self._n_slots = self._n_sources = 0
        self._work = self._n_functions = 0
        self._has_softmax = self._has_products = False

    # -- Pieces -----------------------------------------------------------------------------------

    def _constant(self, name: str, values: np.ndarray) -> str:
        values = np.ravel(values)
        self._n_weights += values.size
        self._constants.append(
            f"static const float {name}[{values.size}] ALIGNED = {{\n{_numbers(values)}\n}};\n"
        )
        return name

    def _member(self, name: str, size: int, reset: bool = False) -> str:
        self._members.append((name, size))
        if reset:
            self._resets.append((name, size))
        return f"state->{name}"

    def _padded(self, columns: np.ndarray) -> np.ndarray:
        """Pad the units of an array (slots, units, ...) to whole vectors; slots and units join."""
        units = columns.shape[1]
        padded = np.zeros(
            (len(columns), round_up(units, self._pad), *columns.shape[2:]), np.float32
        )
        padded[:, :units] = columns
        return padded.reshape(-1, *columns.shape[2:])

    def _panel(self, weights: np.ndarray) -> np.ndarray:
        """Lay weights (padded units, inputs) out as `add_products` reads them."""
        left, first, parts = len(weights) // self._pad, 0, []
        while left > 0:
            n = next(n for n in _GROUPS if n <= left)
            rows = weights[first : first + n * self._pad]
            parts.append(rows.T.ravel())
            first, left = first + n * self._pad, left - n
        return np.concatenate(parts)

    def _product(self, panel: str, numbers: str, count: int, width: int, sums: str) -> None:
        self._has_products = True
        self._steps.append(f"add_products({panel}, {numbers}, {count}, {width}, {sums});")

    # -- Modules ----------------------------------------------------------------------------------

    def _layer(self, place: int, module: Recurrent, index: int, source: str) -> str:
        """Write one of the stacked layers; return where its output is."""
        cell, direction, hidden = module.cell, module._directions[index], module.hidden_size
        n_gates, parameters, suffix = len(cell.gates), module.parameters, module._suffix(direction)
        weight_ih, weight_hh = parameters[f"weight_ih_{suffix}"], parameters[f"weight_hh_{suffix}"]
        prefix = f"m{place}_l{index}"
        self._steps.append(_comment(f"{module!r}, layer {index}"))

        def by_gate(matrix: np.ndarray) -> np.ndarray:
            return matrix.reshape(n_gates, hidden, *matrix.shape[1:])

        width = round_up(hidden, self._pad)
        bias = np.zeros((len(cell.slots), hidden), np.float32)
        for of, slots in (("ih", cell.input_slots), ("hh", cell.recurrent_slots)):
            given = parameters.get(f"bias_{of}_{suffix}")
            if given is not None:
                for gate, slot in enumerate(slots):
                    bias[slot] += by_gate(given)[gate]
        n_slots = len(cell.slots) * width
        self._n_slots = max(self._n_slots, n_slots)
        bias_name = self._constant(f"{prefix}_bias", self._padded(bias))
        self._steps.append(f"copy({bias_name}, {n_slots}, state->slots);")
        inputs = range(cell.first_input_slot, cell.first_input_slot + n_gates)
        rows = by_gate(weight_ih)[[cell.input_slots.index(slot) for slot in inputs]]
        panel = self._constant(f"{prefix}_weight_ih", self._panel(self._padded(rows)))
        self._product(
            panel,
            source,
            direction.input_size,
            n_gates * width,
            f"state->slots + {cell.first_input_slot * width}",
        )
        states = [
            self._member(f"{prefix}_{name}", width, reset=True) for name in identifiers(cell.states)
        ]
        constants = self._unit_constants(module, direction, prefix)
        first_name, name = self._cell_functions(cell, direction.settings, bool(constants))
        arguments = ", ".join(["state->slots", *states, *constants])
        for stage, (first, count) in enumerate(cell.stages):
            order = [cell.recurrent_slots.index(slot) for slot in range(first, first + count)]
            part = by_gate(weight_hh)[order]
            number = "" if len(cell.stages) == 1 else f"_{stage + 1}"
            panel = self._constant(f"{prefix}_weight_hh{number}", self._panel(self._padded(part)))
            sums = f"state->slots + {first * width}"
            self._product(
                panel, "state->source" if stage else states[0], hidden, count * width, sums
            )
            if stage < len(cell.stages) - 1:
                self._n_sources = max(self._n_sources, width)
                self._steps.append(f"{first_name}({width}, {arguments}, state->source);")
        self._steps.append(f"{name}({width}, {arguments});")
        self._work += n_gates * hidden * (direction.input_size + hidden)
        self._n_functions += hidden * self._calls[name]
        return states[0]

    def _unit_constants(self, module: Recurrent, direction: Any, prefix: str) -> list[str]:
        """Write what the equations take of each unit besides; return its name, if there is any."""
        cell = module.cell
        if cell.unit_weights:
            weights = np.zeros((len(cell.unit_weights), module.hidden_size), np.float32)
            peepholes = module._peepholes(direction)
            if peepholes is not None:
                weights[...] = peepholes.reshape(weights.shape)
            return [self._constant(f"{prefix}_peepholes", self._padded(weights))]
        if module._unit_constant is not None:
            numbers = module._unit_constant[None]
            return [self._constant(f"{prefix}_constant", self._padded(numbers))]
        return []

    def _cell_functions(self, cell: Any, settings: Any, has_constant: bool) -> tuple[str, str]:
        """Write the functions with a cell's equations, once for all layers; return their names."""
        key = (cell.name, None if settings is None else settings.tobytes(), has_constant)
        if key in self._units:
            return self._units[key]
        base = identifier(cell.name)
        number = sum(1 for other in self._units if identifier(other[0]) == base)
        name = base + (f"_{number + 1}" if number else "") + "_units"
        # Their prefixes keep values, addresses and functions apart, whatever a cell calls them.
        slot_names, state_names = identifiers(cell.slots), identifiers(cell.states)
        slots = named([f"a_{slot}" for slot in slot_names])
        states = named([f"s_{state}" for state in state_names])
        count = max(1, len(cell.unit_weights))
        constants = named([f"constant{i}" if count > 1 else "constant" for i in range(count)])
        if not has_constant:
            constants = tuple(Value("number", np.float32(0)) for _ in constants)
        given: Any = constants[0]
        if cell.functions:
            given = ([np.float32(number) for number in settings], constants)
        places = [f"at_{state}" for state in state_names]
        parameters = ["int width", "float *slots", *(f"float *{place}" for place in places)]
        parameters += ["const float *constants"] * has_constant
        loads = [(value, f"load(slots + {place} * width + k)") for place, value in enumerate(slots)]
        loads += [(v, f"load({at} + k)") for v, at in zip(states, places, strict=True)]
        if has_constant:
            loads += [
                (value, f"load(constants + {place} * width + k)")
                for place, value in enumerate(constants)
            ]
        texts = []
        calls = 0
        first_name = f"{name}_first"
        if cell.first_equations is not None:
            source, activated = self._functions.run(cell.first_equations, slots, states, given)
            results = [("store(source + k, {});", source)]
            results += [
                (f"store(slots + {place} * width + k, {{}});", value)
                for place, value in enumerate(activated)
                if value is not slots[place]
            ]
            names = {id(v): s for v, s in zip(activated, cell.slots, strict=False)}
            text, n = self._loop(first_name, [*parameters, "float *source"], loads, results, names)
            texts.append(text)
            calls += n
            # Where the second function finds what the first one left.
            left = [
                before if after is before else Value("name", f"b_{slot}")
                for before, after, slot in zip(slots, activated, slot_names, strict=False)
            ]
            loads[: len(left)] = [(v, t) for v, (_, t) in zip(left, loads, strict=False)]
            slots = (*left, *slots[len(left) :])
        new_states, saved = self._functions.run(cell.equations, slots, states, given)
        results = [
            (f"store({at} + k, {{}});", value) for at, value in zip(places, new_states, strict=True)
        ]
        names = {id(v): s for v, s in zip(saved, cell.slots, strict=True) if v not in slots}
        names |= {id(v): f"new_{s}" for v, s in zip(new_states, cell.states, strict=True)}
        text, n = self._loop(name, parameters, loads, results, names)
        texts.append(text)
        self._calls[name] = calls + n
        self._units[key] = (first_name, name)
        self._texts += texts
        return first_name, name

    def _loop(
        self,
        name: str,
        parameters: Sequence[str],
        loads: Sequence[tuple[Value, str]],
        results: Sequence[tuple[str, Any]],
        names: dict[int, str],
    ) -> tuple[str, int]:
        """Write a function that applies equations to all units; count the functions it calls."""
        body = statements(results, names)
        joined = "\n".join(body)
        used = [
            f"const vec {value.operands[0]} = {text};"
            for value, text in loads
            if _mentions(joined, value.operands[0])
        ]
        lines = "\n".join(f"        {line}" for line in [*used, *body])
        const = {p: p.replace("float *slots", "const float *slots") for p in parameters}
        if "store(slots" in joined:
            const = {p: p for p in parameters}
        given = [
            f"const {p}"
            if p.startswith("float *at_") and f"store({p[7:]}" not in joined
            else const[p]
            for p in parameters
        ]
        unused = [
            f"    (void){p.split('*')[-1]};"
            for p in parameters
            if "*" in p and not _mentions(joined + "\n".join(used), p.split("*")[-1])
        ]
        head = f"static void {name}(\n    {', '.join(given)})"
        before = "\n".join(["    int k;", *unused])
        loop = f"    for (k = 0; k < width; k += LANES) {{\n{lines}\n    }}"
        text = f"{head}\n{{\n{before}\n{loop}\n}}\n"
        return text, joined.count("vec_")

    def _dense(self, place: int, module: Dense, source: str) -> str:
        values, width = module.parameters, round_up(module.output_size, self._pad)
        self._steps.append(_comment(repr(module)))
        bias = values.get("bias", np.zeros(module.output_size, np.float32))
        weights = self._panel(self._padded(values["weight"][None]))
        bias_name = self._constant(f"m{place}_bias", self._padded(bias[None]))
        panel = self._constant(f"m{place}_weight", weights)
        sums = self._member(f"m{place}_y", width)
        self._steps.append(f"copy({bias_name}, {width}, {sums});")
        self._product(panel, source, module.input_size, width, sums)
        self._work += module.input_size * module.output_size
        function = {"tanh": tanh, "sigmoid": sigmoid, "relu": relu}.get(module.activation)
        if function is not None:
            value = self._functions.call(function, Value("name", "x"))
            self._steps.append(f"for (k = 0; k < {width}; k += LANES)")
            self._steps.append(f"    store({sums} + k, {value.operation}(load({sums} + k)));")
            self._n_functions += module.output_size * (module.activation != "relu")
        elif module.activation == "softmax":
            self._functions.call(exp_of_minus, Value("name", "x"))
            self._has_softmax = True
            self._steps.append(f"softmax({sums}, {module.output_size});")
            self._n_functions += module.output_size
        return sums

    def _scaling(self, place: int, module: Scaling, source: str) -> str:
        values = module.parameters
        self._steps.append(_comment(repr(module)))
        mean = self._constant(f"m{place}_mean", values["mean"])
        scale = self._constant(f"m{place}_scale", values["scale"])
        target = self._member(f"m{place}_y", round_up(module.size, self._pad))
        self._steps.append(f"for (k = 0; k < {module.size}; ++k)")
        formula = (
            f"{source}[k] * {scale}[k] + {mean}[k]"
            if module.inverse
            else f"({source}[k] - {mean}[k]) / {scale}[k]"
        )
        self._steps.append(f"    {target}[k] = {formula};")
        return target

    # -- Files ------------------------------------------------------------------------------------

    def write(self) -> CSource:
        """Return all files."""
        name = self._name
        inputs, outputs = self._modules[0].input_size, self._modules[-1].output_size
        source = "x"
        for place, module in enumerate(self._modules):
            if isinstance(module, Recurrent):
                for index in range(module.num_layers):
                    source = self._layer(place, module, index, source)
            elif isinstance(module, Dense):
                source = self._dense(place, module, source)
            else:
                source = self._scaling(place, module, source)
        self._steps.append(f"copy({source}, {outputs}, y);")
        for member, size in (("slots", self._n_slots), ("source", self._n_sources)):
            if size:
                self._members.append((member, size))
        about = f"Written by fastgates {__version__}: {self._model!r}"
        report = SizeReport(
            4 * self._n_weights,
            4 * sum(size for _, size in self._members),
            self._work,
            self._n_functions,
        )
        members = "\n".join(f"    float {member}[{size}];" for member, size in self._members)
        header = _HEADER.format(
            about=_comment(f"{about}\n\n   {report}."),
            guard=f"{name.upper()}_H",
            name=name,
            inputs=inputs,
            outputs=outputs,
            members=members,
        )
        random = np.random.default_rng(0)
        x = random.standard_normal((_TEST_STEPS, inputs)).astype(np.float32)
        first = self._modules[0]
        if isinstance(first, Scaling) and not first.inverse:  # inputs in the user's units
            x = x * first.parameters["scale"] + first.parameters["mean"]
        y = Stream(program_of(self._model)).run(x)
        test = _TEST.format(
            name=name,
            steps=_TEST_STEPS,
            inputs=inputs,
            outputs=outputs,
            x=_numbers(x),
            y=_numbers(y),
        )
        files = {
            f"{name}.h": header,
            f"{name}.c": self._source(about, outputs, inputs),
            f"{name}_test.c": test,
            "Makefile": _MAKEFILE.format(name=name),
        }
        return CSource(name, files, report)

    def _source(self, about: str, outputs: int, inputs: int) -> str:
        name, pad = self._name, self._pad
        aligned = "" if pad == 1 else "__attribute__((aligned(32)))"
        inline = "static inline" if pad == 1 else "static inline __attribute__((always_inline))"
        prelude = _SCALAR if self._pad == 1 else _VECTOR
        helpers = [
            prelude,
            *self._functions.texts.values(),
            *([*map(_tile, _GROUPS), _PRODUCTS] if self._has_products else []),
            _COPY,
            *([_SOFTMAX] if self._has_softmax else []),
        ]
        used_by = "\n".join([*self._texts, *self._steps])
        parts = [
            f'{_comment(about)}\n#include "{name}.h"\n\n#include <stdint.h>\n\n'
            "#ifdef __FAST_MATH__\n"
            '#error "tanh and sigmoid need their rounding: do not compile with -ffast-math"'
            "\n#endif\n",
            f"#define INLINE {inline}\n#define ALIGNED {aligned}".rstrip()
            + f"\n\nenum {{ PAD = {pad} }}; /* units are padded to a multiple of it */\n",
            _without_unused("\n".join(helpers), used_by),
            *self._texts,
            *self._constants,
        ]
        resets = "\n".join(
            f"    for (k = 0; k < {size}; ++k)\n        state->{member}[k] = 0.0f;"
            for member, size in self._resets
        )
        body = "\n".join(f"    {step}" for step in self._steps)
        loops = "    int k;\n" if any(step.startswith("for (k") for step in self._steps) else ""
        init = f"    int k;\n{resets}" if resets else "    (void)state;"
        parts += [
            f"void {name}_init({name}_state *state)\n{{\n{init}\n}}\n",
            f"void {name}_step({name}_state *state, const float *x, float *y)\n"
            f"{{\n{loops}{body}\n}}\n",
            f"void {name}_run({name}_state *state, const float *x, int steps, float *y)\n{{\n"
            f"    int t;\n    for (t = 0; t < steps; ++t)\n"
            f"        {name}_step(state, x + t * {inputs}, y + t * {outputs});\n}}\n",
        ]
        return "\n".join(parts)


_FUNCTION = re.compile(r"^(?:INLINE|static) \w+ (\w+)\(", re.MULTILINE)


def _without_unused(helpers: str, used_by: str) -> str:
    """Leave out the functions that nothing after them calls: some compilers warn of them."""
    kept: list[str] = []
    for paragraph in reversed(helpers.split("\n\n")):
        function = _FUNCTION.search(paragraph)
        if function is None or _mentions("\n".join([*kept, used_by]), function[1]):
            kept.insert(0, paragraph)
    return "\n\n".join(kept)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None
