"""The page's style sheet and its one small script. Both are constants: nothing of a run ever enters them."""

CSS = """
:root{color-scheme:light dark;
--bg:#fdfdfb;--panel:#fff;--ink:#1c2126;--soft:#586069;--line:#e3e4e0;--grid:#ecece8;--accent:#0b6e75;
--wash:#eef5f4;
--good:#1a7f4b;--bad:#b3261e;--warn:#8a5a00;--warnwash:#fdf4e0;--badwash:#fdecea;--code:#f4f4f0;
--s0:#0b6e75;--s1:#d1495b;--s2:#3d5a99;--s3:#b5700c;--s4:#7b4fa3;--s5:#4d8b31;--s6:#a0522d;--s7:#5b6670;
--base:#8b939b;
--t0:#e69f00;--t1:#56b4e9;--t2:#e0609a;--t3:#2fb58a}
@media (prefers-color-scheme:dark){:root{
--bg:#14171a;--panel:#1b1f23;--ink:#e8e9e6;--soft:#9fa8b0;--line:#30363c;--grid:#282d33;--accent:#5cc3c5;
--wash:#18292b;
--good:#5fcf92;--bad:#ff8a80;--warn:#f0c05a;--warnwash:#2d2614;--badwash:#351c1a;--code:#20252a;
--s0:#5cc3c5;--s1:#f2818e;--s2:#8fabec;--s3:#efb35a;--s4:#c19be6;--s5:#94cf78;--s6:#dd9b78;--s7:#a5b0ba;
--base:#7f8890}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1.2rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",Arial,"DejaVu Sans",
sans-serif}
main{max-width:1080px;margin:0 auto;padding:2.2rem 1.25rem 4rem}
h1{font-size:clamp(1.7rem,1.2rem + 2.2vw,2.5rem);line-height:1.15;letter-spacing:-.02em;margin:0 0 .7rem;
overflow-wrap:anywhere}
h2{font-size:1.4rem;letter-spacing:-.01em;line-height:1.25;margin:0 0 .3rem}
h2 a{color:inherit;text-decoration:none}h2 a:hover::after{content:" #";color:var(--soft)}
h3{font-size:.95rem;font-weight:600;margin:0 0 .5rem;display:flex;justify-content:space-between;gap:1rem}
section{margin-top:3.4rem}
p{margin:.5rem 0;max-width:72ch}
.kicker{font-size:.78rem;letter-spacing:.09em;text-transform:uppercase;color:var(--accent);font-weight:600;
margin:0 0 .5rem}
.lead{color:var(--soft);margin-bottom:1.2rem}
.verdict{font-size:1.13rem;line-height:1.5;max-width:66ch}
.soft,figcaption,.sub{color:var(--soft)}
figcaption{font-size:.86rem;line-height:1.45;margin-top:.5rem}
figure{margin:0}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86rem}
pre{background:var(--code);border:1px solid var(--line);border-radius:8px;padding:.9rem 1rem;overflow-x:auto;
margin:.6rem 0}
code{background:var(--code);border-radius:4px;padding:.08em .3em}pre code{background:none;padding:0}
nav{font-size:.87rem;line-height:1.3}
nav ul{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:.3rem .4rem}
nav a{display:block;padding:.25rem .6rem;border-radius:99px;color:var(--soft);text-decoration:none;
border:1px solid var(--line)}
nav a:hover,nav a:focus-visible{color:var(--accent);border-color:var(--accent)}
header nav{margin-top:1.6rem}
.badge{display:inline-block;padding:.12rem .6rem;border-radius:99px;font-size:.82rem;font-weight:600;
margin:0 .4rem .3rem 0;
border:1px solid currentColor;white-space:nowrap}
.badge.good{color:var(--good)}.badge.bad{color:var(--bad)}.badge.warn{color:var(--warn)}
.badge.plain{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:.8rem;margin:1.5rem 0 0;
padding:0;
list-style:none}
.tiles li{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:.8rem .95rem}
.tiles .good{border-top:3px solid var(--good)}.tiles .warn{border-top:3px solid var(--warn)}
.tiles .bad{border-top:3px solid var(--bad)}.tiles .plain{border-top:3px solid var(--line)}
.means{margin-top:1rem}
.runs{padding:0;list-style:none;max-width:80ch}.runs li{margin:.5rem 0}
.swatch{display:inline-block;width:.8em;height:.8em;border-radius:3px;background:var(--c);margin-right:.5em}
.tiles b{display:block;font-size:1.5rem;letter-spacing:-.02em;line-height:1.25;
font-variant-numeric:tabular-nums}
.tiles span{display:block;font-size:.82rem;color:var(--soft)}.tiles .sub{font-size:.8rem;margin-top:.15rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:1rem}
.grid>figure,.panel{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem;
min-width:0}
.grid.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.chart{position:relative}.chart>svg{display:block;width:100%;height:auto;overflow:visible;touch-action:pan-y}
.chart text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.ylab,.before{text-anchor:end}.xlab{text-anchor:middle}.xname,.levellab{text-anchor:end}
path.rule{stroke:var(--grid);stroke-width:1;fill:none}
path.level{stroke:var(--soft);stroke-dasharray:3 3;stroke-width:1}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}.d1{stroke-dasharray:5 3}
.d2{stroke-dasharray:1 3}
.point{stroke:none}.band{fill:var(--c);opacity:.14;stroke:none}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.s6{--c:var(--s6)}.s7{--c:var(--s7)}.base{--c:var(--base)}
.line{stroke:var(--c)}.point{fill:var(--c)}
.now{font-weight:400;color:var(--soft);font-variant-numeric:tabular-nums}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1rem;margin:.35rem 0 0;padding:0;
font-size:.82rem}
.legend li{display:flex;align-items:center;gap:.4rem;overflow-wrap:anywhere}
.legend svg{width:24px;height:8px;flex:none}
.cross{stroke:var(--soft);stroke-width:1}
.tip{position:absolute;top:2.2rem;pointer-events:none;background:var(--ink);color:var(--bg);border-radius:6px;
padding:.3rem .55rem;font-size:.78rem;line-height:1.4;white-space:pre;z-index:2;
font-variant-numeric:tabular-nums}
.intervals table{width:100%;border-collapse:collapse;font-size:.88rem}
.intervals th[scope]{text-align:left;font-weight:500;padding:.3rem .6rem .3rem 0;width:32%;line-height:1.25;
overflow-wrap:anywhere}
.intervals .track{padding:0 .4rem}.track div{position:relative;height:1.9rem}
.track i{position:absolute;display:block}
.tick{top:0;bottom:0;width:1px;background:var(--grid)}
i.level{top:0;bottom:0;border-left:1px dashed var(--soft)}
.bar{height:7px;top:calc(50% - 3.5px);background:var(--c);opacity:.38;border-radius:4px}
.dot,.mean{width:9px;height:9px;top:calc(50% - 4.5px);margin-left:-4.5px;background:var(--c);border-radius:50%}
.mean{border-radius:1px;transform:rotate(45deg)}
.intervals .num{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;padding-left:.5rem;
width:1%}
.intervals .num small{display:block;color:var(--soft);font-size:.76rem;line-height:1.2}
.intervals .base th{color:var(--soft)}
.axis .track div{height:1.3rem;font-size:.75rem;color:var(--soft)}
.axis span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.key i.level{display:inline-block;position:static;height:.9em;vertical-align:-.1em}
.scroll{overflow-x:auto}
.data{border-collapse:collapse;font-size:.88rem;width:100%;font-variant-numeric:tabular-nums}
.data th,.data td{text-align:left;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line);
vertical-align:top;
overflow-wrap:anywhere}
.data thead th{color:var(--soft);font-weight:500;white-space:nowrap}
.data tbody th{font-weight:500;min-width:9rem}
.data.num td{text-align:right;white-space:nowrap}.data.num thead th:not(:first-child){text-align:right}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:1rem}
.cards.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.cards.two .strip{max-width:560px}
.strip{display:grid;gap:.35rem}.strip img,.sheet img{display:block;width:100%;height:auto;border-radius:5px}
.strip.three{grid-template-columns:repeat(3,1fr)}
.film{grid-column:1/-1}.film img{background:none}
.time{display:grid;grid-template-columns:7.5rem minmax(0,max-content);gap:.7rem;margin-top:1rem;max-width:860px}
.time ul{display:grid;grid-auto-rows:1fr;align-items:center;list-style:none;margin:0;padding:0;text-align:right;
font-size:.76rem;line-height:1.25;color:var(--soft)}
.time img{display:block;width:100%;height:auto}
.group{margin-top:1.6rem}
.strip .head{font-size:.76rem;color:var(--soft);line-height:1.25;align-self:end}
.pixel{image-rendering:pixelated}
.hood{display:grid;grid-template-columns:1fr .15fr repeat(6,1fr);gap:.35rem;align-items:start;
min-width:500px;max-width:860px;
padding:.55rem 0;border-bottom:1px solid var(--line)}
.hood figure{font-size:.76rem;line-height:1.25;text-align:center}
.hood figcaption{font-size:.76rem;margin-top:.2rem;
overflow-wrap:anywhere}
.hood img{display:block;width:100%;height:auto;border-radius:5px;border:3px solid transparent}
.hood .yes img{border-color:var(--good)}.hood .no img{border-color:var(--bad)}
.hood .query img{border-color:var(--soft)}
.yes figcaption{color:var(--good)}.no figcaption{color:var(--bad)}
.swatches{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:.4rem 0 1rem;
font-size:.86rem}
.swatches i{display:inline-block;width:.85em;height:.85em;border-radius:3px;margin-right:.4em;
vertical-align:-.06em}
.sheet{margin-top:1rem}.sheet img{max-width:760px}.own img{width:auto;max-width:100%}
.strip.heads{grid-template-columns:repeat(auto-fill,minmax(88px,1fr));max-width:860px;margin-top:1rem}
.missing{color:var(--soft);border-left:3px solid var(--line);padding:.3rem 0 .3rem .9rem}
.callout{border-left:3px solid var(--warn);background:var(--warnwash);padding:.6rem .95rem;
border-radius:0 8px 8px 0;
margin:.6rem 0;max-width:76ch}
mark{background:var(--warnwash);color:var(--warn);border-radius:4px;padding:.05em .3em}
.best{color:var(--good)}
.callout.bad{border-color:var(--bad);background:var(--badwash)}
details{border:1px solid var(--line);border-radius:10px;background:var(--panel);padding:.65rem 1rem;
margin:.8rem 0}
details[open]>summary{margin-bottom:.7rem}
summary{cursor:pointer;font-weight:500}
.about svg{width:100%;min-width:540px;max-width:760px;height:auto;display:block;margin:.6rem 0}
.about text{fill:var(--ink);font-size:13px;text-anchor:middle}.about .note{fill:var(--soft);font-size:11.5px}
.about rect{fill:var(--wash);stroke:var(--accent)}.about path{stroke:var(--soft);fill:none;stroke-width:1.3}
.about .head{fill:var(--soft);stroke:none}
footer{margin-top:4rem;padding-top:1rem;border-top:1px solid var(--line);font-size:.84rem;color:var(--soft)}
.sr thead,thead.sr,.sr-only{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
white-space:nowrap}
@media (max-width:560px){.axis span:nth-child(even){display:none}
.cards .strip+.strip .head{display:none}.hood{min-width:0;gap:.2rem}.hood img{border-width:2px}
.hood figcaption{font-size:.68rem}
main{padding:1.4rem .9rem 3rem}.intervals th[scope]{width:34%}.tiles{gap:.5rem}
.tiles{grid-template-columns:1fr 1fr}.tiles b{font-size:1.25rem}section{margin-top:2.6rem}
.grid>figure,.panel{padding:.8rem .8rem}}
@media print{:root{color-scheme:light}body{font-size:11pt;background:#fff}main{max-width:none;padding:0}
nav,.tip{display:none}
section{margin-top:1.6rem}figure,.tiles li,.hood{break-inside:avoid}h2,h3,.lead,.swatches{break-after:avoid}
pre{white-space:pre-wrap}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
"""

