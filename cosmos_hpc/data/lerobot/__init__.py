"""LeRobot data sets of versions 2 and 3: which episodes there are, and where their pictures lie.

::

    meta/info.json                              version, rate, features, paths, splits
    meta/episodes.jsonl                         2: one episode per line, with its tasks and length
    data/chunk-000/episode_000000.parquet          its frames: actions, states, time stamps
    videos/chunk-000/CAMERA/episode_000000.mp4
    meta/episodes/chunk-000/file-000.parquet    3: the same, and in which files it lies
    data/chunk-000/file-000.parquet                the frames of many episodes
    videos/CAMERA/chunk-000/file-000.mp4

The layouts are those that ``lerobot.datasets`` of version 0.4 reads and writes.
"""
