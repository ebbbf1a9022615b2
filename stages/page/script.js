"use strict";
const $ = (id) => document.getElementById(id);

// Both models: means (K, H, W), weights (C, H, W) and bias (C), float32.
const { classes, outputs, distance, decoding, bars, shape: [height, width], ...encoded } =
  JSON.parse($("model").textContent);
const floats = (text) =>
  new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const [means, weights, bias] = ["means", "weights", "bias"].map((name) => floats(encoded[name]));

const argmax = (values) => values.indexOf(Math.max(...values));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const clip = (x) => Math.min(Math.max(x, 2 ** -1022), 1);

/** Classify pixels (H·W bytes) as stages/model/linear.py does; the scores are probabilities. */
function linear(pixels) {
  const logits = Array.from(bias, (value, c) => pixels.reduce((sum, byte, i) =>
    byte ? sum + byte / 255 * weights[c * pixels.length + i] : sum, value));
  const pair = logits.length === 1;
  const threshold = outputs === "target" ? 0.5 : 0;
  const label = pair ? (logits[0] > threshold ? 0 : 1) : argmax(logits);
  if (pair) logits.push(outputs === "target" ? 1 - logits[0] : -logits[0]);
  const scores = logits.map((logit) => {
    if (outputs === "softmax") return Math.exp(logit - logits[label]);
    return clip(outputs === "target" ? logit : sigmoid(logit));
  });
  const total = scores.reduce((a, b) => a + b);
  return { label, scores: scores.map((score) => score / total) };
}

/** Classify pixels (H·W bytes) as stages/baseline.py does; the scores are distances. */
function baseline(pixels) {
  const distances = classes.map((_, k) => {
    const total = pixels.reduce((sum, byte, i) => {
      const difference = byte / 255 - means[k * pixels.length + i];
      return sum + (distance === "l1" ? Math.abs(difference) : difference ** 2);
    }, 0);
    return distance === "l1" ? total / pixels.length : Math.sqrt(total / pixels.length);
  });
  return { label: argmax(distances.map((d) => -d)), scores: distances };
}

/** Return the pixels of a canvas, [red, green, blue, alpha, …]. */
function rgba(context) {
  return context.getImageData(0, 0, context.canvas.width, context.canvas.height).data;
}

/** Read a canvas as bytes; colour becomes luma (ITU-R 601), rounded as Pillow rounds it. */
function grayscale(context) {
  const data = rgba(context);
  return Uint8Array.from({ length: data.length / 4 }, (_, i) => {
    const red = 4 * i, green = red + 1, blue = red + 2;
    return (data[red] * 19595 + data[green] * 38470 + data[blue] * 7471 + 32768) >> 16;
  });
}

/** Create a canvas of one gray level, transparent if it is null, and return its context. */
function blank(width, height, level = 0) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (level !== null) {
    context.fillStyle = `rgb(${level} ${level} ${level})`;
    context.fillRect(0, 0, width, height);
  }
  context.fillStyle = "#000";
  context.imageSmoothingQuality = "high";
  return context;
}

/** Throw if a file holds what browsers decode otherwise than stages/images/decode.py. */
async function checkFormat(file) {
  const head = new Uint8Array(await file.slice(0, 30).arrayBuffer());
  const text = String.fromCharCode(...head);
  if (text.startsWith("\x89PNG") && head[24] === 16) {
    throw Error("The image has 16 bits per channel: save it with 8.");
  }
  if (text.startsWith("RIFF") && text.slice(8, 16) === "WEBPVP8X" && head[20] & 8) {
    throw Error("The EXIF data of a WebP image may turn it, and browsers do not read them: " +
      "save it as a PNG or JPEG file.");
  }
}

