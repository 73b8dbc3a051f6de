"""The report's frame: its style for light and dark, and a policy that forbids scripts and requests."""

from __future__ import annotations

from markupsafe import Markup

from raters.report_markup import COLOURS

STYLE = Markup("""\
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--mute:#57606a;--line:#d5dae0;--soft:#f3f5f7;--band:#cdebd5;
--ceiling:#1a7f37;--floor:#6e7781;--people:#1b1f24;--bad:#b42318;
--c0:#0b66c3;--c1:#b4480f;--c2:#7a3fb8;--c3:#0f766e;--c4:#a8256b;--c5:#7a5c00;
--s1:#eaf2fb;--s2:#d3e4f7;--s3:#b8d5f2;--s4:#9cc5ed;--s5:#80b5e8}
@media (prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e6eaef;--mute:#9aa5b1;--line:#343c46;--soft:#1b2128;
--band:#1d3d29;--ceiling:#56d37a;--floor:#9aa5b1;--people:#e6eaef;--bad:#ff8a80;
--c0:#62b0ff;--c1:#ff9e64;--c2:#c79bff;--c3:#4fd1c5;--c4:#ff8ac0;--c5:#e3c04d;
--s1:#17283b;--s2:#1a3452;--s3:#1d4069;--s4:#204d81;--s5:#235a99}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:68rem;background:var(--bg);color:var(--fg);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}p,dl,ol{max-width:46rem}
dl.facts{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.15rem 1rem}
dt{color:var(--mute)}dd small{margin-left:.5em;color:var(--mute)}dd{margin:0}
dl.read dt{color:inherit;font-weight:600;margin-top:.5rem}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
td,thead th{white-space:nowrap}thead th{white-space:normal;min-width:7rem;max-width:16rem;border-bottom-width:2px}
th[scope=row],thead th:first-child{text-align:left;font-weight:500;white-space:normal;max-width:12rem;min-width:5.5rem;
position:sticky;left:0;background:var(--bg);overflow-wrap:break-word}
table.pairs th[scope=row]{max-width:18rem;min-width:9rem;overflow-wrap:anywhere}
td small,th small{display:block;color:var(--mute);font-weight:400}
.floor{background:var(--soft)}.human{border-left:2px solid var(--ceiling)}
table.flat td{text-align:left;white-space:normal;max-width:34rem;min-width:10rem}
table.flat th[scope=row]{min-width:9rem;overflow-wrap:anywhere}
@media (max-width:30rem){dl.facts{display:block}dl.facts dd{margin-bottom:.4rem}th,td{padding:.3rem .45rem}}
.notes{color:var(--mute);font-size:.88rem}.bad{color:var(--bad)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1.5rem}
figure{margin:.6rem 0;max-width:32rem;min-width:0}figcaption{font-size:.9rem;color:var(--mute)}
figcaption b{color:var(--fg)}
svg{display:block;width:100%;max-width:100%;height:auto}svg text{font-size:11.5px;fill:var(--fg)}
svg text.m{fill:var(--mute);font-size:10.5px}
.grid{stroke:var(--line);stroke-width:1}.zero{stroke:var(--mute);stroke-width:1}
.band{fill:var(--band)}.bare{fill:var(--bg)}.null{fill:var(--line)}.ceiling{stroke:var(--ceiling);stroke-width:1.5}
.line{fill:none;stroke:var(--c);stroke-width:2}.dash{stroke-dasharray:5 4}.dot{fill:var(--c);stroke:var(--c)}
.hollow{fill:var(--bg);stroke:var(--c);stroke-width:1.5}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;margin:.3rem 0;list-style:none;font-size:.9rem}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border:1.5px solid var(--c);background:var(--c)}
.key i.hollow{background:none}
.plots.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
table.confusion{font-size:.84rem}
table.confusion td,table.confusion thead th{min-width:2.2rem;max-width:9rem;padding:.3rem .4rem}
table.confusion th,table.confusion thead th:first-child{overflow-wrap:break-word;min-width:0}
table.confusion td.same{box-shadow:inset 0 0 0 1.5px var(--mute)}
.people{--c:var(--people)}.chance{--c:var(--floor)}.f{--c:var(--floor)}
""" + "".join(f".c{place}{{--c:var(--c{place})}}" for place in range(COLOURS)) +
    "".join(f".s{shade}{{background:var(--s{shade})}}" for shade in range(1, 6)))  # fmt: skip

PAGE = Markup("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
""")
