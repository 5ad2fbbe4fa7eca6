"""The threads of the kernels: every item is done once, nobody waits for a late helper for long."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from whiflash_engine.kernels import build as building

_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long, ctypes.c_int)
Together = Callable[[Callable[[int, int], None], int, int], None]


@pytest.fixture(scope="module")
def together() -> Together:
    """A team for these tests: work(item, thread), items, threads."""
    library = building.build([Path(building.__file__).with_name("team.c")])
    if library is None:
        pytest.skip("there is no C compiler, or another processor")

    def call(work: Callable[[int, int], None], items: int, threads: int) -> None:
        each = _WORK(lambda what, item, thread: work(item, thread))
        library.together(each, None, ctypes.c_long(items), ctypes.c_int(threads))

    return call


def _until(call: Callable[[], None], found: Callable[[], bool]) -> bool:
    """A helper may be spared for some time, if the machine has others to serve."""
    end = time.perf_counter() + 60
    while not found() and time.perf_counter() < end:
        call()
    return found()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("items", [0, 1, 2, 7, 100])
def test_every_item_is_done_once(items: int, threads: int, together: Together) -> None:
    done = Counter[int]()
    for _ in range(20):
        together(lambda item, _: done.update([item]), items, threads)
    assert done == dict.fromkeys(range(items), 20)


def test_threads_that_work_at_the_same_time_have_numbers_of_their_own(together: Together) -> None:
    busy, seen = Counter[int](), set[int]()

    def work(item: int, thread: int) -> None:
        busy[thread] += 1
        assert busy[thread] == 1
        seen.add(thread)
        time.sleep(0.002)
        busy[thread] -= 1

    assert _until(lambda: together(work, 12, 3), lambda: seen == {0, 1, 2})


def test_fewer_threads_than_there_are_helpers(together: Together) -> None:
    together(lambda item, thread: time.sleep(0.001), 20, 4)
    seen = set[int]()

    def work(item: int, thread: int) -> None:
        seen.add(thread)
        time.sleep(0.001)

    assert _until(lambda: together(work, 20, 2), lambda: 1 in seen) and seen == {0, 1}


def test_callers_at_the_same_time_do_not_get_into_each_others_way(together: Together) -> None:
    done: dict[int, list[int]] = {caller: [] for caller in range(4)}

    def call(caller: int) -> None:
        for _ in range(30):
            together(lambda item, _: done[caller].append(item), 9, 2)

    callers = [threading.Thread(target=call, args=(caller,)) for caller in done]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert all(Counter(items) == dict.fromkeys(range(9), 30) for items in done.values())


def test_a_helper_that_is_always_late_is_left_alone_and_tried_again(together: Together) -> None:
    calls: list[set[int]] = []

    def work(item: int, thread: int) -> None:
        calls[-1].add(thread)
        time.sleep(0.05 if thread else 0.0005)

    def helped(seconds: float) -> list[bool]:
        calls.clear()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            calls.append(set())
            together(work, 4, 2)
        return [1 in seen for seen in calls]

    assert any(any(helped(0.3)) for _ in range(100))
    late = helped(3.0)
    assert 1 <= sum(late) < len(late) / 10  # a trial now and then


def test_of_many_helpers_only_those_too_many_are_spared(together: Together) -> None:
    """On a machine of four processors, one of them wanted by another program."""
    seen = Counter[int]()

    def work(item: int, thread: int) -> None:
        seen[thread] += 1
        time.sleep(0.05 if thread == 3 else 0.0005)

    end = time.perf_counter() + 1.5
    while time.perf_counter() < end:
        together(work, 8, 4)
    assert min(seen[1], seen[2]) > 10 * seen[3]


def test_help_is_taken_again_for_good_when_it_is_in_time(together: Together) -> None:
    late, seen = True, Counter[int]()

    def work(item: int, thread: int) -> None:
        seen[thread] += 1
        time.sleep(0.05 if thread and late else 0.0005)

    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        together(work, 4, 2)
    late = False
    seen.clear()
    assert _until(lambda: together(work, 4, 2), lambda: seen[1] >= 5)
