"""Lists as tables, and videos in tars: the seconds and bytes that they name, in the same order."""

import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cosmos_hpc.data.sources import list_source
from cosmos_hpc.data.videos import resolve_source, video_costs
from cosmos_hpc.data.wanted import Wanted
from cosmos_hpc.data.webdataset import regular_files
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils import files
from cosmos_hpc.worker.video.clips import Cut, read_clips
from cosmos_hpc.worker.video.spans import Span
from tests.worker import make_videos
from tests.worker.preparing import prepared

ROWS = [
    {"path": "a.mp4", "prompt": 'a "red", big pot', "start": 0.5, "end": 1.0},
    {"path": "a.mp4", "prompt": "a cloth", "start": 1.0, "end": None},
    {"path": "b.mp4", "prompt": "a spoon", "start": None, "end": None},
]


def listed(source):
    notes = []
    return list_source(Wanted(resolve_source(str(source))), notes.append)[1], notes


def write_csv(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def videos(tmp_path):
    for seed, name in enumerate("ab"):
        make_videos.write(tmp_path / f"{name}.mp4", make_videos.frames(45, 96, 160, seed=seed))
    return tmp_path


def tables(folder):
    """The same list in three forms."""
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "list.parquet")
    lines = ['path,prompt,other,start,end', 'a.mp4,"a ""red"", big pot",x,0.5,1.0',
             "a.mp4,a cloth,,1,", "b.mp4,a spoon,,,"]  # fmt: skip
    write_csv(folder / "list.csv", "\ufeff" + "\r\n".join(lines) + "\r\n")
    kept = [{k: v for k, v in row.items() if v is not None} for row in ROWS]
    lines = ({"video": row["path"], **row} for row in kept)
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return [folder / f"list.{kind}" for kind in ("parquet", "csv", "jsonl")], kept


def test_a_list_means_the_same_in_every_form(videos):
    paths, expected = tables(videos)
    for path in paths:
        assert listed(path) == (expected, [])
    assert video_costs(str(videos), expected[:1], clips="all", frames=9) == ("milliseconds", [750])
    # Frames between the seconds, and one video in one part of the data whatever its entries.
    first = next(read_clips(videos / "a.mp4", Cut(9, 96, 160), span=Span.of(expected[0])))
    whole = next(read_clips(videos / "a.mp4", Cut(24, 96, 160)))
    assert (first.pixels == whole.pixels[:, 15:]).all()
    run = prepared(
        videos / "run", "ar_tiny_v2w", f"data.input={paths[1]}", "data.frames=9", "data.clips=all"
    )
    table = files.read_jsonl(run.tokens.clips)
    assert [(row["video"], row["index"]) for row in table] == [
        *[("a.mp4", 0)], *[("a.mp4", 1)], *[("b.mp4", 2)] * 5
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path\na.mp4\nb.txt\n", 'line 3: "b.txt" is no video by its name'),
        ("path,end\na.mp4,soon\n", 'line 2: end is "soon"; it must be seconds'),
        ("path,start,end\na.mp4,2,1\n", "line 2: end is 1, not after start 2"),
        ("path,start\na.mp4,-1\n", "line 2: start is -1.0; it must be seconds"),
        ("path,start\na.mp4,nan\n", "line 2: start is nan; it must be seconds"),
        ("path,prompt\na.mp4\n", "line 2: .* values than"),
        ("name,b\na.mp4,1\n", 'no column visual_input, video or path .* are "name", "b"'),
        ("path,prompt,path\na.mp4,,b.mp4\n", 'two columns "path"; keep one of them'),
        ("path\n", "holds no video"),
        ('path\n"a.mp4', "it is not CSV"),
    ],
)
def test_tables_that_are_none(videos, text, reason):
    with pytest.raises(RequestError, match=reason):
        listed(write_csv(videos / "x.csv", text))


