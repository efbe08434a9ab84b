"""How the page looks: one column on a phone, three drawings in a row on a desk, light or dark."""

CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1d1f22;--muted:#5f646b;--rule:#d3d6da;--soft:#f5f6f7;
--atypical:#c9500c;--normal:#1f6fb2;--accent:#00805f;--warn:#8a5a00;--warn-soft:#fff6e0}
@media (prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e6e8ea;--muted:#a0a6ae;--rule:#3b4046;--soft:#1f2226;
--atypical:#ff9455;--normal:#74b8ee;--accent:#3fcfa4;--warn:#f2c666;--warn-soft:#2e2614}}
@media print{:root{color-scheme:light;--paper:#fff}section{break-inside:avoid}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 16px 64px}
h1{font-size:15px;font-weight:600;margin:0;color:var(--muted);overflow-wrap:anywhere}
h2{font-size:19px;line-height:1.3;margin:0 0 6px}
p,li{max-width:72ch;margin:0 0 8px;overflow-wrap:break-word}
section{margin-top:44px;padding-top:18px;border-top:1px solid var(--rule)}
.lead{font-size:24px;line-height:1.3;font-weight:600;margin:4px 0 16px;max-width:34em}
.headline{display:flex;flex-wrap:wrap;gap:12px 44px;margin:0 0 8px}
.headline div{min-width:0}
.headline b{display:block;font-size:38px;line-height:1.1;font-weight:650;font-variant-numeric:tabular-nums}
.headline b small{font-size:17px;font-weight:400;color:var(--muted);white-space:nowrap}
.headline span,figcaption,.quiet{color:var(--muted);font-size:13px;line-height:1.45}
ul{margin:0;padding-left:1.15em}
.warning{background:var(--warn-soft);border-left:3px solid var(--warn);padding:10px 14px;margin:16px 0;max-width:76ch}
.tag{color:var(--warn);font-weight:600;white-space:nowrap;font-size:12px}
.figures{display:flex;flex-wrap:wrap;gap:26px 32px;margin-top:14px}
.figures.small{gap:18px 16px}
figure{margin:0;width:341px;max-width:100%;overflow-x:auto}
.small figure{width:164px}
figure.wide{width:auto}
figure svg{display:block;height:auto;max-width:100%}
figure.wide svg{max-width:none}
figcaption{margin-top:4px}
svg text{font-family:inherit}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.scroll{overflow-x:auto;margin-top:14px;max-width:100%}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px 4px 0;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--rule);
white-space:nowrap}
th{font-weight:500;color:var(--muted);font-size:12.5px;vertical-align:bottom}
td.number,th.number{text-align:right}
td.free{white-space:normal;overflow-wrap:anywhere;min-width:9.5em}
.scroll + .quiet{margin-top:10px}
tr.strong td{font-weight:650}
td small{color:var(--muted);font-weight:400;font-size:12.5px}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(148px,1fr));gap:16px 12px;margin:10px 0 20px}
.thumbs figure{width:auto;font-size:12px;line-height:1.35;overflow-wrap:anywhere;overflow-x:visible}
.thumbs img,.thumbs .absent{width:100%;height:auto;display:block;border-radius:3px;
background:var(--soft)}
.thumbs .absent{aspect-ratio:1;display:flex;align-items:center;justify-content:center;
color:var(--muted);text-align:center}
.thumbs figcaption{font-size:12.5px;line-height:1.4}
.thumbs b.atypical{color:var(--atypical)}
.thumbs b.normal{color:var(--normal)}
h3{font-size:14px;margin:20px 0 2px}
code{font:12.5px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
"""
