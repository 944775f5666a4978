"""The program that looks at the pages of the site."""

import importlib.util
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "docs" / "check_site.py"
SPEC = importlib.util.spec_from_file_location("check_site", PROGRAM)
check_site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_site)

# What is on a page, and what is said of it.
FAULTS = {
    '<div style="overflow: hidden"><p style="width: 3000px">wide</p></div>': "cut: div",
    '<div style="overflow: hidden; height: 9px">high<br>high</div>': "cut below: div",
    '<div style="width: 3000px">wide</div>': "sticks out: div",
    '<div style="overflow: auto; scrollbar-width: none"><p style="width: 3000px">wide</p></div>': (
        "scrolls without a scroll bar: div"
    ),
    '<img src="missing.png">': "no picture: missing.png",
    '<span class="math">\\(x\\)</span>': "no equation: span.math",
    "<p>\\(x\\)</p>": "raw source",
    "<script>console.error('mine')</script>": "console: mine",
    "<script>throw new Error('mine')</script>": "exception: Error: mine",
}
SOUND = """<div style="overflow: auto"><p style="width: 3000px">wide</p></div><p>A text.</p>
<pre>\\(x\\)</pre>"""


def page(body):
    head = '<!doctype html><html><head><meta charset="utf-8"></head>'
    return f"{head}<body><article>{body}</article></body></html>"


@pytest.mark.slow
@pytest.mark.skipif(check_site.find_browser() is None, reason="there is no Chromium here")
def test_each_kind_of_fault_is_found(tmp_path, capsys):
    for number, body in enumerate(FAULTS):
        (tmp_path / f"{number}.html").write_text(page(body), encoding="utf-8")
    (tmp_path / "sound.html").write_text(page(SOUND), encoding="utf-8")
    assert check_site.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    for number, fault in enumerate(FAULTS.values()):
        for width in check_site.WIDTHS:
            assert f"{number}.html, {width} px: {fault}" in said
    assert "sound.html" not in said
    assert check_site.main([str(tmp_path), "--only", "sound"]) == 0


def test_a_missing_browser_and_a_missing_site_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CHROME", "no-such-browser")
    assert check_site.main([str(tmp_path)]) == 2
    assert "CHROME=no-such-browser is no program" in capsys.readouterr().out
    monkeypatch.delenv("CHROME")
    monkeypatch.setattr(check_site, "find_browser", lambda: None)
    assert check_site.main([str(tmp_path)]) == 2
    assert "Found no browser (chromium, " in capsys.readouterr().out
    monkeypatch.setattr(check_site, "find_browser", lambda: "chromium")
    assert check_site.main([str(tmp_path)]) == 2
    assert "make docs builds the site" in capsys.readouterr().out
