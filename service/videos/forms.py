"""Validates request bodies that are one JSON object.

The first mistake is reported with the field, its value, and the allowed values.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from service.problems import Invalid, did_you_mean

M = TypeVar("M", bound=BaseModel)

MAX_FIELDS: Final = 256
"""Maximum number of fields in one object, including unused fields."""
_NUMBERS: Final = frozenset(("float_type", "int_type", "float_parsing", "int_parsing"))


def parse_form(form: type[M], value: object, field: str = "body") -> M:
    """Validate an object and return it as an instance of ``form``. Raises Invalid for the first mistake.

    ``field`` is the name of the whole object in the error.
    """
    if not isinstance(value, dict):
        raise Invalid(field, value, "a JSON object")
    if len(value) > MAX_FIELDS:
        raise Invalid(field, f"{len(value)} fields", f"at most {MAX_FIELDS} fields")
    extra = form.model_config.get("extra")
    _check_text(field, value, values=extra == "allow")
    if extra == "forbid":
        known = [declared.alias or name for name, declared in form.model_fields.items()]
        for name in value:
            if name not in known:
                allowed = f"the fields {', '.join(known)}{did_you_mean(name, known)}"
                raise Invalid(name, value[name], allowed)
    try:
        return form.model_validate(value)
    except ValidationError as errors:
        first = errors.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or field
        if first["type"] == "missing":
            raise Invalid(name, "missing", "a value: this field is required") from None
        allowed = first["msg"].removeprefix("Input should be ")
        if first["type"] in _NUMBERS and isinstance(first["input"], str):
            allowed += ", as a JSON number, not as text"
        raise Invalid(name, first["input"], allowed) from None


def _check_text(field: str, value: dict[str, Any], *, values: bool) -> None:
    """Raise Invalid if a text has a lone surrogate. JSON can contain lone surrogates, but they are not Unicode characters.

    If ``values`` is True, field names and values are checked. Otherwise only field names are checked, because the values are rows, which
    are checked one by one elsewhere.
    """
    try:
        if values:
            msgspec.json.encode(value)
        else:
            "".join(value).encode()
    except UnicodeEncodeError:
        for name, part in value.items():
            try:
                msgspec.json.encode((name, part))
            except UnicodeEncodeError:
                raise Invalid(name, part, "text of Unicode characters, without a lone surrogate") from None
        raise Invalid(field, "a lone surrogate", "text of Unicode characters") from None
    except RecursionError:
        raise Invalid(field, "deeply nested values", "values that are nested less deeply") from None
    except OverflowError:
        # A number of more than 64 bits is refused later, when its field is validated.
        return
