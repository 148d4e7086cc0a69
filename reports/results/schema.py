"""The record's schema as files: ``docs/record.schema.json`` and the field tables of ``docs/record.md``.

Run ``python -m reports.results.schema`` after a change of ``reports/results/record.py``; a test fails if the files are
out of date.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reports import text
from reports.results.metrics import METRICS, Metrics
from reports.results.migrate import SCHEMA
from reports.results.record import Ceilings, Cell, Limit, Record, Usage
from reports.results.repetition import Repetition
from specmoe.files import write_text

DOCS = Path(__file__).resolve().parents[2] / "docs"
MARK = "<!-- fields: written by python -m reports.results.schema -->"
_HEADERS = ("field", "type", "default", "meaning")
_MODELS: tuple[type[BaseModel], ...] = (Record, Cell, Limit, Metrics, Repetition, Usage, Ceilings)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one line of a result file, the checksum included."""
    schema = Record.model_json_schema(mode="serialization")
    schema["properties"]["checksum"] = {
        "type": "string",
        "pattern": "^[0-9a-f]{16}$",
        "description": "xxh3-64 of the line without this member, byte for byte; always last",
    }
    schema["required"] = [
        name for name, field in Record.model_fields.items() if field.is_required() or name == "schema_version"
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **schema}


def schema_text() -> str:
    """The content of ``docs/record.schema.json``."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def field_tables() -> str:
    """The tables of ``docs/record.md``, one per object."""
    return "\n\n".join(_table(model) for model in _MODELS) + "\n"


def _table(model: type[BaseModel]) -> str:
    summary = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    rows = _metric_rows() if model is Metrics else [_row(name, field) for name, field in model.model_fields.items()]
    headers = ("field", "type", "unit", "column in tables", "meaning") if model is Metrics else _HEADERS
    return f"### {model.__name__}\n\n{summary}\n\n{text.markdown(headers, rows)}"


def _row(name: str, field: FieldInfo) -> tuple[str, ...]:
    default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
    return f"`{name}`", _type_name(field.annotation), default.replace("`None`", ""), _meaning(field)


def _metric_rows() -> list[tuple[str, ...]]:
    fields = Metrics.model_fields
    return [
        (f"`{name}`", _type_name(fields[name].annotation), metric.unit, metric.header or "", _meaning(fields[name]))
        for name, metric in METRICS.items()
    ]


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join("None" if part is type(None) else _type_name(part) for part in get_args(annotation))
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return name.replace("typing.", "").replace("reports.results.record.", "")


def document(page: str) -> str:
    """``docs/record.md`` with its tables replaced by current ones."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"docs/record.md lacks the line {MARK!r}: put it where the tables belong")
    return f"{head}{MARK}\n\n{field_tables()}"


def main() -> None:
    write_text(DOCS / "record.schema.json", schema_text())
    page = DOCS / "record.md"
    write_text(page, document(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
