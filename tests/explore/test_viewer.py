"""The graph page in a real browser: what it shows, what pointing, clicking, zooming and typing do, that it stays silent."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_graphs.explore import render_graph_page
from neural_graphs.graph import NeuralGraph, Stack

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,800 --virtual-time-budget=4000 --dump-dom"
)

# Before the page's own scripts: everything that it says or that goes wrong is written down.
LISTEN = """<script>const said = [];
for (const name of ['log', 'info', 'warn', 'error', 'debug']) console[name] = (...words) => said.push(words.join(' '));
addEventListener('error', (event) => said.push(event.message));
addEventListener('unhandledrejection', (event) => said.push(String(event.reason)));
addEventListener('securitypolicyviolation', (event) => said.push('blocked ' + event.blockedURI));</script>"""

# After them: helpers, the test's own steps (which return a value), and the result as text for --dump-dom.
PROBE = """<script>
const one = (selector) => document.querySelector(selector), all = (selector) => [...document.querySelectorAll(selector)];
const set = (index) => one(`#layers [data-set="${index}"]`), block = (index) => one(`#layers [data-block="${index}"]`);
const middle = (element) => {
  const box = element.getBoundingClientRect();
  return {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
};
const pointer = (element, type, options) => element.dispatchEvent(
  new PointerEvent(type, {bubbles: true, pointerType: 'mouse', ...middle(element), ...options}));
const click = (element) => element.dispatchEvent(new MouseEvent('click', {bubbles: true, ...middle(element)}));
const key = (element, name) => element.dispatchEvent(
  new KeyboardEvent('keydown', {bubbles: true, cancelable: true, key: name}));
const text = (selector) => all(selector).map((element) => element.textContent);
const view = () => one('#world').getAttribute('transform').match(/-?[\\d.]+/g).map(Number);
const title = () => text('#pane-details h2')[0];
(async () => {
  const pre = document.createElement('pre');
  pre.id = 'probe';
  let result;
  try { result = await (async () => { %s })(); } catch (error) { said.push(String(error.stack)); }
  const requests = performance.getEntriesByType('resource').map((entry) => entry.name);
  pre.textContent = JSON.stringify({result, said, requests});
  document.body.append(pre);
})();</script>"""

Probe = Callable[..., Any]


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """Opens a page, runs steps in it and returns their value; fails where the page said or requested anything."""

    def run(page: str, steps: str, *flags: str) -> Any:
        changed = page.replace("<head>", "<head>" + LISTEN).replace("</body>", PROBE % steps + "</body>")
        (tmp_path / "page.html").write_text(changed, encoding="utf-8")
        command = [
            str(CHROMIUM),
            *FLAGS.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            *flags,
            f"file://{tmp_path}/page.html",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        shutil.rmtree(tmp_path / "profile", ignore_errors=True)
        found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr
        answer = json.loads(html.unescape(found[1]))
        assert answer["said"] == []
        assert answer["requests"] == []
        return answer.get("result")

    return run


def small() -> NeuralGraph:
    stack = Stack.mlp((2, 5, 3, 1), "sine:30")
    torch.manual_seed(0)
    return NeuralGraph.from_state_dict(stack.module().state_dict(), stack=stack)


@pytest.mark.parametrize("name", ["resnet", "transformer", "deep"])
def test_source_asks_for_nothing(name: str, request: pytest.FixtureRequest) -> None:
    page = render_graph_page(request.getfixturevalue(name), "net")
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?!\"?data:)|url\(|@import|https?://|fetch\(|XMLHttp", page)
    assert "default-src 'none'" in page
    assert len(page) < 1_000_000


def test_names_cannot_leave_their_place() -> None:
    graph = NeuralGraph.from_state_dict({"</script><b>.weight": torch.randn(2, 3)})
    page = render_graph_page(graph, "</title><script>alert(1)</script>")
    assert "<script>alert" not in page and "</script><b>" not in page
    assert page.count("</script>") == 2


def test_page_of_many_large_blocks_stays_small() -> None:
    widths = (70, *[70] * 160, 70)
    graph = NeuralGraph.from_state_dict({f"{i}.weight": torch.randn(70, 70) for i in range(len(widths))}, "relu")
    assert len(render_graph_page(graph, "net")) < 2_500_000


@needs_chromium
def test_everything_is_drawn_and_described(transformer: NeuralGraph, probe: Probe) -> None:
    spec = transformer.spec
    found = probe(
        render_graph_page(transformer, "net <1>"),
        """return {title: document.title, head: text('h1'), sets: all('#layers .set').length,
        edges: all('#layers .edge path.on').length, names: all('#layers .set').map((e) => e.getAttribute('aria-label')),
        legend: text('#legend span'), rows: all('#pane-layers tbody tr').length,
        classes: all('#pane-symmetries [data-class]').length,
        facts: one('#pane-details dl').innerText, tab: text('[aria-selected=true]'), switch: all('[data-view]').length};""",
    )
    assert found["title"] == found["head"][0] == "net <1>"
    assert (found["sets"], found["edges"]) == (len(spec.node_sets), len(spec.blocks))
    assert found["names"][2] == "embedding, 8 neurons"
    kinds = [
        "linear",
        "linear, shared weights",
        "embedding",
        "query",
        "key",
        "value",
        "position",
        "identity",
        "attention",
    ]
    assert found["legend"] == [*kinds, "one colour, one symmetry class"]
    assert found["rows"] == len(spec.node_sets)
    assert found["classes"] == len(spec.symmetries.classes)
    assert f"{spec.num_edges:,}" in found["facts"]
    assert (found["tab"], found["switch"]) == (["Details"], 0)


@needs_chromium
def test_pointing_at_a_layer_shows_its_numbers(resnet: NeuralGraph, probe: Probe) -> None:
    found = probe(
        render_graph_page(resnet, "net"),
        """pointer(set(2), 'pointermove');
        const tip = one('#tip'), shown = !tip.hidden, words = tip.innerText, cells = text('#tip td');
        pointer(block(1), 'pointermove');
        const edge = one('#tip').innerText, edgeCells = text('#tip td');
        pointer(one('#canvas'), 'pointerleave');
        return {shown, words, cells, edge, edgeCells, hidden: tip.hidden};""",
    )
    assert found["shown"] and found["hidden"]
    assert "layer0.conv1" in found["words"] and "16 neurons · hidden · relu" in found["words"]
    assert "layer0.inner" in found["words"]
    features = resnet.nodes[2][0].double()
    rows = [found["cells"][i : i + 5] for i in range(0, len(found["cells"]), 5)]
    assert [row[0] for row in rows] == ["bias", "scale", "running_mean", "running_var", "conv1 conv"]

    def numbers(row: list[str]) -> list[float]:
        return [float(cell.replace("−", "-")) for cell in row]

    for column, row in enumerate(rows[:4]):
        values = features[:, column]
        expected = [values.mean(), values.std(correction=0), values.min(), values.max()]
        assert numbers(row[1:]) == pytest.approx([float(v) for v in expected], rel=1e-3)
    weights = resnet.edges[1].double()
    expected = [float(v) for v in (weights.mean(), weights.std(correction=0), weights.min(), weights.max())]
    assert numbers(rows[4][1:]) == pytest.approx(expected, rel=1e-3)
    assert numbers(found["edgeCells"]) == pytest.approx(expected, rel=1e-3)
    assert "[16, 16, 3, 3]" in found["edge"]


@needs_chromium
def test_clicking_opens_weights_and_the_value_under_the_pointer(resnet: NeuralGraph, probe: Probe) -> None:
    graph = resnet
    graph.edges[-1][0, 3, 7, 0] = 9.0
    graph.edges[-1][0, 4, 7, 0] = math.nan
    last = len(graph.spec.blocks) - 1
    found = probe(
        render_graph_page(graph, "net"),
        f"""click(block({last}));
        const image = one('.map canvas'), box = image.getBoundingClientRect(), out = [text('h2')[0], text('.marks span')];
        const at = (row, column) => {{
          image.dispatchEvent(new PointerEvent('pointermove', {{bubbles: true,
            clientX: box.left + (column + 0.5) * box.width / image.width,
            clientY: box.top + (row + 0.5) * box.height / image.height}}));
          out.push(one('.map output').innerText.replace('\\n', ' @ '));
        }};
        out.push([image.width, image.height]);
        at(3, 3); at(4, 3); at(0, 0);
        key(image, 'ArrowDown'); out.push(one('.map output').innerText.split('\\n')[1]);
        one('[data-reading=average]').click(); at(3, 3);
        const pixels = image.getContext('2d').getImageData(3, 3, 1, 1).data;
        out.push([...pixels]);
        click(block(1)); const exact = all('.map [data-reading]').length;
        await new Promise((done) => setTimeout(done, 400));
        out.push(exact, one('.map canvas').height, getComputedStyle(one('#layers .edge.chosen .on')).strokeWidth);
        out.push(all('#layers .edge.chosen').map((e) => e.dataset.block));
        click(one('#canvas')); out.push(title());
        return out;""",
    )
    title, marks, size, strong, nan, corner, below, average, pixels, exact, height, width, chosen, overview = found
    assert title == "fc.weight" and marks == ["NaN"]
    assert size == [40, 10]
    assert strong == "strongest 9 @ target 3, source 6–7"
    assert nan == "strongest NaN @ target 4, source 6–7"
    weights = graph.edges[-1][0, :, :, 0]
    pair = weights[0, :2]
    value = float(corner.split(" @ ")[0].removeprefix("strongest ").replace("−", "-"))
    assert value == pytest.approx(float(pair[pair.abs().argmax()]), abs=9 / 126)
    assert below == "target 1, source 0–1"
    value = float(average.split(" @ ")[0].removeprefix("average ").replace("−", "-"))
    assert value == pytest.approx(float(weights[3, 6:8].mean()), abs=6 / 126)
    assert pixels[:3] == [0xD9, 0x62, 0x2B]  # the strongest average, in the full colour of positive weights
    assert (exact, height, width, chosen) == (2, 16, "6px", ["1"])
    assert overview == "The network"


@needs_chromium
def test_a_small_network_shows_neurons_and_exact_weights(probe: Probe) -> None:
    graph = small()
    found = probe(
        render_graph_page(graph, "net"),
        """const out = {neurons: all('#neurons circle').length, columns: all('#neurons .column').length,
          seen: one('#layers').style.display, pressed: text('[data-view][aria-pressed=true]')};
        pointer(all('#neurons circle')[5], 'pointermove'); out.note = one('#tip').innerText;
        pointer(one('#neurons .column[data-set="1"]'), 'pointermove'); out.column = one('#tip b').innerText;
        click(one('#neurons .column[data-set="2"]')); out.chosen = title();
        one('#pane-details [data-block]').click();
        const image = one('.map canvas'), box = image.getBoundingClientRect();
        image.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + 1, clientY: box.bottom - 1}));
        out.value = one('.map output b').innerText; out.readings = text('[data-reading]');
        one('[data-view=layers]').click(); out.after = [one('#layers').style.display, one('#neurons').style.display];
        return out;""",
    )
    assert (found["neurons"], found["columns"]) == (2 * 11, 4)
    assert (found["seen"], found["pressed"]) == ("none", ["Neurons"])
    assert found["note"].startswith("seq.0[0], bias ")
    assert (found["column"], found["chosen"]) == ("seq.0", "seq.1")
    assert found["readings"] == []  # one cell per weight leaves nothing to choose
    value = float(found["value"].replace("−", "-"))
    assert value == pytest.approx(float(graph.edges[1][0, 2, 0, 0]), rel=1e-3, abs=1e-5)
    assert found["after"] == ["", "none"]


@needs_chromium
def test_zoom_and_pan_by_every_means(resnet: NeuralGraph, probe: Probe) -> None:
    found = probe(
        render_graph_page(resnet, "net"),
        """const canvas = one('#canvas'), box = canvas.getBoundingClientRect(), out = {start: view()};
        const wheel = (delta) => canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: delta, cancelable: true,
          clientX: box.left + 100, clientY: box.top + 50}));
        const before = view(), under = [(100 - before[0]) / before[2], (50 - before[1]) / before[2]];
        wheel(-100); const near = view();
        out.wheel = near[2] / before[2];
        out.fixed = [(100 - near[0]) / near[2] - under[0], (50 - near[1]) / near[2] - under[1]];
        for (let i = 0; i < 100; i++) wheel(-100); out.most = view()[2];
        for (let i = 0; i < 200; i++) wheel(100); out.least = view()[2];
        key(canvas, '0'); out.reset = view();
        key(canvas, '+'); out.plus = view()[2]; key(canvas, '-'); out.minus = view()[2];
        let old = view(); key(canvas, 'ArrowRight'); key(canvas, 'ArrowUp'); let now = view();
        out.arrows = [now[0] - old[0], now[1] - old[1]];
        one('#zoom-in').click(); out.button = view()[2];
        one('#zoom-out').click(); one('#zoom-fit').click(); out.fit = view();
        const finger = (id, type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {bubbles: true, pointerId: id,
          pointerType: 'touch', clientX: box.left + x, clientY: box.top + y}));
        old = view(); finger(1, 'pointerdown', 200, 200); finger(1, 'pointermove', 230, 210);
        finger(1, 'pointermove', 260, 220);
        now = view(); out.drag = [now[0] - old[0], now[1] - old[1]];
        click(set(1)); out.clicked = title();
        finger(2, 'pointerdown', 360, 220); finger(2, 'pointermove', 460, 220);
        out.pinch = view()[2] / now[2]; finger(1, 'pointerup', 260, 220); finger(2, 'pointerup', 460, 220);
        click(set(1)); click(set(1)); out.later = title();
        return out;""",
    )
    assert found["wheel"] > 1.1
    assert found["fixed"] == pytest.approx([0, 0], abs=0.1)
    assert 4 < found["most"] <= 8 and found["least"] < found["start"][2]
    assert found["reset"] == found["start"] == found["fit"]
    assert found["plus"] == pytest.approx(1.25 * found["start"][2], rel=1e-3)
    assert found["minus"] == pytest.approx(found["start"][2], rel=1e-3)
    assert found["arrows"] == pytest.approx([-60, 60], abs=0.1)
    assert found["button"] == pytest.approx(1.25 * found["start"][2], rel=1e-3)
    assert found["drag"] == pytest.approx([60, 20], abs=0.1)
    assert found["clicked"] == "The network"  # the end of a drag is no click
    assert found["pinch"] == pytest.approx(2.0, rel=0.01)
    assert found["later"] == "conv1"


@needs_chromium
def test_keyboard_search_and_symmetries(deep: NeuralGraph, transformer: NeuralGraph, probe: Probe) -> None:
    found = probe(
        render_graph_page(deep, "net"),
        """const find = one('#find'), out = {};
        const write = (words) => { find.value = words; find.dispatchEvent(new Event('input')); };
        key(document.body, '/'); out.focus = document.activeElement.id;
        write('body.14'); out.list = text('#found li span:first-child'); out.marked = all('#layers .set.found').length;
        key(find, 'ArrowDown'); key(find, 'Enter'); out.chosen = title();
        const at = middle(set(141)), box = one('#canvas').getBoundingClientRect();
        out.visible = [at.clientX > box.left, at.clientX < box.right, at.clientY > box.top, at.clientY < box.bottom];
        write('no such layer'); out.none = text('#found li');
        key(find, 'Escape'); out.left = [find.value, one('#found').hidden];
        key(set(20), 'Enter'); out.enter = title(); key(set(20), 'Escape'); out.escape = title();
        one('#tab-layers').click(); all('#pane-layers tbody tr')[149].click(); out.row = title();
        return out;""",
    )
    assert found["focus"] == "find"
    assert found["list"] == ["body.14", *(f"body.14{i}" for i in range(8))]
    assert found["marked"] == 9
    assert found["chosen"] == "body.140"
    assert found["none"] == ["No layer of this name"] and found["left"] == ["", True]
    assert (found["enter"], found["escape"], found["row"]) == ("body.19", "The network", "out")
    assert all(found["visible"])

    found = probe(
        render_graph_page(transformer, "net"),
        """const out = {}, row = one('[data-class="stream"]');
        one('#tab-symmetries').click(); out.cells = [...row.children].map((e) => e.textContent);
        out.inner = [...one('[data-class="h.1.qk"]').children].map((e) => e.textContent);
        row.dispatchEvent(new MouseEvent('mouseenter'));
        out.hover = all('#layers .set.member text.t').map((e) => e.textContent);
        row.dispatchEvent(new MouseEvent('mouseleave')); out.after = all('.member').length;
        key(row, 'Enter'); row.dispatchEvent(new MouseEvent('mouseleave')); out.pinned = all('#layers .member').length;
        key(document.body, 'Escape'); out.end = all('.member').length;
        key(one('#tab-details'), 'ArrowLeft'); out.tab = text('[aria-selected=true]')[0];
        return out;""",
    )
    members = ["embedding", "h.0.out", "h.0.stream", "h.1.out", "h.1.stream"]
    assert found["cells"] == ["stream", "8", "–", "–", "5"]
    assert found["inner"] == ["h.1.qk", "4", "h.1.heads", "–", "2"]
    assert (found["hover"], found["after"], found["pinned"], found["end"]) == (members, 0, 5, 0)
    assert found["tab"] == "Layers"


@needs_chromium
@pytest.mark.parametrize("name", ["transformer", "deep"])
def test_fits_a_narrow_screen_and_a_dark_one(name: str, request: pytest.FixtureRequest, probe: Probe) -> None:
    page = render_graph_page(request.getfixturevalue(name), "a-long-name-without-a-break/" * 3 + "model.safetensors")
    outer = (
        f'<html><head></head><body><iframe width=360 height=1500 srcdoc="{html.escape(page)}"></iframe></body></html>'
    )
    wide = probe(
        outer,
        """await new Promise((done) => { one('iframe').onload = done; });
        const inner = one('iframe').contentDocument, out = [];
        const measure = () => {
          const shown = [...inner.querySelectorAll('body *')].filter(
            (element) => !element.closest('svg, .scroll, .skip') && element.offsetParent);
          out.push([inner.documentElement.scrollWidth,
            Math.max(...shown.map((element) => element.getBoundingClientRect().right))]);
        };
        measure();
        inner.querySelector('#layers .edge').dispatchEvent(new MouseEvent('click', {bubbles: true}));
        measure();
        for (const tab of ['symmetries', 'layers']) { inner.getElementById('tab-' + tab).click(); measure(); }
        return out;""",
    )
    assert len(wide) == 4
    for scroll, right in wide:
        assert scroll <= 360 and right <= 360
    colours = "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(one('.set rect.b')).fill];"
    light, dark = probe(page, colours), probe(page, colours, "--blink-settings=preferredColorScheme=0")
    assert light == ["rgb(255, 255, 255)"] * 2
    assert dark == ["rgb(20, 23, 29)", "rgb(32, 37, 46)"]
