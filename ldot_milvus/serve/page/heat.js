// Regions of a photo that a word found, as light on a darkened photo: the better the match, the brighter.

const MARGIN = 0.08; // of the photo, around it: the blur would lighten its edges
const SIDE = 160; // pixels of the canvas along its longer side; the stylesheet blurs it

/** Draw regions (shares of width and height) with weights from 0 to 1; without regions, nothing. */
export function draw(canvas, regions, weights) {
  canvas.classList.toggle("on", Boolean(regions));
  if (!regions) return; // the last one fades out
  const ratio = Number(getComputedStyle(canvas).getPropertyValue("--ratio")) || 1.5;
  canvas.width = ratio >= 1 ? SIDE : Math.round(SIDE * ratio);
  canvas.height = ratio >= 1 ? Math.round(SIDE / ratio) : SIDE;
  const context = canvas.getContext("2d");
  const fill = (style, alpha, [x0, y0, x1, y1]) => {
    context.fillStyle = style;
    context.globalAlpha = alpha;
    const [width, height] = [canvas.width / (1 + 2 * MARGIN), canvas.height / (1 + 2 * MARGIN)];
    context.fillRect((x0 + MARGIN) * width, (y0 + MARGIN) * height, (x1 - x0) * width, (y1 - y0) * height);
  };
  fill("#0b0d14", 0.66, [-MARGIN, -MARGIN, 1 + MARGIN, 1 + MARGIN]);
  const order = weights.map((weight, index) => [weight, regions[index]]).sort((one, other) => one[0] - other[0]);
  context.globalCompositeOperation = "destination-out";
  for (const [weight, region] of order) fill("#000", Math.min(1, 1.25 * weight), region);
  context.globalCompositeOperation = "source-over";
  for (const [weight, region] of order) fill("#ffb02e", 0.3 * weight, region);
}
