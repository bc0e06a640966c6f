"""verl's own loss functions and signatures, taken out of its source files without importing verl.

    python tests/integrations/verl_source.py      # with verl's source on PYTHONPATH: writes the fixture

Importing verl needs ray, tensordict and more; these functions need torch alone.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch

FIXTURE = Path(__file__).parent / "fixtures" / "verl_0_9_1.json"
LOSSES = {  # of verl: ours
    "vanilla": "fgrpo_ppo",
    "gspo": "fgrpo_gspo",
    "cispo": "fgrpo_cispo",
    "sapo": "fgrpo_sapo",
    "geo_mean": "fgrpo_gmpo",
}
MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]
CASES = [  # loss, aggregation, with rollout weights, with the global batch's counts
    (name, mode, weighted, info)
    for name in LOSSES
    for mode in MODES
    for weighted in (False, True)
    for info in (False, True)
    # verl's sapo always reduces so, and its geo_mean is a mean over all sequences whose weights have another form.
    if name not in ("sapo", "geo_mean") or mode == "seq-mean-token-mean"
    if name != "geo_mean" or not (weighted or info)
]
GLOBAL = {"dp_size": 2, "batch_num_tokens": 37, "global_batch_size": 9, "loss_scale_factor": 11}


class Config(SimpleNamespace):
    """What the losses read of verl's ActorConfig."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def key_of(name: str, mode: str, weighted: bool, info: bool) -> str:
    return f"{name} {mode} {'weighted' if weighted else 'plain'} {'global' if info else 'local'}"


def make_config(info: bool = False, **batch_info: Any) -> Config:
    """`info`: with the counts of a global batch."""
    return Config(
        clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=3.0, tau_pos=1.0, tau_neg=1.05,
        global_batch_info=GLOBAL if info else batch_info,
    )  # fmt: skip


def make_batch() -> dict[str, torch.Tensor]:
    """Ragged, one sequence fully masked, ratios on both sides of every bound; a rollout weight a sequence."""
    rng = torch.Generator().manual_seed(4)
    B, T = 6, 7
    old = -2 + 0.5 * torch.randn(B, T, generator=rng, dtype=torch.float64)
    drift = torch.tensor([0.0, 0.5, -0.5, 0.0, 1.5, 0.3], dtype=torch.float64)[:, None]
    return {
        "old_log_prob": old.float(),
        "log_prob": (old + drift + 0.3 * torch.randn(B, T, generator=rng, dtype=torch.float64)).float(),
        "advantages": torch.tensor([1.0, 0.5, -1.5, -0.5, -1.0, 2.0])[:, None].expand(B, T).contiguous(),
        "response_mask": torch.arange(T) < torch.tensor([7, 5, 6, 0, 7, 2])[:, None],
        "rollout_is_weights": torch.tensor([1.0, 0.5, 2.0, 1.0, 0.8, 1.2])[:, None].expand(B, T).contiguous(),
    }


def result(function: Any, mode: str, with_weights: bool, config: Config) -> dict[str, Any]:
    """Loss, gradient and metrics of a policy loss on the batch."""
    batch = make_batch()
    if not with_weights:
        batch["rollout_is_weights"] = None
    batch["log_prob"].requires_grad_()
    loss, metrics = function(**batch, loss_agg_mode=mode, config=config)
    loss.backward()
    return {"loss": loss.item(), "gradient": batch["log_prob"].grad.tolist(), "metrics": metrics}


def find_source() -> Path | None:
    """The folder of an installed verl, which is not imported."""
    spec = importlib.util.find_spec("verl")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def functions_of(path: Path, namespace: dict[str, Any]) -> dict[str, Any]:
    """The functions and classes of a source file, without decorators, as far as they define themselves in the
    namespace."""
    tree = ast.parse(path.read_text())
    kept = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in kept:
        node.decorator_list = []
    namespace = dict(namespace)
    module = ast.fix_missing_locations(ast.Module([*ast.parse("from __future__ import annotations").body, *kept], []))
    exec(compile(module, str(path), "exec"), namespace)
    return namespace


def policy_losses(source: Path) -> dict[str, Any]:
    helpers = functions_of(source / "utils" / "torch_functional.py", {"torch": torch})
    names = {"torch": torch, "verl_F": SimpleNamespace(**helpers), "Optional": Optional, "Any": Any}
    names |= {"ActorConfig": Config, "AlgoConfig": dict, "DictConfig": dict}
    return functions_of(source / "trainer" / "ppo" / "core_algos.py", names)


def signature_of(function: Any, skip: tuple[str, ...] = ()) -> list[list[str]]:
    """Names and defaults of the parameters; annotations aside."""
    parameters = inspect.signature(function).parameters.values()
    return [[p.name, repr(p.default) if p.default is not p.empty else ""] for p in parameters if p.name not in skip]


def record(source: Path) -> dict[str, Any]:
    core = policy_losses(source)
    head_file = source / "utils" / "experimental" / "torch_functional.py"
    head = next(
        node for node in ast.parse(head_file.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "FusedLinearForPPO"
    )  # fmt: skip
    methods = {
        f.name: [[a.arg for a in f.args.args[1:]], [ast.literal_eval(d) for d in f.args.defaults]]
        for f in head.body if isinstance(f, ast.FunctionDef)
    }  # fmt: skip
    return {
        "policy_loss": {name: signature_of(core[f"compute_policy_loss_{name}"]) for name in LOSSES},
        "agg_loss": signature_of(core["agg_loss"]),
        "register_policy_loss": signature_of(core["register_policy_loss"]),
        "FusedLinearForPPO": methods,
        "results": {
            key_of(*case): result(core[f"compute_policy_loss_{case[0]}"], *case[1:3], make_config(case[3]))
            for case in CASES
        },
    }


if __name__ == "__main__":
    folder = find_source()
    assert folder is not None, "put verl's source on PYTHONPATH"
    FIXTURE.write_text(json.dumps(record(folder), indent=None) + "\n")
