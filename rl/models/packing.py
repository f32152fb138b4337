"""Rows that begin alike in one pass, with gradients: each prompt is read once, and then every row's own tokens.

A group's candidates stand behind one prompt. Prompts and completions are laid into one long row, of which the layers
see every token once; attention alone tells them apart: a prompt's tokens see their prompt, a completion's see its
prompt and what stands before them in it. So the gradients of all candidates are summed up in their prompt's keys and
values, and all that lies around a layer (adapters, activation checkpointing, the wrappers of several processes) has an
ordinary pass before it. `rl.models.streams` does the same without gradients, where rows grow token by token.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rl.models.attention import SHARED_PREFIX, can_share, two_part_attention
from rl.models.costs import SHARED_FROM as SHARED_FROM  # for whoever lays rows out
from rl.models.unified import UnifiedVLM

logger = logging.getLogger("rl")


class Packing:
    """Rows of equally long prompts and completions, as one.

    Args:
        ids_RT: int64 [R, T + n], prompts padded on the left, so that all end in one column.
        mask_RT: int64 [R, T + n], 0 at padding, and wherever else nothing is to be seen.
        positions_RT: int64 [R, T + n].
        own: the n last tokens of each row, which are its own.

    Attributes:
        prompts: how many different ones there are.
    """

    def __init__(self, ids_RT: Tensor, mask_RT: Tensor, positions_RT: Tensor, own: int) -> None:
        self.rows, self.own, self.width = len(ids_RT), own, ids_RT.shape[1] - own
        begins = torch.cat([ids_RT[:, : self.width], mask_RT[:, : self.width]], 1)
        distinct, self.which = torch.unique(begins, dim=0, return_inverse=True)
        self.prompts = len(distinct)
        ids, mask = distinct.chunk(2, 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.ids = torch.cat([ids.flatten(), ids_RT[:, self.width :].flatten()])[None]
        self.positions = torch.cat([positions.flatten(), positions_RT[:, self.width :].flatten()])[None]
        here = torch.arange(self.width, device=ids.device)
        before = here <= here[:, None]
        seen = mask.bool()[:, None, None]
        # Padding sees itself, for nobody asks what it becomes, and of no key there would be no mean.
        self.prompt_mask = (
            None if bool(mask.all()) else (before & seen) | torch.eye(self.width, dtype=torch.bool, device=ids.device)
        )
        rows = 1 if self.prompt_mask is None else self.rows
        seen = seen[:1] if self.prompt_mask is None else seen[self.which]
        at = torch.arange(own, device=ids.device)
        after = (at <= at[:, None]).expand(rows, 1, -1, -1)
        self.own_mask = torch.cat([seen.expand(-1, -1, own, -1), after], -1)

    def read(self, vlm: UnifiedVLM) -> Tensor:
        """Hidden states [R, n, D] that predict each row's own tokens."""
        config: Any = vlm.transformer().config
        with vlm._lock:  # or a thread that is in two parts now would put back what it found before
            # It stays: a checkpointed layer is run again after this, and without a packing it is sdpa to the bit.
            config._attn_implementation = SHARED_PREFIX
        output = vlm.transformer()(
            input_ids=self.ids,
            position_ids=self.positions,
            attention_mask=torch.zeros(1, 1, 1, 1, device=self.ids.device),  # of four axes, it is taken as it is
            use_cache=False,
            packing=self,
        )
        prompts, own = self.parts(output.last_hidden_state[:, None])
        return torch.cat([prompts[self.which, 0, -1:], own[:, 0, :-1]], 1)

    def parts(self, every: Tensor) -> tuple[Tensor, Tensor]:
        """[1, H, P * T + R * n, D] -> prompts [P, H, T, D], completions [R, H, n, D]."""
        prompts, own = every[0].split([self.prompts * self.width, self.rows * self.own], 1)
        return (
            prompts.unflatten(1, (self.prompts, self.width)).transpose(0, 1),
            own.unflatten(1, (self.rows, self.own)).transpose(0, 1),
        )

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> tuple[Tensor, None]:
        """An attention function of transformers: [1, H, P * T + R * n, D] each; returns it with axes 1, 2 swapped."""
        (prompt_query, own_query), (prompt_key, own_key), (prompt_value, own_value) = map(
            self.parts, (query, key, value)
        )
        prompts, _ = sdpa_attention_forward(
            module, prompt_query, prompt_key, prompt_value, self.prompt_mask, **settings
        )
        keys = torch.cat([prompt_key[self.which], own_key], 2)
        values = torch.cat([prompt_value[self.which], own_value], 2)
        own, _ = sdpa_attention_forward(module, own_query, keys, values, self.own_mask, **settings)
        return torch.cat([prompts.flatten(0, 1), own.flatten(0, 1)])[None], None


def shares(vlm: UnifiedVLM, prompt: int) -> bool:
    """Whether prompts of so many tokens are read once for their rows: long ones are, where attention is sdpa; says once
    where it is another.
    """
    if prompt < SHARED_FROM or not can_share(vlm):
        return False
    asked = str(vlm.transformer().config._attn_implementation)  # type: ignore[union-attr]
    if asked not in ("sdpa", SHARED_PREFIX) and asked not in _told:
        _told.add(asked)
        logger.warning("attention by %s reads a prompt anew for each candidate in training: sdpa reads it once", asked)
    return asked in ("sdpa", SHARED_PREFIX)


def packed(vlm: UnifiedVLM, ids_RT: Tensor, mask_RT: Tensor, positions_RT: Tensor, own: int) -> Packing | None:
    """A `Packing` of the rows; None where each is read for itself, because its prompt is short or nobody else's."""
    if not shares(vlm, ids_RT.shape[1] - own):
        return None
    found = Packing(ids_RT, mask_RT, positions_RT, own)
    return found if found.prompts < found.rows else None


def _attention(*arguments: Any, packing: Packing | None = None, **settings: Any) -> Any:
    if packing is None:
        return two_part_attention(*arguments, **settings)
    module, query, key, value, _ = arguments
    return packing.attend(module, query, key, value, **settings)


# What the config names in both cases: passes of a rollout and of its loss may take turns.
AttentionInterface.register(SHARED_PREFIX, _attention)

_told: set[str] = set()
