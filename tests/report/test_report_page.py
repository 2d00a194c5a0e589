"""The page, read as text and used in a real browser."""

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from axe_playwright_python.sync_playwright import Axe
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guyot import find_structures, report
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.recording import describe_structures
from guyot.core.errors import MisconfiguredError
from guyot.core.metric import ACCURACY
from guyot.report import History, read_runs, render, write_plots
from guyot.report.page.curves import limits, quantities
from guyot.report.page.drawing import Drawing, draw
from guyot.report.page.labels import label, overlap
from guyot.report.page.network import blocks
from guyot.report.page.planes import (
    End,
    cost_scale,
    cost_ticks,
    ends,
    front,
    fronts,
    left_out,
)
from guyot.report.page.reasons import reasons
from guyot.report.page.scale import Scale, log_ticks, ticks
from guyot.report.page.style import HUES, style
from guyot.report.page.summary import goal, made

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: install Debian's package chromium"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with discovery, one of which loses layers, and the full network."""
    root = tmp_path_factory.mktemp("runs")
    choices: dict[str, dict[str, Any]] = {
        "half": {},
        "shallow": {"beta": 1.0},
        "full": {"discovery": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
        for name, choice in choices.items():
            config = RunConfig.of(
                "digits", epochs=3, batch_size=32, threads=1, bf16=False, round_to=8, **choice
            )
            running.train(config, root / name)
    return [root / name for name in choices]


@pytest.fixture(scope="module")
def runs(folders: list[Path]) -> list[History]:
    return read_runs(folders)


@pytest.fixture(scope="module")
def page_file(runs: list[History], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(runs), encoding="utf-8")
    return file


# -- what is read and laid out ---------------------------------------------------------------


def test_blocks_add_up_to_the_network(runs: list[History]):
    for run in runs[:2]:
        found = blocks(run)
        assert sum(block.macs for block in found) == run.network["macs"]
        assert sum(block.left for block in found) == run.macs
        assert [block.name for block in found if block.gone] == [
            name for name in run.layers if name in run.removed_layers
        ]
        after = {width["name"]: width["after"] for width in run.result["widths"]}  # type: ignore[index]
        drawn = {box.name: box.after for block in found for box in block.boxes if box.group != None}  # noqa: E711
        assert drawn == after
    assert runs[1].removed_layers and blocks(runs[2]) == []


def drawn(model: nn.Module, *shape: int) -> tuple[History, Drawing]:
    structures = find_structures(model, (torch.randn(2, *shape),))
    network = describe_structures(structures, [range(group.size) for group in structures.groups])
    run = History("drawn", {}, network, [], None)
    return run, draw(blocks(run))


def test_attention_and_what_follows_it_are_told_apart():
    model = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, num_heads=4, depth=2, num_classes=3
    )
    _, drawing = drawn(model, 3, 8, 8)
    assert [f"{row.label} {row.inside}".strip() for row in drawing.rows] == [
        "patch_embed.proj", "blocks.0 attn", "blocks.0:2 mlp", "blocks.1 attn", "blocks.1:2 mlp",
        "head",
    ]  # fmt: skip
    heads, neurons = drawing.rows[1].boxes[0], drawing.rows[2].boxes[0]
    assert (heads.before, len(heads.cuts), neurons.before, neurons.cuts) == (4, 3, 64, [])
    assert "4 of 4 entries each" in drawing.rows[1].words


def test_two_operators_of_a_module_on_the_trunk_share_a_row():
    model = torchvision.models.densenet.DenseNet(
        8, (2, 2, 1, 1), num_init_features=16, num_classes=3
    )
    run, drawing = drawn(model, 3, 32, 32)
    assert [row.label for row in drawing.rows] == [
        "features.conv0",
        "features.denseblock1.denselayer1",
        "features.denseblock1.denselayer2",
        "features.transition1.conv",
        "features.denseblock2.denselayer1",
        "features.denseblock2.denselayer2",
        "features.transition2.conv",
        "features.denseblock3.denselayer1",
        "features.transition3.conv",
        "features.denseblock4.denselayer1",
        "classifier",
    ]
    assert [len(row.boxes) for row in drawing.rows] == [1, 2, 2, 1, 2, 2, 1, 2, 1, 2, 1]
    macs = sum(operation["macs"] for operation in run.network["operations"])
    assert sum(row.block.macs for row in drawing.rows) == macs
    plain = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(5)))
    assert len(drawn(nn.ModuleDict({"features": plain})["features"], 3, 4, 4)[1].rows) == 5


