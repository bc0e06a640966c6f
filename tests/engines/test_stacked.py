"""Clients whose adapters are stacked: what one client after another gives, from one pass through the model."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.checks import check
from fgrpo.client.owners import Owners, make_clients
from fgrpo.client.policy import Policy
from fgrpo.client.stacked_lora import stacked
from fgrpo.client.stacked_training import check_can_stack
from fgrpo.config import (
    AggregationConfig,
    ClientConfig,
    CodecConfig,
    EngineConfig,
    LoraConfig,
    RolloutConfig,
    TaskConfig,
)
from fgrpo.engines.in_process import InProcess
from fgrpo.engines.stacked import Stacked
from fgrpo.engines.workplace import Workplace
from fgrpo.errors import ConfigError
from fgrpo.experiment import resume, train
from fgrpo.records import Failure, ServerState
from fgrpo.wire.parameters import Manifest, flatten, load_flat
from fgrpo.wire.payload import unpack
from fgrpo_kernels.codec import decode


class Watcher:
    def stage(self, who, stage):
        pass

    def record(self, record):
        pass


def nan_reward(completion, answer):
    return float("nan")


class Members(dict):
    """Clients by name, in place of `Owners`."""

    taking_part = property(list)


SELECTIVE = RolloutConfig(prompts_per_step=4, group_size=4, max_new_tokens=6, informative_groups=2, max_groups=32)
BROKEN = ClientConfig([TaskConfig(reasoning_gym="chain_sum", reward=f"{__name__}:nan_reward")])


@pytest.fixture(scope="module")
def config(small_config):
    legs = TaskConfig(reasoning_gym="leg_counting", params={"min_animals": 1, "max_animals": 1})
    return replace(
        small_config,
        lora=LoraConfig(rank=4),
        clients={**small_config.clients, "legs": ClientConfig([legs])},
        codec=CodecConfig("none", error_feedback=False),
    )


@pytest.fixture(scope="module")
def policy(config):
    """One for all tests: an engine loads the parameters that it trains from."""
    return Policy.load(config)


def play(kind, config, policy):
    """The replies to a round, by client: deltas and reports, or failures."""
    engine, found = kind(Workplace(config, Owners(config), policy)), {}
    for reply in engine.train(ServerState.initial(start(policy)), engine.clients, Watcher())[0]:
        if isinstance(reply, Failure):
            found[reply.client] = reply
        else:
            header, delta = unpack(reply.payload)
            assert header.manifest == engine.manifest.hash
            found[reply.client] = decode(delta), reply.report
    return found


def start(policy):
    """Global parameters as after some rounds: peft's second matrices are 0 at first, and hide the first ones.

    The seed is one for which few gradients are all rounding (see assert_near).
    """
    return 0.05 * torch.randn(Manifest.of(policy.model).size, generator=torch.Generator().manual_seed(6))


def assert_near(found_P, expected_P):
    """Equal but for rounding, and for a few gradients that are all rounding.

    Adam divides a gradient by its own size, so such a one moves as far as any other: one of 34,816 on some machines.
    The ten that differ most are held to a tenth of the largest change.
    """
    differences_P = (found_P - expected_P).abs().sort().values
    assert differences_P[:-10].norm() <= 2e-5 * expected_P.norm()
    assert differences_P[-1] <= 0.1 * expected_P.abs().max()


def assert_alike(found, expected):
    (found_P, report), (expected_P, expected_report) = found, expected
    assert expected_P.norm() > 0.01
    assert_near(found_P, expected_P)
    assert replace(report, seconds={}, metrics={}) == replace(expected_report, seconds={}, metrics={})
    assert report.metrics == pytest.approx(expected_report.metrics, rel=1e-3, abs=1e-5)
    assert report.seconds.keys() == expected_report.seconds.keys()


@pytest.mark.parametrize(
    ("options", "change"),
    [
        pytest.param({}, {}, id="default"),
        pytest.param(
            {},
            {
                "beta": 0.1,
                "weight_decay": 0.1,
                "max_tokens": 20,
                "max_grad_norm": 0.05,
                "level": "sequence",
                "proximal": 3.0,
            },
            id="all-options",
        ),
        pytest.param({"rollout": SELECTIVE}, {"local_steps": 1}, id="informative-groups"),
        pytest.param({"lora": LoraConfig(rank=4, train="b")}, {"local_steps": 1}, id="only-b"),
        pytest.param({"aggregation": AggregationConfig(gain="heldout")}, {"local_steps": 1}, id="held-out-gain"),
        pytest.param({"quantization": "nf4"}, {"local_steps": 1}, id="four-bits"),
    ],
)
def test_deltas_and_reports_are_those_of_one_after_another(config, policy, options, change):
    if "quantization" in options:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'fgrpo[quantize]'")
    config = replace(config, train=replace(config.train, **change), **options)
    policy = Policy.load(config) if options else policy
    names, before_P = [name for name, _ in policy.model.named_modules()], flatten(policy.model)
    found = play(Stacked, config, policy)
    assert [name for name, _ in policy.model.named_modules()] == names, "the model is as it was"
    assert torch.equal(flatten(policy.model), before_P)
    expected = play(InProcess, config, policy)
    assert list(found) == list(expected) == ["sums", "gcd", "legs"]
    for client in expected:
        assert_alike(found[client], expected[client])


def test_a_client_that_fails_changes_no_other(config, policy, monkeypatch):
    config = replace(config, train=replace(config.train, local_steps=1))
    alone = play(Stacked, config, policy)
    found = play(Stacked, replace(config, clients={"broken": BROKEN, **config.clients}), policy)
    assert "none of" in found["broken"].reason
    assert "got a reward" in found["broken"].reason
    for client in alone:
        assert_alike(found[client], alone[client])
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.utils.clip_grad_norm_", poisoned(torch.nn.utils.clip_grad_norm_))
        found = play(Stacked, config, policy)
    assert "training diverged" in found["gcd"].reason
    for client in ("sums", "legs"):
        assert_alike(found[client], alone[client])


def test_clients_that_cannot_be_built_fail_each_for_its_own_reason(config, policy):
    engine = Stacked(Workplace(config, Members(), policy))
    replies, _ = engine.train(ServerState.initial(start(policy)), ["a", "b"], Watcher())
    assert [(reply.client, reply.reason.split(";")[0]) for reply in replies] == [
        ("a", "KeyError: 'a'"),
        ("b", "KeyError: 'b'"),
    ]


def poisoned(clip):
    """Clipping that makes the second client's first gradient something that is not a number."""
    calls = []

    def clip_grad_norm_(parameters, norm):
        calls.append(None)
        if len(calls) == 2:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, norm)

    return clip_grad_norm_


