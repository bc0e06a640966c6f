"""From files of results to pages, pictures and verdicts."""

import copy
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fgrpo_kernels.bench import headlines, plots, tables
from fgrpo_kernels.bench.__main__ import main
from fgrpo_kernels.bench.compare import compare
from fgrpo_kernels.bench.report import Site, pages

ROOT = Path(__file__).parents[2]
DATE = "2026-12-02T01:02:03+00:00"


def written(*headlines, date=DATE, commit="0123456789", **rest):
    results = [{"name": "plain", "median_ms": 1.0}]
    results += [{"name": "ours", **rest, "headline": headline} for headline in headlines]
    return {"header": {"device": "Zen 3", "date": date, "commit": commit}, "results": results}


def headline(what, figure, against="torch"):
    return {"what": what, "figure": figure, "against": against}


def record(case, contender, seconds, **fields):
    times = [0.9 * seconds, seconds, 1.1 * seconds]
    shown = {"median_s": seconds, "low_s": times[0], "high_s": times[2], "seconds": times, "peak_bytes": 1 << 22}
    return {"name": f"{case}: {contender}", "case": case, "contender": contender, "threads": 2, **shown, **fields}


def op_results(op, records, date=DATE, device="Zen 3"):
    head = {"device": device, "date": date, "commit": "0123456789", "load": 0.1, "torch": "2.13", "triton": None}
    return {"header": head, "op": op, "settings": {"threads": 2, "rows": None, "against": None}, "results": records}


def logprobs_results():
    rows = [{"shape": {"rows": n, "vocabulary": 64}, "case": f"forward, {n} rows"} for n in (2, 4)]
    rows += [{"shape": {"rows": 4, "vocabulary": n}, "case": f"forward, vocabulary {n}"} for n in (32, 64)]
    moved = {"moved_bytes": 100, "copy_bytes_per_second": 1e3, "fraction_of_limit": 0.5, "limit": "copy"}
    return op_results("token_logprobs", [record(r["case"], "fgrpo", 0.2, shape=r["shape"], **moved) for r in rows])


def test_pages_are_up_to_date():
    stale = [str(path) for path, text in pages(ROOT).items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run python -m fgrpo_kernels.bench report"


def test_every_picture_of_the_page_is_there():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    pictures = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert pictures
    assert [name for name in pictures if not (ROOT / "docs" / name).exists()] == []


def test_the_newest_files_figures_of_each_thing_by_date():
    contents = {
        Path("a_Zen-3.json"): written(headline("round", "9 s"), headline("round", "2x", "Flower|float32")),
        Path("b_Zen-3.json"): written(headline("round", "8 s"), headline("encode", "1.5 G/s"), date="2026-12-01"),
        Path("c.json"): written(date="2026-12-03"),
    }
    assert headlines.table(headlines.rows(contents), "results") == (
        "| what | again | figure | against | measured |\n"
        "|---|---|---|---|---|\n"
        "| [encode](results/b_Zen-3.json) | `python benchmarks/bench_b.py` | 1.5 G/s | torch "
        "| Zen 3; 2026-12-01, commit 0123456 |\n"
        "| [round](results/a_Zen-3.json) | `python benchmarks/bench_a.py` | 2x | Flower\\|float32 "
        "| Zen 3; 2026-12-02, commit 0123456 |\n"
        "| [round](results/a_Zen-3.json) | `python benchmarks/bench_a.py` | 9 s | torch "
        "| Zen 3; 2026-12-02, commit 0123456 |\n"
    )


def test_a_case_that_was_not_measured_has_its_line():
    failed = {"name": "int8: fgrpo", "case": "int8", "contender": "fgrpo", "not_measured": "out of memory"}
    assert tables.table({"results": [failed]}).splitlines()[2:] == ["| int8 | out of memory | | | | |"]


def test_no_figures_no_table():
    assert headlines.table(headlines.rows({Path("c.json"): written()}), "results") == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"commit": None}, r"a\.json: .*'commit'", id="no commit"),
        pytest.param({"not_measured": "wrong result"}, r"a\.json: 'ours' .* not measured", id="not measured"),
        pytest.param({"against": ""}, r"a\.json: .*'against'", id="against nothing"),
    ],
)
def test_a_figure_without_its_context_is_refused(given, message):
    against = given.get("against", "torch")
    rest = {key: value for key, value in given.items() if key != "against"}
    with pytest.raises(ValueError, match=message):
        headlines.rows({Path("a.json"): written(headline("round", "9 s", against), **rest)})


