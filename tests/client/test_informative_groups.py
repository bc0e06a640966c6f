"""Drawing until groups carry signal: what is drawn, what is trained on, and what a client without signal answers."""

from dataclasses import replace

import pytest
import torch

from fgrpo.checks import check
from fgrpo.client.local_training import cut
from fgrpo.client.owners import make_clients
from fgrpo.client.policy import Policy
from fgrpo.client.rollout_batches import roll_out
from fgrpo.client.rollouts import join, sample
from fgrpo.client.round import client_round
from fgrpo.client.tally import Tally
from fgrpo.config import ClientConfig, TaskConfig
from fgrpo.errors import ConfigError
from fgrpo.stopwatch import Stopwatch
from fgrpo.wire.parameters import flatten
from fgrpo.wire.payload import unpack
from fgrpo_kernels import token_weights
from fgrpo_kernels.codec import decode


@pytest.fixture(scope="module")
def policy(small_config):
    """One for all tests; whatever trains it starts from parameters of its own."""
    return Policy.load(small_config)


def seldom(completion, answer):
    return float("7" in completion)


def never(completion, answer):
    return 0.0


def mostly_seldom(config, reward=seldom, **rollout):
    """A client whose groups seldom carry signal."""
    task = replace(config.clients["sums"].tasks[0], reward=f"{__name__}:{reward.__name__}")
    return replace(config, clients={"hard": ClientConfig([task])}, rollout=replace(config.rollout, **rollout), rounds=1)


def drawn(policy, config, monkeypatch, batch=0):
    """A rollout batch, how many prompts each draw had, and what is told of it."""
    sizes, sampled = [], Policy.sample

    def counted(policy, prompts, *args, **kwargs):
        sizes.append(len(prompts))
        return sampled(policy, prompts, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "sample", counted)
        client, tally = make_clients(config)[0], Tally()
        rollouts, advantages_B = roll_out(policy, client, config, batch, Stopwatch(), tally)
    return rollouts, advantages_B, sizes, tally.report(client, 1, Stopwatch())


def test_prompts_are_drawn_until_enough_groups_carry_signal(policy, small_config, monkeypatch):
    config = mostly_seldom(small_config, informative_groups=5, max_groups=200)
    rollouts, advantages_B, sizes, report = drawn(policy, config, monkeypatch)
    found = len(advantages_B) // 4
    assert 5 <= found < 5 + config.rollout.prompts_per_step
    assert (advantages_B.view(found, 4) != 0).any(dim=1).all(), "groups without signal are no part of the batch"
    assert len(rollouts.completions) == len(advantages_B)
    assert report.groups == sum(sizes) > found
    assert len(sizes) < sum(sizes), "not one at a time"
    assert (report.sequences, report.informative) == (4 * report.groups, 4 * found)
    assert report.degenerate == pytest.approx(1 - found / report.groups)
    assert report.tokens > rollouts.mask_BT.sum(), "what was sampled, not what is trained on"


def test_a_draw_asks_for_no_more_than_is_likely_to_be_needed(policy, small_config, monkeypatch):
    *_, sizes, _ = drawn(policy, mostly_seldom(small_config, informative_groups=2), monkeypatch)
    assert sizes[0] == 2
    *_, sizes, _ = drawn(policy, mostly_seldom(small_config, never, informative_groups=2, max_groups=9), monkeypatch)
    assert sizes == [2, 4, 3], "as many as are missing, then a step's prompts, then the rest of the budget"
    *_, sizes, _ = drawn(policy, mostly_seldom(small_config, never, informative_groups=3), monkeypatch)
    assert sum(sizes) == 4 * 3


def test_a_batch_is_a_function_of_its_number_and_batches_begin_anywhere(policy, small_config, monkeypatch):
    config = mostly_seldom(small_config, informative_groups=2)
    first, again, second = (drawn(policy, config, monkeypatch, batch)[0] for batch in (3, 3, 4))
    assert torch.equal(first.tokens_BL, again.tokens_BL)
    assert torch.equal(first.old_logp_BT, again.old_logp_BT)
    assert first.completions != second.completions