def test_a_pass_has_the_rows_of_all_clients(config, policy, monkeypatch):
    seen, states = [], Policy.states

    def counted(policy, inputs):
        if torch.is_grad_enabled():
            seen.append(len(inputs.input_ids))
        return states(policy, inputs)

    monkeypatch.setattr(Policy, "states", counted)
    train = replace(config.train, local_steps=1, updates_per_rollout=1, minibatches=1)
    found = play(Stacked, replace(config, train=train), policy)
    together, seen[:] = seen[:], []
    play(InProcess, replace(config, train=train), policy)
    assert len(together) == 1
    assert len(seen) == len(found) == 3
    assert sum(seen) == together[0]


def test_an_equal_prompt_of_two_clients_is_each_ones_own(config, policy):
    """Their adapters part with the first update, so nothing of it may be computed once for both."""
    twin = config.clients["sums"]
    config = replace(config, clients={"a": twin, "b": twin}, train=replace(config.train, local_steps=1))
    first, second = make_clients(config)
    twins = Members(a=first, b=replace(second, seed=first.seed, curricula=first.curricula))
    ends = []
    for kind in (Stacked, InProcess):
        engine = kind(Workplace(config, twins, policy))
        replies, _ = engine.train(ServerState.initial(start(policy)), ["a", "b"], Watcher())
        ends.append([decode(unpack(reply.payload)[1]) for reply in replies])
    assert not torch.equal(*ends[1]), "they sample with seeds of their own"
    for found_P, expected_P in zip(*ends, strict=True):
        assert_near(found_P, expected_P)


