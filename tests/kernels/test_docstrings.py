"""The examples in the docstrings are run."""

import doctest

import pytest
import torch

import fgrpo_kernels
from fgrpo_kernels import codec, downlink, robust, shared_prompts

SHARED_PROMPTS = ["share_prompts", "share_padded_prompts"]
PUBLIC = [(fgrpo_kernels, fgrpo_kernels.__all__), (shared_prompts, SHARED_PROMPTS)]
PUBLIC += [(module, module.__all__) for module in (codec, robust, downlink)]
RECORDS = {"ClientStats", "ClippedMean", "Encoded", "GRPOLoss", "GroupAdvantages", "PartialTokenStats", "SparseUpdate"}
TYPES = {"Codec", "Objective", "TokenLogprobs"} | RECORDS  # what is returned, and words for types
CASES = [
    pytest.param(getattr(module, name), module, id=name)
    for module, names in PUBLIC
    for name in names
    if callable(getattr(module, name)) and name not in TYPES
]


@pytest.mark.parametrize(("public", "module"), CASES)
def test_example(public, module):
    names = {"torch": torch, **{name: getattr(fgrpo_kernels, name) for name in fgrpo_kernels.__all__}}
    names |= {"encode": codec.encode} | vars(module)
    examples = [found for found in doctest.DocTestFinder(recurse=False).find(public, globs=names) if found.examples]
    assert len(examples) == 1, "every public function and objective has one"
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples[0])
    assert results.failed == 0
