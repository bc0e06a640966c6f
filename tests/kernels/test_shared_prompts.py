"""Prefix trees: every predicted token finds the hidden state of exactly the tokens before it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_kernels.shared_prompts import share_padded_prompts, share_prompts

pytestmark = pytest.mark.pytorch_path

TOKENS = st.lists(st.integers(1, 3), max_size=6)
CASES = st.lists(st.tuples(st.sampled_from([[1], [2, 1], [2, 1, 1]]), TOKENS), min_size=1, max_size=8)


def context(batch, n):
    """The tokens that the n-th predicted token's hidden state depends on, with their positions."""
    row, at = divmod(int(batch.sources[n]), batch.input_ids.shape[1])
    seen = batch.visible()[row, 0, at]
    return batch.input_ids[row, seen].tolist(), batch.position_ids[row, seen].tolist()


@settings(max_examples=150)
@given(cases=CASES, share=st.booleans(), max_tokens=st.sampled_from([None, 1, 7, 20]))
def test_every_token_is_predicted_from_what_is_before_it(cases, share, max_tokens):
    prompts, completions = [p for p, _ in cases], [c for _, c in cases]
    batches = share_prompts(prompts, completions, share=share, max_tokens=max_tokens)
    found = set()
    for batch in batches:
        order = list(zip(batch.sequences.tolist(), batch.tokens.tolist(), strict=True))
        assert order == sorted(order)
        for n, (b, t) in enumerate(order):
            found.add((b, t))
            before = [*prompts[b], *completions[b][:t]]
            assert context(batch, n) == (before, list(range(len(before))))
    assert found == {(b, t) for b, completion in enumerate(completions) for t in range(len(completion))}


@settings(max_examples=100)
@given(cases=CASES)
def test_no_prefix_is_there_twice(cases):
    prompts, completions = [p for p, _ in cases], [c for _, c in cases]
    (batch,) = share_prompts(prompts, completions) or [None]
    read = {(tuple(p), tuple(c[:t])) for p, c in cases for t in range(len(c))}  # from the prompt's last token on
    tokens = len(read) + sum(len(p) - 1 for p, _ in {key: None for key in read if not key[1]})
    assert tokens == (0 if batch is None else int(batch.padding_mask().sum()))


def test_the_example_of_the_module():
    (batch,) = share_prompts([[5, 6]] * 3, [[7, 8, 1], [7, 9, 2], [4, 3]])
    assert batch.input_ids.tolist() == [[5, 6, 4, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3, 3]]
    assert batch.ends.tolist() == [[6, 6, 3, 6, 5, 6]]
    assert batch.sources.tolist() == [1, 3, 4, 1, 3, 5, 1, 2]


def test_batches_are_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        (batch,) = share_prompts([[5, 6], [5, 6]], [[7, 8], [7, 9]])
    assert {x.device.type for x in vars(batch).values() if isinstance(x, torch.Tensor)} == {"cpu"}
    assert batch.input_ids.tolist() == [[5, 6, 7]]


def test_groups_may_lie_anywhere_and_sequences_stay_out():
    prompts, completions = [[1], [2], [1], [2]], [[3, 4], [], [5], [6, 7]]
    (batch,) = share_prompts(prompts, completions, which=[2, 1, 0])
    assert batch.sequences.tolist() == [0, 0, 2]
    assert batch.input_ids.tolist() == [[1, 3]]
    assert share_prompts(prompts, completions, which=[]) == []
    assert share_prompts([[1]], [[]]) == []


@pytest.mark.parametrize("max_tokens", [1, 8, 12, 40])
def test_a_budget_holds_unless_one_sequence_is_larger(max_tokens):
    prompts = [[1] * (1 + b % 3) for b in range(12)]
    completions = [[b, 1, 2, 3][: 1 + b % 4] for b in range(12)]
    batches = share_prompts(prompts, completions, max_tokens=max_tokens)
    assert all(batch.input_ids.numel() <= max(max_tokens, 6) for batch in batches)
    assert len(batches) < 12 or max_tokens < 8


