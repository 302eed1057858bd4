// One camera on the page: its picture with the mask of the same frame over it, and what is known of it.

import { Mask, unpackLabels } from "./labels.js";
import { NumberReader, Player } from "./player.js";
import { settings, usualVideo } from "./settings.js";

const NEAR_MS = 2; // a frame's time, through the browser's media clock and back
const TRUSTED_MS = 500; // Firefox gives seconds where a picture's time is meant to be in microseconds
const [FIRST_AGAIN_MS, LONGEST_AGAIN_MS] = [60_000, 1_800_000]; // until H.264 is tried again
const STATES = {
  connecting: "Connecting", live: "Live", silent: "Silent", reconnecting: "Reconnecting", ended: "Ended",
};

export class Tile {
  // `shared`: classes, colour table and clock; `onPoint(tile, classId | null)` as the pointer moves.
  constructor(name, shared, { onOpen, onPoint, onKind }) {
    const fragment = document.getElementById("tile").content.cloneNode(true);
    this.name = name;
    this.shared = shared;
    this.handlers = { onOpen, onPoint, onKind };
    this.element = fragment.querySelector(".tile");
    this.element.dataset.name = name;
    for (const part of ["video", "canvas"]) this[part] = fragment.querySelector(part);
    for (const part of ["stage", "cross", "probe", "cover", "name", "chip", "figures"]) {
      this[`${part}Element`] = fragment.querySelector(`.${part}`);
    }
    this.nameElement.textContent = name;
    this.nameElement.addEventListener("click", () => onOpen(this));
    this.canvas.addEventListener("dblclick", () => onOpen(this));
    this.context = this.canvas.getContext("2d");
    this.picture = document.createElement("canvas");
    this.still = document.createElement("canvas");
    this.mask = new Mask();
    this.number = new NumberReader();
    this.kind = usualVideo();
    this.shownMs = [];
    this.#pointing();
    this.cover("Waiting for the first picture");
  }

  // Watched or not; when it is not, nothing of it comes.
  setActive(active) {
    if (active === this.active) return;
    this.active = active;
    this.#stop();
  }

  receive(frame) {
    if (!this.active || settings.frozen) return;
    if (frame.kind === "jpeg") return this.#receiveJpeg(frame);
    this.player ??= new Player(this.video, {
      onPicture: (ptsMs, displayMs) => this.#onPicture(ptsMs, displayMs),
      onFail: (reason) => this.#useJpeg(reason),
    });
    this.waiting.push(frame);
    if (this.waiting.length > 300) this.waiting.shift();
    this.player.push(frame);
  }

  update(status) {
    this.status = status;
    const { state, fps, dropped } = status;
    this.element.dataset.state = state;
    const named = this.shared.replay && state === "live" ? "Replayed" : STATES[state] ?? state;
    setText(this.chipElement, named);
    const latency = (this.shared.replay ? null : this.shownLatencyMs()) ?? status.latency_ms;
    const lost = Object.values(dropped).reduce((sum, count) => sum + count, 0);
    const stands = this.shared.replay && fps === 0; // a replay that is paused
    const figures = state === "live" && !stands ? [`${fps.toFixed(1)} fps`] : [];
    if (latency !== null && state === "live") figures.push(`${Math.round(latency)} ms`);
    figures.push(`${lost.toLocaleString("en")} dropped`);
    setText(this.figuresElement, figures.join("  ·  "));
    const label = `${this.name}, ${named}, ${this.figuresElement.textContent}`;
    this.canvas.setAttribute("aria-label", label);
    this.nameElement.setAttribute("aria-label", `Open camera ${this.name}`);
    if (this.drawn && state === "live") this.cover("");
    else if (state !== "live") this.cover(this.#whyNot(state, status.history));
  }

  #whyNot(state, history) {
    if (this.shared.replay && state === "ended") return this.drawn ? "" : "Nothing was recorded here";
    return history.at(-1)?.reason ?? STATES[state];
  }

  cover(text) {
    setText(this.coverElement, text);
    this.coverElement.hidden = !text;
  }

  lost() {
    this.#stop();
    this.active = false;
    this.element.dataset.state = "lost";
    setText(this.chipElement, "No server");
  }

