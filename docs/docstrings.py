"""Docstrings as MkDocs shows them: an extension of Griffe, the parser that mkdocstrings uses."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`(?:fastdistill\.)?([\w.]+)`")
DIRECTIVE = re.compile(r"^\.\. code-block:: \w+\n", re.MULTILINE)
QUOTE = re.compile(r"^(\s+\w+: )>", re.MULTILINE)


class MarkdownDocstrings(griffe.Extension):
    """Makes Markdown of reStructuredText: links of references such as ``:func:`name` ``, blocks of
    code of directives. A leading > is none of a quotation.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = DIRECTIVE.sub("", obj.docstring.value)
            text = ROLE.sub(r"[`\1`][fastdistill.\1]", text)
            obj.docstring.value = QUOTE.sub(r"\1\\>", text)
