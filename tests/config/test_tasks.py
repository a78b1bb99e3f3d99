import json

import pytest

from cosmos_hpc.config.recipes import list_input, load_recipe
from cosmos_hpc.errors import RequestError


def rows(source, recipe="ar_tiny_v2w"):
    return list_input(load_recipe(recipe, [f"data.input={source}"]))


def test_videos_with_prompts(tmp_path):
    listed = tmp_path / "list.jsonl"
    entries = [{"visual_input": f"{i}.mp4", "prompt": f"näme {i}"} for i in range(3)]
    listed.write_text("\n".join(map(json.dumps, entries)))
    for entry in entries:
        (tmp_path / entry["visual_input"]).touch()
    root, found = rows(listed)
    assert root == str(tmp_path)
    assert found == [{"path": f"{i}.mp4", "prompt": f"näme {i}"} for i in range(3)]


@pytest.mark.parametrize("prompt", [None, "", " \n"])
def test_a_video_without_a_prompt_is_refused(tmp_path, prompt):
    listed = tmp_path / "list.jsonl"
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    entries = [{"visual_input": "a.mp4", "prompt": "x"}, {"visual_input": "b.mp4"}]
    entries[1].update({} if prompt is None else {"prompt": prompt})
    listed.write_text("\n\n".join(map(json.dumps, entries)))
    with pytest.raises(RequestError, match="1 of 2 videos without .* 'b.mp4' in line 3;"):
        rows(listed)


def test_a_folder_of_videos_has_no_prompts(scenes):
    with pytest.raises(RequestError, match="8 of 8 videos without a prompt"):
        rows(scenes)
    assert len(rows(scenes, "ar_tiny")[1]) == 8