  shownLatencyMs() {
    if (this.shownMs.length === 0) return null;
    return [...this.shownMs].sort((a, b) => a - b)[this.shownMs.length >> 1];
  }

  // Draws the last frame again, after a change of what is to be seen.
  redraw() {
    if (!this.drawn) return;
    const { labels, rows, columns } = this.drawn;
    this.mask.paint(labels, rows, columns, this.shared.table);
    this.#compose();
  }

  dispose() {
    clearTimeout(this.again);
    this.#stop();
    this.element.remove();
  }

  #stop() {
    this.player?.close();
    this.player = null;
    this.waiting = [];
    this.next = null;
    this.shownMs = [];
    this.drawnIndex = -1;
  }

  #useJpeg(reason) {
    console.warn(`${this.name}: showing JPEG frames instead of H.264: ${reason}`);
    this.#stop();
    this.kind = "jpeg";
    this.handlers.onKind(this);
    // A browser that was busy for a while is not one that cannot.
    this.againMs = Math.min(2 * (this.againMs ?? FIRST_AGAIN_MS / 2), LONGEST_AGAIN_MS);
    this.again = setTimeout(() => {
      this.kind = usualVideo();
      this.handlers.onKind(this);
    }, this.againMs);
  }

  // One at a time, and then the newest: a browser that is slow skips frames and is never late.
  async #receiveJpeg(frame) {
    this.next = frame;
    if (this.decoding) return;
    this.decoding = true;
    while (this.next) {
      const newest = this.next;
      this.next = null;
      try {
        const blob = new Blob([newest.video], { type: "image/jpeg" });
        const [picture, labels] = await Promise.all([createImageBitmap(blob), unpackLabels(newest)]);
        if (this.#isWanted(newest)) this.#draw(picture, newest, labels);
        picture.close();
      } catch (error) {
        console.warn(`${this.name}: a frame cannot be shown: ${error}`);
      }
    }
    this.decoding = false;
  }

  // A frame is on the screen: draw it with its own labels, whichever came before or after.
  async #onPicture(ptsMs, displayMs, again = true) {
    if (settings.frozen || this.drawing || !this.waiting.length) return;
    this.drawing = true; // what was grabbed stays as it is until it is drawn
    const picture = grab(this.video, ptsMs, this.still);
    try {
      const found = this.#find(picture);
      if (found) {
        const labels = await unpackLabels(found);
        if (this.#isWanted(found)) this.#draw(picture, found, labels, displayMs);
      } else if (again) {
        // Firefox calls back before its element shows the frame.
        requestAnimationFrame((nowMs) => this.player && this.#onPicture(ptsMs, nowMs, false));
      }
    } catch (error) {
      console.warn(`${this.name}: a frame cannot be shown: ${error}`);
    } finally {
      picture.close?.();
      this.drawing = false;
    }
  }

  // Asked once its labels are there: until then the tile may have been left, or frozen.
  #isWanted(frame) {
    return this.active && !settings.frozen && frame.index > this.drawnIndex;
  }

  // Which of the waiting frames a picture is: by its own time, or else by the number drawn below it.
  #find(picture) {
    let matches = (frame) => Math.abs(frame.ptsMs - picture.timestamp / 1000) < NEAR_MS;
    if (picture === this.still) {
      const { rows, columns } = this.waiting[0];
      const [number, count] = this.number.read(picture, rows, columns);
      matches = (frame) => frame.index % count === number;
    }
    const place = this.waiting.findIndex(matches);
    if (place < 0) return null;
    return this.waiting.splice(0, place + 1).at(-1);
  }

  #draw(picture, frame, labels, displayMs = performance.now()) {
    const { rows, columns, index } = frame;
    this.drawnIndex = index;
    this.drawn = { labels, rows, columns, index };
    if (this.picture.width !== columns || this.picture.height !== rows) {
      [this.picture.width, this.picture.height] = [columns, rows];
    }
    const context = this.picture.getContext("2d", { alpha: false });
    context.drawImage(picture, 0, 0, columns, rows, 0, 0, columns, rows);
    this.redraw();
    if (this.status?.state === "live") this.cover("");
    this.#noteLatency(frame, displayMs);
    Object.assign(this.element.dataset, { frame: index, video: frame.kind });
    if (this.point) this.#tellPoint();
  }

  #noteLatency({ capturedMs }, displayMs) {
    const serverMs = this.shared.clock().serverMs();
    if (serverMs === null) return;
    this.shownMs.push(serverMs + Math.max(0, displayMs - performance.now()) - capturedMs);
    if (this.shownMs.length > 50) this.shownMs.shift();
  }

  #compose() {
    const { canvas, context, picture, mask } = this;
    const { rows, columns } = this.drawn;
    const side = settings.mode === "side";
    this.stacked = side && this.stageElement.clientWidth < 620;
    const width = side && !this.stacked ? 2 * columns : columns;
    const height = this.stacked ? 2 * rows : rows;
    if (canvas.width !== width || canvas.height !== height) {
      [canvas.width, canvas.height] = [width, height];
      this.stageElement.style.setProperty("--ratio", `${width} / ${height}`);
    }
    const paint = (layer, opacity, panel = 0) => {
      context.globalAlpha = opacity;
      context.drawImage(layer, this.stacked ? 0 : panel * columns, this.stacked ? panel * rows : 0);
    };
    context.globalAlpha = 1;
    context.clearRect(0, 0, width, height);
    if (settings.mode !== "mask") paint(picture, 1);
    if (settings.mode === "overlay") paint(mask.canvas, settings.opacity);
    if (settings.mode === "mask") paint(mask.canvas, 1);
    if (side) paint(mask.canvas, 1, 1);
  }

  #pointing() {
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => this.#pointAt(event));
    canvas.addEventListener("pointerdown", (event) => this.#pointAt(event));
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.unpoint());
    canvas.addEventListener("blur", () => this.unpoint());
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Enter") this.handlers.onOpen(this);
      if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const size = event.shiftKey ? 0.1 : 0.02;
      const from = this.point ?? { x: 0.5, y: 0.5 };
      const [x, y] = [from.x + step[0] * size, from.y + step[1] * size];
      this.point = { x: clamp(x), y: clamp(y), byKey: true };
      this.#tellPoint();
    });
  }

  #pointAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    this.point = { x: clamp(x), y: clamp(y), byKey: false };
    this.#tellPoint();
  }

  unpoint() {
    this.point = null;
    this.probeElement.hidden = this.crossElement.hidden = true;
    this.handlers.onPoint(this, null);
  }

  #tellPoint() {
    if (!this.drawn) return;
    const { labels, rows, columns } = this.drawn;
    const side = settings.mode === "side";
    const x = side && !this.stacked ? (this.point.x * 2) % 1 : this.point.x;
    const y = this.stacked ? (this.point.y * 2) % 1 : this.point.y;
    const id = labels[Math.floor(y * rows) * columns + Math.floor(x * columns)];
    const found = this.shared.classes[id];
    setText(this.probeElement, found?.name ?? "unlabelled");
    this.probeElement.style.setProperty("--colour", found ? `rgb(${found.rgb})` : "transparent");
    for (const mark of [this.probeElement, this.crossElement]) {
      mark.style.setProperty("--x", `${100 * this.point.x}%`);
      mark.style.setProperty("--y", `${100 * this.point.y}%`);
    }
    this.probeElement.classList.toggle("left", this.point.x > 0.7);
    this.probeElement.classList.toggle("above", this.point.y > 0.8);
    this.probeElement.hidden = false;
    this.crossElement.hidden = !this.point.byKey;
    this.handlers.onPoint(this, found ? id : null, this.point.byKey && this.probeElement.textContent);
  }
}

// The video's picture of this moment: with its exact time where the browser tells it, else copied to `still`. The
// element may have gone on to another frame since it called back.
function grab(video, ptsMs, still) {
  try {
    const picture = new VideoFrame(video);
    if (Math.abs(picture.timestamp / 1000 - ptsMs) < TRUSTED_MS) return picture;
    picture.close();
  } catch {
    // There is no such thing, or it may not be had.
  }
  if (still.width !== video.videoWidth || still.height !== video.videoHeight) {
    [still.width, still.height] = [video.videoWidth, video.videoHeight];
  }
  still.getContext("2d", { alpha: false }).drawImage(video, 0, 0);
  return still;
}

function clamp(value) {
  return Math.min(0.9999, Math.max(0, value));
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
