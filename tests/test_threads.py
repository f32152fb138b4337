"""Threads that share one backbone, as in a small web server: each gets what it would get alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SENTENCES, make_tiny
from peft import LoraConfig

from rl.models import streams
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import FDM_ADAPTER, IDM_ADAPTER, ForwardDynamics, InverseDynamics
from trainers.common.adapters import add_adapter

CALLS, THREADS = 16, 4


@pytest.fixture(autouse=True)
def one_thread_each() -> Iterator[None]:
    """Torch's own threads wait for one another where cores are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def two_roles() -> ChameleonVLM:
    """A tiny backbone with an adapter a role, both of which change it much."""
    vlm = make_tiny()
    for seed, name in enumerate((FDM_ADAPTER, IDM_ADAPTER)):
        torch.manual_seed(seed)
        add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False), name)
    return vlm


def calls(vlm: ChameleonVLM) -> list[Callable[[], Any]]:
    """Samples, scores, descriptions and decoded pictures in turn, each of pictures and words of its own."""
    fdm, idm = ForwardDynamics(vlm, FDM_ADAPTER), InverseDynamics(vlm, IDM_ADAPTER)
    pictures = np.random.default_rng(0).integers(0, 256, (CALLS, 32, 32, 3), dtype=np.uint8)

    def call(number: int) -> Any:
        picture, other, words = pictures[number], pictures[number - 1], SENTENCES[number % len(SENTENCES)]
        if number % 2 == 0:
            drawn = fdm.sample(picture, words, 3, seed=number)
            return [(c.ids.tolist(), c.logprobs.tolist(), np.asarray(c.image).tolist()) for c in drawn]
        if number % 4 == 1:
            return [row.tolist() for row in idm.log_probs(picture, [other, picture], words)]
        return idm.describe(picture, other, max_tokens=6), fdm.score(picture, [other], words)

    return [lambda number=number: call(number) for number in range(CALLS)]  # type: ignore[misc]


@pytest.mark.parametrize("shared_from", [streams.SHARED_FROM, 1])
def test_sixteen_calls_in_four_threads_equal_those_in_sequence(
    shared_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prompts that are copied, as short ones are, and with shared ones, whose attention is the backbone's."""
    monkeypatch.setattr(streams, "SHARED_FROM", shared_from)
    expected = [call() for call in calls(two_roles())]
    vlm = two_roles()
    weights = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    for _ in range(3):
        vlm._seen = None  # so that pictures are encoded at the same time too
        with ThreadPoolExecutor(THREADS) as threads:
            found = list(threads.map(lambda call: call(), calls(vlm)))
        assert found == expected
    assert all(torch.equal(vlm.model.state_dict()[name], value) for name, value in weights.items())
    assert [call() for call in calls(vlm)] == expected


def test_whoever_uses_an_adapter_has_the_backbone_alone() -> None:
    """By order and not by time: the second thread asks while the first has an adapter merged."""
    vlm = two_roles()
    order, asked, begun = [], Event(), Event()

    def other() -> None:
        begun.wait()
        asked.set()
        with vlm.using(IDM_ADAPTER, merged=True):  # without a lock: a RewindError, for the weights hold 'default'
            order.append("second")

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(other)
        with vlm.using(FDM_ADAPTER, merged=True):
            begun.set()
            asked.wait()
            assert not waiting.done()
            with torch.no_grad():
                vlm.encode([np.zeros((32, 32, 3), np.uint8)])  # the thread that holds it goes on
            order.append("first")
        waiting.result(timeout=60)
    assert order == ["first", "second"]


def test_a_backbone_is_copied_and_pickled_with_a_lock_of_its_own() -> None:
    vlm = two_roles()
    expected = [call() for call in calls(vlm)[:4]]
    with vlm.using(FDM_ADAPTER):  # the copy is free all the same
        copies = [copy.deepcopy(vlm), copy.copy(vlm), pickle.loads(pickle.dumps(vlm))]
    for other in copies:
        assert other._lock is not vlm._lock
        if other.model is not vlm.model:  # a shallow copy shares the weights
            assert [call() for call in calls(other)[:4]] == expected
