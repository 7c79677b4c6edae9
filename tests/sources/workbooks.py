"""Writes small workbooks, so that tests need no program that writes them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape

Cell = str | float | bool | None
Sheets = Mapping[str, Sequence[Sequence[Cell]]]

_OOXML = "http://schemas.openxmlformats.org"
_ODF = "urn:oasis:names:tc:opendocument:xmlns"


def write_xlsx(path: Path | IO[bytes], sheets: Sheets, *, hidden: Sequence[str] = ()) -> str:
    """Write a workbook with these sheets, and return its path."""
    relations = f"{_OOXML}/officeDocument/2006/relationships"
    types, links, entries = "", "", ""
    main = f'xmlns="{_OOXML}/spreadsheetml/2006/main"'
    with zipfile.ZipFile(path, "w") as file:
        for n, (name, rows) in enumerate(sheets.items(), 1):
            state = ' state="hidden"' if name in hidden else ""
            entries += f'<sheet name="{escape(name)}" sheetId="{n}" r:id="rId{n}"{state}/>'
            links += f'<Relationship Id="rId{n}" Type="{relations}/worksheet" Target="worksheets/sheet{n}.xml"/>'
            content_type = "application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"
            types += f'<Override PartName="/xl/worksheets/sheet{n}.xml" ContentType="{content_type}"/>'
            data = "".join(f'<row r="{y}">{_xlsx_cells(y, row)}</row>' for y, row in enumerate(rows, 1))
            file.writestr(
                f"xl/worksheets/sheet{n}.xml", f"<worksheet {main}><sheetData>{data}</sheetData></worksheet>"
            )
        file.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{_OOXML}/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Override PartName="/xl/workbook.xml" ContentType="'
            'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
            f"{types}</Types>",
        )
        package = f'xmlns="{_OOXML}/package/2006/relationships"'
        root = f'<Relationship Id="rId1" Type="{relations}/officeDocument" Target="xl/workbook.xml"/>'
        file.writestr("_rels/.rels", f"<Relationships {package}>{root}</Relationships>")
        file.writestr("xl/_rels/workbook.xml.rels", f"<Relationships {package}>{links}</Relationships>")
        file.writestr(
            "xl/workbook.xml", f'<workbook {main} xmlns:r="{relations}"><sheets>{entries}</sheets></workbook>'
        )
    return str(path)


def _xlsx_cells(y: int, row: Sequence[Cell]) -> str:
    cells = ""
    for x, value in enumerate(row):
        where = f'r="{chr(65 + x)}{y}"'
        if isinstance(value, bool):
            cells += f'<c {where} t="b"><v>{int(value)}</v></c>'
        elif isinstance(value, str):
            cells += f'<c {where} t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'
        elif value is not None:
            cells += f"<c {where}><v>{value}</v></c>"
    return cells


def write_ods(path: Path, sheets: Sheets) -> str:
    """Write an OpenDocument workbook with these sheets, and return its path."""
    tables = ""
    for name, rows in sheets.items():
        data = "".join(f"<table:table-row>{''.join(map(_ods_cell, row))}</table:table-row>" for row in rows)
        tables += f'<table:table table:name="{escape(name)}">{data}</table:table>'
    names = " ".join(f'xmlns:{each}="{_ODF}:{each}:1.0"' for each in ("office", "table", "text"))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        entry = '<manifest:file-entry manifest:full-path="/" manifest:media-type="application/vnd.oasis.opendocument'
        file.writestr(
            "META-INF/manifest.xml",
            f'<manifest:manifest xmlns:manifest="{_ODF}:manifest:1.0">{entry}.spreadsheet"/></manifest:manifest>',
        )
        file.writestr(
            "content.xml",
            f"<office:document-content {names}><office:body><office:spreadsheet>{tables}"
            "</office:spreadsheet></office:body></office:document-content>",
        )
    return str(path)


def _ods_cell(value: Cell) -> str:
    if value is None:
        return "<table:table-cell/>"
    if isinstance(value, bool):
        return f'<table:table-cell office:value-type="boolean" office:boolean-value="{str(value).lower()}"/>'
    if isinstance(value, str):
        return f'<table:table-cell office:value-type="string"><text:p>{escape(value)}</text:p></table:table-cell>'
    return f'<table:table-cell office:value-type="float" office:value="{value}"/>'
