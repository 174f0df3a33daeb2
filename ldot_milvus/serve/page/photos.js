// Photos that are searched with: dropped, pasted or chosen. Only this page has them, until it is closed.

import { row, thumbnail } from "./api.js";
import { title } from "./cards.js";
import { $ } from "./dom.js";

const photos = new Map();

/** The file of a dropped photo; undefined after the page was loaded again. */
export const dropped = (number) => photos.get(number);

/** Call a function with the number of each photo that is dropped, pasted or chosen. */
export function onPhoto(use) {
  const take = (files) => {
    const file = [...(files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    const number = String(photos.size + 1);
    photos.set(number, file);
    use(number);
  };
  $("file").addEventListener("change", () => {
    take($("file").files);
    $("file").value = "";
  });
  addEventListener("paste", (event) => take(event.clipboardData?.files));
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // dragenter and dragleave come for each element
  const show = (change) => {
    depth = change === 0 ? 0 : depth + change;
    $("drop").hidden = depth <= 0;
  };
  addEventListener("dragenter", (event) => isFile(event) && show(1));
  addEventListener("dragleave", (event) => isFile(event) && show(-1));
  addEventListener("dragover", (event) => isFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    show(0);
    take(event.dataTransfer.files);
  });
}

/** Show what is searched with beside the words: a dropped photo, or one of the collection. */
export async function showGiven(photo, like, collection) {
  $("given").hidden = !photo && !like;
  const canvas = $("given-picture");
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  if ($("given").hidden) return;
  $("given-name").textContent = photo ? (photos.get(photo)?.name ?? "a photo") : "like a photo";
  try {
    const source = photo ? photos.get(photo) : await (await fetch(thumbnail(like, collection, 160))).blob();
    const bitmap = await createImageBitmap(source);
    const side = Math.min(bitmap.width, bitmap.height);
    const [x, y] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
    context.drawImage(bitmap, x, y, side, side, 0, 0, canvas.width, canvas.height);
    if (like) $("given-name").textContent = `like “${title(await row(like, collection))}”`;
  } catch {
    // A photo that this browser cannot draw, such as HEIC, is searched with all the same.
  }
}
