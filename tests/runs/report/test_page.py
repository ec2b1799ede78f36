"""The page and the picture: what they hold, and that a browser shows it."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from written_runs import write_run, write_sweep

from ppo1_lightning.commands import report
from ppo1_lightning.runs.report import make_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")


def make(folder: Path, **options: str) -> Path:
    return make_report([folder], **options)


class _Content(HTMLParser):
    """Text, attributes of interest and the charts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.charts: list[dict[str, Any]] = []
        self.sources: list[str] = []
        self.text = ""
        self._script: str | None = None
        self._hidden = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.sources += [str(given[name]) for name in ("src", "href") if name in given]
        self._hidden = tag in ("script", "style")
        self._script = given.get("type") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if self._hidden:
            if self._script == "application/json":
                self.charts.append(json.loads(data))
        else:
            self.text += f" {data}"

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def test_page_of_a_sweep(tmp_path: Path) -> None:
    path = make(write_sweep(tmp_path / "sweep"))
    assert path == tmp_path / "sweep" / "report.html"
    assert os.listdir(path.parent).count("report.html") == 1
    assert path.stat().st_size < 6e6
    page = _Content(path)
    assert len(page.charts) == 2 + 6 + 1  # returns, diagnostics, throughput
    names = [trace.get("name") for trace in page.charts[0]["data"]]
    assert [n for n in names if n] == ["clip_coef 0.2", "clip_coef 0.1"]
    assert names.count(None) == 2  # the bands
    (best,) = (t for t in page.charts[0]["data"] if t.get("name") == "clip_coef 0.2")
    assert (best["x"][-1], best["y"][-1]) == (2000, 2 * 20 + 2)
    assert "clip_coef 0.2 3 42 41 to 43 42 ± 1 43" in page.words
    assert "Agarwal et al. 2021" in page.words
    assert "2 configurations by algo.clip_coef" in page.words


@pytest.mark.parametrize("clips", [(0.1, 0.101), (0.1, 0.101, 0.102, 0.103)])
def test_labels_stand_apart_near_the_ends_of_their_lines(
    tmp_path: Path, clips: tuple[float, ...]
) -> None:
    path = make(write_sweep(tmp_path, seeds=1, clips=(*clips, 0.05)))
    layout = _Content(path).charts[0]["layout"]
    low, high = layout["yaxis"]["range"]
    gap = 17 / (layout["height"] - 52) * (high - low)  # of 17 pixels
    found = {label["text"]: label["y"] for label in layout["annotations"]}
    assert list(found) == [f"clip_coef {clip}" for clip in (0.05, *clips)]
    assert found["clip_coef 0.05"] == pytest.approx(11)  # alone, so where its line ends
    # around the middle of the others' ends; four of them would leave the chart
    highest = 21.1 + gap / 2 if len(clips) == 2 else high
    expected = [highest - gap * below for below in range(len(clips))]
    assert list(found.values())[:0:-1] == pytest.approx(expected)


def test_page_needs_no_network(tmp_path: Path) -> None:
    """Nothing is loaded; what is linked is the paper."""
    page = _Content(make(write_sweep(tmp_path)))
    outside = [source for source in page.sources if not source.startswith("data:")]
    assert outside == ["https://arxiv.org/abs/2108.13264"]


def test_several_environments(tmp_path: Path) -> None:
    for env, scale in (("A-v0", 1), ("B-v0", 1000)):
        for clip in (0.1, 0.2):
            for seed in (1, 2, 3):
                name = f"{env}_{clip}_{seed}"
                write_run(
                    tmp_path / name, env=env, clip_coef=clip, seed=seed, slope=clip * scale, rows=20
                )
    page = _Content(make(tmp_path))
    assert len(page.charts) == 1 + 2 * (2 + 6 + 1)
    together = [trace for trace in page.charts[0]["data"] if trace.get("name") == "clip_coef 0.2"]
    last = together[0]["x"].index(1000)
    # after 10 rows, A: 3, 4, 5; B: 2001, 2002, 2003
    assert together[0]["y"][last] == pytest.approx((0 + 1 / 2002 + 2 / 2002 + 0.25) / 4, rel=1e-4)
    assert "0.97 (" in page.words  # of nine pairs on A one is a draw; B: all won
    assert "All 2 environments: each environment scaled" in page.words
    # A: 5, 6, 7 of 3 to 7; B: 4001, 4002, 4003 of 2001 to 4003; without the lowest and the highest
    expected = (0.75 + 2000 / 2002 + 2001 / 2002 + 1) / 4
    assert f"clip_coef 0.2 6 {expected:.3g} " in page.words


@pytest.mark.parametrize(
    ("other", "caveat"),
    [
        ({}, None),
        ({"rows": 10}, "Not finished: 1 of 2 runs, whose last value so far counts."),
        ({"rows": 10, "budget": 10}, "one configuration had other budgets"),
        ({"seed": 1}, "one configuration have the same seed"),
    ],
)
def test_scores_say_what_they_are_not(
    tmp_path: Path, other: dict[str, int], caveat: str | None
) -> None:
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", **({"seed": 2} | other))  # type: ignore[arg-type]
    words = _Content(make(tmp_path)).words
    told = ["Not finished:", "had other budgets", "have the same seed"]
    assert [t for t in told if t in words] == [t for t in told if caveat and t in caveat]
    assert caveat is None or caveat in words


