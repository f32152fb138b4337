"""Keys and values in reserved room: what transformers' growing cache gives, and nothing is copied as rows go on."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tiny
from transformers import DynamicCache

from rl.models.reserved_cache import reserved_cache
from rl.models.streams import Stream

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 9, 4]]
ROWS = torch.tensor([0, 0, 1, 1, 1])


@torch.no_grad()
def test_rows_see_what_a_cache_that_grows_would_show_them() -> None:
    vlm = make_tiny()
    stream = Stream.prefill(vlm, PROMPTS)
    rows, growing = stream.rows(ROWS, room=5), DynamicCache()
    for index, (keys, values) in enumerate(stream.layers):
        growing.update(keys[ROWS], values[ROWS], index)
    mask = stream.mask[ROWS]
    for tokens in (1, 3, 1):
        ids = torch.randint(5, 40, (len(ROWS), tokens))
        before = mask.sum(-1, keepdim=True)
        mask = torch.nn.functional.pad(mask, (0, tokens), value=1)
        expected = vlm.hidden_states(
            ids,
            attention_mask=mask,
            position_ids=before + torch.arange(tokens),
            past_key_values=growing,
            use_cache=True,
        ).last_hidden_state
        assert torch.equal(rows.read(ids)[:, 1:], expected)
    for ours, theirs in zip(rows.cache.layers, growing.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


@torch.no_grad()
def test_nothing_is_copied_as_rows_go_on() -> None:
    stream = Stream.prefill(make_tiny(), PROMPTS)
    rows = stream.rows(ROWS, room=4)
    before = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in rows.cache.layers]
    for _ in range(4):
        rows.push(torch.full((len(ROWS),), 7))
    assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in rows.cache.layers] == before
    assert rows.cache.get_seq_length() == len(PROMPTS[0]) + 4
    with pytest.raises(RuntimeError):  # more than was asked for is never written elsewhere
        rows.push(torch.full((len(ROWS),), 7))


def test_what_transformers_asks_of_a_layer() -> None:
    """The seam: `DynamicLayer` of transformers 5.23.0, of which `update` alone is another's."""
    layers = [(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)) for _ in range(2)]
    ours, theirs = reserved_cache(layers, torch.tensor([1, 0, 1]), room=2), DynamicCache()
    for index, (keys, values) in enumerate(layers):
        theirs.update(keys[[1, 0, 1]], values[[1, 0, 1]], index)
    new = torch.randn(3, 1, 2, 4)
    for step in range(2):
        for index in range(2):
            pair = [cache.update(new[:, :, [step]], -new[:, :, [step]], index) for cache in (ours, theirs)]
            assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
    for asked in ("get_seq_length", "get_max_length"):
        assert getattr(ours.layers[0], asked)() == getattr(theirs.layers[0], asked)()
    assert ours.layers[0].get_mask_sizes(1) == theirs.layers[0].get_mask_sizes(1) == (6, 0)
    assert ours.is_compileable == theirs.is_compileable
    assert ours.is_initialized == theirs.is_initialized
