"""A msgspec Struct's class comes in; it goes out with the signature that msgspec gives it: its fields.

Newcomers: griffe reads the source and runs nothing, so it sees no `__init__` that msgspec makes.
"""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Class, Extension, Function, Parameter, ParameterKind, Parameters


class StructFields(Extension):
    """mkdocstrings loads this by the path that mkdocs.yml names."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Give a Struct its `__init__`; griffe calls this for each class it has read."""
        if any(str(base) == "Struct" or str(base).endswith(".Struct") for base in cls.bases):
            kind = ParameterKind.keyword_only if "kw_only" in cls.keywords else ParameterKind.positional_or_keyword
            fields = [_parameter(field, kind) for field in cls.attributes.values() if _is_field(field)]
            cls.set_member("__init__", Function("__init__", parameters=Parameters(Parameter("self"), *fields)))


def _is_field(attribute: Attribute) -> bool:
    return attribute.annotation is not None and "property" not in attribute.labels


def _parameter(field: Attribute, kind: ParameterKind) -> Parameter:
    return Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value)
