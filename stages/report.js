"use strict";
const { classes, loss, distance, shape: [height, width], ...texts } = JSON.parse(document.getElementById("model").textContent);
const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const weights = floats(texts.weights), bias = floats(texts.bias), means = floats(texts.means);
const argmax = (values) => values.indexOf(Math.max(...values));

/** The linear model's answer to bytes (H·W), as stages/linear.py has it: the class, and a probability for each. */
function linear(pixels) {
  const raw = Array.from(bias);
  pixels.forEach((byte, i) => { if (byte) for (let c = 0; c < raw.length; c++) raw[c] += byte / 255 * weights[i * raw.length + c]; });
  const pair = raw.length === 1, best = pair ? (raw[0] > (loss === "squared_error" ? 0.5 : 0) ? 0 : 1) : argmax(raw);
  let each;
  if (loss === "log_loss" && !pair) {
    each = raw.map((r) => Math.exp(r - raw[best]));
  } else {
    if (pair) raw.push(loss === "squared_error" ? 1 - raw[0] : -raw[0]);
    each = raw.map((r) => loss === "squared_error" ? Math.min(Math.max(r, 2 ** -1022), 1) : 1 / (1 + Math.exp(-r)));
  }
  const sum = each.reduce((a, b) => a + b);
  return { best, scores: each.map((p) => p / sum) };
}

/** The baseline's answer, as stages/baseline.py has it: the nearest mean image, and the distance to each. */
function baseline(pixels) {
  const scores = classes.map((_, k) => {
    const sum = pixels.reduce((sum, byte, i) => {
      const difference = byte / 255 - means[k * pixels.length + i];
      return sum + (distance === "l1" ? Math.abs(difference) : difference ** 2);
    }, 0);
    return distance === "l1" ? sum / pixels.length : Math.sqrt(sum / pixels.length);
  });
  return { best: argmax(scores.map((far) => -far)), scores };
}

/** The bytes of a canvas's context, 0 for black; colour becomes luma (ITU-R 601), rounded as Pillow rounds it. */
function gray(context) {
  const { width, height } = context.canvas, { data } = context.getImageData(0, 0, width, height);
  return Uint8Array.from({ length: width * height }, (_, i) => (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 32768) >> 16);
}

function blank(w, h) {
  const context = Object.assign(document.createElement("canvas"), { width: w, height: h }).getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, w, h);
  context.imageSmoothingQuality = "high";
  return context;
}

/** The bytes (H·W) that the models get to see of a canvas or a bitmap. */
function prepare(source, centred, inverted) {
  const whole = blank(source.width, source.height), small = blank(width, height);
  whole.drawImage(source, 0, 0);
  if (inverted) {
    Object.assign(whole, { globalCompositeOperation: "difference", fillStyle: "#fff" });
    whole.fillRect(0, 0, source.width, source.height);
  }
  if (!centred) {
    small.drawImage(whole.canvas, 0, 0, width, height);
    return gray(small);
  }
  // MNIST: the ink fills a box of 20 x 20 and has its centre of mass in the middle of 28 x 28 (LeCun et al. 1998).
  let left = Infinity, right = -1, top = Infinity, bottom = -1;
  gray(whole).forEach((byte, i) => {
    if (byte < 32) return;
    const x = i % source.width, y = Math.floor(i / source.width);
    left = Math.min(left, x), right = Math.max(right, x), top = Math.min(top, y), bottom = Math.max(bottom, y);
  });
  if (right < 0) return gray(small);
  const w = right - left + 1, h = bottom - top + 1, scale = 20 / 28 * Math.min(width, height) / Math.max(w, h);
  const draw = (x, y) => { small.fillRect(0, 0, width, height); small.drawImage(whole.canvas, left, top, w, h, x, y, w * scale, h * scale); };
  const x = Math.round((width - w * scale) / 2), y = Math.round((height - h * scale) / 2);
  draw(x, y);
  let mass = 0, across = 0, down = 0;
  gray(small).forEach((byte, i) => { mass += byte, across += byte * (i % width), down += byte * Math.floor(i / width); });
  draw(x + Math.round((width - 1) / 2 - across / mass), y + Math.round((height - 1) / 2 - down / mass));
  return gray(small);
}

