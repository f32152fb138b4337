"""What a base says of a picture on its own."""

from __future__ import annotations

from collections.abc import Sequence

from rl.models.distribution import TokenDistribution
from rl.models.inputs import token_ids
from rl.models.noise import Noise
from rl.models.sampling import sample_tokens
from rl.models.unified import UnifiedVLM
from rl.pictures import PictureLike


def continue_captions(
    vlm: UnifiedVLM, pictures: Sequence[PictureLike], begins: Sequence[str], max_tokens: int = 96
) -> list[str]:
    """The most likely rest (greedy) of a caption that begins with the given words, one a picture, by the base alone."""
    prompts = [
        [vlm.layout.begin_text, *vlm.image_span(ids), *vlm.text_ids(begin)]
        for ids, begin in zip(token_ids(vlm, pictures), begins, strict=True)
    ]
    with vlm.using(None):
        drawn = sample_tokens(
            vlm,
            prompts,
            TokenDistribution(vlm.layout.text_ids_V, temperature=0.0),
            num_samples=1,
            max_tokens=max_tokens,
            noise=Noise(),
            stop=vlm.layout.end_text,
        )
    return [vlm.text(row) for row in drawn.ids_PGT[:, 0].tolist()]
