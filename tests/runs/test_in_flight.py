from cosmos_hpc.runs.in_flight import InFlight


def died_with(path, videos, finished=None):
    """A worker that begins these videos and is killed."""
    worker = InFlight(path, finished or {})
    for index in videos:
        worker.begin(index, (finished or {}).get(index, 0))
    return worker


def deaths(path, finished=None):
    return InFlight(path, finished or {}).deaths


def test_a_death_alone_with_a_video_counts_every_time(tmp_path):
    path = tmp_path / "note.json"
    died_with(path, [7])
    assert died_with(path, [7]).deaths == {7: 1}
    assert deaths(path) == {7: 2}


def test_in_company_all_are_suspects_and_no_more_than_that(tmp_path):
    path = tmp_path / "note.json"
    for _ in range(3):
        worker = died_with(path, [1, 2, 3])
    assert worker.deaths == {1: 1, 2: 1, 3: 1}
    died_with(path, [2])
    assert deaths(path) == {1: 1, 2: 2, 3: 1}


def test_a_video_that_gave_clips_before_the_death_is_not_counted(tmp_path):
    path = tmp_path / "note.json"
    died_with(path, [7], {7: 3})
    died_with(path, [7], {7: 3})
    assert deaths(path, {7: 4}) == {}


def test_a_clip_clears_a_suspect(tmp_path):
    path = tmp_path / "note.json"
    died_with(path, [7])
    worker = died_with(path, [7])
    worker.gave(7)
    assert worker.deaths == {}
    assert deaths(path) == {7: 1}


def test_an_orderly_end_accuses_no_one(tmp_path):
    path = tmp_path / "note.json"
    worker = died_with(path, [1, 2])
    worker.close()
    assert deaths(path) == {}


def test_a_finished_video_is_not_in_hand_when_the_next_one_is(tmp_path):
    path = tmp_path / "note.json"
    worker = died_with(path, [1])
    worker.end(1)
    worker.begin(2, 0)
    assert deaths(path) == {2: 1}


def test_half_a_note_is_none(tmp_path):
    path = tmp_path / "note.json"
    died_with(path, [1])
    path.write_text(path.read_text()[:9])
    assert deaths(path) == {}
