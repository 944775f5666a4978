"""How the documentation is built; ``make docs`` does it, without network."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import logging
import os
import pkgutil
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

import adamx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # where the examples are

from examples.benchmarks import pages as results  # noqa: E402


def digest(folder: Path) -> str:
    """A name for what Python files a folder holds."""
    contents = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256(contents).hexdigest()[:16]


project = "adamx"
author = project_copyright = "The adamx authors"
version = release = adamx.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # brings MathJax and its fonts along, into _static
]
# README.md is the list of pages for those who read them where the code is.
exclude_patterns = ["README.md", "_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# A notebook is a page with what its cells print and draw; a cell that raises ends the build.
os.environ["JUPYTER_PATH"] = str(ROOT / "docs/_jupyter")  # this Python, and a short training
logging.getLogger("traitlets").setLevel(logging.WARNING)  # furo's styles turn all logs on
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "out/notebooks" / digest(ROOT / "adamx"))
nb_execution_in_temp = True
nb_execution_timeout = 300  # seconds for a cell
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # what JAX logs about the machine
nb_mime_priority_overrides = [("html", "text/latex", 0)]
nb_ipywidgets_js = {}  # nothing is loaded from elsewhere

html_theme = "furo"
html_title = "adamx"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
# Prompts and what is printed are not copied along.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    name: f"adamx.core.{name}"
    for name in ("Decay", "Hyper", "NonNegative", "Positive", "Real", "Schedule")
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False

# Every reference within adamx must lead somewhere; those to other libraries, whose inventories are
# on the network, and to what is not public are shown as names.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!adamx\.).*\..*"),
    (r"py:(class|data|exc)", r"\w+"),
    (r"py:class", r"adamx\.(trees\.steps\.Params|numerics\.named\.T)"),  # type variables
    (r"py:class", r"adamx\.numerics\.per_parameter\.PerParameter"),  # the mark of an annotation
    (r"py:attr", r"\w+"),
]


def keep_bars(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """|g| is an absolute value in docstrings, and no substitution."""
    verbatim = None  # the indentation of what is in a block of code or mathematics
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if verbatim is not None and (indent <= verbatim if line.strip() else verbatim < 0):
            verbatim = None
        if verbatim is None and line.lstrip().startswith(">>>"):
            verbatim = -1  # ends at the next empty line
        if verbatim is None:
            lines[i] = re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", line)
            if line.rstrip().endswith("::"):
                verbatim = indent


def keep_signatures(app: Sphinx, *about: Any) -> tuple[str | None, str | None] | str | None:
    """Kinds of arrays as they are in the source; defaults that are made anew as ``...``."""
    signature, returned = about[-2:]

    def written(types: str | None) -> str | None:
        kind = r"[~\w.]*Annotated\[([~\w.]+), (\w+) ('[^']*')\]"
        types = types and re.sub(kind, r"\2[\1, \3]", types)
        # How Sphinx writes a name of autodoc_type_aliases within another type.
        return types and re.sub(r"TypeAliasForwardRef\('([\w.]+)'\)", r"\1", types)

    return signature and (written(signature.replace("<factory>", "...")), written(returned))


def copy_notebooks(app: Sphinx) -> None:
    """Put the notebooks among the pages, with their times: Sphinx reads what is newer."""
    shutil.rmtree(ROOT / "docs/notebooks", ignore_errors=True)
    hidden = shutil.ignore_patterns(".*")
    shutil.copytree(ROOT / "examples/notebooks", ROOT / "docs/notebooks", ignore=hidden)


def link_notebooks(app: Sphinx, page: str, source: list[str]) -> None:
    """What is a link to a notebook elsewhere leads to its page on the site, and to its file."""
    source[0] = re.sub(
        r"\((\.\./examples/(notebooks/\w+\.ipynb))\)",
        r"(\2) ({download}`ipynb <\1>`)",
        source[0],
    )


def tell_changes(app: Sphinx, page: str, source: list[str]) -> None:
    """Say under each table of results whether the code has changed since they were made."""
    source[0] = results.with_changes(source[0])


def with_results(app: Sphinx, env: BuildEnvironment, *pages: set[str]) -> list[str]:
    """The pages that are read again even if only the code has changed."""
    places = {page: Path(env.doc2path(page)) for page in env.found_docs}
    marked = (x for x, path in places.items() if path.suffix == ".md" and path.exists())
    return [x for x in marked if "<!-- results: " in places[x].read_text("utf-8")]


class Names(SphinxDirective):
    """``.. names:: page`` lists what a page beside this one describes, as links."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The place of the links, for :func:`list_names`."""
        folder = Path(self.env.docname).parent
        return [nodes.container(names_of=(folder / self.arguments[0]).as_posix())]


