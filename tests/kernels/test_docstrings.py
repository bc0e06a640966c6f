"""The examples in the docstrings are run."""

import doctest

import pytest
import torch

import fgrpo_kernels

FUNCTIONS = [
    name for name in fgrpo_kernels.__all__ if callable(x := getattr(fgrpo_kernels, name)) and not isinstance(x, type)
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example(name):
    names = {"torch": torch, **{n: getattr(fgrpo_kernels, n) for n in fgrpo_kernels.__all__}}
    (example,) = doctest.DocTestFinder().find(getattr(fgrpo_kernels, name), name, globs=names)
    assert example.examples, "every public op has one"
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert results.failed == 0
