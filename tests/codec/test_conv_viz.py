"""The page on the convolution's window: it is whole, and its JavaScript reads and counts as the codec's layers do."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from html_pages import assert_readable_on_a_phone, outside
from run_dirs import ROOT

from sidrec.codec.layers import Halving, convolved_length

PAGE = (ROOT / "docs" / "conv_viz.html").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)
SLIDERS = dict(re.findall(r'<input id="(\w+)"[^>]* value="(\d+)"', PAGE))
# elements that remember what is said to them, and what is to be done on a click or a change
DOCUMENT = """
const elements = {}, document = { getElementById: (id) => elements[id] ??= {
  value: sliders[id], attributes: {}, heard: {},
  setAttribute(name, value) { this.attributes[name] = value; },
  addEventListener(kind, act) { this.heard[kind] = act; },
} };
"""


def in_node(script: str) -> Any:
    """The JSON that a script prints; the test is skipped where node is not installed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the page's JavaScript is not run")
    return json.loads(
        subprocess.run([node, "-"], input=script, check=True, capture_output=True, text=True, timeout=60).stdout
    )


def answers(calls: list[str]) -> list[Any]:
    return in_node(f"{SCRIPTS[0]}\nconsole.log(JSON.stringify([{', '.join(calls)}]))")


def test_the_page_is_whole() -> None:
    assert [each for each in outside(PAGE) if each != "script"] == []
    assert len(SCRIPTS) == PAGE.count("<script") == 2
    assert list(SLIDERS) == ["length", "kernel", "stride", "left", "right"]
    asked = set(re.findall(r'element\("(\w+)"\)', SCRIPTS[1]))
    assert asked | set(SLIDERS) | {f"{name}_value" for name in SLIDERS} == set(re.findall(r'\bid="(\w+)"', PAGE))


def test_the_page_is_readable_on_a_phone(tmp_path: Path) -> None:
    assert_readable_on_a_phone(PAGE, tmp_path)


def test_the_pages_formula_is_the_layers() -> None:
    sizes = list(itertools.product((1, 2, 7, 16), (0, 1, 6), (1, 2, 5, 8), (1, 2, 3)))
    counted = answers([f"convolvedLength({','.join(map(str, each))})" for each in sizes])
    assert counted == [convolved_length(*each) for each in sizes]


@pytest.mark.parametrize("causal", [True, False])
def test_the_pages_windows_are_what_a_halving_reads(causal: bool) -> None:
    length = 12
    for kernel in (2, 4, 6):
        halving = Halving(4, kernel, causal=causal)
        torch.nn.init.ones_(halving.convolution.weight)
        (paddings,) = answers([f"paddings({kernel}, 2, {json.dumps(causal)})"])
        assert paddings == [halving.left, halving.right]
        (windows,) = answers([f"windows({length}, {halving.left}, {halving.right}, {kernel}, 2)"])
        hidden = torch.ones(1, length, 4, requires_grad=True)
        halved = halving(hidden)
        assert len(windows) == halved.shape[1]
        for output, window in enumerate(windows):
            (gradient,) = torch.autograd.grad(halved[0, output, 0], hidden, retain_graph=True)
            read = gradient[0].abs().sum(1).nonzero().flatten().tolist()
            assert [position for position in window if 0 <= position < length] == read


def test_sliders_and_buttons_draw() -> None:
    acts = """
const seen = [], look = () => seen.push([elements.drawing.innerHTML, elements.formula.textContent, elements.window.textContent]);
look();
elements.kernel.value = "6"; elements.kernel.heard.input(); look();
elements.centred.heard.click(); look();
elements.drawing.heard.click({ target: { closest: () => ({ dataset: { output: "5" } }) } }); look();
elements.length.value = "1"; elements.left.value = elements.right.value = "0"; elements.length.heard.input(); look();
console.log(JSON.stringify(seen));"""
    drawn = in_node("\n".join([f"const sliders = {json.dumps(SLIDERS)};", DOCUMENT, *SCRIPTS, acts]))
    at_first, wider, centred, last, nothing = drawn
    assert at_first[1].endswith("⌊(12 + 2 − 4) / 2⌋ + 1 = 6 outputs")
    assert at_first[2] == "Output 0 reads positions -2 to 1, padding among them."
    assert at_first[0].count("data-output") == 6
    assert at_first[0].count("<line") == 6 * 4
    assert at_first[0].count('class="shown line"') == 4
    assert at_first[0].count("padding") == 2
    assert wider[1].endswith("= 5 outputs")
    assert centred[1].endswith("⌊(12 + 4 − 6) / 2⌋ + 1 = 6 outputs")
    assert last[2] == "Output 5 reads positions 8 to 13, padding among them."
    assert nothing[1].endswith("0 outputs")
    assert "data-output" not in nothing[0]