def list_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Replace each place of names by links, once it is known where everything is described."""
    places = [x for x in doctree.findall(nodes.container) if "names_of" in x]
    for place in places:
        described = {
            name: found
            for name, found in app.env.get_domain("py").data["objects"].items()
            if found.docname == place["names_of"]
            and found.objtype in ("function", "class", "data", "exception")
            and not found.aliased
        }
        links = nodes.paragraph(classes=["names"])
        for name, found in sorted(described.items(), key=lambda x: short(x[0]).lower()):
            uri = f"{app.builder.get_relative_uri(page, found.docname)}#{found.node_id}"
            link = nodes.reference("", "", internal=True, refuri=uri, reftitle=name)
            link += nodes.literal(text=short(name))
            links += [link, nodes.Text(" ")]
        place.replace_self(links)


def link_pictures(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let a picture lead to its file, where it is seen in its own size."""
    front = "../" * page.count("/") + "_images/"
    for picture in list(doctree.findall(nodes.image)):
        if picture["uri"] in app.builder.images and not isinstance(picture.parent, nodes.reference):
            link = nodes.reference(
                "", "", internal=True, refuri=front + app.builder.images[picture["uri"]]
            )
            picture.replace_self(link)
            link += picture


def short(name: str) -> str:
    """A name as it is written behind ``import adamx``, without the module of most of them."""
    return re.sub(r"^adamx\.(core\.)?", "", name)


def say_what_is_read(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Say what the build is about to do, which takes minutes where notebooks are run."""
    print(f"Reading {len(pages)} pages. A notebook is run if it or adamx has changed.", flush=True)


def say_which_notebook(app: Sphinx, page: str, source: list[str]) -> None:
    """Say which notebook may be running."""
    if page.startswith("notebooks/"):
        print(f"  {page}", flush=True)


def say_that_it_writes(app: Sphinx, env: BuildEnvironment) -> None:
    """Say that all pages are read."""
    print("Writing the pages.", flush=True)


def public() -> dict[str, Any]:
    """What every public module exports, by its full name."""
    modules = [adamx] + [
        importlib.import_module(f"adamx.{found.name}")
        for found in pkgutil.iter_modules(adamx.__path__)
    ]
    modules += [thing for thing in vars(adamx).values() if inspect.ismodule(thing)]
    return {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in modules
        for name in getattr(module, "__all__", ())
    }


def located(name: str) -> Any:
    """The object with this full name."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        if (module := sys.modules.get(".".join(parts[:i]))) is not None:
            return functools.reduce(lambda x, part: getattr(x, part, None), parts[i:], module)
    return sys.modules.get(name)


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn, which fails the build, of public names that no page documents."""
    names = public()  # which imports their modules, also where no page of the API is read again
    described = [located(name) for name in env.get_domain("py").data["objects"]]
    for name, thing in names.items():
        if not any(thing is other for other in described):
            getLogger(__name__).warning("%s is public, but on no page of docs/api", name)
        if (inspect.isroutine(thing) or inspect.isclass(thing)) and not inspect.getdoc(thing):
            getLogger(__name__).warning("%s is public, but has no docstring", name)


def setup(app: Sphinx) -> None:
    """Add these to the build."""
    app.connect("builder-inited", copy_notebooks)
    app.add_directive("names", Names)
    app.connect("doctree-resolved", list_names)
    app.connect("doctree-resolved", link_pictures)
    app.connect("source-read", link_notebooks)
    app.connect("source-read", tell_changes)
    app.connect("env-get-outdated", with_results)
    app.connect("env-before-read-docs", say_what_is_read)
    app.connect("source-read", say_which_notebook)
    app.connect("env-check-consistency", say_that_it_writes)
    app.connect("autodoc-process-signature", keep_signatures)
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("env-check-consistency", check_public_names)
