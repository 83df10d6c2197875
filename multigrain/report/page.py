"""One self-contained HTML page: text, pictures and the script of its filter inside, nothing fetched.

Its policy lets a browser apply the page's own style and run its own script, which it knows by their digests, and
nothing else, whatever the texts hold.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
except ImportError as error:
    raise ImportError('pages need Jinja2: pip install "multigrain[cli]"') from error

from ..evaluation import tables
from .content import Page
from .images import data_url, shown_width

_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    "style-src 'sha256-{style}'; script-src 'sha256-{script}'"
)


def render(page: Page) -> str:
    """Return the page as HTML."""
    loader = FileSystemLoader(_HERE)
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    style, script = (f"\n{(_HERE / name).read_text(encoding='utf-8').strip()}\n" for name in ("style.css", "page.js"))
    queries = [[q.text, q.rank, q.own, [[i, round(score, 4)] for i, score in q.found]] for q in page.queries]
    text = pages.get_template("page.html").render(
        page=page,
        data_url=data_url,
        shown_width=shown_width,
        columns=tables.COLUMNS,
        directions=[name for _, name in tables.DIRECTION_NAMES],
        data={"queries": queries, "videos": list(page.videos)},
        policy=Markup(_POLICY.format(style=_digest(style), script=_digest(script))),
        style=Markup(style),
        script=Markup(script),
    )
    return text.strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
