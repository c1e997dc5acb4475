import http.server
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from base64 import b64decode
from html.parser import HTMLParser
from urllib.parse import unquote

import matplotlib.image
import numpy as np
import pytest

from ai_wam.types import Clip
from ai_wam.video import VideoEncoding, decode_frames, write_video
from benchmarks.evaluation.benchmark import TrialResult
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.evaluation.results import assemble
from benchmarks.evaluation.trial_video import TrialVideo
from benchmarks.report import html_report as report
from benchmarks.report.html_report import render
from benchmarks.report.text_tables import results_table
from benchmarks.simulator import Trial
from benchmarks.simulators.tabletop.simulator import Tabletop

SIMULATOR = Tabletop(rig="framed", image_size=(32, 32))
CLIP = Clip(size=(32, 32))
PROTOCOL = EvaluationProtocol(execution="receding", trials_per_task=4, tasks=("reach_target",))
VOID = {"meta", "rect", "line", "br", "link", "img", "input"}


def result(trial, reason, prompt='touch the "<b>red</b>" ball'):
    figures = {"any_sphere": 1.0, "gap": float("nan"), "final_distance_m": 0.0215}
    return TrialResult(trial, prompt, reason, 20, 1.0, 2, 1, 0, figures)


def results_of(reasons, task="reach_target", policy=None):
    trials = [Trial(task, 0, index) for index in range(len(reasons))]
    arms = {
        "policy": {trial.id: result(trial, reason) for trial, reason in zip(trials, reasons, strict=True)},
        "ceiling": {trial.id: result(trial, "success") for trial in trials},
        "floor": {trial.id: result(trial, "timeout") for trial in trials},
    }
    described = PROTOCOL.describe(SIMULATOR, CLIP)
    policy = policy or {"name": "tasks.policy.PolicyControl", "config": {}, "checkpoint": "last.ckpt"}
    return trials, assemble(trials, arms, described, PROTOCOL.hash(SIMULATOR, CLIP), policy)


def test_shifted_scenes_are_said_in_table_and_page():
    _, results = results_of(["success", "timeout"])
    said = "scenes of all arms are shifted: cameras, light"
    assert said not in results_table(results)
    results["protocol"]["shift"] = {"cameras": {"azimuth": [45, 45]}, "light": {"lamps": [1, 2]}}
    assert said in results_table(results)
    assert said in render(results, {})


def trial_video():
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 64, 3), dtype=np.uint8)
    video = write_video(frames, 10.0, VideoEncoding(browser=True))
    return TrialVideo(("rollout", "generated actions"), ("front",), video, b"picture")


