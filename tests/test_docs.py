"""The documentation's pages: their examples run, and what they name exists."""

import ast
import contextlib
import doctest
import functools
import itertools
import re
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import adamx

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
TRANSLATED = "quickstart.ko.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(r"<!--.*?-->", re.DOTALL)


def run(code, name, line, names):
    """Run a block of a page: an interactive one is compared with what it shows."""
    if not code.startswith(">>>"):
        exec(compile("\n" * line + code, name, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(code, names, name, name, line)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = []
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    assert not report, "".join(report)


def run_all(page, names, monkeypatch):
    """Run the blocks of a page in their order.

    What a reader sees must run alone. A block in a comment checks what stands in front of it, and
    what it defines is unknown to the blocks behind it.
    """
    text = page.read_text(encoding="utf-8")
    if "nnx.Optimizer(" in text and not hasattr(nnx, "data"):
        pytest.skip("an older Flax, whose nnx.Optimizer has another interface")
    module = types.ModuleType(page.stem.replace("-", "_"))
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where pickle finds its functions
    with contextlib.ExitStack() as after:
        if hasattr(jax, "set_mesh"):  # of which a page may set one
            set_mesh = jax.set_mesh
            monkeypatch.setattr(jax, "set_mesh", lambda x: after.enter_context(set_mesh(x)))
        after.enter_context(jax.numpy_dtype_promotion("standard"))
        after.enter_context(jax.numpy_rank_promotion("allow"))
        hidden = [comment.span() for comment in HIDDEN.finditer(text)]
        for block in FENCE.finditer(text):
            known = vars(module)
            if any(start < block.start() < end for start, end in hidden):
                assert "assert" in block[1], "a reader can't copy what a comment defines"
                known = dict(known)
            run(block[1], page.name, text[: block.start()].count("\n") + 1, known)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != TRANSLATED])
def test_the_examples_of_a_page_run_in_their_order(page, monkeypatch):
    run_all(DOCS / page, {}, monkeypatch)


def test_a_hidden_block_defines_nothing_for_the_blocks_that_are_seen(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    seen, hidden = "```python\ny = x\n```\n", "<!--\n```python\nx = 1{}\n```\n-->\n"
    page.write_text(hidden.format("") + seen, encoding="utf-8")
    with pytest.raises(AssertionError, match="can't copy"):
        run_all(page, {}, monkeypatch)
    page.write_text(hidden.format("; assert x") + seen, encoding="utf-8")
    with pytest.raises(NameError, match="'x'"):
        run_all(page, {}, monkeypatch)


def imported(code):
    """The packages that a page's block imports."""
    if code.startswith(">>>"):
        code = "".join(example.source for example in doctest.DocTestParser().get_examples(code))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def installed_with(names):
    """The distributions that pip installs with these, of an extra or of none."""
    found, left = set(), list(names)
    while left:
        name = re.split(r"[^\w.-]", left.pop(), maxsplit=1)[0].lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            needed = metadata.requires(name) or []
            left += [x for x in needed if "extra ==" not in x]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_imports_is_installed_with_the_tools_or_by_a_command_on_it(page):
    text = HIDDEN.sub("", (DOCS / page).read_text(encoding="utf-8"))
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["flax"], *extras["tools"]]
    ours = installed_with(x for x in needed if not x.startswith("adamx[")) | {"adamx"}
    ours |= set(re.findall(r"^pip install ([\w-]+)$", text, re.MULTILINE))
    distributions = metadata.packages_distributions()
    for block in FENCE.findall(text):
        for name in set(imported(block)) - sys.stdlib_module_names:
            known = {x.lower().replace("_", "-") for x in distributions.get(name, [name])}
            assert known & ours, f"{page} imports {name}, and does not say how to install it"


