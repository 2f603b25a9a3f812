"""One pass that several threads share, without the interpreter's lock.

A *job* is a record of int64: a kernel's address, the calls that it takes (see
:mod:`fastgates.engine.call`), and its tasks. Each thread has a share of them, the same one in every
pass, so what a forward pass kept is where back-propagation looks for it; who is through with it
goes on with the others'. No result depends on who does what. The thread that has a job leads it: it
puts the job into the *boxes* of some workers, does tasks as long as there are any, takes the job
back where no worker has found it, and waits for those who have. So a job always ends, whatever
keeps the workers busy.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .._jit import INT0, STAMP, helper, kernel
from .._simd import int_pointer
from .atomics import atomic_add, atomic_replace, atomic_swap, look_again

__all__ = [
    "ASLEEP",
    "BOX",
    "CALLS",
    "FAILED",
    "JOB_FIELDS",
    "RING",
    "SHARED",
    "WAIT",
    "lead",
    "serve",
]

JOB_FIELDS = (
    "through",  # workers who have done their last task; and _TELL, if who is next is to tell that
    "posted",  # boxes that the job was put into; before that -1
    "expected",  # workers who come or came, once it is known; before that -1
    "failed",  # a task in which the kernel failed, or -1
    "kernel",  # its address
    "calls",  # the address of the calls,
    "stride",  # how many int64 they are apart,
    "by_task",  # and whether each task has its own (1), or each thread (0), the leading one first
    "tasks",  # the address of int64 (count, 2): what the kernel is given besides
    "count",
    "threads",
)  # and the first task of each thread's share that nobody has taken
_THROUGH, _POSTED, _EXPECTED, FAILED, _KERNEL, CALLS, *_REST = range(len(JOB_FIELDS))
_STRIDE, _BY_TASK, _TASKS, _COUNT, _THREADS = _REST
_NEXT = len(JOB_FIELDS)
_TELL = 1 << 32

# A box is one cache line: the address of a job or 0, and 1 while its worker does not look.
BOX = 8  # int64
_JOB, ASLEEP = 0, 1

# What `lead` may return besides 0.
RING, WAIT = 1, 2

#: Types of the arguments of a kernel whose work can be shared: calls, and two numbers of a task.
SHARED = (types.Array(types.int64, 1, "C"), types.int64, types.int64)


@intrinsic
def _call_shared(typingctx, at, call, begin, end):  # type: ignore[no-untyped-def]
    """Call a kernel by its address; return 0, or 1 if it has raised an exception."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        convention = context.call_conv
        array = context.make_array(SHARED[0])(context, builder)
        array.data = builder.inttoptr(args[1], array.data.type)  # all that kernels look at
        function_type = convention.get_function_type(types.none, SHARED)
        function = builder.inttoptr(args[0], function_type.as_pointer())
        values = (array._getvalue(), args[2], args[3])
        status, _ = convention.call_function(builder, function, types.none, SHARED, values)
        return builder.zext(status.is_error, ir.IntType(64))

    return types.int64(*(types.int64,) * 4), codegen


@helper
def _work(job, thread):
    """Do tasks of a job until there are none."""
    tasks, threads, count = int_pointer(job[_TASKS]), job[_THREADS], job[_COUNT]
    for other in range(threads):
        whose = (thread + other) % threads
        while True:
            task = atomic_add(job, _NEXT + whose, INT0 + 1)
            if task >= count * (whose + 1) // threads:
                break
            number = thread
            if job[_BY_TASK] != 0:
                number = task
            call = job[CALLS] + 8 * job[_STRIDE] * number
            if _call_shared(job[_KERNEL], call, tasks[2 * task], tasks[2 * task + 1]) != 0:
                job[FAILED] = task


@kernel
def lead(at, boxes, workers, patience, stamp=STAMP):
    """Run a job with the help of up to so many workers.

    Parameters
    ----------
    at, boxes : int
        Addresses of the job and of the workers' boxes.
    patience : int
        How often to look, after the last task, whether the workers are through.

    Returns
    -------
    int
        0, or this is to be called again, and the job must stay as it is: RING after waking those
        who are asleep, WAIT when a worker that is through has told so (see :func:`serve`).
    """
    job, mail = int_pointer(at), int_pointer(boxes)
    if job[_POSTED] < 0:
        posted, asleep = INT0, INT0
        for worker in range(workers):
            if atomic_replace(mail, worker * BOX, INT0, at) != 0:
                posted += 1
                asleep += mail[worker * BOX + ASLEEP]
        job[_POSTED] = posted
        if asleep > 0:
            return INT0 + RING
    if job[_EXPECTED] < 0:
        expected = job[_POSTED]
        _work(job, INT0)
        for worker in range(workers):
            expected -= atomic_replace(mail, worker * BOX, at, INT0)
        job[_EXPECTED] = expected
    looks = INT0
    while job[_THROUGH] % _TELL < job[_EXPECTED]:
        if job[_THROUGH] >= _TELL:
            return INT0 + WAIT
        if looks >= patience:
            if atomic_add(job, INT0 + _THROUGH, INT0 + _TELL) < job[_EXPECTED]:
                return INT0 + WAIT
            break
        looks += 1
        look_again()
    look_again()  # what the workers wrote is seen from here on
    return INT0


@kernel
def serve(at, thread, patience, stamp=STAMP):
    """Work on the jobs that come to the box at this address, until none does for so many looks.

    Returns
    -------
    int
        0, or the address of a job whose leading thread has gone to sleep and is to be told that
        this worker is through.
    """
    box = int_pointer(at)
    box[ASLEEP] = INT0
    looks = INT0
    while True:
        looks += 1
        if looks == patience:  # for the last time, since who saw it awake may not have woken it
            atomic_swap(box, INT0 + ASLEEP, INT0 + 1)
        if box[_JOB] != 0:
            box[ASLEEP] = INT0
            found = atomic_swap(box, INT0 + _JOB, INT0)
            if found != 0:  # it was not taken back
                job = int_pointer(found)
                _work(job, thread)
                if atomic_add(job, INT0 + _THROUGH, INT0 + 1) >= _TELL:
                    return found
            looks = INT0  # from here on the job may be gone
        if looks >= patience:
            return INT0
        look_again()
