"""Reading the machine code of kernels on x86-64: loops, spills, calls, arithmetic in float64.

Numba keeps no assembly of a kernel that came from the disk, but it keeps the optimised LLVM code,
from which the same compiler prints the same instructions again.
"""

import re
from dataclasses import dataclass

LABEL = re.compile(r"^([.\w$@]+):")
JUMP = re.compile(r"^j[a-z]+\s+(\.L\w+)")
FMA = re.compile(r"^vfn?m(?:add|sub)\d+[ps][sd]\s")
PACKED_FMA = re.compile(r"^vfn?m(?:add|sub)\d+ps\s.*%([xyz])mm(\d+)(?:\s|$)")
DIVISION = re.compile(r"^v?divps\s")
# Arithmetic and conversions; moves, shuffles and bitwise operations have no type to get wrong.
DOUBLE = re.compile(
    r"^v?(?:(?:add|sub|mul|div|min|max|sqrt|rndscale|round|ucomi|comi|cmp\w*)[ps]d"
    r"|fn?m(?:add|sub|addsub|subadd)\d+[ps]d|cvt\w*[ps]d\w*)\s"
)
CALL = re.compile(r"^(?:callq?|jmpq?)\s+(?!\.L)(.*)")
# What a far call, a near call and a tail call look like; `.L` names constants and blocks.
SYMBOL = re.compile(r"(?:\$|^callq?\s+|^jmpq?\s+)([A-Za-z_][\w.$]*)|([A-Za-z_][\w.$]*)@")
VECTOR = re.compile(r"%[xyz]mm\d+")
STACK = re.compile(r"-?\d*\(%rsp[,)]")
FRAME = re.compile(r"-?\d*\(%rbp[,)]")


@dataclass
class Loop:
    """The instructions of an innermost loop."""

    instructions: list
    has_frame: bool  # %rbp points to the stack

    @property
    def fmas(self):
        """All fused multiply-adds."""
        return [line for line in self.instructions if FMA.match(line)]

    @property
    def is_product(self):
        """Whether this is the loop over k of a tile.

        Equations have fused multiply-adds too, but most of them divide; the others are as good:
        what is asked of a product holds for them.
        """
        return bool(self.fmas) and not any(DIVISION.match(line) for line in self.instructions)

    @property
    def sums(self):
        """The registers that fused multiply-adds go to, each with its width as a letter."""
        matches = map(PACKED_FMA.match, self.fmas)
        return {match.groups() for match in matches if match}

    @property
    def spills(self):
        """Instructions that move a vector to the stack or take one from it."""
        places = (STACK, FRAME) if self.has_frame else (STACK,)
        return [
            line
            for line in self.instructions
            if VECTOR.search(line) and any(place.search(line) for place in places)
        ]


def assembly_of(compiled):
    """Return the assembly of a compile result (an overload of a dispatcher), cached or not."""
    library = compiled.library
    return library._codegen._tm.emit_assembly(library._get_module_for_linking())


def functions(assembly):
    """Return the lines of each function by its name: labels and instructions, without comments."""
    found, lines = {}, None
    names = set(re.findall(r"^\s*\.type\s+(\S+),@function", assembly, re.MULTILINE))
    for raw in assembly.splitlines():
        line = raw.split("#")[0].strip().replace("\t", " ")
        label = LABEL.match(line)
        if label and label[1] in names:
            lines = found[label[1]] = []
        elif label and label[1].startswith(".Lfunc_end"):
            lines = None
        elif lines is not None and (label or (line and not line.startswith("."))):
            lines.append(line)
    return found


def innermost_loops(lines):
    """Return the loops of a function that hold no other one: from a label to a jump back to it."""
    labels = {}
    ends = {}  # last jump back to each label
    for number, line in enumerate(lines):
        if label := LABEL.match(line):
            labels[label[1]] = number
        elif (jump := JUMP.match(line)) and jump[1] in labels:
            ends[labels[jump[1]]] = number
    has_frame = "movq %rsp, %rbp" in lines
    return [
        Loop([line for line in lines[start:end] if not LABEL.match(line)], has_frame)
        for start, end in ends.items()
        if not any(start < other < end for other in ends)
    ]


def called(lines):
    """Return the names that a function calls, and ``"*"`` for a call through memory."""
    names = set()
    for line in lines:
        for match in SYMBOL.finditer(line):
            names.add(match[1] or match[2])
        call = CALL.match(line)
        # A call through a register is found by the name that was put there, above. A jump through
        # a register may also be a table of a switch, which is of no interest.
        if call and line.startswith("call") and re.match(r"\*[^%]", call[1]):
            names.add("*")
    return names


def faults(lines, width, known_calls=()):
    """Return what is wrong with a function, as text: nothing for a good one.

    Parameters
    ----------
    lines : list of str
        As :func:`functions` returns them.
    width : str
        The letter of the registers that products must use: "z", "y" or "x".
    known_calls : collection of str
        Names that may be called.
    """
    found = [f"float64: {line}" for line in lines if DOUBLE.match(line)]
    found += [f"call: {name}" for name in sorted(called(lines) - set(known_calls))]
    for loop in innermost_loops(lines):
        if not loop.is_product:
            continue
        for line in loop.fmas:
            match = PACKED_FMA.match(line)
            if not match or match[1] != width:
                found.append(f"product is not in {width}mm: {line}")
        found += [f"spill in a product: {line}" for line in loop.spills]
    return found


def report(lines):
    """Return a line for each product loop of a function: sums, instructions, spills."""
    return [
        f"{len(loop.sums)} sums, {len(loop.fmas)} fma, {len(loop.instructions)} instructions, "
        f"{len(loop.spills)} spills"
        for loop in innermost_loops(lines)
        if loop.is_product
    ]
