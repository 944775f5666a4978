"""Which modules of this repository a result depends on, and a name for their code.

The modules are found in the import statements of the benchmark and of the modules that it imports.
Of a package such as ``adamx``, only the modules that define the imported names count: with
``adamx.adamw``, the module of this recipe, its stages and the core. A file beside a module counts
if the module contains its name. What a benchmark gets in another way, such as recipes by their
names, it states as ``DEPENDS = ("adamx.recipes",)``.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"\w+\.\w+")

# What starts benchmarks and writes results down, but has no influence on them.
TELLING = {
    "examples.benchmarks",
    "examples.benchmarks.made",
    "examples.benchmarks.pages",
    "examples.benchmarks.tables",
    "examples.paper.lab",
}


class Code:
    """The code of a repository."""

    def __init__(self, root: Path = ROOT, packages: Sequence[str] = ("adamx", "examples")):
        self.root, self.packages = root, packages

    def digest(self, module: str) -> str:
        """A name for the code on which a module depends, without comments and docstrings."""
        found = hashlib.sha256()
        for name in self.of(module):
            found.update(f"# {name}\n{ast.unparse(self.tree(name))}\n".encode())
            for path in self.beside(name):
                found.update(path.read_bytes())
        return found.hexdigest()[:16]

    def of(self, module: str) -> list[str]:
        """The modules on which a module depends, and itself."""
        found: set[str] = set()
        left = {module, *self.stated(module)}
        while left:
            found |= left
            left = {x for name in left for x in self.imported(name)} - found - TELLING
        return sorted(found)

    def stated(self, module: str) -> tuple[str, ...]:
        """What a module states in ``DEPENDS``."""
        for node in self.tree(module).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEPENDS":
                return ast.literal_eval(node.value)
        return ()

    def file(self, module: str) -> Path | None:
        path = self.root.joinpath(*module.split("."))
        files = (path.with_name(f"{path.name}.py"), path / "__init__.py")
        ours = module.partition(".")[0] in self.packages
        return next((x for x in files if ours and x.is_file()), None)

    def beside(self, module: str) -> list[Path]:
        """The files beside a module, such as ``frame.c``, whose names are strings in it."""
        file = self.file(module)
        texts = {x.value for x in ast.walk(self.tree(module)) if isinstance(x, ast.Constant)}
        names = sorted(x for x in texts if isinstance(x, str) and FILE.fullmatch(x))
        return [file.parent / x for x in names if file and (file.parent / x).is_file()]

    def is_package(self, module: str) -> bool:
        file = self.file(module)
        return file is not None and file.name == "__init__.py"

    @functools.cache  # noqa: B019 (there is one for every repository)
    def tree(self, module: str) -> ast.Module:
        """The module, without strings that are statements."""
        file = self.file(module)
        if file is None:
            raise ValueError(f"there is no module {module} in {self.root}")
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                node.body = [x for x in node.body if not is_text(x)]
        return tree

    @functools.cache  # noqa: B019
    def imported(self, module: str) -> frozenset[str]:
        """The modules that define what a module imports."""
        found: set[str] = set()
        packages: dict[str, str] = {}  # by the names that they have in this module
        for node in ast.walk(self.tree(module)):
            for origin, name, here in imports(node):
                whole = f"{origin}.{name}" if origin else name
                if self.is_package(whole) and name != "*":
                    packages[here] = whole
                elif self.file(whole):
                    found.add(whole)
                elif self.file(origin):
                    found.add(origin if name == "*" else self.definer(origin, name) or origin)
        for node in ast.walk(self.tree(module)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                package = packages.get(node.value.id)
                if package is not None:
                    found.add(self.definer(package, node.attr) or package)
        return frozenset(found)

    def definer(self, module: str, name: str) -> str | None:
        """The module that defines a name of this one."""
        if self.file(f"{module}.{name}"):
            return f"{module}.{name}"
        for node in self.tree(module).body:
            if name in defined(node):
                return module
            for origin, imported, here in imports(node):
                if here == name and self.file(origin):
                    return self.definer(origin, imported)
                if here == "*" and self.file(origin) and (found := self.definer(origin, name)):
                    return found
        return None


def imports(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """The module, the name in it and the name here of everything that a statement imports."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            yield "", name, alias.asname or name
            if name != alias.name:
                yield "", alias.name, alias.name
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            yield node.module, alias.name, alias.asname or alias.name


def defined(node: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else ()
    if isinstance(node, ast.AnnAssign):
        targets = (node.target,)
    return {x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)}


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