class Checker(HTMLParser):
    """Collects attributes and makes sure that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page():
    trials, results = results_of(["success", "failed", "timeout", "success"])
    return render(results, {trial.id: trial_video() for trial in trials[:3]})


@pytest.fixture(scope="module")
def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker.found


def test_the_page_is_well_formed_and_loads_nothing(page, parsed):
    assert not re.search(r"https?://|@import|url\(", page)
    for _, attributes in parsed:
        for name in ("src", "data-src", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")


def test_videos_in_the_page_are_the_recorded_ones_and_play_in_browsers(parsed):
    videos = [attributes["data-src"] for tag, attributes in parsed if tag == "video"]
    assert len(videos) == 3
    content = b64decode(videos[0].removeprefix("data:video/mp4;base64,"))
    assert content == trial_video().mp4
    assert decode_frames(content).shape == (3, 32, 64, 3)


def test_a_badge_goes_below_a_prompt_that_has_no_room_beside_it(page):
    """On a phone of 390 pixels the longest badge leaves the prompt a third of the line."""
    assert re.search(r"\.trial > header \{[^}]*flex-wrap: wrap", page)
    assert re.search(r"\.trial > header > div \{[^}]*flex: 1 1 16em; min-width: 0", page)


def test_failures_come_first(parsed):
    outcomes = [attributes["data-outcome"] for tag, attributes in parsed if tag == "article"]
    assert outcomes == ["failure", "failure", "success"]


def test_rates_and_intervals_are_drawn_as_they_are(page, parsed):
    assert "2/4, 95 % in [15, 85]" in page
    widths = [
        attributes["width"] for tag, attributes in parsed if tag == "rect" and attributes["class"] == "value"
    ]
    assert [float(width) for width in widths] == [50, 100, 0]
    assert "success, 2 of 4 trials" in page


def test_every_trial_has_its_square(parsed):
    squares = [
        attributes
        for tag, attributes in parsed
        if tag in ("a", "i") and attributes.get("title", "").startswith("test-")
    ]
    assert [square["class"] for square in squares] == ["success", "failed", "timeout", "success"]
    assert ["href" in square for square in squares] == [True, True, True, False]


def test_texts_are_escaped(page):
    assert "<b>red</b>" not in page
    assert "&lt;b&gt;red&lt;/b&gt;" in page


def test_names_of_settings_views_and_messages_are_escaped():
    trials, results = results_of(["crash"], policy={"name": "<p>", "config": {}, "checkpoint": "<c>.ckpt"})
    results["trials"][0]["policy"]["error"] = "<e>"
    results["trials"][0]["policy"]["diagnostics"] = {"<d>": 1.0}
    results["protocol"]["simulator"]["init_args"]["<s>"] = "<t>"
    page = render(results, {trials[0].id: TrialVideo(("<r>",), ('"<v>"',), b"", b"")})
    for letter in "pcedstrv":
        assert f"<{letter}>" not in page
        assert f"&lt;{letter}&gt;" in page


def test_the_protocol_is_stated(page):
    assert PROTOCOL.hash(SIMULATOR, CLIP) in page
    assert "receding horizon, 4 actions per chunk" in page
    assert "<dt>simulator: rig</dt><dd>framed</dd>" in page
    assert "last.ckpt" in page


def test_a_figure_that_never_applied_is_none(page):
    assert "<dt>gap</dt><dd>none</dd>" in page
    assert "<dt>final distance</dt><dd>0.0215\N{NO-BREAK SPACE}m</dd>" in page
    assert "<span>final distance <b>0.0215\N{NO-BREAK SPACE}m</b></span>" in page


def test_tasks_with_a_low_ceiling_are_apart(page):
    _, results = results_of(["success", "failed"])
    assert "Listed apart" not in page
    lowered = results | {"low_ceiling": ["reach_target"], "mean": dict.fromkeys(results["mean"])}
    parted = render(lowered, {})
    assert parted.index("Listed apart, in no mean: the ceiling is below 50 %") < parted.index("<h3>reach")
    assert "success, 0 of 0 trials, 1 apart" in parted
    assert "of the protocol&#39;s 4 trials" in parted  # two of them were run


def test_a_wrapped_policy_is_named():
    _, results = results_of(
        ["success"],
        policy={
            "name": "tasks.fixed_policy.FixedPolicy",
            "config": {"policy": "benchmarks.policies.Expert"},
            "checkpoint": None,
        },
    )
    assert "<h1>FixedPolicy: Expert</h1>" in render(results, {})


def test_a_page_without_recordings_says_so():
    _, results = results_of(["success"])
    page = render(results, {})
    assert "<article" not in page
    assert "No trial has a video." in page


def test_the_page_stays_within_its_size(monkeypatch):
    trials, results = results_of(["success"] * 4)
    videos = {trial.id: trial_video() for trial in trials}
    whole, card = len(render(results, {}).encode()), len(report._card(results["trials"][0], trial_video()))
    monkeypatch.setattr(report, "_LIMIT", whole + report._RESERVE + int(2.5 * card))
    page = render(results, videos)
    assert page.count("<article") == 2
    assert "2 more videos would have made the page too large" in page
    assert len(page.encode()) <= report._LIMIT


def test_a_page_of_many_videos_is_under_30_mb():
    trials, results = results_of(["timeout"] * 40)
    large = TrialVideo(("rollout",), ("front",), bytes(10**6), b"picture")
    page = render(results, {trial.id: large for trial in trials})
    assert 28_000_000 < len(page.encode()) < 30_000_000


def test_the_gallery_is_by_stop_reason_and_quotes_crashes():
    trials, results = results_of(["success", "crash", "timeout", "failed", "timeout"])
    results["trials"][1]["policy"]["error"] = "step: died of <SIGSEGV>"
    page = render(results, {trials[i].id: trial_video() for i in (0, 2, 3)})
    groups = re.findall(r'<section class="group">\s*<h3><i class="(\w+)"></i>.*?<small>(.*?)</small>', page)
    assert groups == [
        ("failed", "1 trials, 1 shown"),
        ("timeout", "2 trials, 1 shown"),
        ("crash", "1 trials, 0 shown"),
        ("success", "1 trials, 1 shown"),
    ]
    assert "step: died of &lt;SIGSEGV&gt;" in page


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# A page measures itself and asks for an address with its measures in it.
MEASURE = """<script>
addEventListener("load", () => {
  const card = document.querySelector(".card").getBoundingClientRect();
  const video = document.querySelector("video"), film = document.createElement("video");
  const measures = {
    page: document.documentElement.scrollWidth,
    beyond: [...document.querySelectorAll(".scroll, .arm, .facts")].filter(
      (part) => part.getBoundingClientRect().right > card.right + 1).length,
    intervals: [...document.querySelectorAll(".arm small")].filter((one) => one.offsetWidth > 99).length,
  };
  const send = (playable) => {
    new Image().src = "ADDRESS" + encodeURIComponent(JSON.stringify({...measures, playable}));
  };
  film.addEventListener("loadeddata", () => send(film.videoWidth));
  film.addEventListener("error", () => send(film.error.message));
  film.muted = true; film.preload = "auto"; film.src = video.dataset.src;
});
</script>"""
# No browser window is as narrow as a telephone, a frame in it is.
AROUND = """<body style="margin:0">
<iframe src="report.html" style="width:%dpx;height:2000px;border:0"></iframe>"""


@pytest.fixture
def command(tmp_path):
    """The browser's command for the report with a script added to it, in a frame so many pixels wide."""
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on the PATH")
    trials, results = results_of(["success", "failed", "timeout", "success"])
    page = render(results, {trial.id: trial_video() for trial in trials})

    def command(width, script, *more):
        (tmp_path / "report.html").write_text(page.replace("</body>", f"{script}</body>"))
        (tmp_path / "around.html").write_text(AROUND % width)
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        words += [f"--window-size={max(width, 600)},2000", f"--user-data-dir={tmp_path / 'profile'}", *more]
        return [BROWSER, *words, (tmp_path / "around.html").as_uri()]

    return command


