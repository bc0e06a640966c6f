"""A small study, whose cells are single rounds of the packaged model."""

import pytest

from fgrpo.study.file import read_study

STUDY = """
x-easy: &easy {reasoning_gym: gcd, params: {min_value: 1, max_value: 40}}
base:
  clients:
    sums: {tasks: [{reasoning_gym: chain_sum, params: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}]}
    gcd: {tasks: [*easy], reward_scale: 10.0}
  rollout: {prompts_per_step: 4, group_size: 4, max_new_tokens: 6}
  train: {local_steps: 1, lr: 1.0e-3}
  evaluation: {prompts: 8}
arms:
  fedavg: {aggregation.rule: fedavg}
  <b>fgrpo</b>: {aggregation: {rule: fgrpo, tau: 0.5}}
"""


@pytest.fixture
def study(tmp_path):
    """Return a function that reads the small study with more lines at its end."""

    def read(more=""):
        rounds = "" if "rounds:" in more else "rounds: 1\n"
        file = tmp_path / "small.yaml"
        file.write_text(f"{STUDY}output_dir: {tmp_path / 'study'}\n{rounds}{more}")
        return read_study(file)

    return read
