"""p(action | source): says what might be done with a picture, so that a policy can try more than what was filmed.

An inverse model that was trained without seeing outcomes: it is shown the source in the place of the target, so what it
learns to say are the actions that are usual with such a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl.models.drawing import Said
from rl.models.opening import load_as, load_fdm, load_idm
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.run_role import Kind
from rl.models.unified import UnifiedVLM
from rl.pictures import PictureLike

PROPOSER_ADAPTER = "proposer"


class ActionProposer(InverseDynamics):
    """Names actions that a picture allows; each sentence is a sample, not the likeliest one."""

    def propose(
        self,
        sources: Sequence[PictureLike],
        num_samples: int = 3,
        *,
        temperature: float = 0.7,
        seed: int = 0,
        max_tokens: int = 48,
    ) -> list[list[Said]]:
        """`num_samples` sentences for each picture with their log-likelihoods (nats, end included, at temperature 1).

        Args:
            sources: pictures, B of them.
            num_samples: sentences a picture; some may be alike.
            temperature: above 0; lower ones say fewer things that cannot be done.
            seed: same seed, same sentences.
            max_tokens: the most tokens of a sentence.
        """
        return self.name(sources, sources, num_samples, max_tokens, temperature, seed)


def load_proposer(
    base_or_run: str | Path, backbone: UnifiedVLM | None = None, adapter: str = PROPOSER_ADAPTER, **settings: Any
) -> ActionProposer:
    """A proposer of actions, as `train_idm.py --propose true` trains it, with the arguments of `load_fdm`."""
    return load_as(ActionProposer, "proposer", base_or_run, backbone, adapter, **settings)


LOADERS: dict[Kind, Callable[..., InverseDynamics | ForwardDynamics]] = {
    "fdm": load_fdm,
    "idm": load_idm,
    "proposer": load_proposer,
}
"""What opens a run, by what it was trained for."""
