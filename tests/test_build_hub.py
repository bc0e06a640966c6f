"""The folder for the `kernels` package: complete, without fgrpo_kernels, and the same ops."""

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fgrpo_kernels

SCRIPT = Path(__file__).parents[1] / "scripts" / "build_hub.py"


def module_from(path: Path, name: str) -> ModuleType:
    """As the `kernels` package imports a variant."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "fgrpo-kernels"
    module_from(SCRIPT, "build_hub").build(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[ModuleType]:
    variant = folder / "build" / "torch-cpu"
    name = json.loads((variant / "metadata.json").read_text())["id"]
    yield module_from(variant / "__init__.py", name)
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


@pytest.mark.parametrize("backend", ["cuda", "rocm", "xpu", "cpu"])
def test_a_variant_needs_nothing_but_torch_and_triton(folder: Path, backend: str) -> None:
    variant = folder / "build" / f"torch-{backend}"
    wanted = set()
    for path in variant.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            wanted |= {name.split(".")[0] for name in names}
    assert wanted - sys.stdlib_module_names == {"torch", "triton"}
    description = json.loads((variant / "metadata.json").read_text())
    assert description["backend"] == {"type": backend}
    assert description["id"].isidentifier()


# A CPU's float32 rows go through the C++ core, which the variant is without; float64 takes the same way in both.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, {"rtol": 0, "atol": 0}), (torch.float32, {})])
def test_ops_are_the_same_under_their_own_namespace(
    loaded: ModuleType, dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    assert set(loaded.__all__) == set(fgrpo_kernels.__all__)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 33, generator=generator, dtype=dtype)
    targets = torch.randint(33, (2, 5), generator=generator)
    old_logp = fgrpo_kernels.token_logprobs(logits, targets).logp + 0.3 * torch.randn(2, 5, generator=generator)
    results = []
    for package in (fgrpo_kernels, loaded):
        leaf = logits.clone().requires_grad_()
        advantages = package.group_advantages(torch.tensor([1.0, 0.0]), group_size=2).advantages
        weights = package.token_weights(torch.ones(2, 5), "dapo")
        loss = package.grpo_loss(leaf, targets, advantages, weights, old_logp=old_logp).loss
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], **tolerance)
    assert getattr(torch.ops, loaded.__name__).token_logprobs is not torch.ops.fgrpo.token_logprobs


def test_kernels_loads_it(folder: Path) -> None:
    kernels = pytest.importorskip("kernels", reason=(reason := "kernels is not installed: pip install kernels"))
    if not hasattr(kernels, "get_local_kernel"):  # a folder of that name, here that of our own tests
        pytest.skip(reason)
    module = kernels.get_local_kernel(folder, backend="cpu")
    assert Path(module.__file__).parent == folder / "build" / "torch-cpu"
    advantages = module.group_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), group_size=2).advantages
    assert torch.equal(advantages[2:], torch.zeros(2))
    assert float(advantages[0]) == -float(advantages[1]) > 0
