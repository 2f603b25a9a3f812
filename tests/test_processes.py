"""Many Python threads, fork, process pools and the end of the interpreter, each in a subprocess."""

import multiprocessing
import os
import sys

import pytest
from helpers import run_python

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
# Since Python 3.12 a fork in a process with threads warns; that it works here is what is tested.
ALLOW_FORK = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
THREADS = {"FASTGATES_NUM_THREADS": "3"}


def run_quietly(code, **options):
    """Run code and expect no word on stderr."""
    result = run_python(code, env=THREADS, **options)
    assert result.stderr == ""
    assert result.stdout.strip() == "done"


@pytest.mark.parametrize("threads", ["1", "3"])
def test_many_python_threads_at_once(threads):
    """First calls included: nothing is warmed up before the threads start."""
    code = """
        import threading
        import fastgates as fg
        import process_jobs

        fg.set_num_threads(int(__import__("sys").argv[1]))
        problems = process_jobs.problems()
        found, errors = [], []
        barrier = threading.Barrier(8)

        def work():
            try:
                barrier.wait()
                for _ in range(5):
                    found.append(process_jobs.results(problems))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert len(found) == 40
        fg.set_num_threads(1)
        expected = process_jobs.results(problems)
        for results in found:
            process_jobs.check(results, expected)
        print("done")
    """
    result = run_python(code, threads)
    assert result.stderr == ""
    assert result.stdout.strip() == "done"


def test_a_hundred_python_threads_at_once():
    run_quietly("""
        import threading
        import numpy as np
        import fastgates as fg
        import process_jobs

        layer = fg.GRU(3, 5, seed=0)
        x = np.random.default_rng(0).standard_normal((8, 6, 3)).astype(np.float32)

        def compute():
            output, _, tape = layer.forward(x)
            return output, layer.backward(tape, output).parameter_vector

        expected = compute()
        found, errors = [], []
        barrier = threading.Barrier(100)

        def work():
            try:
                barrier.wait()
                for _ in range(3):
                    found.append(compute())
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert len(found) == 300
        for results in found:
            for actual, wanted in zip(results, expected, strict=True):
                assert np.array_equal(actual, wanted)
        print("done")
    """)


def test_idle_workers_use_no_processor_time():
    run_quietly("""
        import threading
        import time
        import process_jobs

        process_jobs.results()
        assert any(thread.name.startswith("fastgates") for thread in threading.enumerate())
        before = time.process_time()
        time.sleep(0.5)
        used = time.process_time() - before
        assert used < 0.02, used
        print("done")
    """)


@pytest.mark.parametrize("where", ["worker", "caller"])
def test_an_exception_reaches_the_caller(where):
    """And the pool goes on working."""
    code = """
        import sys
        from shared_tasks import Acting

        thread = ["caller", "worker"].index(sys.argv[1])
        for _ in range(3):
            try:
                Acting(2, meet=2, fails=thread).run()
            except ArithmeticError as error:
                assert str(error) == "of the task"
            else:
                raise AssertionError("no exception")
        acting = Acting(10)
        acting.run()
        assert (acting.results >= 0).all()
        print("done")
    """
    result = run_python(code, where, env=THREADS)
    assert result.stderr == ""
    assert result.stdout.strip() == "done"


def test_an_exception_of_a_worker_alone_reaches_the_caller_too():
    run_quietly("""
        from shared_tasks import Acting

        try:
            Acting(2, meet=2, fails=1, only_once=True).run()
        except RuntimeError as error:
            assert str(error) == "act failed in a thread"
        else:
            raise AssertionError("no exception")
        print("done")
    """)


def test_a_slow_worker_is_waited_for_without_processor_time():
    """Long after the calling thread has done all else and stopped looking out for it."""
    run_quietly("""
        import threading
        import time
        from shared_tasks import Acting

        Acting(2, meet=2).run()
        acting = Acting(8, meet=2, waits=1)
        timer = threading.Timer(0.5, acting.go)
        timer.start()
        began, used = time.perf_counter(), time.thread_time()
        acting.run()
        seconds, used = time.perf_counter() - began, time.thread_time() - used
        assert seconds > 0.3, seconds
        assert used < 0.1, used
        assert list(acting.results) == [0, 0, 0, 0, 1, 0, 0, 0]  # it began its own share
        print("done")
    """)


def test_an_interrupt_waits_for_the_workers():
    """Others work on the caller's arrays, which would be gone."""
    run_quietly("""
        import _thread
        import threading
        import time
        from shared_tasks import Acting

        Acting(2, meet=2).run()
        acting = Acting(2, meet=2, waits=1)
        interrupted = []

        def interrupt_twice_then_go():
            while acting.came < 2:
                time.sleep(0.01)
            for _ in range(2):
                time.sleep(0.1)
                _thread.interrupt_main()
                interrupted.append(sorted(acting.results))
            time.sleep(0.1)
            acting.go()

        thread = threading.Thread(target=interrupt_twice_then_go)
        thread.start()
        try:
            acting.run()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("no interrupt")
        assert sorted(acting.results) == [0, 1]
        assert interrupted == [[-1, 0], [-1, 0]]
        thread.join()
        acting = Acting(2, meet=2)
        acting.run()
        assert sorted(acting.results) == [0, 1]
        print("done")
    """)


