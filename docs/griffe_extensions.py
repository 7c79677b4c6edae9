"""What the reference shows of the package: fields of Structs as parameters, and no docstrings of modules.

griffe reads the source without running it, so it does not see the `__init__` that msgspec makes.
"""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Class, Extension, Function, Module, Parameter, ParameterKind, Parameters


class StructFields(Extension):
    """A griffe extension; mkdocs.yml names this file."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Add an `__init__` to a Struct; griffe calls this for each class."""
        if any(str(base) == "Struct" or str(base).endswith(".Struct") for base in cls.bases):
            kind = ParameterKind.keyword_only if "kw_only" in cls.keywords else ParameterKind.positional_or_keyword
            fields = [_parameter(field, kind) for field in cls.attributes.values() if _is_field(field)]
            cls.set_member("__init__", Function("__init__", parameters=Parameters(Parameter("self"), *fields)))


class NoModuleDocstrings(Extension):
    """Removes the docstrings of modules, which are for contributors.

    The option `show_docstring_description: false` would hide those of the members, too.
    """

    def on_module(self, *, mod: Module, **_: Any) -> None:
        """Remove the docstring; griffe calls this for each module."""
        mod.docstring = None


def _is_field(attribute: Attribute) -> bool:
    return attribute.annotation is not None and "property" not in attribute.labels


def _parameter(field: Attribute, kind: ParameterKind) -> Parameter:
    return Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value)
