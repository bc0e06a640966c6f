"""README's table of results is what the committed result files say."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "results_table.py"
PAGE = "# Title\n\n<!-- written by scripts/results_table.py -->\nold\n<!-- end of the results -->\n\nMore.\n"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("results_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, name, date, *headlines, commit="0123456789", **rest):
    results = [{"name": "plain", "median_ms": 1.0}]
    results += [{"name": "ours", **rest, "headline": headline} for headline in headlines]
    header = {"device": "Zen 3", "date": f"{date}T01:02:03+00:00", "commit": commit}
    (folder / name).write_text(json.dumps({"header": header, "limits": {}, "results": results}))


def headline(what, figure, against="torch"):
    return {"what": what, "figure": figure, "against": against}


def test_readme_is_up_to_date(script):
    page = script.README.read_text()
    made = script.with_table(page, script.table(script.rows(script.RESULTS)))
    assert made == page, "run python scripts/results_table.py"


def test_the_newest_figure_of_each_thing_by_date(script, tmp_path):
    write(tmp_path, "a.json", "2026-12-02", headline("round", "9 s"), headline("round", "2x", "Flower|float32"))
    write(tmp_path, "b.json", "2026-12-01", headline("round", "8 s"), headline("encode", "1.5 G/s"))
    write(tmp_path, "c.json", "2026-12-03")
    assert script.with_table(PAGE, script.table(script.rows(tmp_path))) == (
        "# Title\n\n<!-- written by scripts/results_table.py -->\n"
        "| what | figure | against | device | date | commit |\n"
        "|---|---|---|---|---|---|\n"
        "| [encode](benchmarks/results/b.json) | 1.5 G/s | torch | Zen 3 | 2026-12-01 | 0123456 |\n"
        "| [round](benchmarks/results/a.json) | 2x | Flower\\|float32 | Zen 3 | 2026-12-02 | 0123456 |\n"
        "| [round](benchmarks/results/a.json) | 9 s | torch | Zen 3 | 2026-12-02 | 0123456 |\n"
        "<!-- end of the results -->\n\nMore.\n"
    )


def test_no_figures_no_table(script, tmp_path):
    write(tmp_path, "a.json", "2026-12-02")
    assert script.with_table(PAGE, script.table(script.rows(tmp_path))) == PAGE.replace("old\n", "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"commit": None}, "a.json: .*'commit'", id="no commit"),
        pytest.param({"not_measured": "wrong result"}, "a.json: 'ours' .* not measured", id="not measured"),
        pytest.param({"against": ""}, "a.json: .*'against'", id="against nothing"),
    ],
)
def test_a_figure_without_its_context_is_refused(script, tmp_path, given, message):
    against = given.pop("against", "torch")
    write(tmp_path, "a.json", "2026-12-02", headline("round", "9 s", against), **given)
    with pytest.raises(ValueError, match=message):
        script.rows(tmp_path)


def test_a_page_without_a_place_is_refused(script):
    with pytest.raises(ValueError, match="no place for the results"):
        script.with_table("# Title\n", "")
