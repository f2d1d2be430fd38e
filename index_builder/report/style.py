"""The style sheet of a report: light and dark, narrow and wide."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--page:#fbfcfd;--ink:#1b2330;--soft:#5b6675;--line:#dde3ea;--panel:#f1f4f8;
--model:#1f66c1;--other:#c4620a;--outcome:#b3261e;--seen:#3b4654}
@media(prefers-color-scheme:dark){:root{--page:#12161c;--ink:#e2e8f0;--soft:#9aa7b6;--line:#2b3440;--panel:#1a2029;
--model:#6aa9f7;--other:#efa04e;--outcome:#ff8a80;--seen:#c3cdd9}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.25;margin:.5rem 0 1rem}
h2{font-size:1.25rem;margin:3rem 0 .5rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:0 0 .25rem}
p,dl,figcaption{max-width:46rem}
p{margin:.5rem 0 1rem}
.lead{font-size:1.08rem}
.warn{border-left:4px solid var(--other);padding-left:.75rem}
.soft,figcaption{color:var(--soft);font-size:.9rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:1rem 0;font-size:.95rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}
th{font-weight:600;color:var(--soft);vertical-align:bottom}
th:first-child,td:first-child{text-align:left;padding-left:0}
td small{display:block;color:var(--soft);font-size:.78rem}
tr.model td{background:var(--panel)}tr.model td:first-child{padding-left:.4rem;font-weight:600}
.best{font-weight:700}
details{margin:.4rem 0}summary{cursor:pointer}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.5rem 2rem;align-items:start}
.many{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15.5rem),1fr));gap:1.5rem 1.25rem}
figure{margin:0;min-width:0}figcaption{margin-top:.25rem}
svg{display:block;width:100%;height:auto;max-width:34rem;overflow:visible}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .tick{fill:var(--soft);font-size:11px}
svg polyline{fill:none}
.grid{stroke:var(--line)}.aim{stroke:var(--soft);stroke-dasharray:4 3}.now{stroke:var(--soft)}
.bar{stroke-width:2}.curve{stroke-width:2}
.bar.model,.curve.model{stroke:var(--model)}.bar.other,.curve.other{stroke:var(--other)}.curve.seen{stroke:var(--seen)}
polyline.group{stroke:var(--soft);opacity:.55}circle.group{fill:var(--soft)}
circle.model{fill:var(--model)}circle.other{fill:var(--other)}circle.seen{fill:var(--seen)}
circle.outcome{fill:var(--outcome)}.heat{fill:var(--model)}.fan{fill:var(--model);opacity:.22}
.key{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin-right:.3em}
.key.model{background:var(--model)}.key.other{background:var(--other)}.key.seen{background:var(--seen)}
.key.outcome{background:var(--outcome)}.key.fan{background:var(--model);opacity:.3}
.title{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;line-clamp:2;overflow:hidden;
overflow-wrap:anywhere;unicode-bidi:isolate;text-align:start;font-weight:600;line-height:1.35;min-height:1.35em}
.many .title{height:2.7em}
td .title{font-weight:400;-webkit-line-clamp:1;line-clamp:1;min-width:13rem;max-width:34rem;white-space:normal}
td bdi{display:inline-block;max-width:14rem;overflow:hidden;text-overflow:ellipsis}
@media(max-width:40rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}body{font-size:15px}}
@media print{main{max-width:none}details{break-inside:avoid}}
"""