def test_each_row_gets_its_own_clients_adapter(policy):
    """In any order of rows; and none where peft's adapters are switched off."""
    load_flat(policy.model, torch.zeros(Manifest.of(policy.model).size))
    policy.model.eval()
    tokens_RL = torch.randint(1, 100, (5, 7))
    with torch.no_grad():
        plain = policy.model(input_ids=tokens_RL).logits
        with stacked(policy.model, 3) as stack:
            for k, own in enumerate(stack.parameters):
                for parameter in own:
                    parameter.normal_(std=0.1 * (k + 1))
            each = []
            for k in range(3):
                with stack.rows(k):
                    each.append(policy.model(input_ids=tokens_RL).logits)
            client_R = torch.tensor([2, 0, 1, 0, 2])
            with stack.rows(client_R):
                mixed = policy.model(input_ids=tokens_RL).logits
                with pytest.raises(ConfigError, match=r"engine\.stacked: .* experts"):
                    policy.model(inputs_embeds=torch.zeros(1, 5, 128))
                with policy.model.disable_adapter():
                    torch.testing.assert_close(policy.model(input_ids=tokens_RL).logits, plain)
    torch.testing.assert_close(mixed, torch.stack(each)[client_R, torch.arange(5)], atol=1e-4, rtol=1e-4)
    assert (each[0] - each[1]).abs().min(dim=-1).values.max() > 1e-3
    assert torch.equal(policy.model(input_ids=tokens_RL).logits, plain)


def test_dropout_is_seeded(config):
    config = replace(config, lora=LoraConfig(rank=4, dropout=0.5))
    ends = []
    policy = Policy.load(config)
    for noise in (1, 2):
        torch.manual_seed(noise)
        ends.append(play(Stacked, config, policy)["gcd"][0])
    assert torch.equal(*ends)


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["embed_tokens", "q_proj"]])
def test_what_cannot_be_stacked_is_refused(config, targets):
    policy = Policy.load(replace(config, lora=LoraConfig(rank=4, target_modules=targets)))
    with pytest.raises(ConfigError, match=rf"engine\.stacked: .*{targets[0]}.*lora\.target_modules") as caught:
        check_can_stack(policy)
    assert "\n" not in str(caught.value)


def test_a_run_of_it_goes_on_without_it(config, policy, tmp_path, monkeypatch):
    """What lies on disk is the same; the model that is saved is peft's."""
    load_flat(policy.model, start(policy))
    monkeypatch.setattr(Policy, "load", lambda config: policy)
    train_config = replace(config.train, local_steps=1, updates_per_rollout=1)
    config = replace(config, engine=EngineConfig(stacked=True), train=train_config, rounds=1)
    folder = train(replace(config, output_dir=str(tmp_path / "run")), lambda *_: nullcontext(Watcher()))
    before_P = folder.load().params_P
    names = load_file(folder.path / "model" / "adapter_model.safetensors").keys()
    assert len(names) == len(Manifest.of(policy.model).names)
    resume(folder.path, ["--rounds", "2", "--engine.stacked", "false"], lambda *_: nullcontext(Watcher()))
    assert folder.load().round == 2
    assert not torch.equal(folder.load().params_P, before_P)


def test_what_it_does_not_go_with(config):
    with pytest.raises(ConfigError, match=r"engine\.stacked: .* set lora"):
        check(replace(config, engine=EngineConfig(stacked=True), lora=None))
    with pytest.raises(ConfigError, match=r"engine\.stacked: .* engine\.workers 2"):
        check(replace(config, engine=EngineConfig(workers=2, stacked=True)))
