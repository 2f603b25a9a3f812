"""Compile the kernels of the GPU backend without a GPU, and read what came out.

`compile_forward` and the others give a `Compiled`: the PTX, and what ptxas says of it where it is
installed (the wheel nvidia-cuda-nvcc brings it).
"""

import importlib.util
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from numba.cuda import types

ARCHITECTURES = ((8, 0), (9, 0))

FLAT = types.Array(types.float32, 1, "C")
ROWS = types.Array(types.float32, 3, "C")
STATES = types.Array(types.float32, 4, "C")
COUNTERS = types.Array(types.int32, 1, "C")
LENGTHS = types.Array(types.int32, 1, "C")
MAPS = types.Array(types.int32, 2, "C")
RESETS = types.Array(types.uint8, 2, "C")
OUTPUTS = types.Array(types.float32, 2, "C")
INT = types.int64
FORWARD = (ROWS, ROWS, ROWS, ROWS, FLAT, STATES, STATES, LENGTHS, RESETS, *[INT] * 9, COUNTERS)
BACKWARD = (
    *[ROWS] * 5,
    FLAT,
    STATES,
    STATES,
    ROWS,
    STATES,
    STATES,
    ROWS,
    LENGTHS,
    RESETS,
    *[INT] * 9,
    COUNTERS,
)


@lru_cache(maxsize=1)
def ptxas():
    """Where ptxas is: from the wheel that belongs to this version of NVVM, else on the path."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations if found else ():
        for path in sorted(Path(folder).glob("*/bin/ptxas")):
            return str(path)
    return shutil.which("ptxas")


@dataclass
class Compiled:
    """What the compiler made of a kernel, and the assembler of that."""

    ptx: str
    registers: int | None = None
    stack: int | None = None
    spills: int | None = None
    shared: int | None = None

    @property
    def instructions(self):
        """The opcodes of the body, with their types."""
        return re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][a-z0-9_.]+)\s", self.ptx, re.MULTILINE)

    def check(self, registers=255):
        """No float64, no local memory, and few enough registers."""
        doubles = [name for name in self.instructions if ".f64" in name]
        assert not doubles, f"float64 in the kernel: {sorted(set(doubles))}"
        local = [name for name in self.instructions if ".local" in name]
        assert not local and ".local" not in self.ptx, f"local memory in the kernel: {local}"
        if self.registers is not None:
            assert self.registers <= registers, f"{self.registers} registers of {registers}"
            assert self.stack == 0 and self.spills == 0, f"{self.stack} bytes of stack"


@contextmanager
def current_device(architecture):
    """Device functions are compiled for the current device, of which there is none."""
    from numba.cuda import dispatcher

    before = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=architecture)
    try:
        yield
    finally:
        dispatcher.get_current_device = before


def compile_kernel(kernel, signature, architecture, registers=None):
    """Compile a kernel of the backend for an architecture."""
    from numba import cuda

    with current_device(architecture):
        ptx, _ = cuda.compile(
            kernel.py_func, signature, device=False, abi="numba", cc=architecture, output="ptx"
        )
    compiled = Compiled(ptx)
    tool = ptxas()
    if tool is not None:
        arguments = [tool, "-v", f"-arch=sm_{architecture[0]}{architecture[1]}", "-o", "/dev/null"]
        if ".extern" in ptx:  # the barrier of the grid, which is linked later
            arguments.append("--compile-only")
        if registers is not None:
            arguments.append(f"--maxrregcount={registers}")
        result = subprocess.run(
            [*arguments, "/dev/stdin"], input=ptx, capture_output=True, text=True, check=False
        )
        said = result.stderr + result.stdout
        assert result.returncode == 0, said
        compiled.registers = int(re.search(r"Used (\d+) registers", said).group(1))
        compiled.stack = int(re.search(r"(\d+) bytes stack frame", said).group(1))
        compiled.spills = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
        found = re.search(r"(\d+) bytes smem", said)
        compiled.shared = int(found.group(1)) if found else 0
    return compiled


def link(kernel, signature, architecture, registers):
    """Link a kernel with CUDA's run-time library for devices; the machine code."""
    from numba.cuda import compiler

    with current_device(architecture):
        library, _ = compiler._compile_pyfunc_with_fixup(
            kernel.py_func, signature, device=False, abi="numba", cc=architecture
        )
    assert library.use_cooperative  # so that Numba starts all blocks at the same time
    library.needs_cudadevrt = True
    library._max_registers = registers
    return library.get_cubin(cc=architecture)
