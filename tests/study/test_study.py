"""Studies with real runs, as small as they can be."""

import csv
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from fgrpo.cli import main
from fgrpo.config import Config
from fgrpo.errors import RunError
from fgrpo.records import TEST_SET, Evaluation
from fgrpo.run_folder import RunFolder
from fgrpo.settings import to_yaml
from fgrpo.study.cell import play_cell
from fgrpo.study.plan import pairs
from fgrpo.study.result import Result
from fgrpo.study.run import run_study


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def cell_of(small, arm):
    (pair,) = (pair for pair in pairs(small) if pair.arm.name == arm)
    return pair.reported(None, small.seeds)[0]


def test_a_study_from_its_file_to_its_page(study, tmp_path, capsys):
    small = study("baselines: [centralised, local]")
    command = ["study", str(tmp_path / "small.yaml"), "--jobs", "0"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "study small: 4 arms x 1 scenario x 1 seed\n" in output
    assert "4 cells to play" in output
    assert "small / fedavg / seed 0: begun\n" in output
    assert "<b>fgrpo</b> against fedavg: +0.0 points with 1 seed: not decided" in output
    assert "fewer rounds: how many" in output
    assert "4/4  small / local / seed 0" in output

    report = small.output_dir / "report"
    assert str(report / "index.html") in output
    page = Page((report / "index.html").read_text())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    drawn = [image["alt"].partition(":")[0] for image in images]
    assert drawn[:2] == ["Lines", "Dots with intervals"], "curves and differences"
    assert drawn.count("Lines") == 1, "weights of one round are constant"
    assert "<b>fgrpo</b> against fedavg: +0.0 points with 1 seed" in " ".join(page.text)
    assert "<b>fgrpo</b>" in page.text
    assert ("b", {}) not in page.tags, "an arm's name is text"
    (rows,) = (list(csv.DictReader(file)) for file in [(report / "table.csv").open()])
    assert [row["arm"] for row in rows] == ["fedavg", "<b>fgrpo</b>", "centralised", "local"]
    assert {float(row["final"]) for row in rows} <= {n / 16 for n in range(17)}, "of 2 x 8 prompts"
    assert {float(row["completions"]) for row in rows} == {2 * 4 * 4}, "clients, prompts, completions to each"
    assert rows[0]["final_difference"] == ""
    assert rows[1]["final_difference"] == "0.0", "in its first round it is fedavg"

    states = [file for pattern in ("**/state.*", "**/*.safetensors") for file in small.output_dir.glob(pattern)]
    assert states == [], "a finished cell keeps its configuration and its records"
    assert len(list(small.output_dir.glob("small/*/*/config.yaml"))) == 3
    assert len(list(small.output_dir.glob("small/local/*/clients/*/metrics.jsonl"))) == 2
    assert main(command) == 0
    assert "all cells are finished" in capsys.readouterr().out


def test_a_broken_off_cell_goes_on_to_the_same_result(study, tmp_path):
    cell = cell_of(study("rounds: 2"), "<b>fgrpo</b>")
    play_cell(cell, tmp_path / "unbroken", True, lambda turns: None)

    def stop(turns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play_cell(cell, tmp_path / "broken", True, stop)
    assert RunFolder(tmp_path / "broken").rounds() == [0, 1]
    assert Result.read(tmp_path / "broken") is None
    turns = []
    play_cell(cell, tmp_path / "broken", True, turns.append)
    assert turns == [2], "one round of two clients was left"
    unbroken, broken = (Result.read(tmp_path / name) for name in ("unbroken", "broken"))
    assert (broken.accuracy, broken.weights) == (unbroken.accuracy, unbroken.weights)
    assert broken.completions == unbroken.completions == {1: 32, 2: 32}
    states = [RunFolder(tmp_path / name).load().params_P for name in ("unbroken", "broken")]
    assert torch.equal(*states)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "broken off"])
def test_a_run_by_other_defaults_is_not_taken_for_this_one(study, tmp_path, finished):
    small = study()
    cell = cell_of(small, "fedavg")
    folder = small.output_dir / cell.folder
    other = replace(cell, config=replace(cell.config, server=replace(cell.config.server, momentum=0.5)))
    folder.mkdir(parents=True)
    message = r"holds a run with server\.momentum 0\.5, expected 0\.9; has a default changed since"
    if finished:
        Result.of([], other.config).write(folder)
        with pytest.raises(RunError, match=message):
            run_study(small, jobs=0)
    else:
        RunFolder.create(folder, to_yaml(other.config, folder))
        with pytest.raises(RunError, match=message):
            play_cell(cell, folder, False, lambda turns: None)


def test_the_test_set_of_a_run_is_no_client():
    of_nobody, of_client = Evaluation(TEST_SET, 0, 8, 0.5, 0.5), Evaluation("a", 0, 8, 0.25, 0.5)
    assert Result.of([of_nobody, of_client], Config()).accuracy == {"a": {0: 0.25}}


def test_clients_alone_are_federations_of_one(study, tmp_path):
    """Whoever is alone trains as in a federation without others, whatever others did before on the same model."""
    small = study(
        """
baselines: [local]
scenarios:
  both: {codec: {codec: none}, server.lr: 1}
  second: {codec: {codec: none}, server.lr: 1, clients: {gcd: {tasks: [*easy], reward_scale: 10.0}}}
"""
    )
    both, second = (
        next(p for p in pairs(small) if (p.scenario.name, p.arm.name) == place).reported(None, [0])[0]
        for place in (("both", "local"), ("second", "fedavg"))
    )
    for cell in (both, second):
        play_cell(cell, tmp_path / cell.scenario, True, lambda turns: None)
    alone = RunFolder.open(tmp_path / "both" / "clients" / "gcd").load()
    assert torch.equal(alone.params_P, RunFolder.open(tmp_path / "second").load().params_P)
    assert set(Result.read(tmp_path / "both").accuracy) == {"sums", "gcd"}


def test_a_study_without_a_finished_cell_says_why(study, capsys):
    small = study("scenarios: {s: {train.lr: 1.0e+38}}")
    with pytest.raises(RunError, match=r"no cell is finished yet.*training diverged"):
        run_study(small, jobs=0)
    assert capsys.readouterr().out.count("failed") == 2
