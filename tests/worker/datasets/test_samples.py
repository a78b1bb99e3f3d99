from collections import Counter

import numpy as np
import pytest
import torch

from cosmos_hpc.config.sections import Split
from cosmos_hpc.errors import WorkError
from cosmos_hpc.worker.datasets.samples import Clips, split_documents
from cosmos_hpc.worker.datasets.shard import write_documents


def table(videos, clips_each=1):
    return [
        {"document": v * clips_each + c, "video": f"{v}.mp4"}
        for v in range(videos)
        for c in range(clips_each)
    ]


def test_split_covers_everything_once_and_keeps_videos_together():
    parts = split_documents(table(100, 3), Split())
    documents = sorted(d for part in parts.values() for d in part)
    assert documents == list(range(300))
    assert {part: len(d) for part, d in parts.items()} == {
        "validation": 30,
        "test": 30,
        "train": 240,
    }
    videos = {part: {d // 3 for d in documents} for part, documents in parts.items()}
    assert not videos["train"] & videos["validation"]
    assert not videos["train"] & videos["test"]


def test_split_follows_from_videos_and_seed_alone():
    clips = table(50)
    assert split_documents(clips, Split()) == split_documents(clips[::-1], Split())
    assert split_documents(clips, Split()) != split_documents(clips, Split(seed=1))


@pytest.mark.parametrize(
    ("videos", "sizes"), [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (8, (6, 1, 1))]
)
def test_few_videos_still_train(videos, sizes):
    parts = split_documents(table(videos), Split())
    assert tuple(len(parts[p]) for p in ("train", "validation", "test")) == sizes


@pytest.fixture
def clips(tmp_path):
    """Five clips of six ids; those of clip n begin with 1000 n."""
    write_documents(tmp_path / "tokens", np.arange(6)[None] + 1000 * np.arange(5)[:, None])

    def make(**changes):
        settings = {"documents": [0, 1, 2, 3, 4], "length": 23, "sequence_length": 6}
        return Clips(str(tmp_path / "tokens"), **{**settings, **changes})

    return make


def test_a_sample_is_one_clip_with_labels_shifted_by_one(clips):
    sample = clips(documents=[3], length=1)[0]
    assert sample["tokens"].tolist() == [3000, 3001, 3002, 3003, 3004, 3005]
    assert sample["tokens"].dtype == torch.int64
    assert sample["labels"].tolist()[:5] == [3001, 3002, 3003, 3004, 3005]
    # What follows the last id is not the next clip's first: it has no loss.
    assert sample["loss_mask"].tolist() == [1, 1, 1, 1, 1, 0]


def test_every_epoch_has_all_clips_once_in_an_order_of_its_own(clips):
    def orders(**changes):
        data = clips(**changes)
        first = [int(data[i]["tokens"][0]) // 1000 for i in range(len(data))]
        return [first[i : i + 5] for i in range(0, 20, 5)]

    epochs = orders(seed=7)
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert orders(seed=7) == epochs
    assert orders(seed=8) != epochs


def test_any_sample_can_be_read_first(clips):
    data = clips(seed=3)
    expected = [data[i]["tokens"].tolist() for i in range(23)]
    again = clips(seed=3)
    assert [again[i]["tokens"].tolist() for i in reversed(range(23))] == expected[::-1]


def test_validation_counts_every_clip_once(clips):
    data = clips(once=True, length=8)
    counted = Counter(int(s["tokens"][0]) for s in data if s["loss_mask"].any())
    assert counted == {1000 * n: 1 for n in range(5)}


def test_ids_above_what_bfloat16_can_hold_survive(tmp_path):
    ids = np.array([[0, 257, 511, 32769, 63_999]])
    write_documents(tmp_path / "tokens", ids)
    assert Clips(str(tmp_path / "tokens"), [0], 1, 5)[0]["tokens"].tolist() == ids[0].tolist()


def test_clips_of_another_length_are_refused(clips):
    with pytest.raises(
        WorkError, match=r"clips in .* have \[6\] tokens where the recipe expects 7"
    ):
        clips(sequence_length=7)


def test_unigram_loss_is_the_entropy_of_the_ids(tmp_path):
    write_documents(tmp_path / "tokens", np.array([[5, 5, 9, 7]]))
    expected = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))
    assert Clips(str(tmp_path / "tokens"), [0], 1, 4).unigram_loss() == pytest.approx(expected)


@pytest.mark.parametrize("given", [0, 1, 2, 5])
def test_given_ids_carry_no_loss(clips, given):
    samples = clips(given=given)
    item = samples[0]
    counted = item["labels"][item["loss_mask"].bool()]
    document = int(item["tokens"][0]) // 1000
    # The first id of a clip has nothing before it, and is given in any case.
    assert counted.tolist() == [1000 * document + n for n in range(max(1, given), 6)]
    assert samples.predicted(document).tolist() == [1000 * document + n for n in range(given, 6)]
    assert len(item["tokens"]) == 6