/** Decode a file as stages/images/decode.py does, to a canvas; throw what it refuses. */
async function decode(file) {
  if (file instanceof Blob) await checkFormat(file);
  const bitmap = await createImageBitmap(file, {
    colorSpaceConversion: "none", imageOrientation: "from-image", premultiplyAlpha: "none",
  }).catch(() => { throw Error("The browser cannot read this file as an image."); });
  const context = (level) => {
    const canvas = blank(bitmap.width, bitmap.height, level);
    canvas.drawImage(bitmap, 0, 0);
    return canvas;
  };
  // Where drawings are classified, a file of another size is scaled as they are.
  const exact = bitmap.width === width && bitmap.height === height;
  if (!exact && !decoding.size && !pad) {
    throw Error(`The image has ${bitmap.width} × ${bitmap.height} pixels, and the models take ` +
      `${width} × ${height}: set data.size in params.yaml to [${height}, ${width}] and run ` +
      "dvc repro.");
  }
  const transparent = rgba(context(null)).some((byte, i) => i % 4 === 3 && byte < 255);
  if (transparent && decoding.background === null) {
    throw Error("The image has transparent pixels, and the models know no background for " +
      "them: set data.background in params.yaml and run dvc repro.");
  }
  const image = context(decoding.background ?? 0);
  const data = rgba(image);
  const coloured = data.some((byte, i) => i % 4 < 2 && byte !== data[i + 1]);
  if (coloured && !decoding.grayscale) {
    throw Error("The image is in colour, and the models know gray images only: " +
      "set data.grayscale in params.yaml to true and run dvc repro.");
  }
  return image.canvas;
}

/** Return, for each of `to` pixels, the weights of the pixels that it blends, of `from`. */
function triangles(from, to) {
  const scale = from / to, support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), from);
    const weights = Array.from({ length: last - first }, (_, k) =>
      Math.max(1 - Math.abs((first + k - centre + 0.5) / support), 0));
    const sum = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Resize bytes to the size that the models take as Pillow does: bilinear, antialiased. */
function resize(bytes, fromWidth, fromHeight) {
  const blend = (source, start, step, { first, weights }) => Math.floor(weights.reduce(
    (sum, weight, k) => sum + weight * source[start + (first + k) * step], 0.5));
  const across = triangles(fromWidth, width), down = triangles(fromHeight, height);
  const rows = Uint8Array.from({ length: width * fromHeight }, (_, i) =>
    blend(bytes, Math.floor(i / width) * fromWidth, 1, across[i % width]));
  return Uint8Array.from({ length: width * height }, (_, i) =>
    blend(rows, i % width, width, down[Math.floor(i / width)]));
}

/** Find the box around all pixels of a canvas that are not nearly black. */
function inkBox(context) {
  let left = Infinity, right = -1, top = Infinity, bottom = -1;
  grayscale(context).forEach((byte, i) => {
    if (byte < 32) return;
    const x = i % context.canvas.width, y = Math.floor(i / context.canvas.width);
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y);
  });
  return { left, top, w: right - left + 1, h: bottom - top + 1, empty: right < 0 };
}

/** Scale a canvas to the bytes (H·W) that the models take. */
function prepare(source, centred, inverted) {
  const full = blank(source.width, source.height), small = blank(width, height);
  full.drawImage(source, 0, 0);
  if (inverted) {
    Object.assign(full, { globalCompositeOperation: "difference", fillStyle: "#fff" });
    full.fillRect(0, 0, source.width, source.height);
  }
  if (!centred) return resize(grayscale(full), source.width, source.height);
  // As in MNIST, the ink fills a box of 20 x 20 pixels, and its centre of mass lies in
  // the middle of 28 x 28 (LeCun et al. 1998).
  const { left, top, w, h, empty } = inkBox(full);
  if (empty) return grayscale(small);
  const scale = 20 / 28 * Math.min(width, height) / Math.max(w, h);
  const draw = (x, y) => {
    small.fillRect(0, 0, width, height);
    small.drawImage(full.canvas, left, top, w, h, x, y, w * scale, h * scale);
  };
  const x = Math.round((width - w * scale) / 2), y = Math.round((height - h * scale) / 2);
  draw(x, y);
  let mass = 0, xMass = 0, yMass = 0;
  grayscale(small).forEach((byte, i) => {
    mass += byte;
    xMass += byte * (i % width);
    yMass += byte * Math.floor(i / width);
  });
  const dx = Math.round((width - 1) / 2 - xMass / mass);
  const dy = Math.round((height - 1) / 2 - yMass / mass);
  draw(x + dx, y + dy);
  return grayscale(small);
}

const pad = $("pad");  // or null
const ink = pad?.getContext("2d", { willReadFrequently: true });
const input = $("input").getContext("2d");
const nothing = $("answer").textContent;
let source = null;  // what is classified: the pad, an image, or nothing yet
let pen = null;  // where the pointer is while it draws

/** Format a probability; only 0 reads as none, and only 1 as all. */
function percent(p) {
  const text = (100 * p).toFixed(1);
  if (text === "100.0" && p < 1) return "> 99.9 %";
  return text === "0.0" && p > 0 ? "< 0.1 %" : `${text} %`;
}