const $ = (id) => document.getElementById(id);
const pad = $("pad"), ink = pad.getContext("2d", { willReadFrequently: true }), seen = $("seen").getContext("2d");
let source = pad, pen = null;

function bars(list, { best, scores }, text) {
  const most = Math.max(...scores) || 1;
  list.replaceChildren(...scores.map((score, k) => {
    const row = document.createElement("li"), bar = document.createElement("i");
    row.className = k === best ? "bar best" : "bar";
    bar.style.width = `${100 * score / (list.id === "linear-bars" ? 1 : most)}%`;
    const [name, value] = [classes[k], text(score)].map((t) => Object.assign(document.createElement("span"), { textContent: t }));
    row.append(name, bar, value);
    return row;
  }));
}

/** Let both models answer to what is in `source`; say so aloud once a stroke or an image is complete. */
function answer(aloud) {
  const exact = source !== pad && source.width === width && source.height === height;
  const pixels = prepare(source, $("centre").checked && !exact, $("invert").checked && source !== pad);
  seen.putImageData(new ImageData(Uint8ClampedArray.from({ length: 4 * pixels.length }, (_, i) => i % 4 === 3 ? 255 : pixels[i >> 2]), width), 0, 0);
  const answers = { linear: linear(pixels), baseline: baseline(pixels) };
  bars($("linear-bars"), answers.linear, (p) => `${(100 * p).toFixed(1)} %`);
  bars($("baseline-bars"), answers.baseline, (far) => far.toFixed(4));
  if (aloud) $("answer").textContent = `Linear: ${classes[answers.linear.best]}. Baseline: ${classes[answers.baseline.best]}.`;
}

function clear() {
  ink.fillRect(0, 0, pad.width, pad.height);
  source = pad;
}

async function show(file) {
  try {
    source = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    $("answer").textContent = "This file is no image that the browser can read.";
    return;
  }
  ink.fillRect(0, 0, pad.width, pad.height);
  ink.imageSmoothingEnabled = source.width > pad.width;
  ink.drawImage(source, 0, 0, pad.width, pad.height);
  answer(true);
}

function stroke(event) {
  const box = pad.getBoundingClientRect();
  const to = { x: (event.clientX - box.left) * pad.width / box.width, y: (event.clientY - box.top) * pad.height / box.height };
  ink.beginPath();
  ink.moveTo((pen ?? to).x, (pen ?? to).y);
  ink.lineTo(to.x, to.y);
  ink.stroke();
  pen = to;
  answer(false);
}

const zoom = Math.ceil(280 / Math.max(width, height));
Object.assign(pad, { width: width * zoom, height: height * zoom });
Object.assign(ink, { lineWidth: Math.min(pad.width, pad.height) / 12, lineCap: "round", strokeStyle: "#fff" });
pad.addEventListener("pointerdown", (event) => {
  if (source !== pad) clear();
  pad.setPointerCapture(event.pointerId);
  pen = null;
  stroke(event);
});
pad.addEventListener("pointermove", (event) => { if (pen) stroke(event); });
for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => { pen = null; answer(true); });
$("clear").addEventListener("click", () => { clear(); answer(true); });
for (const id of ["centre", "invert"]) $(id).addEventListener("change", () => answer(true));
$("file").addEventListener("change", (event) => { if (event.target.files[0]) show(event.target.files[0]); });
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("try").addEventListener(kind, (event) => {
    event.preventDefault();
    $("try").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
  });
}
for (const button of document.querySelectorAll("button[data-try]")) {
  button.addEventListener("click", () => { show(document.querySelector(`#picture-${button.dataset.try} img`)); $("try").scrollIntoView(); });
}
$("try").hidden = false;
clear();
answer(false);
