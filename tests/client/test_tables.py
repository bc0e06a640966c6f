"""Datasets arrive as they were written, and what cannot be a prompt or an answer is refused with its place."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fgrpo.client.tasks import make_task
from fgrpo.client.tasks.tables import load_table
from fgrpo.config import TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.records import Chat

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]


@pytest.fixture
def write(tmp_path):
    def to_file(name, content):
        file = tmp_path / name
        if name.endswith(".parquet"):
            pq.write_table(content if isinstance(content, pa.Table) else pa.Table.from_pylist(content), file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return TaskConfig(dataset=str(file))

    return to_file


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def test_csv_cells_stay_as_written(write):
    text = '\ufeffprompt,answer,x\n001,NA,1\n 1.50 ,1e5,\n\n"a, ""b""\nc",null,3\n'
    table = load_table(write("rows.csv", text))
    assert list(table.prompts) == ["001", " 1.50 ", 'a, "b"\nc']
    assert list(table.answers) == ["NA", "1e5", "null"]
    assert table.rows[1]["x"] == ""


@pytest.mark.parametrize("form", ["lines", "list", "indented"])
def test_json_numbers_and_dates_stay_as_written(write, form):
    rows = [f'{{"prompt": "2024-05-01", "answer": {a}}}' for a in ("1.50", "100000000000000000000000", '"007"', "-0")]
    text = {
        "lines": "\n".join(rows) + "\n\n",
        "list": f"[{','.join(rows)}]",
        "indented": "\n".join(rows).replace(",", ",\n"),
    }
    table = load_table(write("rows.jsonl", text[form]))
    assert list(table.prompts) == ["2024-05-01"] * 4
    assert list(table.answers) == ["1.50", "100000000000000000000000", "007", "-0"]
    assert table.rows[0]["answer"] == 1.5


def test_typed_columns_become_their_shortest_text(write):
    columns = {"a": pa.array([0.1], pa.float32()), "b": [3], "c": [Decimal("1E+3")], "d": [2.5]}
    for name, text in {"a": "0.1", "b": "3", "c": "1000", "d": "2.5"}.items():
        config = write("rows.parquet", pa.table({"prompt": ["q"], "answer": columns[name]}))
        assert list(load_table(config).answers) == [text]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_chat_messages_are_kept_as_messages(write, name):
    rows = [{"prompt": CHAT, "answer": "2"}, {"prompt": [{**CHAT[1], "name": "ann"}], "answer": "2"}]
    table = load_table(write(name, lines(*rows) if name.endswith("jsonl") else rows))
    assert table.prompts[0] == Chat.of(CHAT)
    assert table.prompts[1].messages == [{**CHAT[1], "name": "ann"}]
    assert (
        make_task(write(name, lines(*rows) if name.endswith("jsonl") else rows), 0).example(0).prompt in table.prompts
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([{"prompt": "q", "answer": None}], "row 2, column 'answer': it is null", id="null"),
        pytest.param([{"prompt": "q"}], "row 2, column 'answer': it is null", id="missing"),
        pytest.param([{"prompt": "q", "answer": " "}], "row 2, column 'answer': it is empty", id="empty"),
        pytest.param([{"prompt": "q", "answer": True}], r"column 'answer': it is a truth value \(true\)", id="bool"),
        pytest.param(
            [{"prompt": "q", "answer": ["a"]}], r'it is a list \(\["a"\]\), expected text or a number', id="list"
        ),
        pytest.param([{"prompt": "q", "answer": {"a": 1}}], r'it is an object \(\{"a": 1\}\)', id="object"),
        pytest.param(['{"prompt": "q", "answer": NaN}'], "it is nan, expected text or a finite number", id="nan"),
        pytest.param([{"prompt": 7, "answer": "a"}], "row 2, column 'prompt': it is a number", id="number-as-prompt"),
        pytest.param([{"prompt": None, "answer": "a"}], "row 2, column 'prompt': it is null", id="no-prompt"),
        pytest.param([{"prompt": [], "answer": "a"}], "row 2, column 'prompt': it is a list", id="empty-chat"),
        pytest.param([{"prompt": ["q"], "answer": "a"}], "message 1 is text .*role and content", id="list-of-text"),
        pytest.param([{"prompt": [{"from": "human", "value": "q"}], "answer": "a"}], "role and content", id="sharegpt"),
        pytest.param(
            [{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "a"}],
            "message 1 has as content a list",
            id="content-parts",
        ),
        pytest.param(['{"prompt": "\\ud800", "answer": "a"}'], "half a character", id="lone-surrogate"),
        pytest.param(["[1]"], "row 2 is .*expected an object", id="no-object"),
        pytest.param(['{"prompt": '], "cannot be read: Expecting value", id="broken"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(write, rows, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_table(write("rows.jsonl", lines({"prompt": "p", "answer": "a"}, *rows)))
    assert "rows.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,answer\na,b\nc\n", r"row 2 \(line 3\) has 1 cells, the header 2"),
        ("prompt,answer,answer\na,b,c\n", "column 'answer' is there twice"),
        ('prompt,answer\n"a,b\n', "unexpected end of data"),
        (b"prompt,answer\n\xff\xfe,b\n", "not a text file in UTF-8"),
        ("prompt,answer\n", "has no rows"),
        ("prompt,answer\na,\n", "row 1, column 'answer': it is empty"),
    ],
    ids=["short-row", "column-twice", "open-quote", "latin-1", "header-only", "empty-cell"],
)
def test_a_broken_csv_file_is_refused(write, content, message):
    with pytest.raises(ConfigError, match=message):
        load_table(write("rows.csv", content))


def test_a_part_of_a_file_keeps_the_files_row_numbers(write):
    rows = [{"prompt": f"q{i}", "answer": "a" if i < 8 else None} for i in range(10)]
    config = write("rows.jsonl", lines(*rows))
    assert len(load_table(TaskConfig(dataset=config.dataset, split="train[20%:80%]")).rows) == 6
    with pytest.raises(ConfigError, match="row 9, column 'answer'"):
        load_table(TaskConfig(dataset=config.dataset, split="train[80%:]"))
    with pytest.raises(ConfigError, match="a local file has the split train"):
        load_table(TaskConfig(dataset=config.dataset, split="test"))


def test_the_digest_follows_the_file(write):
    digests = {load_table(write("rows.csv", f"prompt,answer,x\nq,a,{x}\n")).digest for x in "112"}
    assert len(digests) == 2
