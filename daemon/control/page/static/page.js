// Live parts: the server says what changed, htmx fetches parts again, and curves fetch their points again.
"use strict";

const link = document.getElementById("link");
const parts = ["status", "history"];
const seen = {};

function listen() {
  const events = new EventSource("/events");
  events.onopen = () => { link.textContent = ""; };
  events.onerror = () => {
    link.textContent = link.dataset.lost;
    if (events.readyState === EventSource.CLOSED) {  // the server refused; the browser does not try again by itself
      events.close();
      setTimeout(listen, 5000);
    }
  };
  for (const part of parts) {
    events.addEventListener(part, (event) => {
      const first = !(part in seen);  // the page was just rendered
      if (!first && seen[part] !== event.data) document.body.dispatchEvent(new CustomEvent(`mfmd:${part}`));
      seen[part] = event.data;
    });
  }
}

const colours = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"];

async function draw(section) {
  const answer = await fetch(section.dataset.curve);
  if (!answer.ok) return;
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
  addEventListener("resize", () => {
    const place = section.querySelector(".plot");
    if (place.chart) place.chart.setSize({ width: place.clientWidth, height: 220 });
  });
}
listen();