@pytest.fixture
def posted():
    """The address of a server of this machine, and the queue of what pages asked of it."""
    asked = queue.Queue()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.put(unquote(self.path[2:]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/?", asked
        server.shutdown()


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 1200])
def test_the_page_fits_keeps_its_intervals_and_plays_at_any_width(command, posted, width):
    address, asked = posted
    # A browser that can be debugged stays open, so that the video's decoder may take its time.
    open_still = ["--remote-debugging-port=0", "--no-proxy-server"]
    words = command(width, MEASURE.replace("ADDRESS", address), *open_still)
    browser = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        measures = json.loads(asked.get(timeout=120))
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
    assert measures == {"page": width, "beyond": 0, "intervals": 3, "playable": 64}


@pytest.mark.parametrize("theme", [0, 1])
def test_texts_stand_out_in_light_and_in_dark(page, theme):
    """A contrast of 4.5 is what WCAG asks of small text."""
    rules = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)[theme]
    colours = {name: _luminance(value) for name, value in re.findall(r"--([\w-]+): #(\w{6})", rules)}
    pairs = [(text, ground) for text in ("ink", "soft", "faint") for ground in ("card", "page")]
    pairs += [(kind, f"{kind}-back") for kind in ("good", "bad", "warn")]
    for text, ground in pairs:
        dark, light = sorted((colours[text], colours[ground]))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_policy_that_is_sure_of_everything_has_no_curve_of_confidence():
    _, results = results_of(["success", "timeout"])
    for trial in results["trials"]:
        trial["policy"]["position_std"] = [0.0, 0.0]
    assert "Success against confidence" not in render(results, {})
    results["trials"][0]["policy"]["position_std"] = [0.0, 0.004]
    assert "Success against confidence" in render(results, {})


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 1200])
def test_a_browser_shows_the_page_without_an_error(command, tmp_path, width):
    shot = [f"--screenshot={tmp_path / 'page.png'}", "--virtual-time-budget=3000", "--enable-logging=stderr"]
    words = command(width, "", *shot)
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    picture = (255 * matplotlib.image.imread(tmp_path / "page.png")[..., :3]).astype(int)
    assert picture.shape == (2000, max(width, 600), 3)
    picture = picture[:1400, :width]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    below = picture[900:]  # what came after the figures was laid out too
    assert below.std() > 5