def test_padding_and_windows():
    (batch,) = share_prompts([[1, 2, 3, 4], [1]], [[5, 6], [7, 8]])
    assert batch.padding_mask().tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    visible = batch.visible()
    assert visible.any(-1).all(), "a row that sees nothing has no softmax"
    assert not visible[1, 0, :2, 2:].any()
    near = batch.visible(window=2)[0, 0]
    assert near.sum(-1).tolist() == [1, 2, 2, 2, 2]
    mask = batch.additive_mask(torch.bfloat16)
    assert torch.equal(mask == 0, visible)
    assert mask.dtype == torch.bfloat16
    assert mask.isfinite().all()


@pytest.mark.parametrize("window", [None, 3])
def test_block_mask_is_the_same_mask(window):
    prompts = [list(range(1, 90)), list(range(1, 90)), [1, 2]]
    (batch,) = share_prompts(prompts, [list(range(100, 180)), list(range(100, 170)), [3, 4, 5]])
    R, L = batch.input_ids.shape
    block_mask = batch.block_mask(window)
    q, k = torch.arange(L)[:, None], torch.arange(L)
    dense = torch.stack([block_mask.mask_mod(torch.tensor(r), torch.tensor(0), q, k) for r in range(R)])
    assert torch.equal(dense, batch.visible(window)[:, 0])
    assert block_mask.shape == (R, 1, L, L)


def test_rows_in_the_callers_order():
    (batch,) = share_prompts([[1], [1]], [[2, 3], [4]])
    hidden = torch.randn(1, 2, 5)
    assert torch.equal(batch.rows(hidden), hidden[0, [0, 1, 0]])
    padded = batch.padded_rows(hidden, (3, 2))
    assert torch.equal(padded[0], hidden[0])
    assert torch.equal(padded[1, 0], hidden[0, 0])
    assert padded.shape == (3, 2, 5)


def test_padded_sequences():
    prompt_ids, prompt_mask = (
        torch.tensor([[0, 1, 2], [3, 4, 5], [0, 1, 2]]),
        torch.tensor([[0, 1, 1], [1] * 3, [0, 1, 1]]),
    )
    completion_ids, completion_mask = torch.tensor([[6, 7], [8, 0], [6, 9]]), torch.tensor([[1, 1], [1, 0], [1, 1]])
    tensors = (prompt_ids, prompt_mask, completion_ids, completion_mask)
    (batch,) = share_padded_prompts(*tensors)
    (ragged,) = share_prompts([[1, 2], [3, 4, 5], [1, 2]], [[6, 7], [8], [6, 9]])
    assert all(torch.equal(getattr(batch, name), x) for name, x in vars(ragged).items() if isinstance(x, torch.Tensor))
    (columns,) = share_padded_prompts(*tensors, count_padding=True)
    assert columns.position_ids.tolist() == [[1, 2, 3], [0, 1, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[1]], "completions": [[1], [2]]}, "1 prompts but 2 completions"),
        ({"prompts": [[]], "completions": [[1]]}, "prompt of sequence 0 is empty"),
        ({"prompts": [[1]], "completions": [[1]], "max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        share_prompts(**arguments)


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected the same shapes"):
        share_padded_prompts(torch.ones(2, 3), torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2))


def test_equal_prompts_of_different_owners_do_not_share_a_row():
    owners = torch.tensor([7, 4, 7])
    (batch,) = share_prompts([[5, 6]] * 3, [[1, 2], [1, 3], [1, 4]], owners=owners)
    assert batch.owners(owners).tolist() == [7, 4]
    (all_one,) = share_prompts([[5, 6]] * 3, [[1, 2], [1, 3], [1, 4]])
    assert len(all_one.input_ids) == 1
    part = batch.only(owners[batch.sequences] == 7)
    assert part.sequences.unique().tolist() == [0, 2]
    assert part.rows(batch.input_ids[:, :, None]).flatten().tolist() == [6, 1, 6, 1]
