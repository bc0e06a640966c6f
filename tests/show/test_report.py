"""What a run leaves for a person to read: tables, pictures, one page."""

import io
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

from fgrpo.errors import RunError
from fgrpo.records import ClientData, Evaluation, Report, RoundSummary, Sample, ServerState
from fgrpo.run_folder import RunFolder
from fgrpo.show.pictures import pictures
from fgrpo.show.plots import write_plots
from fgrpo.show.report import write_report
from fgrpo.show.summary import RunSummary
from fgrpo.show.tables import TextTable, client_table, data_table, quarantine_table, stage_table, uplink_table
from fgrpo.show.terminal import print_evaluations, print_payload, print_summary, print_tables
from fgrpo.show.text import byte_size, ratio, seconds
from fgrpo.wire.payload import Header
from fgrpo_kernels.codec import encode

CLIENTS = (
    "adder",
    "a$b_{c}^$ & <b>bold</b> [red]",
    "日本\x1b[31m\nx",
    "the-hospital-in-the-far-north-west-of-the-country",
)
SCALES = (0.1, 0.5, 2.0, 10.0)
PAYLOAD_BYTES, DENSE_BYTES = 1500, 12000
CONFIG = "model: tiny  # <script>alert(1)</script>\nrounds: 4\n"


def evaluations(number, clients, sampled=False):
    right = number > 0
    samples = (Sample("1 + <i>1</i> =", "2", "2" if right else "3", float(right), right),) if sampled else ()
    return [Evaluation(c, number, 64, 0.1 + 0.1 * k + 0.15 * number, 0.5, samples) for k, c in enumerate(clients)]


def records(number, clients, quarantined=()):
    """Round `number`: client k's reward is SCALES[k] * number / 10, and everyone's weight is the same."""
    accepted = [client for client in clients if client not in quarantined]
    stages = {"rollout": 2.0, "reward": 0.0, "train": 1.0, "encode": 0.1}
    reports = [
        Report(c, number, 64, 640, SCALES[clients.index(c) % 4] * number / 10, 0.1, 10.0, 0.0, {"loss": 0.1}, stages)
        for c in accepted
    ]
    summary = RoundSummary(
        round=number,
        weights={client: 1 / len(accepted) for client in accepted},
        gains=dict.fromkeys(accepted, 0.0),
        quarantined=dict.fromkeys(quarantined, "report: <i>reward_mean</i> is nan"),
        uplink_bytes=dict.fromkeys(accepted, PAYLOAD_BYTES),
        dense_bytes=DENSE_BYTES,
        update_norm=1.0,
        seconds={"clients": 3.1 * len(accepted), "validate": 0.1, "aggregate": 0.2, "server_step": 0.1},
        ended=f"2026-11-28T09:0{number}:30+00:00",
    )
    return [*reports, summary]


