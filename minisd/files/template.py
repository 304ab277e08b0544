"""HTML pages that hold all their data, from templates."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def fill_template(template: Path, title: str, data: Mapping[str, Any]) -> str:
    """The template with its parts: {{title}}, {{data}}, and files beside it by their names.

    A prompt may contain tags. None of them can end the element that the prompt stands in: the
    title is escaped, and the data contain no `<`.
    """
    parts = {
        "title": html.escape(title),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }

    def part(match: re.Match[str]) -> str:
        return parts[match[1]] if match[1] in parts else read_part(template.parent / match[1])

    def read_part(path: Path) -> str:
        text = path.read_text("utf-8")
        return re.sub(r"\{\{([\w.]+)\}\}", part, text) if path.suffix == ".html" else text

    return read_part(template)
