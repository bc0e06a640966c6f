"""Ctrl-C that waits for the end of a block."""

import signal
import threading

import pytest

from fgrpo.interrupts import held_back


@pytest.fixture(autouse=True)
def handler():
    """Python's own handler, before and after."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def interrupt():
    signal.raise_signal(signal.SIGINT)


def interrupted(times, then):
    with held_back():
        for _ in range(times):
            interrupt()
        then()


def test_an_interrupt_comes_after_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, then=lambda: done.append("the rest"))
    assert done == ["the rest"]


def test_the_second_one_comes_at_once():
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, then=lambda: done.append("the rest"))
    assert not done


def test_an_error_in_the_block_does_not_lose_it():
    def fail():
        raise ValueError("of the block")

    with pytest.raises(KeyboardInterrupt) as raised:
        interrupted(1, then=fail)
    assert isinstance(raised.value.__context__, ValueError)


def test_without_an_interrupt_nothing_happens():
    with pytest.raises(ValueError, match="of the block"), held_back():
        raise ValueError("of the block")


def test_who_ignores_interrupts_still_does():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_back():
        interrupt()
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN


def test_another_thread_is_left_alone():
    seen = []

    def in_thread():
        with held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
