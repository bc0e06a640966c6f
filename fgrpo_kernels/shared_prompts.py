"""Training batches in which what the sequences of a group have in common is computed once.

The completions of a prompt begin alike: with the prompt, and often with the same first tokens. In a causal model a
hidden state depends on its token and those before it alone, so each distinct prefix needs to be computed only once. A
group is one row of the batch, a tree of prefixes in which every token is followed by all tokens that continue it.
Token `q` sees token `k` exactly if `k <= q < ends[k]`, and that is the whole attention mask. Prompt 5 6 with
completions 4 3, 7 8 1 and 7 9 2 becomes

    tokens     5 6 4 7 8 9
    positions  0 1 2 2 3 3
    ends       6 6 3 6 5 6

The last token of a completion is predicted and never read, so it is not there. A completion's first token is predicted
by the hidden state of the prompt's last token, any other by that of the token before it.

R rows   L tokens of the longest row   N predicted tokens   B sequences   T tokens of the longest completion
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrefixBatch:
    """Model inputs, padded on the right, and where in them the hidden state is that predicts each token.

    Attributes:
        input_ids, position_ids: int64 `[R, L]`.
        ends: int64 `[R, L]`; token `k` is seen by tokens `k` to `ends[k] - 1` of its row. Padding sees itself alone.
        sources: int64 `[N]`, index among the `R * L` hidden states.
        sequences, tokens: int64 `[N]`, of which of the caller's sequences it predicts which token; in ascending order.
        is_chain: bool, every row is a single sequence, so that a mask of the padding does as well.
    """

    input_ids: Tensor
    position_ids: Tensor
    ends: Tensor
    sources: Tensor
    sequences: Tensor
    tokens: Tensor
    is_chain: bool

    def rows(self, hidden_RLH: Tensor) -> Tensor:
        """Return the hidden states `[N, H]` that predict the tokens, for the packed layout of the losses."""
        return hidden_RLH.flatten(0, 1).index_select(0, self.sources)

    def padded_rows(self, hidden_RLH: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return them as `[B, T, H]`, with a hidden state that means nothing where no token is predicted."""
        source_BT = self.sources.new_zeros(shape)
        source_BT[self.sequences, self.tokens] = self.sources
        return hidden_RLH.flatten(0, 1)[source_BT]

    def owners(self, owner_B: Tensor) -> Tensor:
        """Return whose each row is, int64 `[R]`, given whose each of the caller's sequences is."""
        owner_R = owner_B.new_zeros(self.input_ids.shape[0])
        owner_R[self.sources // self.input_ids.shape[1]] = owner_B[self.sequences]
        return owner_R

    def only(self, index: Tensor) -> PrefixBatch:
        """Return the same model inputs, of which only the tokens at an ascending int64 index are predicted."""
        of_tokens = {name: getattr(self, name)[index] for name in ("sources", "sequences", "tokens")}
        return replace(self, **of_tokens)

    def visible(self, window: int | None = None) -> Tensor:
        """Return bool `[R, 1, L, L]`: token q (last but one dimension) sees token k (last).

        Args:
            window: and k is less than this many positions back, as in sliding-window attention.
        """
        index_L = torch.arange(self.input_ids.shape[1], device=self.ends.device)
        visible = (index_L <= index_L[:, None]) & (index_L[:, None] < self.ends[:, None])
        if window is not None:
            visible &= self.position_ids[:, :, None] - self.position_ids[:, None] < window
        return visible[:, None]

    def additive_mask(self, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """Return `visible` as `[R, 1, L, L]` of `dtype` to add to attention scores: 0, or the dtype's lowest number."""
        hidden = ~self.visible(window)
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)

    def block_mask(self, window: int | None = None) -> Any:
        """Return `visible` as a `BlockMask` of flex_attention, which stores no `[L, L]`."""
        from torch.nn.attention.flex_attention import create_block_mask

        ends, positions = self.ends, self.position_ids

        def sees(row: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
            in_tree = (k <= q) & (q < ends[row, k])
            return in_tree if window is None else in_tree & (positions[row, q] - positions[row, k] < window)

        R, L = self.input_ids.shape
        return create_block_mask(sees, R, None, L, L, device=ends.device.type)

    def padding_mask(self) -> Tensor:
        """Return int64 `[R, L]`, 1 for tokens and 0 for padding: all that a batch of chains needs as attention mask."""
        index_L = torch.arange(self.input_ids.shape[1], device=self.ends.device)
        return (index_L < self.ends[:, :1]).long()

    def to(self, device: torch.device | str) -> PrefixBatch:
        """Return the batch on a device, without waiting for it."""
        tensors: dict[str, Any] = {
            name: x.to(device, non_blocking=True) for name, x in vars(self).items() if isinstance(x, Tensor)
        }
        return replace(self, **tensors)


def share_prompts(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    which: Iterable[int] | None = None,
    max_tokens: int | None = None,
    share: bool = True,
    first_positions: Sequence[int] | None = None,
    owners: Sequence[int] | None = None,
) -> list[PrefixBatch]:
    """Arrange B sequences into batches in which equal prompts share a row, and equal prefixes a token.

    A loss that is a sum over tokens is the sum of the batches' losses, and its gradient that of their gradients.

    Args:
        prompts: token ids of each sequence's prompt, none of them empty; equal ones make a group, wherever they stand.
        completions: token ids of each sequence's completion; an empty one predicts nothing and is left out.
        which: the sequences that enter, by number (default: all). Those without signal in the loss may stay out.
        max_tokens: a batch has at most so many tokens, padding included, unless a single sequence has more; rows of
            similar length go together, and a group that is too large gets several rows. This bounds memory.
        share: False gives each sequence a row of its own, for models whose attention cannot be told what to see.
        first_positions: the position of each prompt's first token (default 0).
        owners: whose each sequence is; equal prompts of different owners do not share a row.

    Returns:
        The batches, on the CPU; none if no token is predicted.

    Raises:
        ValueError: numbers of sequences that differ, an empty prompt, a `max_tokens` below 1.

    Example:
        >>> (batch,) = share_prompts(prompts=[[5, 6]] * 3, completions=[[4, 3], [7, 8, 1], [7, 9, 2]])
        >>> batch.input_ids, batch.position_ids
        (tensor([[5, 6, 4, 7, 8, 9]]), tensor([[0, 1, 2, 2, 3, 3]]))
    """
    if len(prompts) != len(completions):
        raise ValueError(f"share_prompts: {len(prompts)} prompts but {len(completions)} completions, expected as many")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"share_prompts: max_tokens must be at least 1, got {max_tokens}")
    groups: dict[object, list[int]] = {}
    for b in range(len(prompts)) if which is None else which:
        if not len(prompts[b]):
            raise ValueError(f"share_prompts: the prompt of sequence {b} is empty; nothing predicts its first token")
        if len(completions[b]):
            start = 0 if first_positions is None else int(first_positions[b])
            owner = 0 if owners is None else int(owners[b])
            groups.setdefault((owner, start, tuple(prompts[b])) if share else b, []).append(b)
    rows: list[_Tree] = []
    for members in groups.values():
        first = 0 if first_positions is None else int(first_positions[members[0]])
        rows += _trees(prompts[members[0]], {b: completions[b] for b in members}, first, max_tokens)
    return [_batch(part, is_chain=not share) for part in _parts(rows, max_tokens)]


def share_padded_prompts(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    count_padding: bool = False,
    **options: Any,
) -> list[PrefixBatch]:
    """`share_prompts` of padded sequences, on their device.

    Args:
        prompt_ids: int64 `[B, P]`, padded on either side.
        prompt_mask: `[B, P]`, other than 0 for tokens.
        completion_ids, completion_mask: `[B, T]`, padded on the right.
        count_padding: positions are columns, padding on the left included, as in models that are given none.
        options: `which`, `max_tokens`, `share` and `owners`, as in `share_prompts`.

    Example:
        >>> prompts, completions = torch.tensor([[0, 5], [0, 5]]), torch.tensor([[4, 3], [7, 0]])
        >>> (batch,) = share_padded_prompts(prompts, prompts != 0, completions, completions != 0)
        >>> batch.input_ids
        tensor([[5, 4]])
    """
    if prompt_ids.shape != prompt_mask.shape or completion_ids.shape != completion_mask.shape:
        raise ValueError(
            f"share_padded_prompts: masks {list(prompt_mask.shape)} and {list(completion_mask.shape)} for prompts "
            f"{list(prompt_ids.shape)} and completions {list(completion_ids.shape)}, expected the same shapes"
        )
    prompts, completions = _ragged(prompt_ids, prompt_mask), _ragged(completion_ids, completion_mask)
    starts = (prompt_mask != 0).int().argmax(dim=1).tolist() if count_padding else None
    batches = share_prompts(prompts, completions, first_positions=starts, **options)
    return [batch.to(prompt_ids.device) for batch in batches]


def _ragged(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The token ids of each sequence; one transfer."""
    lengths = (mask != 0).sum(dim=1).tolist()
    return [part.tolist() for part in ids[mask != 0].cpu().split(lengths)]


class _Tree:
    """The distinct prefixes of a prompt's completions: grown in lexical order, each subtree ends up without a gap."""

    def __init__(self, prompt: Sequence[int], first_position: int) -> None:
        self.tokens = list(prompt)
        self.positions = list(range(first_position, first_position + len(prompt)))
        self.ends = [0] * len(prompt)
        self.sources: dict[int, list[int]] = {}
        self._path = list(range(len(prompt)))  # the nodes of the sequence that came last
        self._inputs: Sequence[int] = ()  # and its completion, without the last token
        self._prompt_length = len(prompt)

    def growth(self, completion: Sequence[int]) -> int:
        """How many tokens it would add."""
        return len(completion) - 1 - _common(self._inputs, completion[:-1])

    def add(self, sequence: int, completion: Sequence[int]) -> None:
        inputs = completion[:-1]
        kept = self._prompt_length + _common(self._inputs, inputs)
        self._close(kept)
        del self._path[kept:]
        for token in inputs[kept - self._prompt_length :]:
            self.positions.append(self.positions[0] + len(self._path))
            self._path.append(len(self.tokens))
            self.tokens.append(token)
            self.ends.append(0)
        self._inputs = inputs
        self.sources[sequence] = self._path[self._prompt_length - 1 :]

    def closed(self) -> _Tree:
        self._close(0)
        return self

    def _close(self, depth: int) -> None:
        """Nothing more continues the nodes from this depth on."""
        for node in self._path[depth:]:
            self.ends[node] = len(self.tokens)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _trees(
    prompt: Sequence[int], completions: dict[int, Sequence[int]], first_position: int, max_tokens: int | None
) -> list[_Tree]:
    """One group, in as few rows as the budget allows."""
    trees = [_Tree(prompt, first_position)]
    for sequence, completion in sorted(completions.items(), key=lambda item: list(item[1])):
        tree = trees[-1]
        if max_tokens is not None and tree.sources and len(tree.tokens) + tree.growth(completion) > max_tokens:
            tree = _Tree(prompt, first_position)
            trees.append(tree)
        tree.add(sequence, completion)
    return [tree.closed() for tree in trees]


def _parts(rows: list[_Tree], max_tokens: int | None) -> list[list[_Tree]]:
    """Rows of similar length together, each part within the budget."""
    rows = sorted(rows, key=lambda row: -len(row.tokens))
    parts: list[list[_Tree]] = []
    for row in rows:
        if not parts or (max_tokens is not None and (len(parts[-1]) + 1) * len(parts[-1][0].tokens) > max_tokens):
            parts.append([])
        parts[-1].append(row)
    return parts


def _batch(rows: list[_Tree], is_chain: bool) -> PrefixBatch:
    R, L = len(rows), max(len(row.tokens) for row in rows)
    input_ids, position_ids = (torch.zeros(R, L, dtype=torch.int64, device="cpu") for _ in range(2))
    ends = torch.arange(1, L + 1, device="cpu").repeat(R, 1)
    found: list[tuple[int, int, int]] = []  # sequence, token, source
    for r, row in enumerate(rows):
        length = len(row.tokens)
        for whole, part in ((input_ids, row.tokens), (position_ids, row.positions), (ends, row.ends)):
            whole[r, :length] = torch.tensor(part, device="cpu")
        for sequence, sources in row.sources.items():
            found += [(sequence, t, r * L + source) for t, source in enumerate(sources)]
    sequences, tokens, sources_N = torch.tensor(sorted(found), device="cpu").unbind(dim=1)
    return PrefixBatch(input_ids, position_ids, ends, sources_N.contiguous(), sequences, tokens, is_chain)