def test_single_unfinished_run_and_videos(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows=5, columns={"evaluation/return_mean": lambda row: row})
    frames = [Image.new("RGB", (16, 16), (50 * i, 80, 90)) for i in range(3)]
    (run / "videos").mkdir()
    for name in ("200.gif", "1000.gif"):
        frames[0].save(run / "videos" / name, save_all=True, append_images=frames[1:])
    page = _Content(make(run))
    assert "One run: there is no interval" in page.words
    assert "25 % done" in page.words
    assert "Final scores" not in page.words
    assert len(page.charts) == 3 + 6 + 1  # an evaluation, too
    videos = [s for s in page.sources if s.startswith("data:image/gif;base64,")]
    newest = (run / "videos" / "1000.gif").read_bytes()
    assert base64.b64decode(videos[0].partition(",")[2]) == newest
    assert len(videos) == 2


def test_many_videos_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    (run / "videos").mkdir()
    (run / "videos" / "5.mp4").write_bytes(bytes(100))
    monkeypatch.setattr("ppo1_lightning.runs.report.page.VIDEO_BYTES", 99)
    assert "run/videos/5.mp4" in _Content(make(tmp_path)).sources


def test_runs_in_any_state_together(tmp_path: Path) -> None:
    write_run(tmp_path / "whole", seed=1)
    write_run(tmp_path / "short", seed=2, rows=6)
    write_run(tmp_path / "begun", seed=3, rows=0)
    write_run(tmp_path / "no_episode", seed=4, rows=1)
    other = write_run(tmp_path / "columns", seed=5, clip_coef=0.1)
    (other / "csv" / "metrics.csv").write_text("env_steps,episode_return_mean\n100,5\n200,6\n")
    page = _Content(make(tmp_path))
    assert {"dot", "solid"} <= {t["line"].get("dash") for t in page.charts[0]["data"]}
    for status in ("no rows", "30 % done", "5 % done", "finished"):
        assert status in page.words
    assert "NaN" not in json.dumps(page.charts)


def test_returns_beyond_what_can_be_summed(tmp_path: Path) -> None:
    for env in ("A-v0", "B-v0"):
        for seed, huge in ((1, 1e308), (2, 1.5e308)):
            for clip in (0.1, 0.2):
                name = f"{env}_{seed}_{clip}"
                write_run(tmp_path / name, env=env, seed=seed, clip_coef=clip, slope=huge / 20)
    assert "2 environments" in _Content(make(tmp_path)).words


def test_a_run_of_which_only_the_metrics_are_there(tmp_path: Path) -> None:
    """As with a logger of one's own Trainer."""
    run = write_run(tmp_path)
    shutil.rmtree(run / ".hydra")
    page = _Content(make(run))
    assert page.charts
    assert "unknown environment" in page.words


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "a", env="</script><b>X-v0</b>")
    write_run(tmp_path / "b", env="</script><b>X-v0</b>", clip_coef=0.3)
    page = _Content(make(tmp_path))
    assert "<b>X-v0</b>" in page.words
    assert len(page.charts) == 9


NAMES = ("<b>a</b>&lt;i&gt;%{x}", "@c0", "$x_", "\x1b[31mred\u202e")
"""Of presets: Plotly's HTML and values, a colour of the page, mathematics, escape codes."""

SHOWN = (*NAMES[:3], "\\x1b[31mred\\u202e")


def write_named(folder: Path) -> Path:
    for job, name in enumerate(NAMES):
        run = write_run(folder / str(job), seed=job)
        choices = {"hydra": {"runtime": {"choices": {"policy": name}}}}
        (run / ".hydra/hydra.yaml").write_text(json.dumps(choices))
        (run / ".hydra/overrides.yaml").write_text(json.dumps([f"policy=p{job}"]))
    return folder


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    page = _Content(make(write_named(tmp_path)))
    for name in SHOWN:
        assert name in page.text
    labels = [label["text"] for label in page.charts[0]["layout"]["annotations"]]
    assert sorted(html.unescape(label) for label in labels) == sorted(SHOWN)
    texts = [*labels, *(t["hovertemplate"] for t in page.charts[0]["data"] if "name" in t)]
    assert not any(re.search(r"<[bi]>|&lt;i|%{x}|^@", text) for text in texts)


def test_names_in_a_picture_are_shown_as_they_are(tmp_path: Path) -> None:
    text = make(write_named(tmp_path), format="svg").read_text()
    assert all(html.escape(name, quote=False) in text for name in SHOWN)


def test_a_link_to_a_video_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "javascript:alert(1)")
    (run / "videos").mkdir()
    (run / "videos" / "5%.mp4").write_bytes(bytes(100))
    monkeypatch.setattr("ppo1_lightning.runs.report.page.VIDEO_BYTES", 99)
    assert "javascript%3Aalert%281%29/videos/5%25.mp4" in _Content(make(tmp_path)).sources


