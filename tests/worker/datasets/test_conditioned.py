import json
import math
from collections import Counter

import pytest
import torch

from cosmos_hpc.errors import WorkError
from cosmos_hpc.worker.datasets.conditioned import FramePairs, TextClips, read_tensor
from cosmos_hpc.worker.datasets.samples import padded_sequence


@pytest.fixture
def texts(tmp_path):
    """Five clips of six ids with a prompt each; those of clip n begin with 60000 + n."""
    for n in range(5):
        ids = torch.tensor([60_000 + n, 1, 2, 3, 4, 5])
        torch.save(padded_sequence(ids, 8).int(), tmp_path / f"train_video_{n}.pt")
        torch.save(torch.full((3, 4), n).bfloat16(), tmp_path / f"train_prompt_{n}.pt")
    counts = {"train_samples": 5, "val_samples": 0, "test_samples": 0}
    (tmp_path / "metadata.json").write_text(json.dumps(counts))

    def make(**changes):
        settings = {"part": "train", "ids_per_clip": 6, "sequence_length": 8, "length": 12}
        return TextClips(tmp_path, **{**settings, **changes})

    return make


def test_a_sample_is_a_clip_with_its_prompt(texts):
    sample = texts(once=True)[3]
    assert sample["tokens"].tolist() == [64000, 60_003, 1, 2, 3, 4, 5, 64002]
    assert sample["tokens"].dtype == torch.int64
    assert sample["labels"].tolist()[:6] == [60_003, 1, 2, 3, 4, 5]
    assert sample["loss_mask"].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    assert torch.equal(sample["context"], torch.full((3, 4), 3).bfloat16())


def test_epochs_are_shuffled_with_the_seed_and_keep_clips_and_prompts_together(texts):
    def order(seed):
        data = texts(seed=seed)
        found = [(int(s["tokens"][1]) - 60_000, int(s["context"][0, 0])) for s in data]
        assert all(clip == prompt for clip, prompt in found)
        return [clip for clip, _ in found]

    assert Counter(order(1)[:5]) == Counter(range(5))
    assert order(1) == order(1) != order(2)


def test_files_that_are_not_what_they_should_be(tmp_path, texts):
    with pytest.raises(WorkError, match="train_video_0.pt holds 9 of torch.int32 where the recipe"):
        texts(sequence_length=16, once=True)[0]
    torch.save(torch.zeros(9, dtype=torch.bfloat16), tmp_path / "train_video_1.pt")
    with pytest.raises(WorkError, match="holds 9 of torch.bfloat16 where the recipe expects 9 int"):
        texts(once=True)[1]
    (tmp_path / "train_video_2.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(WorkError, match="train_video_2.pt cannot be read"):
        texts(once=True)[2]
    (tmp_path / "train_prompt_3.pt").unlink()
    with pytest.raises(WorkError, match="train_prompt_3.pt is gone; prepare the data again"):
        texts(once=True)[3]
    torch.save({"a": 1}, tmp_path / "train_prompt_4.pt")
    with pytest.raises(WorkError, match="train_prompt_4.pt holds a dict, not a tensor"):
        texts(once=True)[4]
    (tmp_path / "metadata.json").unlink()
    with pytest.raises(WorkError, match="has no metadata.json: its finalize stage has not run"):
        texts()


def test_a_file_that_would_run_code_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save(Evil(), tmp_path / "x.pt")
    with pytest.raises(WorkError, match="cannot be read"):
        read_tensor(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def robot(tmp_path):
    """Clips of two and three frames of two ids each."""
    frames = torch.arange(300, 310, dtype=torch.int32).view(5, 1, 1, 2)
    actions = torch.arange(10.0).view(5, 2)
    actions[[1, 4]] = math.nan
    torch.save(frames, tmp_path / "tokenized-frames.pt")
    torch.save(actions, tmp_path / "actions.pt")
    return tmp_path


def test_a_sample_is_two_frames_of_which_the_second_is_predicted(robot):
    pairs = FramePairs(robot, 8, 3, once=True)
    assert pairs.count == 3
    found = [pairs[n]["tokens"].tolist()[1:5] for n in range(3)]
    assert found == [[300, 301, 302, 303], [304, 305, 306, 307], [306, 307, 308, 309]]
    sample = pairs[1]
    assert sample["labels"].tolist()[2:4] == [306, 307]
    assert sample["loss_mask"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert sample["action"].tolist() == [4.0, 5.0]
    assert pairs.unigram_loss() == pytest.approx(math.log(6))


def test_actions_of_another_number_of_frames_are_refused(robot):
    torch.save(torch.zeros(4, 2), robot / "actions.pt")
    with pytest.raises(WorkError, match=r"5 frames of torch.int32 do not go with 4 actions"):
        FramePairs(robot, 8, 3)
