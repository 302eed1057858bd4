// The WebSocket: opened again for ever, its messages taken apart, and the server's clock. See pipeline/view/wire.py.

const PROTOCOL = 1;
const HEADER_BYTES = 52;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;
const SILENCE_MS = 8000;
const text = new TextDecoder();

export function readFrame(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES || view.getUint8(0) !== PROTOCOL) {
    throw new Error("frame of another protocol");
  }
  let start = HEADER_BYTES;
  const part = (bytes) => new Uint8Array(buffer, (start += bytes) - bytes, bytes);
  const [name, codec] = [part(view.getUint16(36, true)), part(view.getUint16(38, true))];
  const [init, video] = [part(view.getUint32(40, true)), part(view.getUint32(44, true))];
  return {
    kind: view.getUint8(1) === 1 ? "h264" : "jpeg",
    keyframe: view.getUint8(2) === 1,
    index: view.getUint32(4, true),
    ptsMs: view.getFloat64(8, true),
    capturedMs: view.getFloat64(16, true) * 1000,
    labelledMs: view.getFloat64(24, true) * 1000,
    rows: view.getUint16(32, true),
    columns: view.getUint16(34, true),
    camera: text.decode(name),
    codec: text.decode(codec),
    init,
    video,
    labels: part(view.getUint32(48, true)),
  };
}

// The server's clock, as far as the shortest round trip tells: exact to half of that.
class Clock {
  #samples = [];

  add(sentMs, serverMs) {
    const nowMs = performance.now();
    this.#samples.push({ trip: nowMs - sentMs, offset: serverMs - (sentMs + nowMs) / 2 });
    if (this.#samples.length > 12) this.#samples.shift();
  }

  serverMs() {
    if (this.#samples.length === 0) return null;
    const best = this.#samples.reduce((a, b) => (b.trip < a.trip ? b : a));
    return performance.now() + best.offset;
  }
}

export class Connection {
  constructor({ onState, onHello, onStatus, onFrame }) {
    this.clock = new Clock();
    this.handlers = { onState, onHello, onStatus, onFrame };
    this.watched = {};
    this.attempts = 0;
    this.timers = {};
    addEventListener("online", () => this.socket?.readyState > 1 && this.open());
  }

  open() {
    clearTimeout(this.timers.again);
    this.handlers.onState("connecting");
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws`);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#opened();
    socket.onmessage = ({ data }) => this.#received(data);
    socket.onclose = ({ code }) => socket === this.socket && this.#closed(code);
  }

  // `cameras`: all that are to come from now on, "h264" or "jpeg" by name.
  watch(cameras) {
    const same = JSON.stringify(cameras) === JSON.stringify(this.watched);
    this.watched = cameras;
    if (!same) this.#say({ type: "watch", cameras });
  }

  #opened() {
    this.attempts = 0;
    this.clock = new Clock();
    this.handlers.onState("open");
    this.watched = {};
    this.#heard();
    for (const delay of [0, 300, 800]) setTimeout(() => this.#ping(), delay);
    clearInterval(this.timers.ping);
    this.timers.ping = setInterval(() => this.#ping(), 3000);
  }

  #ping() {
    this.#say({ type: "ping", sent_ms: performance.now() });
  }

  #say(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  #heard() {
    clearTimeout(this.timers.silence);
    this.timers.silence = setTimeout(() => {
      // A network that is gone closes nothing.
      this.socket.onclose = null;
      this.socket.close();
      this.#closed(1006);
    }, SILENCE_MS);
  }

  #received(data) {
    this.#heard();
    if (typeof data !== "string") return this.handlers.onFrame(readFrame(data));
    const message = JSON.parse(data);
    if (message.type === "hello") this.handlers.onHello(message);
    if (message.type === "status") this.handlers.onStatus(message);
    if (message.type === "pong") this.clock.add(message.sent_ms, message.server_s * 1000);
  }

  async #closed(code) {
    clearTimeout(this.timers.silence);
    clearInterval(this.timers.ping);
    const longest = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.attempts++);
    const waitMs = longest * (0.5 + Math.random() / 2);
    this.handlers.onState("lost", code);
    this.timers.again = setTimeout(() => this.open(), waitMs);
    try {
      const { status } = await fetch("/api/streams", { method: "GET", cache: "no-store" });
      if (status === 401) location.assign("/login");
    } catch {
      // Not there: that is what the next attempt is for.
    }
  }
}
