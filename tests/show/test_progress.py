"""What a person sees while a run goes on."""

import io

import pytest
from rich.console import Console

from fgrpo.records import ClientData, Evaluation, Report, RoundSummary
from fgrpo.show import progress as progress_module
from fgrpo.show.progress import Observers, Progress, sparkline

ROUNDS, CLIENTS = 3, ("adder", "ward 7\x1b[31m\nb")


def records(number):
    """What round `number` measured; in round 2 the second client is quarantined."""
    accepted = CLIENTS[:1] if number == 2 else CLIENTS
    reports = [
        Report(c, number, 64, 640, 10**k * number / 4, 0.1, 10.0, 0.0, {"loss": 0.1}, {"rollout": 1.0})
        for k, c in enumerate(accepted)
    ]
    summary = RoundSummary(
        round=number,
        weights={c: 1 / len(accepted) for c in accepted},
        gains=dict.fromkeys(accepted, 0.0),
        quarantined={c: "payload: damaged [bold]\x1b[2J" for c in CLIENTS if c not in accepted},
        uplink_bytes=dict.fromkeys(accepted, 1500),
        dense_bytes=12000,
        update_norm=1.0,
        seconds={"clients": 2.0, "aggregate": 0.5},
    )
    return [*reports, summary]


def evaluations(number):
    return [Evaluation(c, number, 8, accuracy, accuracy) for c, accuracy in zip(CLIENTS, (0.25, 0.75), strict=True)]


def play(progress, rounds=range(1, ROUNDS + 1)):
    """Tell an observer what the federated loop tells it."""
    for record in evaluations(0):
        progress.record(record)
    for number in rounds:
        progress.stage("server", "clients")
        for client in CLIENTS:
            progress.stage(client, "rollout")
            progress.stage(client, "train")
            progress.stage(client, "done")
        progress.stage("server", "save")
        for record in [*records(number), *(evaluations(number) if number == ROUNDS else [])]:
            progress.record(record)


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=110, height=30)


@pytest.mark.parametrize("force_color", [False, True])
def test_a_log_gets_one_plain_line_per_round(capsys, monkeypatch, force_color):
    if force_color:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress(ROUNDS, CLIENTS) as progress:
        play(progress)
    name = "ward 7\\x1b[31m\\nb"
    assert capsys.readouterr().out.splitlines() == [
        "before training  accuracy 50.0%",
        "each round: seconds, bytes sent up, accuracy; each client's mean reward (weight)",
        f"round 1/3    2.5 s     3 kB up  adder 0.25 (50%)  {name} 2.5 (50%)",
        f"round 2: quarantined {name}: payload: damaged [bold]\\x1b[2J",
        "round 2/3    2.5 s   1.5 kB up  adder 0.5 (100%)",
        f"round 3/3    2.5 s     3 kB up  accuracy 50.0%  adder 0.75 (50%)  {name} 7.5 (50%)",
    ]


def test_answers_without_a_reward_are_no_accuracy(capsys):
    with Progress(ROUNDS, CLIENTS) as progress:
        for client, unscored in zip(CLIENTS, (8, 2), strict=True):
            progress.record(Evaluation(client, 0, 8, 0.0 if unscored == 8 else 0.5, 0.0, unscored=unscored))
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == "before training  accuracy 50.0%  no reward could be told for 10 of 16 answers"


def test_a_round_is_shown_as_soon_as_the_next_stage_begins(capsys):
    with Progress(ROUNDS, CLIENTS) as progress:
        play(progress, [1])
        assert "round 1/3" not in capsys.readouterr().out
        progress.stage("server", "clients")
        assert "round 1/3" in capsys.readouterr().out


def test_a_log_in_ascii_is_not_broken_by_a_name():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with Progress(ROUNDS, ["日本"], console=Console(file=file)) as progress:
        progress.record(Report("日本", 1, 1, 1, 1.0, 0.0, 1.0, 0.0, {}, {}))
        progress.record(RoundSummary(1, {"日本": 1.0}, {"日本": 0.0}, {}, {"日本": 9}, 36, 1.0, {"clients": 1.0}))
    assert b"\\u65e5\\u672c 1 (100%)" in file.buffer.getvalue()


