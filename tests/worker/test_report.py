"""The page of a run, as a person sees it in a browser."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

import cosmos_hpc as ch
from cosmos_hpc.api import Run
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.completion import report_is_current
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import is_done, marker_path
from cosmos_hpc.runs.timeline import Stay
from cosmos_hpc.utils import files
from cosmos_hpc.worker.report.lanes import draw
from cosmos_hpc.worker.report.page import LIMIT
from cosmos_hpc.worker.stages.report import report
from tests.browser import set_screen
from tests.conftest import CANARIES, OldRun
from tests.worker.generated import write_results

HOSTILE = "<script>alert(1)</script>.mp4"
PROMPT = 'it\'s a "car" & </p><img src=x onerror=alert(2)> {{ 7 * 7 }}'


def _fail_videos(old: OldRun, count: int = 2) -> None:
    """Have videos in the summary of failures, one of which can still be looked at."""
    (old.videos / HOSTILE).parent.mkdir()
    shutil.copy(old.videos / "kept.mp4", old.videos / HOSTILE)
    examples = [
        {"video": HOSTILE, "reason": "it ends too early"},
        {"video": "b\udcff\u202e.mp4", "reason": "not a readable video"},
    ]
    failed = {"truncated": {"count": count, "examples": examples}}
    summary = old.path / "tokens" / "failed_summary.json"
    files.write_json(summary, {"videos": 6, "failed": failed})


def test_the_page_in_a_browser(old_run, browser):
    write_results(old_run.path, clips=2, prompt=PROMPT, source=HOSTILE)
    _fail_videos(old_run)
    run = Run(old_run.path)
    # Through the door: by a worker with the run's snapshot of the package.
    page = run.report().path
    assert run.status().results["report"] == str(page)
    again = run.report()
    assert again.path == page and len(run.logs("report")) == 1  # not made again
    assert again._repr_html_().count("<iframe") == 1 and "<script" not in again._repr_html_()
    browser.get(page.as_uri())
    ask = browser.execute_script

    assert _requests(browser) == {"file"}
    assert ask("return performance.getEntriesByType('resource').map(e => e.name)") == []
    body = browser.find_element(By.TAG_NAME, "body").text
    for text in (HOSTILE, PROMPT, "b\\xff\\u202e.mp4", "9 of 33 frames given", "unigram", "LPIPS"):
        assert text in body, text
    assert ask("return document.scripts.length") == 1
    assert ask("return document.querySelectorAll('.pictures img').length") == 1

    _check_structure(ask)
    _check_videos(browser)
    _check_screens(browser)
    assert browser.get_log("browser") == []


def _requests(browser: webdriver.Chrome) -> set[str]:
    """What kinds of addresses the page asked for, other than those that hold their own data."""
    messages = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert sent
    return {params["request"]["url"].partition(":")[0] for params in sent} - {"data"}


def _check_structure(ask: Any) -> None:
    """Names are unique, and everything that is seen can be read as well."""
    ids = ask("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) > 6
    missing = """
    const lacks = (selector, test) => [...document.querySelectorAll(selector)].filter(test);
    return [
      ...lacks("img", e => !e.alt), ...lacks("th", e => !e.scope),
      ...lacks("table", e => !e.caption), ...lacks("svg", e => !e.ariaHidden && !e.ariaLabel),
      ...lacks("video, input", e => !e.ariaLabel),
      ...lacks("use, a", e => !document.querySelector(e.getAttribute("href"))),
    ].map(e => e.outerHTML.slice(0, 200));
    """
    assert ask(missing) == []
    assert ask("return document.querySelectorAll('.figures svg').length") >= 5


def _check_videos(browser: webdriver.Chrome) -> None:
    """All of them play, those of a clip in step, and go where the slider says."""
    times = "return [...document.querySelectorAll('video')].map(v => v.currentTime)"
    clips = browser.find_elements(By.CSS_SELECTOR, ".clip")
    assert [len(clip.find_elements(By.TAG_NAME, "video")) for clip in clips] == [4, 4]
    browser.find_element(By.ID, "all").click()
    deadline = time.monotonic() + 60
    while min(browser.execute_script(times)) < 0.2:
        assert time.monotonic() < deadline, browser.execute_script(times)
        time.sleep(0.1)
    browser.find_element(By.ID, "all").click()
    move = "const s = arguments[0]; s.value = 20; s.dispatchEvent(new Event('input'))"
    for clip in clips:
        browser.execute_script(move, clip.find_element(By.TAG_NAME, "input"))
        assert clip.find_element(By.TAG_NAME, "output").text == "frame 21 of 33, new"
    assert browser.execute_script(times) == pytest.approx([20.5 / 12] * 8, abs=1e-3)


def _check_screens(browser: webdriver.Chrome) -> None:
    """Letters stand out in light and dark, in figures too; a phone need not scroll sideways."""
    colours = """
    const text = document.querySelector(".figures svg text");
    return [getComputedStyle(document.querySelector("section")).backgroundColor,
            getComputedStyle(text).fill, getComputedStyle(document.body).color]
    """
    for scheme in ("light", "dark"):
        set_screen(browser, 1200, scheme)
        ground, figure, ink = (_brightness(c) for c in browser.execute_script(colours))
        assert figure == ink
        assert (ground > 240 and ink < 60) if scheme == "light" else (ground < 50 and ink > 200)
    set_screen(browser, 390, "light")
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def _brightness(colour: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def _text_of(page: Path) -> str:
    return " ".join(
        re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.S).split()
    )


def _made(run: RunFolder) -> str:
    report(run, run.recipe())
    assert report_is_current(run, marker_path(run, "report"))
    return _text_of(run.path / "report" / "report.html")


def test_what_is_missing_is_said(old_run, monkeypatch):
    """Of a run that is trained, of one that failed, and of one that only has its list of videos."""
    run = RunFolder(old_run.path)
    text = _made(run)
    assert "the stage generate has not made any yet" in text
    assert "the stage evaluate has not compared" in text
    assert "Loss per token in nats: training, from 11.067 at step 1" in text
    assert "Not done when" not in text
    # Evaluated since: the page is not of this run any more.
    write_results(run.path, clips=1)
    assert not is_done(run, run.recipe(), "report")

    monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
    (run.path / "train" / "done.json").unlink()
    run.error("train", 0).parent.mkdir()
    run.error("train", 0).write_text(f"no access with {CANARIES['HF_TOKEN']} & <b>so on</b>\n")
    log = run.path / files.read_jsonl(run.log_index)[-1]["log"]
    log.write_bytes(
        log.read_bytes() + b"\x1b[31mhf_abcdefghijklmnopqrstuvwxyz \xff the last line\n"
    )
    text = _made(run)
    assert "train failed. no access with (secret) &amp; &lt;b&gt;so on&lt;/b&gt;" in text
    assert "\\x1b[31m(secret) \\xff the last line" in text
    (run.path / "evaluation" / "metrics.json").write_text('{"of another": "version"}')
    assert "does not hold what evaluate writes" in _made(run)

    run.error("train", 0).unlink()
    for name in ("train", "tokens", "generated", "evaluation", "report", "logs"):
        shutil.rmtree(run.path / name)
    text = _made(run)
    assert "Not done when this page was made: preprocess, finalize, train." in text
    assert "6 videos of" in text and "They are not prepared" in text
    assert "has not done a step yet" in text and "Nothing of the run has been started" in text


def test_the_page_stays_small(old_run):
    """Whatever the run: samples and failures that would take hundreds of megabytes."""
    run = RunFolder(old_run.path)
    # Noise, which cannot be compressed.
    write_results(run.path, clips=1, noise=120)
    made = sorted((run.path / "generated").iterdir())
    assert 60 * sum(path.stat().st_size for path in made) > LIMIT
    for clip in range(1, 60):
        for path in made:
            copy = path.with_name(path.name.replace("0000", f"{clip:04d}"))
            os.link(path, copy)
            if copy.suffix == ".json":
                record = files.read_json(path)
                video = record["video"].replace("0000", f"{clip:04d}")
                files.write_json(copy, {**record, "clip": clip, "video": video})
    _fail_videos(old_run, count=40_000)
    files.write_jsonl(
        run.train.metrics,
        (
            {"step": step, "loss": 9 - step % 7, "seconds": 0.1, "time": 0}
            for step in range(1, 50_000)
        ),
    )
    run.log_index.unlink()
    attempts = run.attempts("preprocess", 0).parent
    attempts.mkdir()
    for task in range(2000):
        row = {"job": f"7_{task}", "restart": 0, "node": f"n{task % 9}", "log": "x", "why": "done"}
        start = 1795697112 + task // 40 * 60
        files.write_jsonl(
            attempts / f"preprocess.{task}", [{"start": start, **row}, {"end": start + 55, **row}]
        )
    text = _made(run)
    assert (run.path / "report" / "report.html").stat().st_size < LIMIT
    shown = re.search(r"(\d+) of 60 clips are shown", text)
    assert shown and 2 <= int(shown.group(1)) <= 12
    assert "40,000 videos failed" in text
    assert "2,000 tasks, 45 min 50 s" in text


def test_a_run_in_a_notebook(old_run):
    run = Run(old_run.path)
    assert "no samples" in run.samples()._repr_html_()
    write_results(old_run.path, clips=2, prompt=PROMPT, source=HOSTILE)
    samples = run.samples()
    assert [s.path.stem for s in samples] == ["0000-s0", "0000-initial", "0001-s0", "0001-initial"]
    assert samples[0].record["prompt"] == PROMPT
    shown = samples[:2]._repr_html_()
    assert shown.count("<video") == 4 and "<script" not in shown and "<img" not in shown
    assert "&lt;script&gt;" in shown

    metrics = run.metrics()
    assert list(metrics.step) == [1, 2, 2]
    assert run.losses() == list(
        metrics.dropna(subset="loss")[["step", "loss"]].itertuples(index=False, name=None)
    )
    assert run.validation_losses() == [(2, metrics.validation_loss[2])]

    run.folder.error("train", 0).parent.mkdir()
    run.folder.error("train", 0).write_text("<b>&")
    (old_run.path / "train" / "done.json").unlink()
    state = run.status()._repr_html_()
    assert "&lt;b&gt;&amp;" in state and "<td" in state and "6 clips of 6 videos" in state
    plan = ch.plan("ar_tiny")
    assert f"{plan.sequence_length} inputs</td>" in plan._repr_html_()


def test_without_pandas(old_run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(RequestError, match="pip install pandas"):
        Run(old_run.path).metrics()


def test_long_pauses_of_the_time_line_are_cut_short():
    def stay(started: float, ended: float | None, how: str) -> Stay:
        return Stay("train", 0, started, ended, how, "n1", Path("x"))

    days = 2 * 86400
    stays = [stay(1000, 4000, "stopped"), stay(4000 + days, 8000 + days, "done")]
    drawn = draw([*stays, stay(9000 + days, None, "")])
    (lane,) = drawn.lanes
    assert lane.text == "3 attempts, 1 h 56 min, 1 stopped"
    assert [label for _, label in drawn.breaks] == ["48 h 00 min"]
    stopped, done, running = lane.bars
    assert stopped.width > 30 and done.width > 40 and running.how == "unknown"
    assert stopped.x + stopped.width < drawn.breaks[0][0] < done.x < running.x < 100
    places = [place for place, _ in drawn.ticks]
    assert min(b - a for a, b in itertools.pairwise(places)) >= 19
    assert draw([]).lanes == []
