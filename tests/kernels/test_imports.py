"""What importing `fgrpo_kernels` brings along. Which module may import which: `tests/test_layout.py`."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.pytorch_path


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