def test_a_terminal_gets_the_live_display_and_its_cursor_back_even_after_an_error():
    console = terminal()

    def interrupted_run():
        with Progress(ROUNDS, CLIENTS, console=console) as progress:
            play(progress)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    out = console.file.getvalue()
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")  # the cursor is shown again
    assert out.count("2.5 s") == ROUNDS  # every round's line, once
    yellow = out.index("\x1b[33m")
    assert out[yellow:].startswith("\x1b[33mround 2: quarantined")
    assert "\x1b[31m\n" not in out  # a name cannot colour the terminal
    assert "\x1b[2J" not in out  # a reason cannot clear it


def test_the_live_display_says_where_the_run_is_and_how_long_it_takes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=110)
    progress = Progress(12, CLIENTS, done=9, console=console)

    def picture():
        with console.capture() as capture:
            console.print(progress)
        return capture.get()

    with progress:
        now[0] += 5  # evaluation before the first round
        progress.stage("server", "clients")
        progress.stage("adder", "rollout")
        assert "round 10 of 12" in picture()
        assert "? left" in picture()
        assert "adder: rollout, 0 of 2 done" in picture()
        now[0] += 60
        for record in records(10):
            progress.record(record)
        progress.stage("server", "clients")
        now[0] += 20
        progress.stage("adder", "encode")
        progress.stage(CLIENTS[1], "train")
        assert "adder: encode, ward 7\\x1b[31m\\nb: train, 0 of 2 done" in picture()
        progress.stage("adder", "done")
        assert "round 11 of 12" in picture()
        assert "1:25 elapsed" in picture()
        assert "1:40 left" in picture()  # two rounds of 60 s, less the 20 s that have gone by
        assert "ward 7\\x1b[31m\\nb: train, 1 of 2 done" in picture()
        for record in records(11):
            progress.record(record)
        line = next(line for line in picture().splitlines() if line.startswith("adder"))
        assert line.split() == ["adder", "2.75", "+0.25", "▁█"]


def test_of_many_clients_those_at_work_and_those_heard_last_are_shown():
    names = [f"client-{k}" for k in range(1000)]
    console = Console(file=io.StringIO(), width=110)
    with Progress(3, names, asked=20, console=console) as progress:
        progress.stage("server", "clients")
        for name in names[:20]:
            progress.record(Report(name, 1, 64, 640, 0.5, 0.1, 10.0, 0.0, {}, {}))
        weights = dict.fromkeys(names[:20], 0.05)
        progress.record(RoundSummary(1, weights, weights, {}, {}, 12000, 1.0, {"clients": 2.0}))
        progress.stage("server", "clients")
        progress.stage("client-700", "train")
        with console.capture() as capture:
            console.print(progress)
        lines = capture.get().splitlines()
    assert "client-700: train, 0 of 20 done" in lines[1]
    assert [line.split()[0] for line in lines[3:]] == ["client-700", *(f"client-{k}" for k in range(19, 4, -1))]
    assert console.file.getvalue().splitlines()[0].endswith("client-15 0.5 (5%)  and 4 more")


def test_of_many_clients_data_the_first_are_shown(capsys):
    data = [ClientData(f"c{k}", 10, 0, {}, {}, [f"client c{k}: a note"]) for k in range(1000)]
    with Progress(ROUNDS, [client.client for client in data]) as progress:
        for client in data:
            progress.record(client)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["training rows:", "  c0: 10"]
    assert [line for line in lines if "more" in line] == ["  and 984 more"] * 2
    assert len(lines) == 1 + 2 * 17


@pytest.mark.parametrize(
    ("values", "bars"),
    [((), ""), ((5.0,), "▁"), ((2.0, 2.0), "▁▁"), ((0.0, 0.5, 1.0), "▁▅█"), ((-0.03, 0.01, -0.07), "▅█▁")],
    ids=["none", "one", "equal", "rising", "negative"],
)
def test_sparkline_fills_its_height_whatever_the_scale(values, bars):
    assert sparkline(values) == bars
    assert sparkline([1000 * value for value in values]) == bars


def test_observers_tells_everyone_in_order():
    told = []

    class Listener:
        def __init__(self, name):
            self.name = name

        def stage(self, who, stage):
            told.append((self.name, who, stage))

        def record(self, record):
            told.append((self.name, record))

    both = Observers([Listener("a"), Listener("b")])
    both.stage("server", "save")
    both.record("measured")
    assert told == [("a", "server", "save"), ("b", "server", "save"), ("a", "measured"), ("b", "measured")]
