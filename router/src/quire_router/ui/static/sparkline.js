// The last minutes of one number as a small picture. The numbers stay in the page: they begin when it is opened.

import { setAttribute, svgElement } from "./dom.js";

const SPAN_S = 300;
const LEAST_S = 30; // what the width stands for at first
const WIDTH = 120;
const HEIGHT = 28;

/** Points `[at, value]`, oldest first; a value of null is a gap. */
export class Series {
  points = [];

  add(at, value) {
    this.points.push([at, value ?? null]);
    while (this.points[0][0] < at - SPAN_S) this.points.shift();
  }

  get highest() {
    return this.points.reduce((most, [, value]) => Math.max(most, value ?? 0), 0);
  }
}

/** An SVG path in a box of WIDTH by HEIGHT: now is at the right, zero at the bottom. */
export function pathOf(points, top) {
  if (points.length === 0) return "";
  const now = points.at(-1)[0];
  const span = Math.max(LEAST_S, now - points[0][0]);
  let path = "";
  let drawing = false;
  for (const [at, value] of points) {
    if (value !== null) {
      const x = (WIDTH * (1 - (now - at) / span)).toFixed(1);
      const y = (HEIGHT - 2 - (HEIGHT - 4) * (top > 0 ? value / top : 0)).toFixed(1);
      path += `${drawing ? "L" : "M"}${x} ${y}`;
    }
    drawing = value !== null;
  }
  return path;
}

export function makeSparkline() {
  const path = svgElement("path", { "vector-effect": "non-scaling-stroke" });
  return svgElement(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "spark" },
    path,
  );
}

/** `top`: what the height of the picture stands for; nothing: the highest value. */
export function drawSparkline(svg, series, label, top = series.highest) {
  setAttribute(svg.firstElementChild, "d", pathOf(series.points, top));
  setAttribute(svg, "aria-label", label);
}
