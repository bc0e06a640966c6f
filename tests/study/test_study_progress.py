"""What a study says while it is played."""

import io

from rich.console import Console

from fgrpo.study.agenda import Agenda
from fgrpo.study.plan import pairs
from fgrpo.study.progress import StudyProgress


def test_the_time_left_follows_from_the_turns_that_are_over(study):
    now, output = [100.0], io.StringIO()
    agenda = Agenda(study("seeds: 2"), pairs(study("seeds: 2")), lambda cell: None)  # 4 cells of 2 turns
    progress = StudyProgress(agenda, lambda cell: "71%", Console(file=output, width=120), lambda: now[0])
    with progress:
        first, second = agenda.take(), agenda.take()
        progress.begun(first)
        progress.begun(second)
        assert progress.left() is None
        now[0] += 30
        progress.advanced(first, 2)
        progress.ended(first, None)
        assert progress.left() == 90, "2 of 8 turns in 30 s"
        progress.advanced(second, 1)
        progress.ended(second, "no [b]luck\x1b")
        assert progress.left() == 40, "3 turns in 30 s; 4 are left, as what failed is not played again"
    *begun, first_line, second_line = output.getvalue().splitlines()
    assert begun == ["  small / fedavg / seed 0: begun", "  small / <b>fgrpo</b> / seed 0: begun"]
    assert first_line == "1/4  small / fedavg / seed 0  71%  30 s  about 90 s left"
    assert second_line == r"2/4  small / <b>fgrpo</b> / seed 0: failed: no [b]luck\x1b"


def test_a_pipe_hears_of_what_is_played_but_not_all_the_time(study):
    now, output = [0.0], io.StringIO()
    small = study("rounds: 6")
    agenda = Agenda(small, pairs(small), lambda cell: None)  # 2 cells of 12 turns
    with StudyProgress(agenda, lambda cell: "71%", Console(file=output, width=120), lambda: now[0]) as progress:
        cell = agenda.take()
        progress.begun(cell)
        for _ in range(6):
            now[0] += 3
            progress.advanced(cell, 2)
        progress.ended(cell, None)
        progress.begun(agenda.take())
    assert output.getvalue().splitlines() == [
        "  small / fedavg / seed 0: begun",
        "  small / fedavg / seed 0: 4 of 12 clients' turns, about 30 s left",
        "  small / fedavg / seed 0: 8 of 12 clients' turns, about 24 s left",
        "1/2  small / fedavg / seed 0  71%  18 s  about 18 s left",
    ]