def test_parquet_that_is_no_list(videos):
    (videos / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RequestError, match="cannot be read"):
        listed(videos / "x.parquet")
    pq.write_table(pa.table({"name": ["a"]}), videos / "x.parquet")
    with pytest.raises(RequestError, match="has no column visual_input, video or path"):
        listed(videos / "x.parquet")


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_videos_are_read_out_of_tars(videos, tmp_path):
    content = {name: (videos / f"{name}.mp4").read_bytes() for name in "ab"}
    place = tmp_path / "shards"
    place.mkdir()
    long = "d" * 120
    shard(
        place / "000.tar",
        {
            "x/0.json": b'{"caption": "a pot", "prompt": "a red pot"}',
            "x/0.mp4": content["a"],
            "x/1.front.mp4": content["b"],
            "x/1.txt": b"a cloth\n",
            f"{long}.mp4": content["b"],
            f"{long}.json": b"{",
        },
    )
    whole = shard(place / "001.tar", {"2.mp4": content["a"], "3.mp4": content["b"]})
    with tarfile.open(whole) as tar:
        cut = tar.getmember("3.mp4").offset_data + 1000
    whole.write_bytes(whole.read_bytes()[:cut])
    (place / "002.tar").write_bytes(b"no tar")
    rows, _ = listed(place / "*.tar")
    assert [(row.get("video", row["path"]), row.get("prompt"), "error" in row) for row in rows] == [
        ("000.tar/x/0.mp4", "a red pot", False),
        ("000.tar/x/1.front.mp4", "a cloth", False),
        (f"000.tar/{long}.mp4", None, False),
        ("001.tar/2.mp4", None, False),
        ("001.tar/3.mp4", None, False),
        ("001.tar", None, True),
        ("002.tar", None, True),
    ]
    run = prepared(
        tmp_path / "run", "ar_tiny", f"data.input={place}/*.tar", "data.max_failed_fraction=0.9"
    )
    single = prepared(tmp_path / "files", "ar_tiny", f"data.input={videos}/?.mp4")
    ids = single.tokens.prefix.with_suffix(".bin").read_bytes()
    half = len(ids) // 2
    found = run.tokens.prefix.with_suffix(".bin").read_bytes()
    assert found == ids + ids[half:] + ids[:half]
    failed = files.read_jsonl(run.tokens.failed)
    assert [row["video"] for row in failed] == ["001.tar/3.mp4", "001.tar", "002.tar"]
    assert video_costs(str(place), rows[:1], clips="all", frames=9)[0] == "bytes"


def test_members_are_found_as_the_standard_library_finds_them(tmp_path):
    """Whatever wrote the tar, and what lies between the videos."""
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w", format=form, pax_headers={"comment": "all"}) as tar:
            for number, name in enumerate(
                ("a.mp4", "a/b.mp4", f"{'d/' * 60}c.mp4", "e\u00e9.mp4", "link.mp4", "folder.mp4")
            ):
                info = tarfile.TarInfo(name)
                if name == "link.mp4":
                    info.type, info.linkname = tarfile.SYMTYPE, "a.mp4"
                if name == "folder.mp4":
                    info.type = tarfile.DIRTYPE
                info.size = 600 * number if info.isreg() else 0
                tar.addfile(info, io.BytesIO(b"x" * info.size))
        with tarfile.open(path) as tar, open(path, "rb") as file:
            there = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
            assert len(there) == 4 and list(regular_files(file)) == there


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda whole, head: whole[:head] + b"\xff" * 200 + whole[head + 200 :], "bad checksum"),
        (lambda whole, head: gzip.compress(whole), "compressed with gzip; decompress it"),
        (lambda whole, head: whole[: head + 700], "it ends within a file"),
    ],
)
def test_a_damaged_tar_is_listed_behind_what_is_whole(tmp_path, change, reason):
    path = shard(tmp_path / "0.tar", {"a.mp4": b"a" * 600, "b.mp4": b"b" * 600, "c.mp4": b"c"})
    shard(tmp_path / "1.tar", {"d.left.mp4": b"d", "d.right.mp4": b"d"})
    path.write_bytes(change(path.read_bytes(), 512 + 1024))
    rows, _ = listed(tmp_path / "*.tar")
    failed = [row for row in rows if "error" in row]
    assert [row["path"] for row in failed] == ["0.tar"] and reason in failed[0]["reason"]
    # Two views of a sample go to one part of the data.
    assert [row.get("group") for row in rows[-2:]] == ["1.tar/d"] * 2


def test_a_tar_without_videos(tmp_path):
    shard(tmp_path / "x.tar", {"a.txt": b"text"})
    with pytest.raises(RequestError, match="no member of its 1 shards ends in .mp4"):
        listed(tmp_path / "x.tar")
