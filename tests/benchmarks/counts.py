"""What things cost, counted: no clock, so a busy machine gives the same numbers.

    python tests/benchmarks/counts.py      # writes counts.json beside it; commit it with the change that moved a number

- *loops*: machine instructions in the innermost loops of the codec's kernels, as this compiler made them.
- *calls*: what a call of an op on a GPU does on the host: Python and C functions that this package calls, torch ops,
  kernels launched. Counted in Triton's interpreter with launches left out.
- *loop*: positions that go through the model in a round of the tiny one, by completion token.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNTS = Path(__file__).with_name("counts.json")
ROOT = Path(__file__).parents[2]
LEVELS = ("avx2", "avx512")
Counts = dict[str, float]
Code = list[tuple[int, int | None]]  # of a function: the instructions' addresses, and where they jump or call to


def compiler() -> str:
    """What the extension says of who made it: the counts of another compiler are others."""
    found = re.search(rb"(GCC: \([^)]*\) |clang version )(\d+\.\d+)", _extension().read_bytes())
    return "unknown" if found is None else f"{'gcc' if b'GCC' in found[1] else 'clang'} {found[2].decode()}"


def loops() -> Counts:
    """Instructions in the innermost loops, by kernel and instruction set: those that the dispatch tables point to."""
    extension = str(_extension())
    names = _lines("nm", "-C", "--defined-only", extension)
    symbols = {int(line[0], 16): line[2] for line in (text.split(maxsplit=2) for text in names) if line[1] in "tT"}
    code = _disassembled(extension)
    counts: Counts = {}
    for level in LEVELS:
        for address in _table(extension, f"fgrpo::kernels_{level}", code):
            inner = sum(_in_innermost_loops(code[function]) for function in _reached(address, code))
            if inner:
                counts[f"{level} {_short(symbols[address])}"] = inner
    return counts


def calls() -> Counts:
    """From a process of its own: the interpreter must be chosen before Triton is imported."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, str(Path(__file__)), "--calls"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    counted: Counts = json.loads(done.stdout)
    return counted


def loop() -> Counts:
    """Positions through the decoder in one round, over the completion tokens that were trained on."""
    import torch

    from fgrpo.client.owners import Owners
    from fgrpo.client.policy import Policy
    from fgrpo.config import ClientConfig, Config, EvaluationConfig, RolloutConfig, TaskConfig, TrainConfig
    from fgrpo.engines.in_process import InProcess
    from fgrpo.engines.workplace import Workplace
    from fgrpo.federation import play_round
    from fgrpo.records import ServerState
    from fgrpo.wire.parameters import flatten

    torch.manual_seed(0)
    digits = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config = Config(
        clients={"sums": ClientConfig([TaskConfig(reasoning_gym="chain_sum", params=digits)])},
        rollout=RolloutConfig(prompts_per_step=8, group_size=8, max_new_tokens=12),
        train=TrainConfig(local_steps=1),
        evaluation=EvaluationConfig(prompts=1),
        rounds=1,
    )
    policy = Policy.load(config)
    positions = {"rollout": 0, "training": 0}

    def count(module: Any, inputs: tuple[Any, ...], result: Any) -> None:
        positions["training" if torch.is_grad_enabled() else "rollout"] += inputs[0].numel()

    policy.model.get_input_embeddings().register_forward_hook(count)
    engine = InProcess(Workplace(config, Owners(config), policy))
    _, _, accepted = play_round(ServerState.initial(flatten(policy.model)), engine, config, _Nobody())
    tokens = sum(one.report.tokens for one in accepted)
    return {f"{stage} positions a token": round(count / tokens, 3) for stage, count in positions.items()}


class _Nobody:
    """Watches nothing."""

    def stage(self, who: str, stage: str) -> None:
        pass

    def record(self, record: Any) -> None:
        pass


def _extension() -> Path:
    from fgrpo_kernels import _C

    return Path(_C.__file__)


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _table(extension: str, name: str, code: dict[int, Code]) -> list[int]:
    """The functions that a table of the kernels points to, in its order, each once; not its name, or other tables."""
    (entry,) = (line.split() for line in _lines("nm", "-CS", extension) if line.endswith(f" {name}"))
    start, size = int(entry[0], 16), int(entry[1], 16)
    relocations = (line.split() for line in _lines("readelf", "-rW", extension) if "_RELATIVE" in line)
    inside = {int(r[0], 16): int(r[3], 16) for r in relocations if start <= int(r[0], 16) < start + size}
    return list(dict.fromkeys(address for _, address in sorted(inside.items()) if address in code))