/** Fill a list with a bar per class; of many classes, with the first in an order. */
function showBars(list, { label, scores }, full, format, order) {
  const labels = classes.map((_, k) => k);
  if (bars < classes.length) labels.sort((j, k) => order(scores[j], scores[k]));
  list.replaceChildren(...labels.slice(0, bars).map((k) => {
    const row = document.createElement("li"), bar = document.createElement("i");
    row.className = k === label ? "bar best" : "bar";
    bar.style.width = `${100 * scores[k] / full}%`;
    const [name, value] = [["bdi", classes[k]], ["span", format(scores[k])]].map(
      ([tag, textContent]) => Object.assign(document.createElement(tag), { textContent }));
    name.title = classes[k];
    row.append(name, bar, value);
    return row;
  }));
}

/** Classify the source; announce the answer when a stroke or an image is complete. */
function update(announce) {
  if (!source) {
    input.fillRect(0, 0, width, height);
    for (const id of ["linear-bars", "baseline-bars"]) $(id).replaceChildren();
    $("answer").textContent = nothing;
    return;
  }
  const exact = source !== pad && source.width === width && source.height === height;
  const pixels = prepare(
    source, pad && $("centre").checked && !exact, pad && $("invert").checked && source !== pad,
  );
  const shown = Uint8ClampedArray.from({ length: 4 * pixels.length }, (_, i) =>
    i % 4 === 3 ? 255 : pixels[i >> 2]);
  input.putImageData(new ImageData(shown, width), 0, 0);
  const answers = { linear: linear(pixels), baseline: baseline(pixels) };
  const longest = Math.max(...answers.baseline.scores) || 1;
  showBars($("linear-bars"), answers.linear, 1, percent, (p, q) => q - p);
  showBars(
    $("baseline-bars"), answers.baseline, longest, (d) => d.toFixed(4), (d, e) => d - e);
  if (announce) {
    const [first, second] = [answers.linear, answers.baseline].map(({ label }) => classes[label]);
    $("answer").textContent = `Linear: ${first}. Baseline: ${second}.`;
  }
}

function clear() {
  ink?.fillRect(0, 0, pad.width, pad.height);
  source = null;
  $("file").value = "";  // so that the same file can be chosen again
}

async function show(file) {
  try {
    source = await decode(file);
  } catch (error) {
    clear();
    update(false);
    $("answer").textContent = error.message;
    return;
  }
  if (pad) {
    ink.fillRect(0, 0, pad.width, pad.height);
    ink.imageSmoothingEnabled = source.width > pad.width;
    ink.drawImage(source, 0, 0, pad.width, pad.height);
  }
  update(true);
}

function stroke(event) {
  const box = pad.getBoundingClientRect();
  const x = (event.clientX - box.left) * pad.width / box.width;
  const y = (event.clientY - box.top) * pad.height / box.height;
  ink.beginPath();
  ink.moveTo(pen?.x ?? x, pen?.y ?? y);
  ink.lineTo(x, y);
  ink.stroke();
  pen = { x, y };
  update(false);
}

/** Prepare the pad to be drawn on. */
function startPad() {
  const zoom = Math.ceil(280 / Math.max(width, height));
  Object.assign(pad, { width: width * zoom, height: height * zoom });
  pad.style.maxWidth = `${20 * Math.min(width / height, 1)}rem`;
  Object.assign(ink, {
    lineWidth: Math.min(pad.width, pad.height) / 12, lineCap: "round", strokeStyle: "#fff",
  });

  pad.addEventListener("pointerdown", (event) => {
    if (source !== pad) clear();
    source = pad;
    pen = null;
    pad.setPointerCapture(event.pointerId);
    stroke(event);
  });
  pad.addEventListener("pointermove", (event) => { if (pen) stroke(event); });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, () => {
      pen = null;
      update(true);
    });
  }
  $("clear").addEventListener("click", () => {
    clear();
    update(true);
  });
  for (const id of ["centre", "invert"]) $(id).addEventListener("change", () => update(true));
}

$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) show(file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("try").addEventListener(kind, (event) => {
    event.preventDefault();
    $("try").classList.toggle("over", kind === "dragover");
    const [file] = event.dataTransfer.files;
    if (kind === "drop" && file) show(file);
  });
}
for (const button of document.querySelectorAll("button[data-try]")) {
  button.addEventListener("click", () => {
    show(document.querySelector(`#picture-${button.dataset.try} img`));
    $("try").scrollIntoView();
  });
}

$("try").hidden = false;
if (pad) startPad();
clear();
update(false);
