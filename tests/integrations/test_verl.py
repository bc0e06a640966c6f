"""The verl plug-in against what verl 0.9.1's own functions give and take, recorded in `fixtures/verl_0_9_1.json`."""

import inspect
import json
import sys
from types import ModuleType

import pytest
import torch
from verl_source import (
    CASES,
    FIXTURE,
    LOSSES,
    find_source,
    key_of,
    make_batch,
    make_config,
    record,
    result,
    signature_of,
)

from fgrpo_kernels import token_logprobs
from fgrpo_kernels.integrations import verl as plug

RECORDED = json.loads(FIXTURE.read_text())


def test_the_record_is_verls():
    """Needs verl's source on the path; everything else here needs the record alone."""
    source = find_source()
    if source is None:
        pytest.skip("compares the record with verl's source: pip install --no-deps verl==0.9.1")
    assert json.loads(json.dumps(record(source))) == RECORDED


@pytest.mark.parametrize("name", LOSSES)
def test_signatures(name):
    ours = dict(signature_of(plug.policy_loss(LOSSES[name])))
    theirs = dict(RECORDED["policy_loss"][name])
    assert list(ours) == list(theirs)
    assert {k: v for k, v in ours.items() if k != "loss_agg_mode"} == {
        k: v for k, v in theirs.items() if k != "loss_agg_mode"
    }
    batch_info = [name for name, _ in RECORDED["agg_loss"]][3:]
    assert batch_info == list(inspect.signature(plug._weights).parameters)[2:]


def test_signature_of_the_head():
    for method, (names, defaults) in RECORDED["FusedLinearForPPO"].items():
        ours = inspect.signature(getattr(plug.FusedLinearForPPO, method)).parameters.values()
        assert [p.name for p in ours][1:] == names
        assert [p.default for p in ours if p.default is not p.empty] == defaults


@pytest.mark.parametrize(("name", "mode", "weighted", "info"), CASES)
def test_equal_to_verl(name, mode, weighted, info):
    config = make_config(info)
    if name == "geo_mean":  # verl's counts the fully masked sequences
        config = make_config(global_batch_size=len(make_batch()["response_mask"]))
    key = key_of(name, mode, weighted, info)
    expected = RECORDED["results"][key]
    ours = result(plug.policy_loss(LOSSES[name]), mode, weighted, config)
    assert ours["loss"] == pytest.approx(expected["loss"], rel=2e-6)
    assert ours["metrics"].keys() == expected["metrics"].keys()
    for metric, value in expected["metrics"].items():
        assert ours["metrics"][metric] == pytest.approx(value, rel=1e-5, abs=1e-7), metric
    got, want = torch.tensor(ours["gradient"]), torch.tensor(expected["gradient"])
    assert want.abs().max() > 0
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-6 * want.abs().max().item())


def test_the_recorded_batch_meets_every_bound():
    metrics = RECORDED["results"]["vanilla token-mean plain local"]["metrics"]
    assert all(metrics[f"actor/pg_clipfrac{side}"] > 0 for side in ("", "_lower"))


def test_vespo_of_a_sequence():
    """verl has none: by hand."""
    batch = make_batch()
    loss, _ = plug.policy_loss("fgrpo_vespo")(
        **batch | {"rollout_is_weights": None}, loss_agg_mode="token-sum", config=make_config()
    )
    expected = 0.0
    for logp, old, A, mask in zip(*(batch[k].double() for k in ("log_prob", "old_log_prob", "advantages")),
                                  batch["response_mask"], strict=True):  # fmt: skip
        w = (logp - old)[mask].sum().exp()
        k, lam = (2, 3) if A[0] >= 0 else (3, 2)
        expected -= w**k * torch.exp(lam * (1 - w)) * (A * logp)[mask].sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_what_the_mask_leaves_out_may_be_nan():
    batch = make_batch() | {"rollout_is_weights": None}
    clean, _ = plug.policy_loss("fgrpo_ppo")(**batch, config=make_config())
    for name in ("log_prob", "old_log_prob", "advantages"):
        batch[name] = batch[name].masked_fill(~batch["response_mask"], torch.nan)
    batch["log_prob"].requires_grad_()
    loss, metrics = plug.policy_loss("fgrpo_ppo")(**batch, config=make_config())
    loss.backward()
    assert loss.detach() == clean
    assert not batch["log_prob"].grad.isnan().any()
    assert all(value == value for value in metrics.values())


