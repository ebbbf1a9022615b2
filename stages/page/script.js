"use strict";
const $ = (id) => document.getElementById(id);
const floats = (text) =>
  new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const argmax = (values) => values.indexOf(Math.max(...values));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const clip = (x) => Math.min(Math.max(x, 2 ** -1022), 1);

const { classes, shape: [height, width, channels], outputs, distance, bars, expected,
  ...embedded } = JSON.parse($("embedded").textContent);
const means = floats(embedded.means);  // of the classes, (K, H, W, C)
const mean = floats(embedded.mean);  // subtracted before the model, (H, W, C)
const params = Object.fromEntries(Object.entries(embedded.arrays).map(
  ([name, { shape, data }]) => [name, { shape, data: floats(data) }]));

const logitsOf = (pixels) => forward(params, pixels.map((pixel, i) => pixel - mean[i]));

/** Return whether `forward` exists and agrees with Python on two test images. */
function agrees() {
  return typeof forward === "function" && expected.every((values, k) => {
    const length = height * width * channels;
    const pixels = (_, i) => k * (7919 * i % 256) / 255;  // as in render.py
    const found = logitsOf(Float64Array.from({ length }, pixels));
    const tolerance = 1e-3 * Math.max(...values.map(Math.abs)) + 1e-6;
    return found.length === values.length &&
      values.every((value, c) => Math.abs(found[c] - value) <= tolerance);
  });
}

/** Classify pixels as stages/evaluation/outputs.py does; the scores are probabilities. */
function model(pixels) {
  const logits = Array.from(logitsOf(pixels));
  const pair = logits.length === 1, target = outputs === "target";
  const label = pair ? (logits[0] > (target ? 0.5 : 0) ? 0 : 1) : argmax(logits);
  if (pair) logits.push(target ? 1 - logits[0] : -logits[0]);
  const scores = logits.map((logit) => outputs === "softmax" ?
    Math.exp(logit - logits[label]) : clip(target ? logit : sigmoid(logit)));
  const total = scores.reduce((a, b) => a + b);
  return { label, scores: scores.map((score) => score / total) };
}

/** Classify pixels as stages/baseline.py does; the scores are distances. */
function baseline(pixels) {
  const power = distance === "l1" ? 1 : 2;
  const scores = classes.map((_, k) => {
    const total = pixels.reduce((sum, pixel, i) =>
      sum + Math.abs(pixel - means[k * pixels.length + i]) ** power, 0);
    return (total / pixels.length) ** (1 / power);
  });
  return { label: argmax(scores.map((score) => -score)), scores };
}

const [pad, input] = [$("pad"), $("input")].map(  // the pad may be null
  (canvas) => canvas?.getContext("2d", { willReadFrequently: true }));
const nothing = $("answer").textContent;
let drawn = false;  // whether the models see the pad, not a mistake
let pen = null;  // last position of the pointer in a stroke

/** Return the pixels (H·W·C) of a canvas, in [0, 1]; if C = 1, it is gray. */
function read(context) {
  const { data } = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
  return Float64Array.from({ length: data.length / 4 * channels },  // from RGBA
    (_, i) => data[4 * Math.floor(i / channels) + i % channels] / 255);
}

function blank(context) {
  context?.fillRect(0, 0, context.canvas.width, context.canvas.height);
}