@pytest.mark.parametrize("format", ["html", "png"])
def test_a_folder_whose_name_is_no_text(
    tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / os.fsdecode(b"\xff\x1b"))
    monkeypatch.setattr(sys, "argv", ["report", str(next(tmp_path.iterdir())), f"format={format}"])
    report.main()
    assert f"\\udcff\\x1b/report.{format}" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["png", "svg"])
def test_picture_for_a_paper(tmp_path: Path, format: str) -> None:
    write_sweep(tmp_path / "a")
    write_run(tmp_path / "b", env="B-v0", rows=4)
    path = make(tmp_path, output=str(tmp_path / f"curves.{format}"))
    if format == "png":
        with Image.open(path) as image:
            assert image.width > 900
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50
    else:
        text = path.read_text()
        for word in ("CartPole-v1", "B-v0", "clip_coef 0.1", "environment steps"):
            assert word in text
        assert make(tmp_path, format="svg").read_text() == text  # the same runs, the same file


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "seed=1")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["report", *words])
        try:
            report.main()
        except SystemExit as error:
            return int(error.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().out

    assert run("seed=1") == (0, "seed=1/report.html\n")
    assert run("seed=1", "format=svg", "output=x.svg") == (0, "x.svg\n")
    assert run("--help")[0] == 0
    Path("folder.html").mkdir()
    for words, told in [
        (("nothing",), "error: nothing is not a folder"),
        (("seed=1", "formt=svg"), "did you mean 'format'"),
        (("seed=1", "format=gif"), "expected one of html, png, svg, pdf"),
        (("seed=1", "format=png", "output=x.html"), "does not end in the format, expected .png"),
        (("seed=1", "format=png", "output=x"), "does not end in the format, expected .png"),
        (("seed=1", "output=seed=1/csv/metrics.csv"), "expected one of html, png, svg, pdf"),
        (("seed=1", "output=folder.html"), "folder.html could not be written (Is a directory)"),
        (
            ("seed=1", "output=no/x.svg"),
            "no/x.svg could not be written (No such file or directory)",
        ),
        (("format=svg",), "there is no folder"),
    ]:
        status, text = run(*words)
        assert status == 2
        assert told in text
        assert text.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"seed=1", "x.svg", "folder.html"}
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert run("seed=1") == (
        2,
        "error: the report needs plotly.offline: pip install 'ppo1-lightning[report]'\n",
    )


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield the Chromium of this machine, or skip."""
    named = [os.environ.get("CHROMIUM", ""), *BROWSERS]
    found = next((path for name in named if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium, or CHROMIUM=/path/to/it")
    with sync_playwright() as playwright:
        # root, as in containers, has no sandbox
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Browser, path: Path, scheme: Literal["dark", "light"]) -> Page:
    """Open a page from disk, without network; return it with all of its charts drawn.

    Raises
    ------
    AssertionError
        The page reports an error, or asks for anything but itself.
    """
    context = browser.new_context(
        offline=True, color_scheme=scheme, viewport={"width": 1200, "height": 4200}
    )
    page = context.new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.absolute().as_uri())
    expect(page.locator(".plot:visible:not(:has(.main-svg))")).to_have_count(0)
    assert not errors
    assert [url for url in requests if not url.startswith("data:")] == [path.absolute().as_uri()]
    return page


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(write_sweep(tmp_path_factory.mktemp("sweep")))


@pytest.mark.heavy
def test_browser_draws_curves_and_tables(browser: Browser, sweep: Path) -> None:
    page = opened(browser, sweep, "light")
    charts = page.locator(".plot").count()
    assert charts >= 9
    assert page.locator(".js-line").count() >= charts * 2  # a line for each group
    label = page.locator("svg text", has_text="clip_coef 0.1")  # at its line's end
    expect(label.first).to_be_visible()
    row = page.locator("table.scores tr", has_text="clip_coef 0.2")
    expect(row).to_contain_text("41 to 43")


@pytest.mark.heavy
@pytest.mark.slow
def test_browser_shows_names_as_they_are(browser: Browser, tmp_path: Path) -> None:
    page = opened(browser, make(write_named(tmp_path)), "light")
    texts = page.locator(".plot .annotation-text").all_text_contents()
    assert set(texts) == set(SHOWN)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("scheme", "background", "line"),
    [("dark", (17, 19, 21), (90, 174, 234)), ("light", (247, 247, 245), (0, 103, 168))],
)
@pytest.mark.slow
def test_screenshot_dark_and_light(
    browser: Browser,
    sweep: Path,
    scheme: Literal["dark", "light"],
    background: tuple[int, int, int],
    line: tuple[int, int, int],  # the palette's first
) -> None:
    """The page and its lines have the colours of the theme that the reader's system asks for."""
    shot = opened(browser, sweep, scheme).screenshot()
    with Image.open(io.BytesIO(shot)) as image:
        colours = {c: n for n, c in image.convert("RGB").getcolors(1 << 24) or []}
    assert colours[background] > 100_000
    assert colours[line] > 1000