SCRIPT = """
"use strict";
(function(){
var NS="http://www.w3.org/2000/svg";
function near(xs,x){var a=0,b=xs.length-1;while(b-a>1){var m=(a+b)>>1;if(xs[m]<x)a=m;else b=m}
return Math.abs(xs[a]-x)<=Math.abs(xs[b]-x)?a:b}
function show(v,share){if(share)return(100*v).toFixed(1)+" %";var a=Math.abs(v);
return a!==0&&(a<1e-3||a>=1e7)?v.toExponential(2):a>=1000?Math.round(v).toLocaleString("en").replace(/,/g,"\\u202f"):
String(Number(v.toPrecision(4)))}
document.querySelectorAll("svg[data-chart]").forEach(function(svg){
var d=JSON.parse(svg.dataset.chart),b=d.b,figure=svg.parentNode,cross=null,tip=null;
function off(){if(cross){cross.remove();tip.remove();cross=tip=null}}
function on(event){
var box=svg.getBoundingClientRect(),scale=svg.viewBox.baseVal.width/box.width;
var x=b[0]+((event.clientX-box.left)*scale-b[4])/(b[5]-b[4])*(b[1]-b[0]);
if(x<b[0]-(b[1]-b[0])*.05||x>b[1]+(b[1]-b[0])*.05){off();return}
if(!cross){cross=document.createElementNS(NS,"line");cross.setAttribute("class","cross");svg.appendChild(cross);
tip=document.createElement("div");tip.className="tip";figure.appendChild(tip)}
var best=null;d.s.forEach(function(s){var v=s.x[near(s.x,x)];if(best===null||Math.abs(v-x)<Math.abs(best-x))best=v});
var at=b[4]+(best-b[0])/(b[1]-b[0])*(b[5]-b[4]);
cross.setAttribute("x1",at);cross.setAttribute("x2",at);cross.setAttribute("y1",b[6]);cross.setAttribute("y2",b[7]);
tip.textContent="step "+show(best,false)+"\\n"+d.s.map(function(s){var i=near(s.x,best);
return(d.s.length>1?s.n+"  ":"")+show(s.y[i],d.share)}).join("\\n");
var left=box.left-figure.getBoundingClientRect().left+at/scale+10;
if(left+tip.offsetWidth>figure.clientWidth)left-=tip.offsetWidth+20;
tip.style.left=Math.max(0,left)+"px"}
svg.addEventListener("pointermove",on);svg.addEventListener("pointerdown",on);svg.addEventListener("pointerleave",off)});
window.addEventListener("beforeprint",function(){document.querySelectorAll("details").forEach(function(d){d.open=true})});
document.documentElement.dataset.charts=String(document.querySelectorAll("svg[data-chart]").length);
})();
"""
