"""The command line as a person meets it: one line for a mistake, and a killed run that goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import fgrpo
from fgrpo.cli import main
from fgrpo.lock import held
from fgrpo.records import Report
from fgrpo.run_folder import RunFolder

CONFIG = """
clients:
  sums:
    reward_scale: 0.1
    tasks: [{reasoning_gym: chain_sum, params: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}]
  gcd:
    reward_scale: 10.0
    tasks: [{reasoning_gym: gcd, params: {min_value: 1, max_value: 40}}]
rollout: {prompts_per_step: 4, group_size: 4, max_new_tokens: 6}
train: {local_steps: 2, lr: 1.0e-3}
server: {optimizer: momentum, lr: 0.7}
evaluation: {prompts: 8}
engine: {workers: 0}
rounds: 4
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return str(file)


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "fgrpo.cli", *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One unbroken run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.yaml").write_text(CONFIG)
    result = run("train", str(folder / "config.yaml"), "--output-dir", str(folder / "run"))
    assert result.returncode == 0, result.stderr
    return folder / "run", result.stdout


def test_train_prints_before_after_and_where_the_report_is(finished):
    path, output = finished
    assert "sums" in output
    assert "gcd" in output
    assert str(path / "report" / "index.html") in output
    assert (path / "report" / "index.html").stat().st_size > 10_000
    assert (path / "model" / "model.safetensors").exists()
    assert list((path / "tensorboard").iterdir())
    types = [json.loads(line)["type"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert types.count("round") == 4
    assert types.count("report") == 8
    assert "\x1b" not in output, "no control characters in a pipe"


def test_a_killed_run_resumes_to_the_same_bits(finished, config, tmp_path):
    path = tmp_path / "killed"
    arguments = [sys.executable, "-m", "fgrpo.cli", "train", config, "--output-dir", str(path)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (path / "rounds" / "0001").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= RunFolder.open(path).rounds()[-1] < 4, "it was killed between the first round and the last"
    result = run("resume", str(path))
    assert result.returncode == 0, result.stderr
    unbroken, resumed = RunFolder.open(finished[0]).load(), RunFolder.open(path).load()
    assert resumed.round == 4
    assert torch.equal(unbroken.params_P, resumed.params_P)
    assert unbroken.history == resumed.history
    assert all(torch.equal(unbroken.residuals[name], residual) for name, residual in resumed.residuals.items())
    assert [r.round for r in RunFolder.open(path).records()] == [r.round for r in RunFolder.open(finished[0]).records()]


def test_resume_can_go_further_and_evaluate_agrees(finished, capsys):
    path = str(finished[0])
    assert main(["resume", path, "--rounds", "5"]) == 0
    assert RunFolder.open(path).load().round == 5
    capsys.readouterr()
    assert main(["resume", path]) == 0
    assert f"{path} has all its rounds; go further with --rounds" in capsys.readouterr().out
    assert main(["evaluate", path, "--round", "1"]) == 1
    assert "the state of round 1 is not kept, only that of 4, 5" in capsys.readouterr().err
    assert main(["evaluate", path]) == 0
    assert "sums" in capsys.readouterr().out
    assert main(["report", path]) == 0
    *before, rest = capsys.readouterr().out.partition("writing the report ...\n")
    assert before == [f"loading {path} ...\n", "writing the report ...\n"]
    assert rest.startswith(("Learning", "Undecided", "Stalled", "Collapsing", "Diverging", "Reward"))
    assert main(["compare", path]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "→" in line]
    assert len(rows) == 1
    payload = f"{path}/rounds/0005/payloads/gcd.safetensors"
    capsys.readouterr()
    assert main(["inspect", payload]) == 0
    output = capsys.readouterr().out
    assert "int4" in output
    assert "gcd" in output


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        pytest.param(["--train.lrr", "1"], ["train.lrr", "did you mean 'train.lr'"], id="unknown-key"),
        pytest.param(
            ["--clients.sums.tasks", "[{reasoning_gym: chain_sumz}]"], ["did you mean 'chain_sum'"], id="task"
        ),
        pytest.param(
            ["--clients.sums.tasks", "[{reasoning_gym: null, dataset: gone.csv}]"],
            ["clients.sums.tasks", "gone.csv"],
            id="missing-dataset",
        ),
        pytest.param(["--model", "/nowhere/at/all"], ["/nowhere/at/all"], id="missing-model"),
        pytest.param(["--device", "warp"], ["warp"], id="unknown-device"),
        pytest.param(["--output-dir", "/proc/run"], ["/proc/run"], id="read-only-folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(config, overrides, words, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    arguments = ["train", config, *([] if "--output-dir" in overrides else ["--output-dir", str(tmp_path / "run")])]
    assert main([*arguments, *overrides]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("fgrpo: error: ")
    assert "Traceback" not in "".join(error)
    assert all(word in error[-1] for word in words), error[-1]
    assert sorted(tmp_path.rglob("*")) == before


def nan_reward(completion, answer):
    return float("nan")


def test_resume_says_what_changes_and_keeps_it(finished, capsys):
    path, done = str(finished[0]), RunFolder.open(finished[0]).rounds()[-1]
    kept = RunFolder.open(finished[0]).config_file.read_text()
    for asked, words in (
        (["--rounds", "1"], f"has {done} rounds already, got rounds 1; nothing was changed"),
        ([f"--rounds={done}", "--train.lr=2e-3"], f"has all its {done} rounds, which train.lr cannot change any more"),
    ):
        assert main(["resume", path, *asked]) == 1
        assert words in capsys.readouterr().err
    with held(finished[0]):  # as by a process that is at work on it
        assert main(["resume", path, f"--rounds={done + 1}"]) == 1
    assert "another process is at work in it" in capsys.readouterr().err
    assert RunFolder.open(finished[0]).config_file.read_text() == kept
    assert main(["resume", path, f"--rounds={done + 1}", "--train.lr=2e-3", "--engine.workers=0"]) == 0
    assert f"from round {done + 1} on: train.lr 0.001 -> 0.002, rounds " in capsys.readouterr().out
    *_, (from_round, changes) = RunFolder.open(finished[0]).changes()
    assert (from_round, changes["train.lr"], changes["rounds"][1]) == (done + 1, (0.001, 0.002), done + 1)
    assert changes.keys() == {"train.lr", "rounds"}


@pytest.mark.parametrize(
    "override", ["--evaluation.prompts=99", "--server.optimizer=adam", "--output-dir=elsewhere", "--seed=1"]
)
def test_what_a_run_stands_on_cannot_be_changed(finished, override, capsys):
    assert main(["resume", str(finished[0]), override]) == 1
    assert "cannot be changed any more" in capsys.readouterr().err


def test_a_run_that_ended_before_its_first_round_says_so(config, tmp_path, capsys):
    path = str(tmp_path / "run")
    broken = "--clients.sums.tasks=[{reward: 'math:sin'}]"
    assert main(["train", config, "--output-dir", path, broken, broken.replace("sums", "gcd")]) == 1
    assert main(["report", path]) == 1
    assert capsys.readouterr().err.strip().endswith("nothing to report")


def test_nan_rewards_stop_the_run_and_keep_what_there_is(config, capsys, tmp_path):
    arguments = [f"--clients.{name}.tasks=[{{reward: '{__name__}:nan_reward'}}]" for name in ("sums", "gcd")]
    assert main(["train", config, "--output-dir", str(tmp_path / "run"), *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fgrpo: error: round 1: no client gave a usable reply")
    assert "returned nan" in error
    assert RunFolder.open(tmp_path / "run").rounds() == [0]


def test_a_full_folder_is_not_overwritten(finished, config, capsys):
    assert main(["train", config, "--output-dir", str(finished[0])]) == 1
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["notes.txt", "rounds/0001", "config.yaml"])
def test_a_folder_that_is_no_run_is_not_touched(config, content, capsys, tmp_path):
    place = tmp_path / "place"
    (place / content).parent.mkdir(parents=True)
    (place / content).write_text("mine")
    assert main(["train", config, "--output-dir", str(place)]) == 1
    assert "is no empty folder" in capsys.readouterr().err
    assert main(["resume", str(place)]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    assert [file for file in place.rglob("*") if file.is_file()] == [place / content]


def test_an_interrupted_run_says_how_to_go_on(config, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    path = tmp_path / "run"
    monkeypatch.setattr("fgrpo.experiment.play", interrupted)
    assert main(["train", config, "--output-dir", str(path)]) == 130
    assert capsys.readouterr().err.strip().endswith(f"go on with: fgrpo resume {path}")


def test_a_new_project_trains_with_a_reward_of_its_own_and_goes_on_from_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "project"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "now: fgrpo train project/config.yaml"
    assert main(["new", "project"]) == 1
    assert "config.yaml is there already" in capsys.readouterr().err
    short = ["--engine.workers=0", "--rounds=1", "--train.local_steps=1", "--output-dir=run"]
    assert main(["train", "project/config.yaml", *short]) == 0
    output = capsys.readouterr().out
    assert output.startswith("loading PyTorch and model tiny ...\n")
    assert "north: 80" in output
    report = (tmp_path / "run/report/index.html").read_text()
    assert report.count('class="sample"') == 3 * 2, "two prompts of each school, to be read"
    first = next(iter(RunFolder.open(tmp_path / "run").records()))
    assert (first.held_out, first.rows) == (64, 32)
    monkeypatch.chdir("/")
    assert main(["resume", str(tmp_path / "run"), "--rounds=2"]) == 0
    reports = [record for record in RunFolder.open(tmp_path / "run").records() if isinstance(record, Report)]
    assert {report.round for report in reports} == {1, 2}
    assert all({"reward/exact_match", "reward/rewards:close"} <= report.metrics.keys() for report in reports)


def test_the_first_line_comes_before_what_takes_long_to_import(config, monkeypatch, capsys):
    code = f"""
import sys
import builtins
shown = []
def show(*words, **_):
    shown.append(" ".join(words))
    assert "torch" not in sys.modules
    raise SystemExit(0)
builtins.print = show
from fgrpo.cli import main
try:
    main(["train", {config!r}])
finally:
    assert shown == ["loading PyTorch and model tiny ..."], shown
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_a_tracker_that_is_missing_is_told_before_anything_is_loaded(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("fgrpo.cli.Loading", lambda what: pytest.fail(f"loads {what}"))
    assert main(["train", config, "--report_to", "[wandb]"]) == 1
    assert capsys.readouterr().err == "fgrpo: error: report_to: wandb is not installed: pip install wandb\n"


def test_a_tracker_that_is_missing_is_told_before_a_run_goes_on(finished, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("fgrpo.experiment.held", lambda path: pytest.fail(f"opens {path}"))
    assert main(["resume", str(finished[0]), "--rounds=9", "--report_to", "[wandb]"]) == 1
    assert capsys.readouterr().err.endswith("fgrpo: error: report_to: wandb is not installed: pip install wandb\n")


@pytest.mark.parametrize(("word", "near"), [("trian", "; did you mean 'train'?"), ("zzz", "")])
def test_an_unknown_command_is_one_line_with_the_nearest(word, near, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([word, "config.yaml"])
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint == f"fgrpo: error: there is no command '{word}'{near} (see fgrpo --help)"


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"fgrpo {fgrpo.__version__}"


def test_inspect_refuses_what_is_no_payload(config, capsys):
    assert main(["inspect", config]) == 1
    assert "not a" in capsys.readouterr().err


def test_a_run_on_rows_weighs_by_them_and_notices_a_changed_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i} + 1 =", "answer": i + 1, "of": "on" if i % 4 else "no"} for i in range(48)]
    rows += [{"prompt": f"{i} + 2 =", "answer": i + 2, "of": "tiny"} for i in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(
        "def near(completion, answer):\n    return -abs(float(completion) - int(answer))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rows.yaml").write_text(
        "partition: {scheme: column, column: of, task: {dataset: rows.jsonl, reward: {exact_match: 1, own:near: .1}}}\n"
        "rollout: {prompts_per_step: 4, group_size: 4, max_new_tokens: 4}\n"
        "train: {local_steps: 1}\nevaluation: {prompts: 4}\nrounds: 1\naggregation: {rule: fedavg}\n"
    )
    assert main(["train", "rows.yaml", "--output-dir", "run"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "training rows: no: 8 on: 32 tiny: 0 client tiny: task rows.jsonl[tiny] has nothing" in output
    assert output.count("client tiny: task") == 2, "said once at the start, and in the tables"
    assert "near' failed (own.py:2): ValueError: could not convert string to float" in output
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (summary,) = (record for record in records if record["type"] == "round")
    assert summary["weights"] == {"no": 0.2, "on": 0.8}
    assert summary["quarantined"] == {}
    assert {record["client"] for record in records if record["type"] == "evaluation"} == {"no", "on"}
    data.write_text(data.read_text().replace("47", "7"))
    assert main(["resume", "run", "--rounds", "2"]) == 1
    assert "dataset 'rows.jsonl' has changed since the run began" in capsys.readouterr().err
