"""What `make demo` makes: a model that continues videos which it has not seen, and a page of it."""

import re

import pytest

from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from tests.conftest import REPOSITORY, cosmos_hpc

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the demo's own two commands have said, and the run."""
    home = tmp_path_factory.mktemp("demo")
    makefile = (REPOSITORY / "Makefile").read_text().replace("$(DEMO)/", "")
    for words in re.findall(r"^\t\$\(bin\)/cosmos-hpc (.*)", makefile, re.MULTILINE):
        done = cosmos_hpc(*words.split(), cwd=home, timeout=1800)
        assert done.code == 0, done.err
    return done, RunFolder(home / "runs" / "demo")


def test_it_ends_with_the_path_of_the_report(demo):
    done, run = demo
    assert done.out.splitlines()[-1].split() == ["report", str(run.report)]
    page = run.report.read_text()
    assert page.count("<video") >= 8
    assert len(page) < 20e6


def test_validation_loss_falls_far_below_that_of_an_untrained_model(demo):
    marker = files.read_json(marker_path(demo[1], "train"))
    assert marker["validation_loss"] < marker["reference"]["untrained"] - 6


def test_generated_frames_beat_repeating_the_last_one(demo):
    scores = files.read_json(demo[1].evaluation.metrics)
    psnr = {what: found["psnr"] for what, found in scores["generated"].items()}
    print(psnr)
    assert scores["clips"] == 8
    assert psnr["tokenizer"] > psnr["repeat"] + 2
    assert psnr["trained"] > psnr["repeat"] + 0.5
    assert psnr["trained"] > psnr["initial"] + 5
    tokens = scores["teacher_forced"]
    assert tokens["trained"]["loss"] < tokens["initial"]["loss"] - 6
    # What the first frames leave open is not known; the last ones follow from them.
    assert tokens["trained"]["per_latent_frame"][-1]["top1"] > 0.6


def test_the_same_request_makes_nothing_anew(demo):
    run = demo[1]
    again = cosmos_hpc("retry", str(run.path), cwd=run.path.parents[1])
    assert again.code == 0, again.err
    assert again.err.count("done before") == 7