def test_a_sweep_is_its_trials_named_by_their_dials(folders: list[Path], tmp_path: Path):
    for number, target in enumerate((0.7, 0.5)):
        trial = shutil.copytree(folders[0], tmp_path / "curve" / "trials" / f"hash{number}")
        config = json.loads((trial / "config.json").read_text()) | {"target": target}
        (trial / "config.json").write_text(json.dumps(config))
    (tmp_path / "curve" / "trials" / "queued").mkdir()
    assert [run.name for run in read_runs([tmp_path / "curve"])] == ["target 0.5", "target 0.7"]
    names = [run.name for run in read_runs([folders[2], tmp_path / "curve"])]
    assert names == ["full", "curve: target 0.5", "curve: target 0.7"]
    for trial in (tmp_path / "curve" / "trials").glob("hash*"):
        shutil.copyfile(folders[0] / "config.json", trial / "config.json")
    assert [run.name for run in read_runs([tmp_path / "curve"])] == ["hash0", "hash1"]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({}, "target 50 % of the MACs"),
        ({"alpha": 0.0}, "target 50 % of the parameters"),
        ({"alpha": 0.5}, "target 50 % of the complexity at alpha 0.5"),
        ({"nu": 0.3}, "nu 0.3"),
        ({"target_ms": 2.5, "cost": "latency", "latency_table": "t.json"}, "target 2.5 ms"),
        ({"cost": "macs=1,params=3"}, "target 50 % of macs=1,params=3"),
        ({"discovery": False}, "full network"),
    ],
)
def test_the_goal_in_words(runs: list[History], choices: dict[str, Any], words: str):
    config = RunConfig.of("digits", **choices).to_dict()
    assert goal(dataclasses.replace(runs[0], config=config)) == words


def test_units_are_gone_from_their_removal_on(runs: list[History]):
    for run in runs[:2]:
        for group in run.groups:
            left = [unit for unit in range(group["size"]) if unit not in run.gone[group["name"]]]
            assert len(left) == run.width(group)


def test_the_page_names_what_happened(runs: list[History]):
    text = render(runs[:1])
    assert "digits on digits, target 50 % of the MACs" in text
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text) and "@import" not in text
    for layer in runs[1].removed_layers:
        assert f"{layer}, gone" in render(runs)


def test_a_run_that_goes_on_is_shown(folders: list[Path], tmp_path: Path):
    going = shutil.copytree(folders[0], tmp_path / "going")
    (going / "result.json").unlink()
    lines = (going / "metrics.jsonl").read_text().splitlines(keepends=True)
    stop = next(n for n, line in enumerate(lines) if '"removal"' in line) + 1
    (going / "metrics.jsonl").write_text("".join(lines[:stop]) + lines[stop][:40])
    (run,) = read_runs([going])
    assert (run.status, run.test_score) == ("unfinished", None)
    assert run.macs == json.loads(lines[stop - 1])["macs"]
    assert "The run is not finished" in render([run])
    (going / "metrics.jsonl").write_text(lines[0])
    assert "Over time" in render(read_runs([going]))


def test_names_tell_runs_apart_and_are_text(folders: list[Path], tmp_path: Path):
    copies = [shutil.copytree(folders[2], tmp_path / x / "run") for x in ("<b>", "b")]
    assert [run.name for run in read_runs(copies)] == ["<b>/run", "b/run"]
    text = render(read_runs(copies))
    assert "&lt;b&gt;/run" in text and "<b>/run" not in text


def test_what_is_no_run_is_told(folders: list[Path], tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"event": "epoch"}\n')
    with pytest.raises(MisconfiguredError, match=r"no/such.* is not a folder .*train.* wrote"):
        read_runs(["no/such", folders[0]])
    with pytest.raises(MisconfiguredError, match=r"does not describe the network: train it again"):
        read_runs([tmp_path])
    with pytest.raises(MisconfiguredError, match="given twice: give every run once"):
        read_runs([folders[0], folders[0] / ".." / folders[0].name])
    with pytest.raises(MisconfiguredError, match=r"runs=\[\]: give at least one"):
        render([])


