"""The example runs, learns, and its two losses are one."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "examples" / "plain_grpo.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("plain_grpo", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_numbers_with_either_loss(example):
    plain, fused = (example.train(steps=4, plain=plain) for plain in (True, False))
    for x, y in zip(plain, fused, strict=True):
        assert x == pytest.approx(y, rel=1e-4, abs=1e-6)
    assert all(log["grad_norm"] > 0 for log in fused[:-1])


def test_it_learns(example):
    result = example.train()[-1]
    assert result["after"] > result["before"] + 0.2


def test_it_fits_on_a_page():
    assert len(FILE.read_text().splitlines()) < 120