@pytest.fixture
def repository(tmp_path):
    """Results of one op on two days, and two pages with places."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    place = "<!-- bench: {} -->\nold\n<!-- bench end -->"
    (tmp_path / "README.md").write_text(f"# Title\n\n{place.format('headlines')}\n\nMore.\n")
    (tmp_path / "docs" / "codec.md").write_text(f"Words.\n\n{place.format('gram')}\nWords.\n")
    for day, seconds in (("01", 0.5), ("02", 0.25)):
        ours = record("int4", "fgrpo", seconds, shape={"clients": 8}, headline=headline("gram", f"{seconds} s"))
        times = {"times_ours": 1 / seconds, "times_ours_95": [0.9 / seconds, 1.1 / seconds], "pairs": [1 / seconds] * 3}
        theirs = record("int4", "eager", 1.0, shape={"clients": 8}, **times)
        missing = {
            "name": "int4: trl",
            "case": "int4",
            "contender": "trl",
            "not_measured": "not here",
        }
        content = op_results("gram", [ours, theirs, missing], date=f"2026-12-{day}T00:00:00+00:00")
        (results / f"gram_Zen-3_2026-12-{day}.json").write_text(json.dumps(content))
    return tmp_path


def test_places_are_filled_and_the_rest_stays(repository):
    made = pages(repository)
    assert made[repository / "README.md"] == (
        "# Title\n\n<!-- bench: headlines -->\n"
        "| what | again | figure | against | measured |\n"
        "|---|---|---|---|---|\n"
        '| [gram](benchmarks/results/gram_Zen-3_2026-12-02.json) | `python -m fgrpo_kernels.bench gram --only "int4"` '
        "| 0.25 s | torch | Zen 3; 2026-12-02, commit 0123456 |\n"
        "<!-- bench end -->\n\nMore.\n"
    )
    section = made[repository / "docs" / "codec.md"]
    assert section.startswith(
        "Words.\n\n<!-- bench: gram -->\nZen 3, 2 threads, load 0.1 before; torch 2.13; 2026-12-02"
    )
    assert "    python -m fgrpo_kernels.bench gram --threads=2\n" in section
    row = "| int4 | 250 ms ±10% |  |  | 4 MiB | eager **4.00** [3.60, 4.40] (1.0 of the memory); trl: not here |"
    assert row in section
    assert section.endswith("<!-- bench end -->\nWords.\n")
    whole = made[repository / "docs" / "benchmarks.md"]
    assert "| [gram](../benchmarks/results/gram_Zen-3_2026-12-02.json)" in whole
    assert "Not measured yet: `python -m fgrpo_kernels.bench encode`." in whole


def test_a_run_of_some_cases_stands_behind_a_whole_one(repository):
    whole = repository / "benchmarks" / "results" / "gram_Zen-3_2026-12-02.json"
    content = json.loads(whole.read_text())
    content["header"]["date"], content["settings"]["only"] = "2026-12-03T00:00:00+00:00", "int"
    whole.with_stem("gram_Zen-3_2026-12-03").write_text(json.dumps(content))
    assert "2026-12-02, commit" in pages(repository)[repository / "docs" / "codec.md"]
    whole.unlink()
    whole.with_stem("gram_Zen-3_2026-12-01").unlink()
    assert "gram --threads=2 --only=int\n" in pages(repository)[repository / "docs" / "codec.md"]


def test_a_place_for_something_unknown_is_refused(repository):
    (repository / "README.md").write_text("<!-- bench: grams -->\n<!-- bench end -->\n")
    with pytest.raises(ValueError, match=r"README\.md: a place for 'grams', expected headlines, group_advantages"):
        pages(repository)


def test_elsewhere_there_is_nothing_to_write(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*results: run this in the repository"):
        pages(tmp_path)


def test_pictures_of_what_was_measured(tmp_path):
    contents = {
        Path("token_logprobs_Zen-3_2026-12-02.json"): logprobs_results(),
        Path("round_tiny_Zen-3_2026-12-02.json"): {
            **written(),
            "settings": {"config": "tiny"},
            "results": [{"name": "fgrpo", "stages_s": {"clients": 1.0}, "round_s": {"median": 1.5}}],
        },
    }
    drawn = plots.draw(contents, tmp_path)
    assert [path.name for path in drawn] == ["round_tiny_Zen-3.png", "token_logprobs_Zen-3.png"]
    before = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in plots.draw(contents, tmp_path)] == before
    page = Site(tmp_path, contents).section("token_logprobs", tmp_path / "docs" / "x.md")
    assert "![token_logprobs on Zen 3](plots/token_logprobs_Zen-3.png)" in page


def test_a_codec_that_was_not_measured_is_not_in_the_picture(tmp_path):
    path, *_ = (ROOT / "benchmarks" / "results").glob("aggregate_*.json")
    content = json.loads(path.read_text())
    content["results"] = [record for record in content["results"] if record["shape"]["codec"] == "int8"]
    (picture,) = plots.of_op("aggregate", {path: content})
    panels = Figure().subplots(1, picture.panels)
    picture.draw(content, panels)
    assert [line.get_label() for line in panels[1].get_lines()] == ["int8"]


def test_the_commands_about_results(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    results = repository / "benchmarks" / "results"
    for op in ("aggregate", "linear_grpo_loss"):
        for path in (ROOT / "benchmarks" / "results").glob(f"{op}_*.json"):
            shutil.copy(path, results)
    assert main(["report"]) == 0
    pages = ("docs/benchmarks.md", "README.md", "docs/codec.md")
    assert capsys.readouterr().out.splitlines() == [f"written: {repository / name}" for name in pages]
    drawn = {re.split("_(?=[A-Z])", path.name)[0] for path in (repository / "docs" / "plots").iterdir()}
    assert drawn == {"aggregate", "linear_grpo_loss"}
    assert main(["report"]) == 0
    assert capsys.readouterr().out == "every page is up to date\n"
    assert main(["report", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "| [gram](benchmarks/results/gram_Zen-3_2026-12-02.json) | `python -m fgrpo_kernels.bench gram" in shown
    assert "Not measured yet: `python -m fgrpo_kernels.bench encode`." in shown
    assert main(["compare", *map(str, sorted(results.glob("gram_*")))]) == 0
    shown = capsys.readouterr().out
    assert "500 ->        250 ms   0.50 of it" in shown
    assert "2.00 [1.80, 2.20] -> 4.00 [3.60, 4.40] times as long as ours: larger" in shown


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(KeyboardInterrupt(), "interrupted; what was measured is on disk", id="interrupted"),
        pytest.param(ValueError("x.json is no file of results"), "x.json is no file of results", id="a mistake"),
        pytest.param(OSError("the disk is full"), "the disk is full", id="the system's"),
    ],
)
def test_a_command_ends_with_one_line(error, message, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr("fgrpo_kernels.bench.session.listing", fail)
    monkeypatch.setattr(sys, "argv", ["bench", "list"])
    monkeypatch.delitem(sys.modules, "fgrpo_kernels.bench.__main__")
    with pytest.raises(SystemExit, match=f"^fgrpo_kernels.bench: {message}$"):
        runpy.run_module("fgrpo_kernels.bench", run_name="__main__")


def two_runs(ours=1.0, others=1.0, scatter=0.0, width=0.1):
    """A run, and another in which ours takes `ours` times as long and the others `others` times, more or less; a run's
    own rounds lie `width` apart."""
    records = [record("sums", "fgrpo", 1.0, shape={})]
    records += [record("sums", name, 2.0, shape={}) for name in ("eager", "trl", "liger", "quack")]
    for one in records:
        one["seconds"] = [(1 + width * step) * one["median_s"] for step in (-1, 0, 1)]
    before = op_results("gram", records)
    after = copy.deepcopy(before)
    factors = [ours, *(others * (1 + scatter * sign) for sign in (-1, 1, -1, 1))]
    for one, factor in zip(after["results"], factors, strict=True):
        one["median_s"] *= factor
        one["seconds"] = [factor * seconds for seconds in one["seconds"]]
    return compare({Path("a"): before}, {Path("b"): after})


@pytest.mark.parametrize(
    ("given", "word"),
    [
        pytest.param({}, "same", id="nothing changed"),
        pytest.param({"width": 0.2}, "cannot tell", id="rounds that lie apart"),
        pytest.param({"ours": 0.7}, "faster", id="faster"),
        pytest.param({"ours": 1.4}, "slower", id="slower"),
        pytest.param({"ours": 1.1}, "cannot tell", id="within the rounds' scatter"),
        pytest.param({"ours": 1.5, "others": 1.5}, "same", id="a slower machine"),
        pytest.param({"others": 1.5}, "faster", id="in spite of a slower machine"),
        pytest.param({"ours": 0.7, "scatter": 0.5}, "cannot tell", id="the others moved as much"),
    ],
)
def test_a_verdict_knows_noise(given, word):
    text = two_runs(**given)
    assert text.splitlines()[-1].endswith(f": {word}")
    assert f"took {given.get('others', 1.0):.2f} times as long" in text or "scatter" in given


def test_with_one_other_contender_a_small_change_cannot_be_told():
    before = op_results("gram", [record("sums", "fgrpo", 1.0, shape={}), record("sums", "eager", 2.0, shape={})])
    after = copy.deepcopy(before)
    after["results"][0]["seconds"] = [1.12, 1.13, 1.14]
    before["results"][0]["seconds"] = [1.0, 1.0, 1.0]
    after["results"][0]["median_s"] = 1.13
    assert compare({Path("a"): before}, {Path("b"): after}).endswith(": cannot tell")


def test_of_a_folder_the_newest_file_counts_and_instruction_sets_are_not_mixed():
    before = op_results("gram", [record("sums", "fgrpo", 1.0, shape={})])
    newer = op_results("gram", [record("sums", "fgrpo", 0.5, shape={})], date="2026-12-03T00:00:00+00:00")
    held = op_results("gram", [record("sums", "fgrpo", 9.0, shape={})], date="2026-12-04T00:00:00+00:00")
    held["settings"]["simd"] = "avx2"
    files = {Path("x-2.json"): newer, Path("x.json"): before, Path("y.json"): held}
    assert "1000 ->        500 ms" in compare({Path("a"): before}, files)


def test_what_else_differs_is_said():
    a = op_results("gram", [record("sums", "fgrpo", 1.0, shape={})])
    b = copy.deepcopy(a)
    b["header"]["torch"] = "2.14"
    assert compare({Path("a"): a}, {Path("b"): b}).splitlines()[0] == "torch: 2.13 -> 2.14"
    b["results"][0]["shape"] = {"clients": 9}
    with pytest.raises(ValueError, match="no case in common"):
        compare({Path("a"): a}, {Path("b"): b})