def of_the_readers():
    """What the README's lines take from those who read it."""
    params = {"w": jnp.zeros(3)}

    def loss_fn(params, batch):
        return jnp.sum((params["w"] - batch) ** 2)

    def step(opt, params, state, batch):
        updates, state = opt.update(jax.grad(loss_fn)(params, batch), state, params)
        return adamx.apply_updates(params, updates), state

    @jax.jit
    def train(opt):
        def after(carry, _):
            params, state = step(opt, *carry, 1.0)
            return (params, state), loss_fn(params, 1.0)

        return jax.lax.scan(after, (params, opt.init(params)), length=3)[1]

    opt, watched = adamx.adam(1e-3), adamx.chain(adamx.adam(1e-3), adamx.watch())
    return {
        "batch": 1.0,
        "batches": itertools.repeat(1.0, 200),
        "final_loss": lambda losses: losses[-1],
        "loss_fn": loss_fn,
        "opt": opt,
        "opt_state": optax.adam(1e-3).init(params),
        "rates": [1e-3, 1e-2],
        "saved": adamx.adam(1e-3).init(params),
        "step": step,
        "train": train,
        "watched": step(watched, params, watched.init(params), 1.0)[1],
    }


def test_the_examples_of_the_readme_run(monkeypatch):
    run_all(DOCS.parent / "README.md", of_the_readers(), monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_names_its_language(page):
    """What has none would be shown as Python."""
    fences = re.findall(r"^```(.*)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert all(fences[::2]) and not any(fences[1::2])


@pytest.mark.parametrize("page", PAGES)
def test_titles_are_headings(page):
    """A title in bold type is in no table of contents."""
    text = (DOCS / page).read_text(encoding="utf-8")
    bold = re.findall(r"(?<=\n\n)\*\*[^*\n]+(?:\*\*[.:]?\n\n|[.:]\*\*)", text)
    assert not [x for x in bold if page != "index.md"]


def test_a_translation_stands_behind_the_pages_of_its_original():
    """So that the next page of an English one is English."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    tables = re.findall(r"^```{toctree}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert TRANSLATED.removesuffix(".md") in tables[-1].split()


def test_the_translated_page_has_the_examples_of_the_original():
    original, translated = (
        FENCE.findall((DOCS / page).read_text(encoding="utf-8"))
        for page in ("quickstart.md", TRANSLATED)
    )
    assert translated == original


def test_the_list_of_pages_is_complete():
    listed = re.findall(r"\]\((.+?)\)", (DOCS / "README.md").read_text(encoding="utf-8"))
    of_the_site_alone = {"README.md", "index.md", "changelog.md", "contributing.md"}
    assert sorted(listed) == sorted(set(PAGES) - of_the_site_alone)


@functools.cache
def functions(path):
    """The source of every function, method and class of a file, by name."""
    source = (DOCS.parent / path).read_text(encoding="utf-8")
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return {node.name: ast.get_source_segment(source, node) for node in found}


# `name` (`path`), or `name` and `other` (`path`); whatever stands between, up to the next path.
NAMED = re.compile(r"((?:`\w+`(?:,|\s|and|)*)+)\(`([\w/]+\.py)`\)")


def test_paper_and_code_agree():
    text = (DOCS / "paper-code.md").read_text(encoding="utf-8")
    names = [
        (found.start(), name, found[2])
        for found in NAMED.finditer(text)
        for name in re.findall(r"`(\w+)`", found[1])
    ]
    assert len(names) > 50
    for _, name, path in names:
        assert name in functions(path), f"there is no {name} in {path}"
    for quoted in re.finditer(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        _, name, path = next(of for of in names if of[0] > quoted.end())
        for line in quoted[1].splitlines():
            assert line in functions(path)[name], f"{name} in {path} has no line {line}"


def test_every_test_that_paper_and_code_names_stands_with_its_file():
    text = (DOCS / "paper-code.md").read_text(encoding="utf-8")
    named = {name for found in NAMED.finditer(text) for name in re.findall(r"\w+", found[1])}
    assert set(re.findall(r"`(test_\w+)`", text)) <= named