def test_a_busy_worker_takes_no_part_in_other_work():
    run_quietly("""
        import threading
        import time
        from shared_tasks import Acting

        busy = Acting(2, meet=2, waits=1)
        thread = threading.Thread(target=busy.run)
        thread.start()
        while busy.came < 2:
            time.sleep(0.01)
        other = Acting(5)
        for _ in range(3):
            other.run()
            assert list(other.results) == [0] * 5
        busy.go()
        thread.join()
        assert sorted(busy.results) == [0, 1]
        again = Acting(2, meet=2)  # both threads or none
        again.run()
        assert sorted(again.results) == [0, 1]
        print("done")
    """)


def test_number_of_threads_changes_while_others_compute():
    run_quietly("""
        import threading
        import fastgates as fg
        import process_jobs

        problems = process_jobs.problems()
        expected = process_jobs.results(problems)
        found, errors = [], []

        def work():
            try:
                for _ in range(15):
                    found.append(process_jobs.results(problems))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        count = 0
        while any(thread.is_alive() for thread in threads):
            count += 1
            fg.set_num_threads(1 + count % 4)
        assert not errors, errors
        for results in found:
            process_jobs.check(results, expected)
        print("done")
    """)


@needs_fork
def test_child_of_a_fork():
    """The pool's threads are gone in the child; it computes all the same, and so does its child."""
    run_quietly(
        ALLOW_FORK
        + """
import os
import sys
import process_jobs

expected = process_jobs.results()

def fork(depth):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            process_jobs.check(process_jobs.results(), expected)
            if depth:
                fork(depth - 1)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

for _ in range(5):
    fork(1)
process_jobs.check(process_jobs.results(), expected)
print("done")
"""
    )


@needs_fork
def test_fork_while_another_thread_computes():
    run_quietly(
        ALLOW_FORK
        + """
import os
import threading
import process_jobs

problems = process_jobs.problems()
expected = process_jobs.results(problems)
stop = threading.Event()

def work():
    while not stop.is_set():
        process_jobs.results(problems)

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            process_jobs.check(process_jobs.results(), expected)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
for thread in threads:
    thread.join()
print("done")
"""
    )


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_process_pools(method):
    """Parent with a running pool of threads; workers with other numbers of threads."""
    code = (
        ALLOW_FORK
        + f"""
import multiprocessing
import process_jobs

expected = process_jobs.digest()
with multiprocessing.get_context("{method}").Pool(2) as pool:
    assert pool.map(process_jobs.digest, range(4)) == [expected] * 4
    assert pool.map(process_jobs.digest_with_threads, [1, 2, 3]) == [expected] * 3
assert process_jobs.digest() == expected
print("done")
"""
    )
    run_quietly(code)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_layers_cross_processes(method):
    """A layer sent to a worker is the same layer there."""
    code = (
        ALLOW_FORK
        + f"""
import functools
import multiprocessing
import operator
import numpy as np
import fastgates as fg

layer = fg.GRU(3, 40, num_layers=2, seed=1)
x = np.random.default_rng(0).standard_normal((6, 20, 3))
expected, _ = layer(x)
with multiprocessing.get_context("{method}").Pool(2) as pool:
    for output, _ in pool.map(layer, [x, x, x]):
        assert np.array_equal(output, expected)
print("done")
"""
    )
    run_quietly(code)


def test_clean_exit():
    run_quietly("""
        import process_jobs

        process_jobs.results()
        print("done")
    """)


def test_clean_exit_with_a_daemon_thread_at_work():
    run_quietly("""
        import threading
        import process_jobs

        problems = process_jobs.problems()
        process_jobs.results(problems)
        started = threading.Event()

        def work():
            while True:
                process_jobs.results(problems)
                started.set()

        threading.Thread(target=work, daemon=True).start()
        started.wait()
        print("done")
    """)


def test_work_after_the_main_thread_is_done():
    """Other threads, and functions registered with atexit, run on after the last line."""
    run_quietly("""
        import atexit
        import threading
        import process_jobs

        problems = process_jobs.problems()
        expected = process_jobs.results(problems)
        main = threading.main_thread()

        def work():
            main.join()
            for _ in range(3):
                process_jobs.check(process_jobs.results(problems), expected)
            print("done")

        atexit.register(lambda: process_jobs.check(process_jobs.results(problems), expected))
        threading.Thread(target=work).start()
    """)


def test_number_of_threads_comes_from_the_environment():
    code = "import fastgates as fg; print(fg.get_num_threads())"
    for threads in ("1", "2", "5"):
        result = run_python(code, env={"FASTGATES_NUM_THREADS": threads})
        assert result.stdout.strip() == threads
    default = int(run_python(code, env={"FASTGATES_NUM_THREADS": None}).stdout)
    assert 1 <= default <= (os.cpu_count() or 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CPU affinity is Linux's")
def test_default_number_of_threads_follows_the_affinity():
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{cpu}])\n" + (
        "import fastgates as fg; print(fg.get_num_threads())"
    )
    assert run_python(code, env={"FASTGATES_NUM_THREADS": None}).stdout.strip() == "1"


def test_sleeping_workers_are_woken_for_large_work_or_busy_times():
    run_quietly("""
        import time
        from fastgates import _threads

        threads_for = _threads.threads_for
        small, middle, large = 1_000_000, 10_000_000, 100_000_000
        assert [threads_for(work) for work in (small, small, middle, small)] == [1, 1, 1, 1]
        assert threads_for(large) == 3
        for _ in range(10):  # a step of training now and then
            time.sleep(0.01)
            assert [threads_for(middle), threads_for(middle)] == [1, 1]
        end = time.perf_counter() + 0.05
        while time.perf_counter() < end:  # one after the other
            threads = threads_for(middle)
        assert threads == 3
        time.sleep(0.01)
        assert threads_for(middle) == 1
        _threads.set_num_threads(1)
        assert threads_for(large) == 1
        print("done")
    """)