def test_a_wrong_line_is_named(folders: list[Path], tmp_path: Path):
    broken = shutil.copytree(folders[2], tmp_path / "broken")
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    for wrong in ('{"event": "epoch", "st', "[1]", '{"step": 3}'):
        text = "\n".join([lines[0], wrong, *lines[1:]]) + "\n"
        (broken / "metrics.jsonl").write_text(text)
        with pytest.raises(MisconfiguredError, match=r"line 2 of metrics\.jsonl is wrong"):
            read_runs([broken])


def test_missing_packages_name_the_extra(runs: list[History], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MisconfiguredError, match=r"'jinja2'.*pip install 'guyot\[report\]'"):
        render(runs)


finite = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(finite, st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_few_round_and_inside(low: float, width: float, count: int):
    found = ticks(low, low + width, count)
    assert count / 2.5 - 1 <= len(found) <= 2.5 * count + 1
    assert all(low - 1e-6 * width <= x <= low + 1.000001 * width for x in found)


@given(st.floats(1e-6, 1e3), st.floats(25, 1e6))
def test_logarithmic_ticks_are_inside(low: float, factor: float):
    found = log_ticks(low, low * factor)
    assert found and all(low <= x <= low * factor for x in found)
    scale = Scale(low, low * factor, 0, 1, log=True)
    places = [scale(x) for x in found]
    assert all(a < b for a, b in pairwise(places)) and places[0] >= 0 and places[-1] <= 1 + 1e-9


def test_many_runs_differ_in_hue_or_marker_and_in_hue_or_dash():
    looks = [style(number) for number in range(49)]
    assert len({(look.hue, look.marker) for look in looks}) == 49
    assert len({(look.hue, look.dash) for look in looks}) == 49


def test_a_name_gives_way_to_a_line():
    point, room = [(50.0, 50.0)], (0.0, 0.0, 100.0, 100.0)
    line, longer = (50.0, 49.0, 100.0, 51.0), (0.0, 49.0, 100.0, 51.0)
    (free,), (left,), (above,) = (label(point, ["a"], room, x) for x in ([], [line], [longer]))
    assert [(place.anchor, place.rows) for place in (free, left, above)] == [
        ("start", 0), ("end", 0), ("middle", 1),
    ]  # fmt: skip
    assert overlap(left.box, line) == overlap(above.box, longer) == 0


def test_slow_steps_of_one_run_do_not_hide_another():
    (time,) = (quantity for quantity in quantities(ACCURACY) if quantity.key == "time")
    fast, slow = [(0.0, 1.0), (1.0, 1.0), (2.0, 9.0)], [(0.0, 50.0), (1.0, 60.0), (2.0, 900.0)]
    assert limits(time, [fast, fast[:2]])[1] == pytest.approx(1.06 * 9)
    assert limits(time, [fast[:2], [*slow, (3.0, 60.0)]])[1] == pytest.approx(1.06 * 240)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]):
    found = [End(number, cost, float(gain)) for number, (cost, gain) in enumerate(points)]
    unbeaten = {
        (c, g)
        for c, g in points
        if not any(d <= c and h >= g and (d, h) != (c, g) for d, h in points)
    }
    assert {(end.cost, end.score) for end in front(found, ACCURACY)} == unbeaten
    assert set(front(found, ACCURACY)) <= set(found)


@given(
    st.lists(st.tuples(st.floats(70, 520), st.floats(20, 280)), min_size=1, max_size=8),
    st.integers(1, 18),
)
def test_labels_cover_neither_marks_nor_labels(points: list[tuple[float, float]], length: int):
    room = (66.0, 22.0, 540.0, 282.0)
    found = label(points, ["m" * length] * len(points), room)
    marks = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    for one, other in combinations([place.box for place in found], 2):
        assert overlap(one, other) == 0
    for place in found:
        assert sum(overlap(place.box, mark) for mark in marks) == 0
        assert room[0] <= place.box[0] and place.box[2] <= room[2] + 1e-6


