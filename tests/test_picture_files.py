"""Pictures that stay in their files: light, and good wherever a picture is; a path stands for one at public doors."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from rl import rerank, rollout
from rl.data.candidates.store import CandidateStore, picture_key
from rl.data.triplet_files import read_triplets, write_triplets
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.pictures import PictureFile, load_image, to_array
from rl.triplets import Triplet

ACTION = "move the red circle left"


def test_forty_photographs_of_12_megapixels_stay_in_their_files(tiny: ChameleonVLM, tmp_path: Path) -> None:
    """Decoded they would be 36 MB each, and nothing of that is kept, neither by reading nor by looking."""
    shades = np.linspace(0, 255, 4000, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(shades[None, :, None], (3000, 4000, 3)).copy()).save(tmp_path / "0.jpg")
    for number in range(1, 40):
        os.link(tmp_path / "0.jpg", tmp_path / f"{number}.jpg")
    entries = ",".join(f'{{"instruction": "x", "input": "{n}.jpg", "output": "{39 - n}.jpg"}}' for n in range(40))
    (tmp_path / "t.json").write_text(f"[{entries}]")
    triplets = read_triplets(tmp_path / "t.json")
    tiny.encode([triplets[0].source, triplets[1].source])
    assert all(isinstance(p, PictureFile) and p.size == (4000, 3000) for t in triplets for p in (t.source, t.target))
    alive = [o for o in gc.get_objects() if issubclass(type(o), Image.Image)]
    assert [image for image in alive if image.width * image.height > 1_000_000] == []
    assert len(pickle.dumps(triplets)) < 100_000


@pytest.fixture
def file(tmp_path: Path, picture: np.ndarray) -> PictureFile:
    Image.fromarray(picture).save(tmp_path / "a.png")
    return PictureFile.of(tmp_path / "a.png")


def test_it_is_good_wherever_a_picture_is(
    file: PictureFile, picture: np.ndarray, tiny: ChameleonVLM, tmp_path: Path
) -> None:
    assert (np.asarray(file) == picture).all()
    assert np.asarray(file).dtype == np.uint8
    assert np.stack([np.asarray(file, dtype=np.float32), file]).shape == (2, 32, 32, 3)
    assert (to_array(file, 32) == picture).all()
    assert (tiny.encode([file]) == tiny.encode([picture])).all()
    assert picture_key(file) == picture_key(picture)
    assert (file.size, file.mode, file.resize((4, 4)).size) == ((32, 32), "RGB", (4, 4))  # as a PIL image
    assert pickle.loads(pickle.dumps(file)) == file == PictureFile.of(tmp_path / "a.png")
    assert len({file, PictureFile.of(tmp_path / "a.png")}) == 1
    again = read_triplets(write_triplets([Triplet(file, "x", file)], tmp_path / "out"))[0]
    assert (np.asarray(again.target) == picture).all()
    with pytest.raises(AttributeError):
        _ = file.no_such_thing


def test_workers_of_a_data_loader_take_it(file: PictureFile, picture: np.ndarray) -> None:
    for batch in DataLoader([file] * 4, batch_size=2, num_workers=1, collate_fn=lambda part: np.stack(part)):  # type: ignore[arg-type]
        assert (batch == picture).all()


def test_a_file_that_goes_bad_later_is_a_sentence(file: PictureFile) -> None:
    file.path.write_bytes(file.path.read_bytes()[:200])
    for look in (np.asarray, lambda f: to_array(f, 32), picture_key):
        with pytest.raises(RewindError, match=r"a.png cannot be read as an image"):
            look(file)
    file.path.unlink()
    with pytest.raises(RewindError, match=r"there is no image .*a.png"):
        to_array(file, 32)


def test_entries_with_one_picture_file_are_kept_apart(file: PictureFile) -> None:
    """What groups candidates by their source's identity must not throw two entries of a file together."""
    (file.path.parent / "t.json").write_text(
        '[{"instruction": "x", "input": "a.png"}, {"prompt": "x", "input": "a.png"}]'
    )
    first, second = read_triplets(file.path.parent / "t.json")
    assert first.source is not second.source
    assert first.source == second.source


def test_a_path_as_source_loads_at_the_public_doors(
    file: PictureFile, picture: np.ndarray, tiny: ChameleonVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(file.path.parent))
    fdm, idm, path = ForwardDynamics(tiny), InverseDynamics(tiny), str(file.path)
    seen: list[object] = []

    def brightness(
        completions: list[Image.Image], source_image: list[object], target_image: list[object]
    ) -> list[float]:
        seen.extend([*source_image, *target_image])
        return [float(np.asarray(image).mean() - np.asarray(source_image[0]).mean()) for image in completions]

    drawn = fdm.sample(picture, ACTION, 2)
    for given in (path, file.path, "~/a.png", [path]):
        action = [ACTION] if isinstance(given, list) else ACTION
        found = fdm.sample(given, action, 2)  # type: ignore[call-overload]
        assert [c.ids.tolist() for c in (found[0] if given == [path] else found)] == [c.ids.tolist() for c in drawn]
    assert (np.asarray(Triplet(path, ACTION, path).target) == picture).all()  # type: ignore[arg-type]
    assert idm.score(path, [path, drawn[0]], ACTION) == idm.score(picture, [picture, drawn[0]], ACTION)
    assert idm.describe(path, path, max_tokens=3) == idm.describe(picture, picture, max_tokens=3)
    best = rerank(fdm, None, path, ACTION, 2, [brightness], target_image=path).best.total
    assert best == rerank(fdm, None, picture, ACTION, 2, [brightness], target_image=picture).best.total
    assert best == rollout(fdm, path, [ACTION], None, 2, [brightness], target_image=[path])[0].score
    assert all((np.asarray(one) == picture).all() for one in seen)
    with pytest.raises(RewindError, match=r"there is no image none.png: check the path"):
        fdm.sample("none.png", ACTION)
    with pytest.raises(RewindError, match="targets must be a list"):
        idm.score(path, path, ACTION)  # type: ignore[arg-type]


def test_home_is_filled_in(file: PictureFile, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.path.parent))
    assert (np.asarray(load_image("~/a.png")) == picture).all()
    store = CandidateStore("~/run/candidates")
    assert store.folder == file.path.parent / "run" / "candidates"
    with pytest.raises(RewindError, match=r"there is no image ~nobody-of-that-name/a.png"):
        load_image("~nobody-of-that-name/a.png")
