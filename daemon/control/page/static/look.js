// The view Look: opacity and zoom of all pictures at once, the same part in each, and the class under the pointer.
"use strict";

const root = document.documentElement;
const sliders = document.querySelector(".sliders");
const stacks = () => [...document.querySelectorAll(".stack")];

const placed = new WeakMap();  // where the page itself last put each picture

function place(item, x, y) {
  item.scrollTo(x, y);
  placed.set(item, [item.scrollLeft, item.scrollTop]);  // as the browser rounds and bounds it
}

function follow(from) {
  const [left, top] = placed.get(from) ?? [0, 0];
  if (from.scrollLeft === left && from.scrollTop === top) return;  // a late event of the page's own move
  placed.set(from, [from.scrollLeft, from.scrollTop]);
  for (const other of stacks()) {
    if (other === from) continue;
    const x = from.scrollLeft * other.scrollWidth / from.scrollWidth;
    place(other, x, from.scrollTop * other.scrollHeight / from.scrollHeight);
  }
}

function zoom(times) {
  const before = Number(root.style.getPropertyValue("--zoom") || 1);
  const middles = stacks().map((item) => [item, item.scrollLeft + item.clientWidth / 2, item.scrollTop + item.clientHeight / 2]);
  for (const [item] of middles) {  // keeps its height, so that the pictures below stay in view
    item.style.maxHeight = times > 1 ? `${item.clientHeight}px` : "";
  }
  root.style.setProperty("--zoom", times);
  for (const [item, x, y] of middles) {
    place(item, x * times / before - item.clientWidth / 2, y * times / before - item.clientHeight / 2);
  }
}

function classAt(mask, event) {
  const box = mask.getBoundingClientRect();
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const x = Math.floor((event.clientX - box.left) / box.width * mask.naturalWidth);
  const y = Math.floor((event.clientY - box.top) / box.height * mask.naturalHeight);
  context.drawImage(mask, -x, -y);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  const color = `#${[red, green, blue].map((value) => value.toString(16).padStart(2, "0")).join("")}`;
  const names = [...document.querySelectorAll(`[data-color="${color}"] + span`)].map((name) => name.textContent);
  return names.join(" or ");
}

if (sliders) {
  sliders.hidden = false;
  sliders.addEventListener("submit", (event) => event.preventDefault());
  const opacity = document.getElementById("opacity");
  opacity.addEventListener("input", () => root.style.setProperty("--opacity", opacity.value));
  document.getElementById("zoom").addEventListener("input", (event) => zoom(Number(event.target.value)));
  document.addEventListener("scroll", (event) => {
    if (event.target instanceof Element && event.target.matches(".stack")) follow(event.target);
  }, true);
  document.addEventListener("pointermove", (event) => {
    const mask = event.target;
    if (!(mask instanceof Element) || !mask.matches(".mask")) return;
    if (mask.complete && mask.naturalWidth) document.getElementById("under").textContent = classAt(mask, event);
  });
}
