"""The report in headless Chromium, where there is one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from tests.analysis.report_runs import write_run
from topodet.analysis import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"the report in a browser: none of {', '.join(NAMES)} is here")

# What a hand would do, and what there is to see afterwards; not a part of the page.
HAND = """
const seen = {};
const sent = (element, event) => element.dispatchEvent(event);
const counts = () => ["edges", "nodes", "cells"].map((kind) => document.querySelectorAll(`.${kind} .cut`).length);
seen.whole = counts();
threshold.value = STEP;
sent(threshold, new Event("input"));
seen.slid = counts();
seen.left = document.getElementById("left").textContent;
seen.disconnected = document.getElementById("disconnected").textContent;
const heat = document.querySelector("figure.heat svg");
const said = () => heat.parentNode.querySelector("output").textContent;
sent(heat.querySelector(".cells rect"), new Event("pointerover", { bubbles: true }));
seen.pointed = said();
sent(heat, new KeyboardEvent("keydown", { key: "ArrowRight" }));
seen.next = said();
per.value = "node";
sent(per, new Event("change"));
seen.node = [threshold.value, ...counts()];
epoch.value = 0;
sent(epoch, new Event("input"));
seen.epoch = [...document.querySelectorAll("figure.epochs .cells rect")].map((cell) => cell.getAttribute("class"));
document.body.style.width = "360px";
document.body.style.position = "relative";
const wide = [...document.querySelectorAll("main *")].filter((element) => !element.closest(".scroll *"));
seen.wide = wide.filter((element) => element.getBoundingClientRect().right > 360.5).map((element) => element.tagName);
document.body.dataset.seen = JSON.stringify(seen);
"""


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "nano"
    write_run(folder, epochs=(0, 1))
    return report.measure(report.open_subject(str(folder)))


class Dom(HTMLParser):
    """Attributes of the elements, by tag."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))


def opened(path, address=""):
    """Return the document after its scripts have run; nothing may have been said on the console."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    command = [BROWSER, *flags, f"--user-data-dir={path.parent / 'profile'}", "--dump-dom", f"{path.as_uri()}{address}"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in made.stderr, made.stderr
    return made.stdout


def test_the_page_shows_the_cut_that_its_address_names(numbers, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report.page(numbers))
    row = numbers["cuts"]["network"][12]
    dom = Dom(opened(path, f"#threshold={row['threshold']!r}"))
    failure = next(attributes for _, attributes in dom.elements if attributes.get("id") == "failure")
    assert "hidden" in failure
    drawn = [attributes for tag, attributes in dom.elements if tag == "path" and "stroke-width" in attributes]
    gone = "".join(stage["kept"] for stage in row["stages"])
    assert ["cut" in attributes["class"].split() for attributes in drawn] == [digit == "0" for digit in gone]


def test_slider_pointer_and_keys(numbers, tmp_path):
    rows = numbers["cuts"]["network"]
    step = next(k for k, row in enumerate(rows) if row["disconnected"])
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.page(numbers))
    path = tmp_path / "report.html"
    path.write_text(html.replace("</body>", f"<script>{HAND.replace('STEP', str(step))}</script></body>"))
    body = next(attributes for tag, attributes in Dom(opened(path)).elements if tag == "body")
    seen = json.loads(body["data-seen"])
    row, nodes = rows[step], sum(stage["nodes"] for stage in numbers["stages"])
    edges = rows[0]["edges"]
    assert seen["whole"] == [0, 0, 0]
    assert seen["slid"] == [edges - row["edges"], nodes - row["nodes"], edges - row["edges"]]
    for name in ("edges", "nodes", "parameters", "multiply_adds"):
        assert f"{row[name]:,} " in seen["left"]
    assert all(name in seen["disconnected"] for name in row["disconnected"])
    for said, place in (("pointed", 0), ("next", 1)):
        (j, i), alpha = (numbers["stages"][0][name][place] for name in ("edges", "alpha"))
        found = re.match(rf"{j} → {i}: alpha ([0-9.e+-]+)", seen[said])
        assert float(found[1]) == pytest.approx(alpha, rel=1e-3)
    assert seen["node"] == ["0", 0, 0, 0]
    first = numbers["evolution"]["alpha"][0]
    assert [name.endswith("n") for name in seen["epoch"]] == [value < 0 for alpha in first for value in alpha]
    assert seen["wide"] == []