def test_mistakes_are_named():
    batch = make_batch()
    with pytest.raises(ValueError, match=r"name must be one of fgrpo_ppo, .* got 'vanilla'"):
        plug.policy_loss("vanilla")
    with pytest.raises(ValueError, match="fgrpo_ppo: needs verl's actor configuration"):
        plug.policy_loss("fgrpo_ppo")(**batch)
    with pytest.raises(ValueError, match=r"loss_agg_mode must be one of token-mean, .* got 'mean'"):
        plug.policy_loss("fgrpo_ppo")(**batch, loss_agg_mode="mean", config=make_config())
    with pytest.raises(ValueError, match="over dp_size=2 workers needs global_batch_size"):
        plug.policy_loss("fgrpo_ppo")(**batch, loss_agg_mode="seq-mean-token-sum", config=make_config(dp_size=2))
    config = make_config()
    config.clip_ratio_c = 1.1
    with pytest.raises(ValueError, match=r"clip_ratio_c = 1\.1 is below"):
        plug.policy_loss("fgrpo_ppo")(**batch, config=config)
    with pytest.raises(ValueError, match="fgrpo_vespo: rollout_is_weights belong inside"):
        plug.policy_loss("fgrpo_vespo")(**batch, config=make_config())
    with pytest.raises(ValueError, match="temperature must be one number, got Tensor"):
        plug.FusedLinearForPPO()(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([0]), torch.ones(1))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_head(packed):
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8, generator=rng), torch.randn(13, 8, generator=rng)
    tokens = torch.randint(13, (2, 5), generator=rng).int()
    if packed:
        hidden, tokens = hidden.flatten(0, 1), tokens.flatten()
    outputs = []
    for op in (
        lambda h, w: plug.FusedLinearForPPO(chunk_size=3)(h, w, tokens, temperature=0.7),
        lambda h, w: token_logprobs(h @ w.T, tokens.long(), temperature=0.7),
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logp, entropy = op(h, w)
        (logp.sum() + (entropy**2).sum()).backward()
        outputs.append((logp, entropy, h.grad, w.grad))
    torch.testing.assert_close(*outputs)


@pytest.fixture
def fake_verl(monkeypatch):
    """The two modules of verl that `install` touches, as 0.9.1 has them."""
    names = ["verl", "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.core_algos", "verl.utils",
             "verl.utils.experimental", "verl.utils.experimental.torch_functional"]  # fmt: skip
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            parent, child = name.rsplit(".", 1)
            setattr(modules[parent], child, module)
    modules["verl"].__version__ = "0.9.1"
    core, functional = modules[names[3]], modules[names[6]]
    core.POLICY_LOSS_REGISTRY = {"vanilla": "verl's"}

    def register_policy_loss(name):
        def decorator(func):
            core.POLICY_LOSS_REGISTRY[name] = func
            return func

        return decorator

    core.register_policy_loss = register_policy_loss
    functional.FusedLinearForPPO = "verl's"
    return modules["verl"], core, functional


def test_install_and_uninstall(fake_verl):
    _, core, functional = fake_verl
    plug.install()
    plug.install()
    assert set(core.POLICY_LOSS_REGISTRY) == {"vanilla", *LOSSES.values(), "fgrpo_vespo"}
    assert functional.FusedLinearForPPO is plug.FusedLinearForPPO
    plug.uninstall()
    assert core.POLICY_LOSS_REGISTRY == {"vanilla": "verl's"}
    assert functional.FusedLinearForPPO == "verl's"


def test_importing_the_install_module_installs(fake_verl, monkeypatch):
    monkeypatch.delitem(sys.modules, "fgrpo_kernels.integrations.verl_install", raising=False)
    import fgrpo_kernels.integrations.verl_install  # noqa: F401

    assert "fgrpo_ppo" in fake_verl[1].POLICY_LOSS_REGISTRY


def test_another_version_is_refused(fake_verl):
    fake_verl[0].__version__ = "0.10.0"
    with pytest.raises(ImportError, match=r"made for verl 0\.9\.x, found 0\.10\.0"):
        plug.install()


def test_another_backend_is_refused():
    with pytest.raises(ValueError, match=r"place of impl_backend='torch', got 'liger'"):
        plug.FusedLinearForPPO(impl_backend="liger")
