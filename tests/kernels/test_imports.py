"""The direction of imports: `fgrpo` may use `fgrpo_kernels`, never the other way round."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fgrpo_kernels

pytestmark = pytest.mark.pytorch_path

PACKAGE = Path(fgrpo_kernels.__file__).parent


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found.add(node.module.split(".")[0])
    return found


def test_kernels_never_import_the_federated_package():
    modules = list(PACKAGE.rglob("*.py"))
    assert modules
    assert [m.name for m in modules if "fgrpo" in imported_packages(m.read_text())] == []


def test_importing_the_kernels_needs_torch_alone():
    """Triton is used where there is one; without it every op takes the PyTorch path."""
    heavy = {"fgrpo", "transformers", "datasets", "peft", "trl", "verl"}
    code = f"""
import sys, torch
sys.modules["triton"] = None  # importing it raises ImportError
old = set(sys.modules)
import fgrpo_kernels
assert not (set(sys.modules) - old) & {heavy}, (set(sys.modules) - old) & {heavy}
logits = torch.randn(3, 5, requires_grad=True)
loss = fgrpo_kernels.grpo_loss(logits, torch.tensor([0, 1, 2]), torch.ones(3), torch.ones(3)).loss
loss.backward()
print(loss.item(), logits.grad.abs().sum().item() > 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["-3.0", "True"]
