"""What takes long to load says so at once, and again and again until something else speaks."""

import time

from fgrpo.show import loading
from fgrpo.show.loading import Loading


def lines_after(capsys, count):
    """What was printed, as soon as it is so many lines."""
    output, deadline = "", time.monotonic() + 20
    while output.count("\n") < count:
        assert time.monotonic() < deadline, output
        output += capsys.readouterr().out
        time.sleep(0.01)
    return output.splitlines()


def test_it_speaks_until_something_else_does(capsys, monkeypatch):
    monkeypatch.setattr(loading, "_EVERY", 0.01)
    with Loading("model tiny") as waiting:
        first, *others = lines_after(capsys, 3)
        assert first == "loading model tiny ..."
        assert all(line == "  0 s" for line in others)
        assert waiting.until(max)(1, 2) == 2
        time.sleep(0.05)  # one line may have been on its way
        capsys.readouterr()
        time.sleep(0.05)
        assert capsys.readouterr().out == ""


def test_it_is_silent_after_an_error(capsys, monkeypatch):
    monkeypatch.setattr(loading, "_EVERY", 0.01)
    try:
        with Loading("run"):
            raise ValueError
    except ValueError:
        time.sleep(0.05)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().out == ""