def test_every_plot_is_written_for_papers(runs: list[History], tmp_path: Path):
    from PIL import Image

    files = write_plots(runs, tmp_path / "plots")
    names = {"curves", "accuracy-macs", "accuracy-params"}
    names |= {
        f"{run}-{plot}" for run in ("half", "shallow") for plot in ("network", "keep-probabilities")
    }
    assert {file.stem for file in files} == names and len(files) == 2 * len(names)
    for file in files:
        if file.suffix == ".png":
            image = Image.open(file)
            ink = np.asarray(image.convert("L")) < 250
            assert image.width > 1500 and ink.mean() > 0.01
        else:
            assert file.read_text().rstrip().endswith("</svg>")
    first, again = (write_plots(runs[2:], tmp_path / name)[0] for name in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_plots_that_cannot_be_written(
    runs: list[History], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    with pytest.raises(MisconfiguredError, match=r"plots='.*file' cannot be made .*another folder"):
        write_plots(runs, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MisconfiguredError, match=r"plots=.* needs .*pip install 'guyot\[report\]'"):
        write_plots(runs, tmp_path / "plots")


# -- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    os.environ.setdefault("PLAYWRIGHT_SKIP_VALIDATE_HOST_REQUIREMENTS", "1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page at 1280 pixels; anything on its console or from the network fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:")) else 0
    )
    page.add_init_script(
        "window.shifts = []; new PerformanceObserver(list => list.getEntries().forEach(e =>"
        "window.shifts.push(e.value))).observe({type: 'layout-shift', buffered: true});"
    )
    page.goto(page_file.as_uri())
    yield page
    assert page.evaluate("window.shifts") == []
    context.close()
    assert said == []


BOXES = """() => [...document.querySelector('main').querySelectorAll(
        'section, h2, h3, figure, svg, table, .legend')]
    .filter(e => e.getClientRects().length)
    .map(e => { const b = e.getBoundingClientRect();
                return [b.x, b.y + scrollY, b.width, b.height].map(Math.round); })"""


def tip(page: Any) -> str | None:
    element = page.locator("#tip")
    return (
        element.inner_text() if element.evaluate("e => e.style.visibility") == "visible" else None
    )


def point(page: Any, target: Any) -> None:
    """Move the pointer there, once the page stands still."""
    target.scroll_into_view_if_needed()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    target.hover()


def color(page: Any, name: str) -> tuple[int, ...]:
    """A colour of the style sheet in the present theme, as RGB."""
    text = page.evaluate(
        """name => { const e = document.body.appendChild(document.createElement('i'));
        e.style.color = `var(${name})`;
        const color = getComputedStyle(e).color; e.remove(); return color; }""",
        name,
    )
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Contrast ratio of the Web Content Accessibility Guidelines 2.2."""

    def luminance(rgb: tuple[int, ...]) -> float:
        parts = [c / 255 for c in rgb]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@needs_chromium
@pytest.mark.parametrize("width", [400, 700, 1280, 1440])
def test_nothing_sticks_out(page: Any, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg.drawing").count() == 2
    if width > 1000:
        for region in page.locator("#summary .wide").all():
            assert region.evaluate("e => e.scrollWidth <= e.clientWidth")
    page.evaluate("window.shifts.length = 0")  # a window that changes size may move things


@needs_chromium
def test_pointing_at_a_block_tells_price_benefit_and_theta(page: Any, runs: list[History]):
    boxes = page.evaluate(BOXES)
    figure = page.locator(".network").first
    middle = len(runs[0].snapshots) // 2
    figure.locator("input").fill(str(middle))
    point(page, figure.locator(".block").nth(1))
    line, text = runs[0].snapshots[middle], tip(page)
    assert text is not None
    number = next(n for n, g in enumerate(runs[0].groups) if g["layers"] == [0])
    assert text.startswith(f"stages.0.0, step {line['step']}")
    assert re.search(rf"layer θ\s+{line['layers']['theta'][0]} %", text)
    size = runs[0].groups[number]["size"]
    assert re.search(
        rf"units expected\s+{line['expected'][number]:.1f}".rstrip("0").rstrip("."), text
    )
    assert f"of {size}" in text and "price of a unit" in text and "layer benefit" in text
    page.mouse.move(2, 2)
    assert tip(page) is None
    assert page.evaluate(BOXES) == boxes


@needs_chromium
def test_the_slider_goes_through_discovery_and_back(page: Any, runs: list[History]):
    boxes, figure = page.evaluate(BOXES), page.locator(".network").nth(1)
    bars = "e => [...e.querySelectorAll('.after-bar, .units, .block')].map(b => b.outerHTML)"
    ended = figure.evaluate(bars)
    gone = figure.locator(".block.gone").count()
    assert gone == len(runs[1].removed_layers) > 0
    figure.locator("input").focus()
    page.keyboard.press("Home")
    assert figure.locator("output").inner_text().startswith(f"step {runs[1].snapshots[0]['step']}")
    assert figure.locator(".block.gone").count() == 0
    bar = figure.locator(".after-bar[data-group]").first
    expected = runs[1].snapshots[0]["expected"][0] / runs[1].groups[0]["size"]
    assert float(bar.get_attribute("width")) == pytest.approx(
        expected * float(bar.get_attribute("data-full")), rel=1e-3
    )
    page.keyboard.press("End")
    assert figure.evaluate(bars) == ended and page.evaluate(BOXES) == boxes


@needs_chromium
def test_a_run_can_be_switched_off_everywhere(page: Any):
    boxes = page.evaluate(BOXES)
    buttons = page.locator(".legend button[data-run='1']")
    parts = page.locator("svg [data-run='1']")
    assert buttons.count() == 3 and parts.count() >= 7
    buttons.first.focus()
    page.keyboard.press("Enter")
    assert all(b.get_attribute("aria-pressed") == "false" for b in buttons.all())
    assert not any(part.is_visible() for part in parts.all())
    point(page, page.locator(".curves.wide"))
    assert "shallow" not in (tip(page) or "shallow")
    buttons.last.click()
    assert buttons.first.get_attribute("aria-pressed") == "true" and parts.first.is_visible()
    page.mouse.move(2, 2)
    assert page.evaluate(BOXES) == boxes


@needs_chromium
def test_the_cursor_reads_all_curves(page: Any, runs: list[History]):
    page.locator("#theme").focus()
    page.locator(".curves.wide").focus()
    page.keyboard.press("End")
    text = tip(page)
    assert text is not None and text.startswith("epoch 3.00")
    last = runs[0].of("epoch")[-1]
    assert f"{100 * last['validation_accuracy']:.1f} %" in text
    lines = [line.split("\t") for line in text.splitlines() if "\t" in line]
    assert [line[0] for line in lines] == ["", "half", "shallow", "full"]
    assert {len(line) for line in lines} == {6} and "–" not in text
    page.keyboard.press("ArrowLeft")
    assert (tip(page) or "").startswith("epoch 2.97")
    assert "epoch 2.97" in page.locator("#live").inner_text()
    page.keyboard.press("Escape")
    assert tip(page) is None
    point(page, page.locator(".curves.wide"))
    assert (tip(page) or "").startswith("epoch 1.")


@needs_chromium
def test_a_cell_of_a_map_tells_what_was_recorded(page: Any, runs: list[History]):
    number = next(n for n, group in enumerate(runs[0].groups) if runs[0].gone[group["name"]])
    svg, group = page.locator(".heat svg").nth(1 + number), runs[0].groups[number]
    name = group["name"]
    assert name in svg.get_attribute("aria-label")
    page.locator("#theme").focus()
    svg.focus()
    page.keyboard.press("End")
    found = {}
    for _ in range(len(group["rows"])):
        unit, value = re.search(r"unit (\d+)\s.*θ\s+(\w+)", tip(page) or "", re.DOTALL).groups()  # type: ignore[union-attr]
        found[int(unit)] = -1 if value == "gone" else int(value)
        step = runs[0].gone[name].get(int(unit))
        assert re.findall(r"went at step\s+(\d+)", tip(page) or "") == ([str(step)] if step else [])
        page.keyboard.press("ArrowDown")
    recorded = runs[0].snapshots[-1]["theta"][number]
    assert found == dict(zip(group["rows"], recorded, strict=True))
    assert svg.locator(".moment").count() == len(set(runs[0].gone[name].values())) > 0
    box = svg.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    assert re.match(rf"{name}, unit \d+\s+step\s+\d+\s+θ", tip(page) or "")


@needs_chromium
def test_arrow_keys_walk_through_the_blocks(page: Any):
    rows = page.locator(".network").first.locator(".block")
    page.locator(".network").first.locator("input").focus()
    page.keyboard.press("Tab")
    walked: list[str] = []
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        walked.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        assert (tip(page) or "").startswith(walked[-1].split(",")[0])
    assert [text.split(",")[0] for text in walked] == ["stages.0.0", "stages.0.1", "stages.0.0"]
    assert [row.get_attribute("tabindex") for row in rows.all()].count("0") == 1
    style = page.evaluate(
        "getComputedStyle(document.activeElement.querySelector('.hit')).strokeWidth"
    )
    assert style == "2px"


@needs_chromium
def test_marks_have_words_and_are_reached_by_tab(page: Any, runs: list[History]):
    marks = page.locator(".mark")
    assert marks.count() == 6
    for mark in marks.all():
        assert re.search(r": test accuracy .* %, ", mark.get_attribute("aria-label"))
    page.locator("#trade-off .legend button").last.focus()
    page.keyboard.press("Tab")
    assert (tip(page) or "").startswith("half")
    width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(width.removesuffix("px")) >= 2
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


@needs_chromium
def test_light_and_dark(page: Any):
    toggle, seen = page.locator("#theme"), []
    for theme in ("auto", "light", "dark"):
        assert toggle.inner_text() == f"Theme: {theme}"
        seen.append(color(page, "--paper"))
        for name in ("--ink", "--soft", "--accent", "--gone"):
            assert contrast(color(page, name), seen[-1]) >= 4.5, (theme, name)
        for hue in HUES:
            rgb = tuple(int(hue[place : place + 2], 16) for place in (1, 3, 5))
            assert contrast(rgb, seen[-1]) >= 3, (theme, hue)
        toggle.click()
    assert seen[0] == seen[1] and sum(seen[1]) > 700 and sum(seen[2]) < 100
    assert toggle.inner_text() == "Theme: auto"
    page.emulate_media(color_scheme="dark")
    assert color(page, "--paper") == seen[2]


@needs_chromium
def test_runs_differ_without_colour(page: Any):
    lines = page.locator(".curves.wide g[clip-path]").first.locator("g[data-run]")
    assert len({line.get_attribute("stroke-dasharray") for line in lines.all()}) == 3
    shapes = page.locator(".planes svg").first.locator(".mark path")
    assert len({shape.get_attribute("d") for shape in shapes.all()}) == 3


@needs_chromium
def test_on_paper(page: Any, page_file: Path):
    page.locator("#theme").click()
    page.locator("#theme").click()
    page.locator("#time .legend button").first.click()
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 695, "height": 1000})  # A4 without its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 695
    table = page.locator("#summary table").bounding_box()
    assert table["x"] + table["width"] <= 695
    assert sum(color(page, "--paper")) == 765
    for hidden in (".bar", ".slider", ".legend button", "#tip", "details"):
        assert not any(element.is_visible() for element in page.locator(hidden).all())
    assert page.locator(".legend span").first.is_visible()
    assert all(part.is_visible() for part in page.locator(".curves.wide .dot").all())
    page.evaluate("window.shifts.length = 0")  # paper has another layout


@needs_chromium
def test_without_script_everything_is_there(browser: Any, page_file: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".curves.wide .curve").first.is_visible()
    assert page.locator(".block").first.is_visible()
    assert not page.locator("#theme").is_visible()
    context.close()


# -- on a phone, and what is explained without a pointer -------------------------------------


def changed(folder: Path, to: Path, **choices: Any) -> Path:
    """A copy of a run folder with another configuration."""
    copy = shutil.copytree(folder, to)
    config = json.loads((copy / "config.json").read_text()) | choices
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_front_joins_what_compares(folders: list[Path], tmp_path: Path):
    other = changed(folders[0], tmp_path / "other", data="cifar10")
    stopped, nan = (shutil.copytree(folders[1], tmp_path / name) for name in ("stopped", "nan"))
    result = json.loads((stopped / "result.json").read_text())
    (stopped / "result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    (nan / "result.json").unlink()
    lines = (nan / "metrics.jsonl").read_text().splitlines()
    last = max(n for n, line in enumerate(lines) if '"event": "steps"' in line)
    lines[last] = json.dumps(json.loads(lines[last]) | {"loss": None})
    (nan / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = read_runs([folders[0], folders[2], other, stopped, nan])
    assert [run.status for run in found] == [*["finished"] * 3, "interrupted", "failed"]
    assert [end.run for end in ends(found, "macs")] == [0, 1, 2]
    assert {frozenset(end.run for end in one) for one in fronts(ends(found, "macs"), found)} <= {
        frozenset({0, 1}), frozenset({0}), frozenset({1}), frozenset({2}),
    }  # fmt: skip
    assert left_out(found) == "Not shown: stopped (stopped), nan (failed)."
    assert "its last losses were not finite" in render(found[4:])


def test_members_of_a_family_have_a_front_of_their_own(folders: list[Path], tmp_path: Path):
    family = tmp_path / "family"
    for target in ("0.5", "0.3"):
        changed(folders[0], family / target, target=float(target))
    (family / "config.json").write_text(json.dumps({"targets": [0.5, 0.3]}))
    found = read_runs([family, folders[2]])
    assert [run.family is None for run in found] == [False, False, True]
    assert len(fronts(ends(found, "macs"), found)) == 2
    assert "of a family" in render(found) and "share the beginning of their training" in render(
        found
    )


def test_small_costs_are_not_squashed():
    linear, log = cost_scale([1e6, 9e6], 0, 100), cost_scale([1e5, 9e6], 0, 100)
    assert (linear.low, linear(0), log.log) == (0, 0, True)
    assert log(1e5) > 3 and all(log.low <= value <= log.high for value in cost_ticks(log))


def test_early_accuracies_do_not_squash_the_late_ones():
    (accuracy,) = (quantity for quantity in quantities(ACCURACY) if quantity.key == "accuracy")
    line = [(float(n), value) for n, value in enumerate([0.1, 0.2, 0.9, 0.91, 0.92, 0.93])]
    low, high, _ = limits(accuracy, [line])
    assert 0.85 < low < 0.9 and 0.93 < high < 0.96


def test_what_went_stands_beside_its_price(runs: list[History]):
    found = reasons(runs[1])
    assert found is not None and reasons(runs[2]) is None
    rows = {row[0]: row for row in found.rows}
    for layer, step in runs[1].gone_layers.items():
        assert rows[f"layer {layer}"][1:3] == ["whole", str(step)]
        benefit, price = (float(text) for text in rows[f"layer {layer}"][3:5])
        number = runs[1].layers.index(layer)
        assert any(
            (line["layers"]["benefit"][number], line["layers"]["price"][number])
            == (pytest.approx(benefit, rel=0.06), pytest.approx(price, rel=0.06))
            for line in runs[1].snapshots
        )
    units = sum(len(removal["units"].get("conv1", ())) for removal in runs[0].removals)
    row = next((row for row in reasons(runs[0]).rows if row[0] == "conv1"), None)  # type: ignore[union-attr]
    assert (row[1] if row else "0 of 16 units") == f"{units} of 16 units"


def test_how_a_run_was_made(runs: list[History]):
    pairs = dict(made(runs[0]))
    assert (
        pairs["seed"] == "0" and f"torch {torch.__version__.partition('+')[0]}" in pairs["versions"]
    )
    assert pairs["command"] and pairs["state"] == "finished"
    assert made(dataclasses.replace(runs[0], environment=None))[0] == ("state", "finished")


@needs_chromium
def test_the_slider_moves_macs(page: Any, runs: list[History]):
    figure, middle = page.locator(".network").first, len(runs[0].snapshots) // 2
    bar = figure.locator(".after-bar[data-macs]").nth(1)
    ended = bar.get_attribute("width")
    figure.locator("input").fill(str(middle))
    line, block = runs[0].snapshots[middle], blocks(runs[0])[1]
    expected = sum(line["macs"][number] for number in block.operations) / block.macs
    assert float(bar.get_attribute("width")) == pytest.approx(
        expected * float(bar.get_attribute("data-full")), rel=1e-3
    )
    share = 100 * sum(line["macs"]) / runs[0].network["macs"]
    assert f"{share:.1f} % of the MACs" in figure.locator("output").inner_text()
    assert f"step {line['step']}" in figure.locator("input").get_attribute("aria-valuetext")
    figure.locator("input").fill(str(len(runs[0].snapshots) - 1))
    assert bar.get_attribute("width") == ended


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_or_covered(page: Any, width: int, scheme: str):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = page.locator(".curves:visible")
    assert shown.count() == 1
    box = shown.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    texts = shown.evaluate(
        "e => [...e.querySelectorAll('text')].map(t => t.getBoundingClientRect())"
        ".map(b => [b.left, b.right])"
    )
    assert all(left >= -1 and right <= width + 1 for left, right in texts)
    targets = [
        (shown, ".cursor"), (page.locator(".network .block").nth(3), ".hit"),
        (page.locator(".heat svg").nth(1), ".cell"), (page.locator(".mark").first, "path"),
    ]  # fmt: skip
    for target, part in targets:
        point(page, target)
        assert tip(page)
        mine = target.locator(part).first.bounding_box()
        over = page.locator("#tip").bounding_box()
        assert over["x"] >= 0 and over["x"] + over["width"] <= width
        one = (mine["x"], mine["y"], mine["x"] + mine["width"], mine["y"] + mine["height"])
        two = (over["x"], over["y"], over["x"] + over["width"], over["y"] + over["height"])
        assert overlap(one, two) == 0, part
    page.evaluate("window.shifts.length = 0")


NAMELESS = """() => [...document.querySelectorAll(
        'input, button, a, summary, svg[tabindex], svg[role], [role=region], .mark, .block')]
    .filter(e => e.getClientRects().length)
    .filter(e => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim()))
    .map(e => e.outerHTML.slice(0, 80))"""

# Of every text that is seen: its colour and that of what it stands on.
TEXTS = """() => [...document.querySelectorAll('main *, header *, .bar *, footer *')]
    .filter(e => e.getClientRects().length && getComputedStyle(e).visibility !== 'hidden')
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(e => { const s = getComputedStyle(e);
        const on = (x) => { while (x) { const c = getComputedStyle(x).backgroundColor;
            if (c !== 'rgba(0, 0, 0, 0)' && c !== 'transparent') return c; x = x.parentElement; }
            return 'rgb(255, 255, 255)'; };
        const ink = e instanceof SVGElement ? s.fill : s.color;
        return [ink, on(e), e.textContent.slice(0, 30)]; })"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_has_a_name_and_enough_contrast(page: Any, scheme: str):
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(NAMELESS) == []
    inputs = [e.get_attribute("aria-label") for e in page.locator("input").all()]
    drawings = [e.get_attribute("aria-label") for e in page.locator(".drawing").all()]
    assert len(set(inputs)) == len(inputs) == len(set(drawings)) == 2
    for ink, paper, text in page.evaluate(TEXTS):
        one, other = (
            tuple(int(n) for n in re.findall(r"\d+", color)[:3]) for color in (ink, paper)
        )
        assert contrast(one, other) >= 4.5, (text, ink, paper)


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing(page: Any, width: int, scheme: str):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found] == []
    page.evaluate("window.shifts.length = 0")


@needs_chromium
def test_the_keyboard_alone_reads_everything(page: Any, runs: list[History]):
    """Tab reaches every control; each shows where the focus is, and none holds it."""
    wanted = page.locator(
        "input:visible, summary:visible, a[href]:visible, button:visible, [tabindex='0']:visible"
    ).count()
    reached: set[str] = set()
    for _ in range(3 * wanted):
        page.keyboard.press("Tab")
        state = page.evaluate(
            """() => { const e = document.activeElement;
            if (e === document.body) return null;
            if (!e.dataset.seen) e.dataset.seen = Math.random();
            return [e.dataset.seen, e.matches(':focus-visible')]; }"""
        )
        if state is None:
            break
        assert state[1]
        reached.add(state[0])
    assert len(reached) == wanted > len(runs)