/** Scale the drawing on the pad to the input of the models. */
function scaleDrawing() {
  const { canvas } = pad;
  blank(input);
  if (!$("centre").checked) {
    input.drawImage(canvas, 0, 0, width, height);
    return;
  }
  // As in MNIST, the ink fills a box of 20 x 20 pixels, and its centre of mass lies in
  // the middle of 28 x 28 (LeCun et al. 1998).
  let left = canvas.width, right = 0, top = canvas.height, bottom = 0;
  let mass = 0, xMass = 0, yMass = 0;
  read(pad).forEach((value, i) => {
    if (value < 1 / 8) return;
    const x = i % canvas.width, y = Math.floor(i / canvas.width);
    [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
    [mass, xMass, yMass] = [mass + value, xMass + value * (x + 0.5), yMass + value * (y + 0.5)];
  });
  if (!mass) return;
  const [w, h] = [right - left, bottom - top];
  const scale = 20 / 28 * Math.min(width, height) / Math.max(w, h);
  const x = Math.round(width / 2 - (xMass / mass - left) * scale);
  const y = Math.round(height / 2 - (yMass / mass - top) * scale);
  input.drawImage(canvas, left, top, w, h, x, y, w * scale, h * scale);
}

/** Format a probability; only 0 shows as 0.0 %, and only 1 as 100.0 %. */
function percent(p) {
  const text = (100 * p).toFixed(1);
  if (text === "100.0" && p < 1) return "> 99.9 %";
  return text === "0.0" && p > 0 ? "< 0.1 %" : `${text} %`;
}

/** Fill a list with a bar per class, or with only the first by score if there are many. */
function showBars(list, { label, scores }, full, format, order) {
  const labels = classes.map((_, k) => k);
  if (bars < classes.length) labels.sort((j, k) => order * (scores[j] - scores[k]));
  list.replaceChildren(...labels.slice(0, bars).map((k) => {
    const row = document.createElement("li");
    row.className = k === label ? "bar best" : "bar";
    row.innerHTML = "<bdi></bdi><i></i><span></span>";
    const [name, bar, value] = row.children;
    name.title = name.textContent = classes[k];
    bar.style.width = `${100 * scores[k] / full}%`;
    value.textContent = format(scores[k]);
    return row;
  }));
}

/** Classify the input; announce the answer once a stroke or an image is complete. */
function update(announce) {
  if (drawn) scaleDrawing();
  const pixels = read(input);
  const answers = { model: model(pixels), baseline: baseline(pixels) };
  const longest = Math.max(...answers.baseline.scores) || 1;
  showBars($("model-bars"), answers.model, 1, percent, -1);
  showBars($("baseline-bars"), answers.baseline, longest, (d) => d.toFixed(4), 1);
  const [first, second] = [answers.model, answers.baseline].map(({ label }) => classes[label]);
  if (announce) $("answer").textContent = `Model: ${first}. Baseline: ${second}.`;
}

function clear() {
  drawn = false;
  for (const context of [pad, input]) blank(context);
  for (const id of ["model-bars", "baseline-bars"]) $(id).replaceChildren();
  $("answer").textContent = nothing;
}

function stroke({ offsetX, offsetY }) {
  const zoom = pad.canvas.width / pad.canvas.clientWidth;
  const at = [offsetX * zoom, offsetY * zoom];
  pad.beginPath();
  pad.moveTo(...(pen ?? at));
  pad.lineTo(...at);
  pad.stroke();
  pen = at;
  update(false);
}

/** Let people draw and try mistakes. */
function start() {
  input.imageSmoothingQuality = "high";
  for (const button of document.querySelectorAll("button[data-try]")) {
    button.onclick = () => {
      clear();
      input.drawImage(document.querySelector(`#picture-${button.dataset.try} img`), 0, 0);
      update(true);
      $("try").scrollIntoView();
    };
  }
  if (pad) {
    const { canvas } = pad, lineWidth = Math.min(canvas.width, canvas.height) / 12;
    Object.assign(pad, { lineWidth, lineCap: "round", strokeStyle: "#fff" });
    canvas.onpointerdown = (event) => {
      if (!drawn) clear();
      drawn = true;
      canvas.setPointerCapture(event.pointerId);
      stroke(event);
    };
    canvas.onpointermove = (event) => { if (pen) stroke(event); };
    canvas.onpointerup = canvas.onpointercancel = () => {
      if (pen) update(true);
      pen = null;
    };
    $("clear").onclick = clear;
    $("centre").onchange = () => { if (drawn) update(true); };
  }
  clear();
  document.body.classList.add("started");
}

try {
  if (agrees()) start();
} finally {  // even if `forward` throws, as one for another model may
  $("stale").hidden = document.body.classList.contains("started");
}
