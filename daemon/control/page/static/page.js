// Live parts: the server says what changed, htmx fetches parts again, and curves fetch their points again.
"use strict";

const link = document.getElementById("link");
const parts = ["status", "history"];
const seen = {};

const silentMs = 40000;  // the server sends a beat each 15 s
let events = null;
let heard = 0;

function changed(part) {
  document.body.dispatchEvent(new CustomEvent(`mfmd:${part}`));
}

function listen() {
  events?.close();
  events = null;
  if (document.hidden) return;  // a browser has six connections to one server, for all its windows
  heard = Date.now();
  events = new EventSource("/events");
  events.onopen = () => { link.textContent = ""; };
  events.onerror = () => { link.textContent = link.dataset.lost; };  // the browser tries again, or `watch` does
  events.addEventListener("beat", () => {
    heard = Date.now();
    changed("status");  // nothing but the time: ages go on
  });
  for (const part of parts) {
    events.addEventListener(part, (event) => {
      heard = Date.now();  // the first one may tell of a change since the page was made
      if (seen[part] !== event.data) changed(part);
      seen[part] = event.data;
    });
  }
}

function watch() {  // a machine that slept, or a network that went, leaves a stream that is silent for ever
  const refused = events?.readyState === EventSource.CLOSED;
  if (!events || (!refused && Date.now() - heard < silentMs)) return;
  link.textContent = link.dataset.lost;
  listen();
}

document.addEventListener("visibilitychange", listen);
document.body.addEventListener("htmx:response:error", () => { link.textContent = link.dataset.lost; });
setInterval(watch, 5000);

const colours = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"];

async function draw(section) {
  const answer = await fetch(section.dataset.curve).catch(() => null);
  if (!answer?.ok) return;
  const curve = await answer.json();
  section.hidden = curve.x.length < 2;
  if (section.hidden) return;
  section.querySelector("h2").textContent = curve.title;
  const place = section.querySelector(".plot");
  const points = [curve.x, ...curve.series.map((line) => line.y)];
  const names = curve.series.map((line) => line.name).join();
  if (place.chart && place.names === names) {
    place.chart.setData(points);
    return;
  }
  if (place.chart) place.chart.destroy();
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink");
  const axis = { stroke: ink, grid: { stroke: style.getPropertyValue("--rule") } };
  const lines = curve.series.map((line, place) => (
    { label: line.name, stroke: style.getPropertyValue(colours[place % colours.length]), width: 2, spanGaps: true }
  ));
  place.chart = new uPlot({
    width: place.clientWidth, height: 220, scales: { x: { time: false } },
    axes: [{ ...axis, label: "step" }, axis], series: [{ label: "step" }, ...lines],
  }, points, place);
  place.names = names;
}

for (const section of document.querySelectorAll("[data-curve]")) {
  draw(section);
  document.body.addEventListener(section.dataset.on, () => draw(section));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    section.querySelector(".plot").names = null;  // drawn again, in the other colours
    draw(section);
  });
  addEventListener("resize", () => {
    const place = section.querySelector(".plot");
    if (place.chart) place.chart.setSize({ width: place.clientWidth, height: 220 });
  });
}
listen();
