"""The frame of every HTML page the library writes: one file, no scripts, no requests, light and dark."""

from __future__ import annotations

from html import escape

_STYLE = """
:root{--paper:#fff;--card:#f7f7f5;--ink:#1d2330;--dim:#6d7382;--line:#e3e3de;--pos:#d9622b;--neg:#2f6fb5;--accent:#12805c;
--bad:#c43d4b;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--paper:#14171d;--card:#1c2028;--ink:#e9ebf0;--dim:#9aa1b1;--line:#2e343f;
--pos:#f08a55;--neg:#6aa7ea;--accent:#3fbf90;--bad:#ee6c79}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:960px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.02em;margin:0 0 8px}
h2{font-size:20px;letter-spacing:-.01em;margin:48px 0 6px}
p{margin:0 0 14px;max-width:72ch}
.lead{font-size:18px;color:var(--dim)}
.note,figcaption{color:var(--dim);font-size:14px}
figure{margin:12px 0 0}
figcaption{margin-top:8px;max-width:80ch}
svg{display:block;width:100%;height:auto;font:13px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
svg text{fill:var(--ink)}svg .dim{fill:var(--dim)}svg .strong{font-weight:600}svg .on{fill:#fff;font-weight:600}
svg .grid{stroke:var(--line);stroke-width:1;fill:none}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0 8px}
.numbers div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.numbers b{display:block;font-size:30px;line-height:1.15;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.numbers span{color:var(--dim);font-size:14px}
.numbers .best{border-color:var(--accent)}.numbers .best b{color:var(--accent)}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:32px;align-items:start}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(78px,1fr));gap:14px 12px;margin-top:14px}
.sheet figure{margin:0;text-align:center;font-size:13px;color:var(--dim)}
.sheet img{width:100%;display:block;border-radius:6px}
.sheet img+img{margin-top:4px}
img.pixels{image-rendering:pixelated}
.sheet figcaption{margin-top:4px}
.sheet b{color:var(--ink)}.sheet .wrong b{color:var(--bad)}
.gallery{display:grid;grid-template-columns:96px repeat(var(--images),minmax(52px,140px));gap:10px 12px;
align-items:center;margin-top:12px;font-size:13px;line-height:1.35;color:var(--dim)}
.gallery img{width:100%;display:block;border-radius:4px;border:1px solid var(--line)}.gallery b{color:var(--ink)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:15px;margin-top:10px}
th{font-weight:600;text-align:left;color:var(--dim);font-size:13px;border-bottom:1px solid var(--line);
padding:6px 14px 6px 0}
td{border-bottom:1px solid var(--line);padding:8px 14px 8px 0}
td.n,th.n{text-align:right;padding-right:18px}
tr.best td{font-weight:600}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px;overflow-x:auto;margin:8px 0 0;
font:13.5px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.key{display:inline-block;width:22px;height:3px;vertical-align:middle;margin:0 6px 2px 0;border-radius:2px}
.key+span{margin-right:14px}
footer{margin-top:56px;padding-top:14px;border-top:1px solid var(--line);color:var(--dim);font-size:13px}
"""


def page(title: str, body: str, footer: str = "") -> str:
    """A complete HTML document around `body` (HTML)."""
    from neural_graphs import __version__

    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main>\n{body}\n"
        f"<footer>neural-graphs {__version__}{' · ' + escape(footer) if footer else ''}</footer>\n</main></body></html>\n"
    )


def table(head: list[str], rows: list[list[str]], numeric: set[int], best: int | None = None) -> str:
    """An HTML table of plain text cells; columns in `numeric` are right-aligned, row `best` is bold."""

    def row(cells: list[str], tag: str, kind: str = "") -> str:
        inside = "".join(
            f"<{tag}{' class=n' if column in numeric else ''}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )
        return f"<tr{kind}>{inside}</tr>"

    body = "".join(row(cells, "td", " class=best" if i == best else "") for i, cells in enumerate(rows))
    return f'<div class="scroll"><table><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'