def make_run(path, clients, rounds, quarantined=None, evaluated=(0,), sampled=False):
    folder = RunFolder.create(path, CONFIG)
    state = ServerState.initial(torch.zeros(3))
    for number in range(rounds + 1):
        measured = records(number, clients, (quarantined or {}).get(number, ())) if number else []
        if number in evaluated:
            measured += evaluations(number, clients, sampled)
        folder.commit(replace(state, round=number), measured, {})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four clients over scales of 0.1 to 10, two of them quarantined once, evaluated in some of four rounds."""
    quarantined = {2: (CLIENTS[1],), 4: (CLIENTS[2],)}
    return make_run(tmp_path_factory.mktemp("runs") / "run", CLIENTS, 4, quarantined, evaluated=(0, 2, 4), sampled=True)


@pytest.fixture(scope="module")
def page(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib only warns when a layout collapses
        return write_report(run)


def test_client_table_says_what_each_client_gained_and_how_it_counted(run):
    table = client_table(RunSummary.of(run.records()))
    assert table.rows == (
        (CLIENTS[0], "10.0%", "70.0%", "+60.0", "0.01", "0.04", "33.3%", "29.2%", "0"),
        (CLIENTS[1], "20.0%", "80.0%", "+60.0", "0.05", "0.2", "33.3%", "20.8%", "1"),
        (CLIENTS[2], "30.0%", "90.0%", "+60.0", "0.2", "0.6", "0.0%", "20.8%", "1"),
        (CLIENTS[3], "40.0%", "100.0%", "+60.0", "1", "4", "33.3%", "29.2%", "0"),
    )
    assert table.footer[:4] == ("mean", "25.0%", "85.0%", "+60.0")


def test_data_table_of_many_clients_shows_those_heard_most_often():
    data = [ClientData(f"c{k}", 10, 0, {}, {}, [f"client c{k}: a note"]) for k in range(100)]
    table = data_table(RunSummary.of([*data, *records(1, ["c97", "c98", "c99"])]))
    assert [row[0] for row in table.rows] == ["c97", "c98", "c99", "and 97 more"]
    assert table.note.startswith("client c0: a note; ")
    assert table.note.endswith("; and 76 more")


def test_a_label_that_is_the_clients_own_name_is_not_repeated():
    own = [ClientData("hill", 62, 8, {"hill": 62}, {}), ClientData("moor", 4, 8, {"moor": 4}, {})]
    heard = records(1, ["hill", "moor"])
    assert "labels" not in data_table(RunSummary.of([*own, *heard])).columns
    titles = [picture.title for picture in pictures(RunSummary.of([*own, *heard]))[0]]
    assert "Training rows" in titles
    assert "Training rows by label" not in titles
    mixed = [own[0], ClientData("moor", 4, 8, {"moor": 3, "hill": 1}, {})]
    table = data_table(RunSummary.of([*mixed, *heard]))
    assert [row[-1] for row in table.rows] == ["", "moor 3, hill 1"]


def test_the_page_says_what_accuracy_is(page):
    text = " ".join(read(page).text.split())
    assert "+60.0 points, of answers given exactly 1" in text
    assert "accuracy: share of the held-out answers that the first reward function gives exactly 1;" in text


def test_markup_in_titles_and_columns_is_text():
    console = Console(file=io.StringIO(), width=80)
    rows = (("[/red]", "1"),)
    print_tables([TextTable("[/b] a\x1b", ("arm", "[/x] [red]y"), rows, note="[bold]n\n")], console)
    shown = console.file.getvalue()
    assert all(text in shown for text in ("[/b] a\\x1b", "[/x] [red]y", "[/red]", "[bold]n\\n"))


def test_uplink_table_counts_the_accepted_payloads_only(run):
    assert uplink_table(RunSummary.of(run.records())).rows == (
        ("a round, on average", "5.25 kB", "42 kB", "1/8.0"),
        ("the whole run", "21 kB", "168 kB", "1/8.0"),
    )


def test_stage_table_adds_up_clients_and_leaves_waiting_for_them_out(run):
    table = stage_table(RunSummary.of(run.records()))
    assert [row[0] for row in table.rows] == [
        *("rollout", "reward", "train", "encode"),
        *("validate", "aggregate", "server_step"),
    ]
    assert table.rows[0] == ("rollout", "7 s", "28 s", "62.2%")  # 14 replies of 2 s in 4 rounds
    assert table.footer == ("wall clock", "11.2 s", "45 s", "")


def test_quarantine_table_has_every_unused_reply(run):
    rows = quarantine_table(RunSummary.of(run.records())).rows
    assert [row[:2] for row in rows] == [(CLIENTS[1], "2"), (CLIENTS[2], "4")]


def test_tables_of_a_run_that_was_never_evaluated_after_its_start(tmp_path):
    summary = RunSummary.of(make_run(tmp_path / "run", CLIENTS[:2], 1).records())
    assert [row[1:4] for row in client_table(summary).rows] == [("10.0%", "-", "-"), ("20.0%", "-", "-")]
    assert client_table(summary).footer == ()
    assert summary.mean_accuracy() is None


def test_printed_tables_fit_a_narrow_terminal_and_obey_no_control_characters(run):
    console = Console(file=io.StringIO(), width=80)
    print_summary(run.records(), console)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "Learning: held-out accuracy rose."
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    assert any(line.split()[:4] == ["mean", "25.0%", "85.0%", "+60.0"] for line in lines)


def test_printed_evaluations_end_with_their_mean():
    console = Console(file=io.StringIO(), width=80)
    print_evaluations(evaluations(2, CLIENTS), console)
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert ["adder", "64", "40.0%", "0.5"] in lines
    assert lines[-1] == ["mean", "of", "clients", "55.0%", "0.5"]


def test_samples_are_printed_below_their_evaluations():
    console = Console(file=io.StringIO(), width=80)
    samples = (Sample("1 + 1 =\nNow", "2", "two\x1b[31m", 0.5, False), Sample("write", "", "a poem", 1.0, True))
    print_evaluations([Evaluation("adder", 0, 8, 0.5, 0.6, samples)], console)
    *_, first, answered, right, second, poem = console.file.getvalue().splitlines()
    assert [first, answered, right] == ["adder: 1 + 1 =\\nNow", "  answered, 0.5: two\\x1b[31m", "  right: 2"]
    assert [second, poem] == ["adder: write", "  answered, 1: a poem"]


def test_printed_payload_names_its_owner_and_size():
    console = Console(file=io.StringIO(), width=80)
    print_payload(Header("adder", 3, "manifest-hash", "base-hash"), encode(torch.ones(64)), 100, console)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["client", "adder"] in rows
    assert ["parameters", "64"] in rows
    assert ["bytes", "100", "(1/2.5", "of", "float32)"] in rows


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (ratio(100, 750), "1/7.5"),
        (ratio(100, 699), "1/6.9"),  # cut: 1/7 is not reached
        (ratio(0, 10), "-"),
        (byte_size(999), "999 B"),
        (byte_size(999_900), "1 MB"),
        (byte_size(2_480_492), "2.48 MB"),
        (seconds(0.0042), "4.2 ms"),
        (seconds(75), "75 s"),
        (seconds(150), "2.5 min"),
    ],
)
def test_numbers_are_written_for_people(shown, expected):
    assert shown == expected


class Page(HTMLParser):
    """Collects the tags, the addresses, the drawings and the text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.text, self.title, self.labels = set(), [], "", "", []
        self._at = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._at = tag
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href")]
        self.labels += [value for name, value in attrs if name == "aria-label"]

    def handle_data(self, data):
        self.text += data
        if self._at == "title" and not self.title:
            self.title = data


