"""A kernel whose tasks meet, wait and fail as they are told, for the tests of threads."""

import numpy as np

from fastgates import _threads
from fastgates._jit import INT0, STAMP, kernel
from fastgates._simd import int_pointer
from fastgates.engine.atomics import atomic_add, look_again
from fastgates.engine.call import address

# What all tasks look at: who has come, and what they are told.
_CAME, _MEET, _WAITS, _GO, _FAILS, _FAILED_ONCE, _N_FIELDS = range(7)
NOBODY = -1


@kernel
def act(calls, begin, end, stamp=STAMP):
    """A call has the addresses of what all look at and of the results, and the thread's number."""
    call = int_pointer(calls.ctypes.data)
    told, results, thread = int_pointer(call[0]), int_pointer(call[1]), call[2]
    atomic_add(told, INT0 + _CAME, INT0 + 1)
    while told[_CAME] < told[_MEET]:
        look_again()
    while thread == told[_WAITS] and told[_GO] == 0:
        look_again()
    if thread == told[_FAILS] or told[_FAILED_ONCE] == 1:
        if told[_FAILED_ONCE] == 0:
            told[_FAILED_ONCE] = INT0 + 1
        raise ArithmeticError("of the task")
    results[begin] = thread


class Acting:
    """So many tasks for two threads: the calling one is 0, the other 1.

    Parameters
    ----------
    tasks : int
    meet : int
        Tasks that must have been begun before any goes on.
    waits : int
        The thread that waits in its tasks for :meth:`go`.
    fails : int
        The thread that raises ArithmeticError; after that all do, unless `only_once`.
    """

    def __init__(self, tasks, meet=0, waits=NOBODY, fails=NOBODY, only_once=False):
        self._told = np.zeros(_N_FIELDS, np.int64)
        self._told[[_MEET, _WAITS, _FAILS]] = meet, waits, fails
        self._told[_FAILED_ONCE] = 2 if only_once else 0
        self.results = np.full(tasks, NOBODY)
        self._tasks = _threads.Tasks(act, list(range(tasks + 1)), 2, stride=3, n_alike=2)

    def run(self):
        addresses = address(self._told), address(self.results)
        self._tasks.run(np.array([*addresses, 0, 0, 0, 1], np.int64))

    @property
    def came(self):
        """How many tasks have been begun."""
        return int(self._told[_CAME])

    def go(self):
        self._told[_GO] = 1
