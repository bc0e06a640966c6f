"""Prompts longer than a model can read are refused with the reason, before it sees them."""

from dataclasses import replace

import pytest
import torch
from transformers import BloomConfig, GPT2Config, LlamaConfig, MambaConfig

from fgrpo.client.positions import check_positions, positions
from fgrpo.client.rollouts import sample
from fgrpo.errors import TaskError
from fgrpo.records import Chat


class Model:
    def __init__(self, limit):
        self.config = LlamaConfig(max_position_embeddings=limit)


def test_the_last_position_may_be_used_and_no_further():
    mask_PL = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    check_positions(Model(10), ["short", "long"], mask_PL, new_tokens=6)
    with pytest.raises(TaskError, match=r"'long' has 4 tokens; with 7 new ones they pass the model's 10 positions"):
        check_positions(Model(10), ["short", "long"], mask_PL, new_tokens=7)


def test_a_chat_is_named_by_its_last_message():
    chat = Chat.of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "long"}])
    with pytest.raises(TaskError, match="prompt 'long' has 2 tokens"):
        check_positions(Model(10), [chat], torch.ones(1, 2, dtype=torch.int64), new_tokens=9)


def test_a_prompt_past_rotary_positions_is_refused_although_the_model_would_go_on(policy, small_config):
    limit = positions(policy.model.config)
    prompt = "1 + " * limit
    with pytest.raises(TaskError, match=f"pass the model's {limit} positions"):
        sample(policy.model, policy.tokenizer, [prompt], replace(small_config.rollout, max_new_tokens=1), seed=0)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        pytest.param(LlamaConfig(max_position_embeddings=64), 64, id="rotary"),
        pytest.param(GPT2Config(n_positions=48), 48, id="learned"),
        pytest.param(BloomConfig(), None, id="alibi"),
        pytest.param(MambaConfig(), None, id="recurrent"),
        pytest.param(
            LlamaConfig(
                max_position_embeddings=64,
                rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4},
            ),
            256,
            id="stretched-from-what-it-says",
        ),
        pytest.param(
            LlamaConfig(
                max_position_embeddings=256,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 1e4,
                },
            ),
            256,
            id="stretched-to-what-it-says",
        ),
    ],
)
def test_what_a_model_reads_at_most(config, limit):
    assert positions(config) == limit