def _disassembled(extension: str) -> dict[int, Code]:
    found: dict[int, Code] = {}
    current: Code = []
    for line in _lines("objdump", "-d", "--no-show-raw-insn", extension):
        if start := re.match(r"([0-9a-f]+) <.*>:$", line):
            current = found.setdefault(int(start[1], 16), [])
        elif instruction := re.match(r"\s*([0-9a-f]+):\s+(\w+)\s*([0-9a-f]+)?", line):
            address, name, target = instruction.groups()
            jump = int(target, 16) if name.startswith(("j", "call")) and target else None
            current.append((int(address, 16), jump))
    return found


def _reached(address: int, code: dict[int, Code]) -> set[int]:
    """A function and those that it calls by name, and they in their turn."""
    found, new = {address}, [address]
    while new:
        targets = {target for _, target in code[new.pop()] if target in code} - found
        found |= targets
        new += targets
    return found


def _short(symbol: str) -> str:
    """`quantise<8>`, of a name with namespaces, result and arguments."""
    name = re.sub(r"fgrpo::|\(anonymous namespace\)::", "", symbol).partition("(")[0]
    found = re.search(r"\w+(<.*>)?$", name)
    assert found is not None, symbol
    return found[0]


def _in_innermost_loops(code: Code) -> int:
    """How many instructions lie between a jump backwards and its target, in loops with no other loop inside."""
    first = code[0][0]
    found = {(target, at) for at, target in code if target is not None and first <= target < at}
    inner = [a for a in found if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return sum(start <= at <= end for start, end in inner for at, _ in code)


def _count_calls() -> Counts:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from triton.runtime.interpreter import GridExecutor

    from fgrpo_kernels import PPOClip, group_advantages, grpo_loss, token_logprobs

    package = str(ROOT / "fgrpo_kernels")
    counted = {"calls": 0, "torch ops": 0, "launches": 0}

    def launch(self: Any, *arguments: Any, **options: Any) -> None:
        counted["launches"] += 1

    GridExecutor.__call__ = launch

    def profile(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        own = code.co_filename.startswith(package) and not code.co_name.startswith("<")  # some of them 3.12 inlines
        counted["calls"] += own and event in ("call", "c_call")

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            counted["torch ops"] += 1
            return function(*arguments, **(options or {}))

    def cost(run: Callable[[], Any]) -> dict[str, int]:
        run()
        for name in counted:
            counted[name] = 0
        sys.setprofile(profile)
        try:
            run()
        finally:
            sys.setprofile(None)
        result = dict(counted)
        with Ops():
            run()
        return {**result, "torch ops": counted["torch ops"]}

    B, T, V = 4, 8, 64
    logits = torch.zeros(B, T, V).requires_grad_()
    targets, rewards = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B)
    weights, old = torch.ones(B, T), torch.zeros(B, T)

    def loss(level: Any) -> Callable[[], Any]:
        objective = PPOClip(level=level)
        return lambda: torch.autograd.grad(
            grpo_loss(logits, targets, rewards, weights, old_logp=old, objective=objective).loss, logits
        )

    ops: dict[str, Callable[[], Any]] = {
        "group_advantages": lambda: group_advantages(rewards, 2),
        "token_logprobs": lambda: torch.autograd.grad(token_logprobs(logits, targets).logp.sum(), logits),
        "grpo_loss, token level": loss("token"),
        "grpo_loss, sequence level": loss("sequence"),
    }
    return {f"{name}: {kind}": number for name, run in ops.items() for kind, number in cost(run).items()}


def collect() -> dict[str, Counts]:
    return {f"loops, {compiler()}": loops(), "calls": calls(), "loop": loop()}


if __name__ == "__main__":
    if "--calls" in sys.argv:
        print(json.dumps(_count_calls()))
    else:
        before = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
        COUNTS.write_text(json.dumps(before | collect(), indent=1) + "\n")