def read(page):
    return Page(page.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(page):
    html = read(page)
    assert html.addresses == []
    assert "url(" not in page.read_text(encoding="utf-8")
    assert "svg" in html.tags


def test_pictures_are_files_too(page):
    names = ("accuracy", "accuracy_by_round", "reward", "weights", "bytes", "time")
    assert {file.name for file in page.parent.glob("*.png")} == {f"{name}.png" for name in names}


def test_title_and_first_lines_tell_the_run_from_another(page):
    html = read(page)
    said = ("model tiny", "rule agreement", "codec int4, block 64", "seed 0", "date 2026-11-28 09:01 UTC")
    assert html.title == f"FGRPO run run: {', '.join(said)}"
    first = " ".join(html.text.partition(html.title)[2].split("Learning")[0].split())
    assert first.endswith(" · ".join(said))


def test_the_verdict_comes_before_any_number_of_the_run(page):
    text = read(page).text
    assert text.index("Learning: held-out accuracy rose.") < text.index("replies quarantined")


def test_what_changes_is_drawn_and_what_does_not_is_said(page):
    html = read(page)
    assert "adder: 10.0% → 70.0% (+60.0)" in html.labels
    assert "adder: 0.01 → 0.04" in html.labels
    assert any(label.startswith("equal groups") for label in html.labels) is False
    said = " ".join(html.text.split())
    assert "Constant, and so not drawn: equal groups 0.0%; completion tokens 10; server's step 1." in said


def test_the_page_shows_names_reasons_and_configuration_as_text(page):
    html = read(page)
    assert not html.tags & {"script", "b", "i", "link", "iframe", "img"}
    assert CONFIG in html.text
    assert CLIENTS[1] in html.text
    assert "日本\\x1b[31m\\nx" in html.text
    assert "report: <i>reward_mean</i> is nan" in html.text
    assert "25.0% → 85.0%" in html.text


def test_the_page_says_what_a_resumed_run_changed(tmp_path):
    folder = make_run(tmp_path / "run", ("solo",), 1)
    folder.reopen(CONFIG, {"train.lr": (1e-5, 1e-4)})
    assert "from round 2 on: train.lr 1e-05 -> 0.0001" in read(write_report(folder)).text


def test_samples_show_the_same_prompt_before_and_after(page):
    text = " ".join(read(page).text.split())
    assert "prompt1 + <i>1</i> = reference2 before3 ✗ 0 after round 42 ✓ 1" in text


def test_without_samples_the_page_says_how_to_keep_some(tmp_path):
    page = write_report(make_run(tmp_path / "run", ("solo",), 1))
    assert "None were kept: --evaluation.samples 2, say, keeps two" in read(page).text


def test_a_report_of_one_round_is_written_over_an_older_one(tmp_path):
    folder = make_run(tmp_path / "run", ("solo",), 1)
    (folder.path / "report").mkdir()
    (folder.path / "report/index.html").write_text("an older one")
    page = write_report(folder)
    assert page == folder.path / "report/index.html"
    assert "reward and weight, 1 round<" in page.read_text(encoding="utf-8")


def test_pictures_of_one_client_and_of_many(tmp_path):
    for clients in (["solo"], [f"client-{k}" for k in range(14)]):
        summary = RunSummary.of([*evaluations(0, clients), *records(1, clients), *evaluations(1, clients)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            paths = write_plots(summary, tmp_path)
        assert list(paths) == ["accuracy", "time"], "of one round no curve"


def test_a_picture_of_many_clients_has_a_panel_for_each_that_changes():
    clients = [f"client-{k}" for k in range(24)]
    summary = RunSummary.of([record for n in range(1, 4) for record in records(n, clients, clients[:1] * (n == 2))])
    drawn, constants = pictures(summary)
    panels = {picture.title: [panel.name for panel in picture.panels] for picture in drawn}
    assert panels["Mean reward, each client in its own scale"] == clients
    assert 'class="cross"' in drawn[0].panels[0].svg
    assert 'class="cross"' not in drawn[0].panels[1].svg
    assert constants == ["equal groups 0.0%", "completion tokens 10", "server's step 1"]


def test_label_counts_are_bars_of_one_scale():
    labels = ({"a": 6, "b": 2}, {"b": 2}, {f"rare-{k}": 1 for k in range(12)})
    data = [ClientData(f"ward {k}", sum(of.values()), 4, of, {}) for k, of in enumerate(labels)]
    summary = RunSummary.of([*data, *records(1, [d.client for d in data])])
    (picture,) = (picture for picture in pictures(summary)[0] if picture.title == "Training rows by label")
    assert [panel.note for panel in picture.panels] == ["8", "2", "12"]
    assert [text for _, text in picture.legend][-1] == "others"
    assert "M0.00 4.00h50.00v32.00" in picture.panels[0].svg, "6 of the longest bar's 12"
    assert "M50.00 4.00h16.67v32.00" in picture.panels[0].svg


def test_a_client_that_never_gave_a_usable_reply_has_its_place(tmp_path):
    summary = RunSummary.of([*records(1, CLIENTS, CLIENTS[:1]), *records(2, CLIENTS, CLIENTS[:1])])
    row = next(row for row in client_table(summary).rows if row[0] == CLIENTS[0])
    assert row[1:] == ("-", "-", "-", "-", "-", "0.0%", "0.0%", "2")
    assert list(write_plots(summary, tmp_path)) == ["reward", "time"], "the others are constant"


@pytest.mark.parametrize("rounds", [None, 0], ids=["nothing", "only the start"])
def test_a_run_without_a_whole_round_is_a_clear_error(tmp_path, rounds):
    path = tmp_path / "run"
    folder = RunFolder.create(path, CONFIG) if rounds is None else make_run(path, CLIENTS, rounds)
    with pytest.raises(RunError, match=r"run: no round is complete yet, so there is nothing to report$"):
        write_report(folder)
    assert not (path / "report").exists()


def test_a_report_that_cannot_be_written_is_a_clear_error(tmp_path):
    folder = make_run(tmp_path / "run", ("solo",), 1)
    (folder.path / "report").write_text("in the way")
    with pytest.raises(RunError, match="the page cannot be written"):
        write_report(folder)
