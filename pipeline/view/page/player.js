// Plays one camera's H.264 fragments as soon as they come, and tells which frame is on the screen.

const BEHIND_S = 0.8; // more than this behind the newest frame, it jumps
const BREAK_S = 0.5; // between two frames: the camera paused
const KEPT_S = 8; // what stays in the buffer behind the picture
const DEAD_MS = 8000; // fragments come, but no picture
const [MOST_JUMPS, JUMPS_MS] = [5, 15_000]; // more in that time is a browser that cannot keep up

export class Player {
  #queue = [];
  #jumpsMs = [];
  #lagS = 0.1;
  #breakS = 0;

  // `onPicture(ptsMs, displayMs)` for every frame that comes on the screen; `onFail(reason)` once.
  constructor(video, { onPicture, onFail }) {
    this.video = video;
    this.onPicture = onPicture;
    this.onFail = onFail;
    video.addEventListener("error", this.#failed);
  }

  push(frame) {
    if (!this.source) {
      if (!frame.keyframe) return;
      this.#open(frame.codec);
    }
    if (frame.keyframe && !sameBytes(frame.init, this.init)) {
      this.init = frame.init;
      this.#queue.push({ codec: frame.codec, bytes: frame.init });
    }
    this.#queue.push({ bytes: frame.video });
    if (this.#queue.length > 250) return this.#fail("the browser takes no video");
    this.#note(frame.ptsMs / 1000);
    this.#pump();
  }

  close() {
    this.closed = true;
    this.video.removeEventListener("error", this.#failed);
    clearTimeout(this.watchdog);
    if (this.handle) this.video.cancelVideoFrameCallback(this.handle);
    if (this.url) URL.revokeObjectURL(this.url);
    this.video.removeAttribute("src");
    this.video.load();
  }

  #open(codec) {
    const Source = window.ManagedMediaSource ?? window.MediaSource;
    this.source = new Source();
    this.url = URL.createObjectURL(this.source);
    this.video.disableRemotePlayback = true;
    this.video.src = this.url;
    this.source.addEventListener("sourceopen", () => this.#opened(codec), { once: true });
    this.#arm();
    this.#watch();
  }

  #opened(codec) {
    if (this.closed) return;
    try {
      this.buffer = this.source.addSourceBuffer(mime(codec));
    } catch (error) {
      return this.#fail(String(error));
    }
    this.codec = codec;
    this.buffer.addEventListener("updateend", () => this.#pump());
    this.buffer.addEventListener("error", () => this.#fail("the fragments cannot be read"));
    this.#pump();
  }

  #pump() {
    if (this.closed || !this.buffer || this.buffer.updating || this.source.readyState !== "open") return;
    try {
      const { buffered, currentTime } = this.video;
      if (buffered.length && currentTime - buffered.start(0) > 2 * KEPT_S) {
        return this.buffer.remove(0, currentTime - KEPT_S);
      }
      const next = this.#queue.shift();
      if (!next) return this.#keepUp();
      if (next.codec && next.codec !== this.codec) {
        this.buffer.changeType(mime(next.codec));
        this.codec = next.codec;
      }
      this.buffer.appendBuffer(next.bytes);
    } catch (error) {
      this.#fail(String(error));
    }
  }

  // How unevenly frames come decides how far behind the newest one the picture stays.
  #note(ptsS) {
    const nowS = performance.now() / 1000;
    if (this.newestS !== undefined && ptsS - this.newestS > BREAK_S) this.#breakS = ptsS;
    else if (this.newestS !== undefined) {
      const late = nowS - this.arrivedS - (ptsS - this.newestS);
      const stepS = Math.min(0.5, ptsS - this.newestS);
      const wantedS = Math.min(0.5, 0.03 + stepS / 2 + 1.5 * Math.abs(late));
      this.#lagS += (wantedS - this.#lagS) * (wantedS > this.#lagS ? 0.3 : 0.03);
    }
    [this.newestS, this.arrivedS] = [ptsS, nowS];
  }

  #keepUp() {
    const { video } = this;
    if (!video.buffered.length || this.newestS === undefined) return;
    const range = video.buffered.length - 1;
    if (this.newestS < video.buffered.start(range)) return;
    const lagS = this.newestS + (performance.now() / 1000 - this.arrivedS) - video.currentTime;
    const nowMs = performance.now();
    if (video.currentTime < this.#breakS && video.buffered.start(range) <= this.#breakS) {
      // Behind a pause of the camera, or of a replay, is where it goes on: nobody was slow.
      video.currentTime = Math.max(video.buffered.start(range), this.newestS - this.#lagS);
    } else if ((lagS > BEHIND_S || lagS < -BEHIND_S) && nowMs - (this.#jumpsMs.at(-1) ?? 0) > 1000) {
      this.#jumpsMs = [...this.#jumpsMs.filter((jumpMs) => nowMs - jumpMs < JUMPS_MS), nowMs];
      if (this.#jumpsMs.length > MOST_JUMPS) return this.#fail("the browser cannot keep up");
      video.currentTime = Math.max(video.buffered.start(range), this.newestS - this.#lagS);
    } else {
      // Small differences are played away, too slowly for anybody to see it.
      const rate = 1 + Math.min(0.1, Math.max(-0.1, (lagS - this.#lagS) / 2));
      if (Math.abs(rate - video.playbackRate) > 0.005) video.playbackRate = rate;
    }
    if (video.paused && !this.closed) video.play().catch((error) => this.#refused(error));
  }

  #refused(error) {
    if (error.name === "NotAllowedError" || error.name === "NotSupportedError") this.#fail(error.message);
  }

  #arm() {
    this.handle = this.video.requestVideoFrameCallback((nowMs, { mediaTime, expectedDisplayTime }) => {
      if (this.closed) return;
      this.#arm();
      this.#seen(mediaTime * 1000, expectedDisplayTime);
    });
  }

  #seen(timeMs, displayMs) {
    this.pictureMs = performance.now();
    this.onPicture(timeMs, displayMs);
  }

  #watch() {
    this.watchdog = setTimeout(() => {
      const nowMs = performance.now();
      const receiving = nowMs - this.arrivedS * 1000 < DEAD_MS / 2;
      const showing = nowMs - (this.pictureMs ?? 0) < DEAD_MS;
      if (receiving && !showing && !document.hidden) this.#fail("fragments come, but no picture");
      else this.#watch();
    }, DEAD_MS);
  }

  #failed = () => this.#fail(this.video.error?.message || "the video cannot be decoded");

  #fail(reason) {
    if (this.closed) return;
    this.close();
    this.onFail(reason);
  }
}

// Reads the number that is drawn below each picture: `_write_number` in pipeline/view/fmp4.py.
export class NumberReader {
  #context = Object.assign(document.createElement("canvas"), { width: 16, height: 1 })
    .getContext("2d", { willReadFrequently: true });

  // The number, and how many there are before they begin again.
  read(picture, rows, columns) {
    const bits = Math.min(16, columns >> 3);
    this.#context.imageSmoothingEnabled = false; // the middle of each square
    this.#context.drawImage(picture, 0, rows, 8 * bits, 8, 0, 0, bits, 1);
    const { data } = this.#context.getImageData(0, 0, bits, 1);
    let number = 0;
    for (let bit = 0; bit < bits; bit++) number |= (data[4 * bit] > 127) << bit;
    return [number, 1 << bits];
  }
}

function mime(codec) {
  return `video/mp4; codecs="${codec}"`;
}

function sameBytes(a, b) {
  return a?.length === b?.length && a.every((value, i) => value === b[i]);
}
