"""What a node tells in text: read back as it was, and nothing of it believed."""

import json

import pytest

from fgrpo.errors import PayloadError
from fgrpo.records import ClientData, Evaluation, Failure, Report, Score
from fgrpo.wire.answers import MOST_TEXT, from_text, to_text

REPORT = Report("a", 2, 64, 500, 0.5, 0.1, 8.0, 0.0, {"loss": 0.1}, {"train": 1.0}, heldout=Score(0.5, 0.1, 8))


def test_records_come_back():
    told = [REPORT, Evaluation("a", 2, 8, 0.5, 0.6), ClientData("a", None, 8, {}, {}), Failure("b", "it broke")]
    assert from_text(to_text(told)) == [*told[:2], ClientData("a", None, 8, {}, {}), told[3]]


def test_only_counts_of_the_data_are_taken():
    (told,) = from_text(to_text([ClientData("a", 10, 8, {"flu": 3}, {"/home/a/patients.csv": "00"}, ["a note"])]))
    assert told == ClientData("a", 10, 8, {}, {})


def one(kind, **fields):
    return json.dumps([{"type": kind, "client": "a", **fields}])


EVALUATION = {"round": 1, "prompts": 8, "accuracy": 0.5, "score": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param(to_text([REPORT])[:-9], id="cut"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(" " * (MOST_TEXT + 1), id="long"),
        pytest.param("{}", id="no-list"),
        pytest.param("[1]", id="no-record"),
        pytest.param(one("state"), id="unknown-type"),
        pytest.param(one("round", **EVALUATION), id="another-records-fields"),
        pytest.param(one("report"), id="fields-missing"),
        pytest.param(to_text([REPORT]).replace('"count": 8', '"count": 8, "more": 1'), id="score-field-too-many"),
        pytest.param(one("failure"), id="no-reason"),
        pytest.param(one("evaluation", **EVALUATION, more=1), id="field-too-many"),
        pytest.param(one("evaluation", **{**EVALUATION, "accuracy": 1.5}), id="accuracy-1.5"),
        pytest.param(one("evaluation", **{**EVALUATION, "score": float("nan")}), id="score-nan"),
        pytest.param(one("evaluation", **{**EVALUATION, "prompts": 0}), id="no-prompts"),
        pytest.param(one("evaluation", **{**EVALUATION, "round": "1"}), id="round-text"),
        pytest.param(one("data", rows=-1, held_out=8, labels={}, files={}), id="rows-negative"),
        pytest.param(one("data", rows=10**400, held_out=8, labels={}, files={}), id="rows-10^400"),
        *(
            pytest.param(json.dumps([{"type": "failure", "client": name, "reason": ""}]), id=f"name-{name!r:.9}")
            for name in ("../../etc/passwd", "", ".hidden", "a b", "x" * 65, "a\n", 7, None, ["a"], {"a": 1})
        ),
    ],
)
def test_anything_else_is_one_short_line(text):
    with pytest.raises(PayloadError, match=r"^answer: ") as error:
        from_text(text)
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_a_reason_cannot_move_the_cursor():
    (told,) = from_text(json.dumps([{"type": "failure", "client": "a", "reason": "\x1b[2J\nround 9 " + "x" * 10_000}]))
    assert told.reason.isprintable()
    assert len(told.reason) < 400
