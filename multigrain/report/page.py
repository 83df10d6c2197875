"""One self-contained HTML page: text, pictures and the script of its filter inside, nothing fetched.

Its policy lets a browser apply the page's own style and run its own script, which it knows by their digests, and
nothing else, whatever the texts hold.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template

from ..evaluation import tables
from .content import Chart, Example, Hit, Hub, Hubs, Report
from .images import tag


def render(report: Report) -> str:
    """The page as text."""
    made = [(heading, section(report)) for heading, section in _SECTIONS.items()]
    shown = [(heading, body) for heading, body in made if body]
    sections = "\n\n".join(
        f'<section id="{_anchor(heading)}">\n<h2>{heading}</h2>\n{body}\n</section>' for heading, body in shown
    )
    links = " ".join(f'<a href="#{_anchor(heading)}">{heading}</a>' for heading, _ in shown)
    style, script = (f"\n{_file(name)}\n" for name in ("style.css", "page.js"))
    return Template(_file("template.html")).substitute(
        policy=_POLICY.format(style=_digest(style), script=_digest(script)),
        style=style,
        title=escape(report.title),
        verdict=escape(report.verdict),
        lead="\n".join(f"<p>{escape(text)}</p>" for text in report.lead),
        links=f"<nav>{links}</nav>" if len(shown) > 2 else "",
        sections=sections,
        script=_script(report, script) if report.queries else "",
    )


def _retrieval(report: Report) -> str:
    return _table(report.rows) + _pale(report.table_note) if report.rows else ""


def _ranks(report: Report) -> str:
    return f'<div class="charts">{"".join(map(_chart, report.charts))}</div>' if report.charts else ""


def _match(report: Report) -> str:
    kinds = ["grain"] * (len(report.parts) - 1) + ["all"]
    rows = [
        f'<tr class="{kind}"><td>{escape(name)}</td>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for kind, (name, cells) in zip(kinds, report.parts.items(), strict=False)
    ]
    head = "<thead><tr><th>grain</th><th>its score</th><th>× its weight</th><th>= its part</th></tr></thead>"
    table = (
        f'<div class="scroll" tabindex="0"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>' if rows else ""
    )
    return "\n".join([*(_figure(*picture) for picture in report.similarity), *([table] if table else [])])


def _examples(report: Report) -> str:
    groups = [
        f"<h3>{escape(name)}</h3>\n" + "\n".join(_example(example, i == 0) for i, example in enumerate(examples))
        for name, examples in report.examples.items()
        if examples
    ]
    return "\n".join([_pale(report.examples_note), *groups]) if groups else ""


def _hubness(report: Report) -> str:
    return "" if report.hubs is None else _hubs(report.hubs)


def _queries(report: Report) -> str:
    return _file("queries.html") if report.queries else ""


def _training(report: Report) -> str:
    return _figure(*report.curves) if report.curves is not None else ""


def _settings(report: Report) -> str:
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.settings.items())
    folded = f'<details class="settings"><summary>All settings</summary><pre>{escape(report.config)}</pre></details>'
    return (f"<dl>{terms}</dl>" if terms else "") + (folded if report.config else "")


_SECTIONS: Mapping[str, Callable[[Report], str]] = {
    "Retrieval": _retrieval,
    "Ranks": _ranks,
    "What made a match": _match,
    "Retrieved": _examples,
    "Hubs": _hubness,
    "All queries": _queries,
    "Training": _training,
    "Settings": _settings,
}


_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    "style-src 'sha256-{style}'; script-src 'sha256-{script}'"
)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return (resources.files("multigrain") / "report" / name).read_text(encoding="utf-8").strip()


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _pale(text: str) -> str:
    return f'<p class="pale">{escape(text)}</p>' if text else ""


def _script(report: Report, script: str) -> str:
    """The queries as data, and what filters them."""
    queries = [[q.text, q.rank, q.own, [[i, round(score, 4)] for i, score in q.found]] for q in report.queries]
    data = json.dumps({"queries": queries, "videos": list(report.videos)}, ensure_ascii=False, separators=(",", ":"))
    # Whatever a text holds, it cannot end the element.
    inert = data.replace("<", "\\u003c")
    return f'<script type="application/json" id="data">{inert}</script>\n<script>{script}</script>'


def _table(rows: Sequence[tables.Row]) -> str:
    half = len(tables.COLUMNS)
    spans = "".join(
        f'<th colspan="{half}"{_second(i * half)}>{name}</th>' for i, (_, name) in enumerate(tables.DIRECTIONS)
    )
    heads = "".join(f"<th{_second(i)}>{tables.COLUMNS[i % half]}</th>" for i in range(2 * half))
    lines = [
        f'<tr class="{row.kind}"><td>{escape(row.name)}</td>'
        + "".join(f"<td{_second(i)}>{escape(cell)}</td>" for i, cell in enumerate(row.cells))
        + "</tr>"
        for row in rows
    ]
    head = f"<thead><tr><th></th>{spans}</tr><tr><th>grain</th>{heads}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _second(column: int) -> str:
    return ' class="second"' if column == len(tables.COLUMNS) else ""


def _chart(chart: Chart) -> str:
    most = max([count for _, count in chart.bars], default=1) or 1
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td><svg width="{100 * count / most:.1f}%" height="16"></svg></td><td>{count:,}</td></tr>'
        for name, count in chart.bars
    )
    axis = f'<thead><tr><th colspan="3">{escape(chart.axis)}</th></tr></thead>' if chart.axis else ""
    return f'<figure class="chart"><h3>{escape(chart.title)}</h3><table>{axis}<tbody>{rows}</tbody></table></figure>'


def _example(example: Example, opened: bool) -> str:
    hits = "\n".join(map(_hit, example.hits))
    maps = "\n".join(_figure(*picture) for picture in example.pictures)
    why = f'<details class="why"><summary>Words against frames</summary>\n{maps}</details>' if maps else ""
    return (
        f'<details class="example"{" open" * opened}><summary>“{escape(example.sentence)}” '
        f'<span class="rank">own video at rank {example.rank:,}</span></summary>\n<ol>{hits}</ol>{why}</details>'
    )


def _hit(hit: Hit) -> str:
    kind, what = ("own", "its own video") if hit.own else ("other", hit.name)
    return (
        f'<li class="frames">{_strip(hit.image, f"frames of the video at rank {hit.rank}")}'
        f'<div class="caption">{hit.rank:,}. <span class="{kind}">{escape(what)}</span> '
        f'<span class="pale">{hit.score:.3f}</span></div></li>'
    )


def _hubs(hubs: Hubs) -> str:
    greatest = "".join(map(_hub, hubs.first))
    return f"{_pale(hubs.note)}\n{_chart(hubs.chart)}\n<h3>The greatest</h3>\n<ol>{greatest}</ol>"


def _hub(hub: Hub) -> str:
    caption = f'<div class="caption">{hub.count:,} queries: {escape(hub.name)}</div>'
    return f'<li class="frames">{_strip(hub.image, "its frames")}{caption}</li>'


def _strip(image: bytes | None, text: str) -> str:
    return "" if image is None else f'<div class="scroll" tabindex="0">{tag(image, "strip", text)}</div>'


def _figure(image: bytes, caption: str) -> str:
    picture = f'<div class="scroll" tabindex="0">{tag(image, "", caption, wide=True)}</div>'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
