// `forward` of stages/model.py in JavaScript, for the report. Optional: if it
// disagrees with Python, or is deleted here and from the deps of report in dvc.yaml, the
// page does not offer to try the model.

/** Return the outputs for the pixels (H·W·C) of an image, less the mean image. */
function forward({ weights, bias }, pixels) {
  const [, count] = weights.shape;
  return Array.from(bias.data, (value, c) =>
    pixels.reduce((sum, pixel, i) => sum + pixel * weights.data[i * count + c], value));
}
