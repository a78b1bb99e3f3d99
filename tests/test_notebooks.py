"""The notebooks of docs/examples, in a kernel, and what a kernel shows besides."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import cosmos_hpc as ch
from tests.conftest import REPOSITORY

#: What the tab key shows.
COMPLETIONS = """
from IPython.core.completer import provisionalcompleter
with provisionalcompleter():
    print(*(found.text for found in get_ipython().Completer.completions("ch.", 3)))
"""


class Kernel(NotebookClient):
    """Executes a notebook, and keeps what was drawn, also where something else replaced it."""

    # A kernel sends what is printed in as many parts as it has time for.
    coalesce_streams = True

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.drawn.append(msg["content"]["data"]["text/html"])
        return super().process_message(msg, cell, cell_index)


class Executed:
    """A notebook that has run, with further cells, in a folder of its own."""

    def __init__(self, name, folder, *further):
        notebook = nbformat.read(REPOSITORY / "docs" / "examples" / name, as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells)  # stored without
        for source in further:
            cell = nbformat.v4.new_code_cell(source)
            cell.metadata.tags = ["raises-exception"]
            notebook.cells.append(cell)
        place = {"metadata": {"path": str(folder)}}
        client = Kernel(notebook, kernel_name="python3", resources=place, timeout=900)
        client.drawn = []
        client.execute()
        self.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        self.drawn = client.drawn

    def outputs(self, ending):
        """Outputs of the cell whose source ends so."""
        return next(cell.outputs for cell in self.cells if cell.source.endswith(ending))

    def result(self, ending):
        """What a cell's last line gave: by the kind of what shows it."""
        return self.outputs(ending)[-1].data

    @property
    def red(self):
        """What was written to standard error, which notebooks show in red."""
        outputs = [output for cell in self.cells for output in cell.outputs]
        return [output.text for output in outputs if output.get("name") == "stderr"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder for a notebook; kernels keep their files in it, and find no kernels of others."""
    (tmp_path / "jupyter").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "jupyter"))  # of the completions
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_cluster_by_dry_run(home, hub, monkeypatch):
    """On a machine without Slurm; then errors, names, recipes and a download in the same kernel."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    tokenizer = "nvidia/Cosmos-1.0-Tokenizer-DV8x16x16"
    hub.repositories[tokenizer] = {"encoder.jit": b"x" * 100_000, "decoder.jit": b"x" * 100_000}
    wrong = ('overrides="train.max_steps=3")', '{"train.max_steps": "many"})')
    done = Executed(
        "cluster.ipynb",
        home,
        f'ch.plan("ar4b", {wrong[0]}',
        f'ch.recipe("ar4b", {wrong[1]}',
        COMPLETIONS,
        'ch.recipe("ar_tiny")',
        'ch.download("ar4b", {"train.init_from": None})',
    )
    plan = done.result('overrides={"train.max_steps": 300})')
    assert plan["text/plain"].startswith("ar4b on mycluster\n")
    assert "<table" in plan["text/html"]
    scripts = [Path(line).name for line in done.outputs("print(run.dry_run)")[0].text.split()]
    assert len(scripts) == 8 and scripts[-1] == "submit.sh"
    assert all((home / "scripts" / name).is_file() for name in scripts)
    asked_for = done.outputs('.startswith("#SBATCH")))')[0].text
    assert "#SBATCH --partition=gpu" in asked_for and "--gres=gpu:h100:2" in asked_for

    for source, setting in zip(wrong, ("overrides", "train.max_steps"), strict=True):
        (error,) = done.outputs(source)
        assert len(error.traceback) == 1 and "\n" not in error.traceback[0]
        assert error.traceback[0].startswith("RequestError: ") and setting in error.traceback[0]
    assert sorted(done.outputs(COMPLETIONS)[0].text.split()) == sorted(ch.__all__)
    recipe = done.result('ch.recipe("ar_tiny")')
    assert "\n  max_steps: 120\n" in recipe["text/plain"]
    assert re.search(r"max_steps</th><td[^>]*>120<", recipe["text/html"])
    assert tokenizer in done.result('{"train.init_from": None})')["text/html"]
    assert '<progress value="1.0000"' in done.drawn[-1]
    assert not done.red


@pytest.mark.slow
def test_from_videos_to_a_report(home):
    done = Executed("tutorial.ipynb", home, "print(run)", "print(ch.runs())")
    assert not [
        cell.source for cell in done.cells for o in cell.outputs if o.output_type == "error"
    ]
    assert not done.red
    run = ch.Run("tutorial")

    bars = [html for html in done.drawn if "<progress" in html]
    assert any("0/6 videos" in html for html in bars)
    assert "6 clips of 6 videos" in done.result("stages=prepare)\nrun")["text/html"]
    assert done.result("run.status().state")["text/plain"] == "'running'"
    watched = done.result("run.watch()")
    assert "<progress" not in watched["text/html"] and "tutorial: done" in watched["text/html"]

    step, most, loss, validation, speed = json.loads(
        done.result("state.tokens_per_second")["text/plain"].replace("(", "[").replace(")", "]")
    )
    state = run.status()
    assert (step, most, loss, validation) == (8, 8, state.loss, state.validation_loss)
    assert loss < 10 and speed > 0
    assert str(run.checkpoint) in done.result("run.checkpoint")["text/plain"]
    assert state.checkpoint == str(run.checkpoint)
    assert done.result('"tokens_per_second"]]')["text/html"].count("<tr") == 1 + len(run.metrics())
    assert done.result("run.samples()")["text/html"].count("<video") == 4
    assert str(run.folder.report) in done.result("run.report()")["text/plain"]
    assert run.folder.report.read_text().count("<video") >= 4
    assert "tutorial</th>" in done.result("ch.runs()")["text/html"]
    compared = done.result("ch.compare(ch.runs())")
    assert "PSNR (dB)" in compared["text/html"] and "PSNR (dB)" in compared["text/plain"]
    assert done.outputs("print(run)")[0].text.startswith("tutorial: done  (")
    assert done.outputs("print(ch.runs())")[0].text.splitlines()[1].split()[:2] == [
        "tutorial",
        "done",
    ]