def test_every_row_of_a_small_dataset_is_drawn(policy, small_config, monkeypatch, tmp_path):
    """A budget as large as the dataset must not begin at the same row in every batch."""
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{i} + 1 =", "answer": "7"}}\n' for i in range(16)))
    task = TaskConfig(dataset=str(tmp_path / "rows.jsonl"), reward=f"{__name__}:seldom")
    rollout = replace(small_config.rollout, informative_groups=1, max_groups=16, max_new_tokens=2)
    evaluation = replace(small_config.evaluation, prompts=1)
    config = replace(small_config, clients={"few": ClientConfig([task])}, rollout=rollout, evaluation=evaluation)
    seen, draw = set(), make_clients(config)[0].draw
    client = make_clients(config)[0]
    monkeypatch.setattr(
        type(client), "draw", lambda self, *window: [seen.add(q.example.prompt) or q for q in draw(*window)]
    )
    for batch in range(30):
        roll_out(policy, client, config, batch, Stopwatch(), Tally())
    assert len(seen) == 15, "all but the one that is held out"


@pytest.mark.parametrize("reduction", ["dapo", "grpo", "bnpo", "dr_grpo", "luspo"])
def test_groups_that_were_not_found_keep_their_share_of_the_loss(policy, small_config, reduction):
    """Three groups of six that were wanted weigh what they weigh beside three of the same lengths without signal."""
    prompts = [question.example.prompt for question in make_clients(small_config)[0].draw(0, 3)]
    rollouts = sample(policy.model, policy.tokenizer, prompts, small_config.rollout, seed=0)
    advantages_B = torch.randn(12)

    def parts(found, wanted, minibatches):
        train = replace(small_config.train, reduction=reduction, minibatches=minibatches)
        config = replace(small_config, train=train, rollout=replace(small_config.rollout, informative_groups=wanted))
        return [part.weights_BT for part in cut(join([rollouts] * found), advantages_B.repeat(found), config)]

    (alone_BT,), (among_BT,) = parts(1, 6, 1), parts(2, 6, 1)
    torch.testing.assert_close(alone_BT, among_BT[:12])
    (first_BT,) = parts(1, 6, 2)
    torch.testing.assert_close(first_BT, 2 * alone_BT, msg="a part that is whole weighs as always")
    _, rest_BT = parts(2, 8, 2)  # two of the four groups that it was to have
    mask_BT, length = rollouts.mask_BT[4:], small_config.rollout.max_new_tokens
    torch.testing.assert_close(rest_BT, token_weights(mask_BT, reduction, max_length=length) / 2)


def test_joined_rollouts_are_those_of_each_part(policy, small_config):
    rollouts = [
        sample(policy.model, policy.tokenizer, [prompt], small_config.rollout, seed=seed)
        for seed, prompt in enumerate(["1 + 1 =", "12345 + 67890 ="])
    ]
    assert rollouts[0].prompt_length < rollouts[1].prompt_length
    whole = join(rollouts)
    assert [a.token_ids for a in whole.answers()] == [a.token_ids for part in rollouts for a in part.answers()]
    for part, rows in zip(rollouts, (slice(0, 4), slice(4, 8)), strict=True):
        for tokens_L, kept_L, own_L, real_L in zip(
            whole.tokens_BL[rows], whole.attention_BL[rows], part.tokens_BL, part.attention_BL, strict=True
        ):
            assert torch.equal(tokens_L[kept_L.bool()], own_L[real_L.bool()])
        torch.testing.assert_close(whole.old_logp_BT[rows][whole.mask_BT[rows]], part.old_logp_BT[part.mask_BT])


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_client_without_any_signal_answers_with_nothing_and_says_so(small_config, beta):
    config = mostly_seldom(small_config, never, informative_groups=2, max_groups=4)
    codec = replace(config.codec, codec="none", error_feedback=False)
    config = replace(config, codec=codec, train=replace(config.train, beta=beta, weight_decay=0.1))
    policy = Policy.load(config)
    reply = client_round(make_clients(config)[0], policy, flatten(policy.model), None, 1, config, Stopwatch())
    assert not decode(unpack(reply.payload)[1]).any()
    report = reply.report
    assert (report.sequences, report.informative, report.groups, report.degenerate) == (2 * 16, 0, 2 * 4, 1.0)
    assert report.metrics == {}


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"max_groups": 8}, r"rollout\.max_groups: only rollout\.informative_groups"),
        ({"max_groups": 8, "informative_groups": 9}, r"rollout\.max_groups: got 8, .* 9"),
        ({"informative_groups": 0}, r"rollout\.informative_groups: got 0"),
    ],
)
def test_wrong_budgets_are_refused(small_config, rollout, words):
    with pytest.raises(ConfigError, match=words):
        check(replace(small_config, rollout=replace(small_config.rollout, **rollout)))
