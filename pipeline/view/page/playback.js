// Steering a replay: play, pause, steps, seeking and speed, and what happened when along the position.

const SEEK_S = 5;
const SPEEDS = ["0.1", "0.25", "0.5", "1", "2", "4", "8", "max"];
const element = (id) => document.getElementById(id);
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

// 83.42 as "1:23.4".
export function asTime(seconds) {
  const tenths = Math.max(0, Math.round(10 * seconds));
  const [hours, minutes, rest] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, (tenths % 600) / 10];
  const tail = rest.toFixed(1).padStart(4, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

export class Transport {
  #busy = 0;
  #next = 0; // a step that was asked for while another was under way

  // `ask(path, options)` gives the answer's JSON, or null after it has told of an error; `say(text)` to the screen reader.
  constructor({ ask, say }) {
    this.ask = ask;
    this.say = say;
    this.shown = false;
    this.names = [];
    this.timeline = null;
    element("speed").replaceChildren(...SPEEDS.map((speed) => new Option(speed === "max" ? "Max" : `${speed}×`, speed)));
    element("play").addEventListener("click", () => this.toggle());
    element("step-back").addEventListener("click", () => this.step(-1));
    element("step-on").addEventListener("click", () => this.step(1));
    element("speed").addEventListener("change", ({ target }) => this.#change({ speed: this.#asSpeed(target.value) }));
    element("seek").addEventListener("input", ({ target }) => {
      this.dragged = Number(target.value);
      this.#showTime();
    });
    element("seek").addEventListener("change", ({ target }) => this.seek(Number(target.value)));
  }

  start() {
    if (this.shown) return;
    this.shown = true;
    element("playback").hidden = false;
    document.body.classList.add("replay");
    this.timer = setInterval(() => this.#showTime(), 100);
    this.#readTimeline();
  }

  // What the server says, and which cameras are on the page.
  update(playback, names) {
    if (this.#busy === 0) this.#take(playback);
    const changed = JSON.stringify(names) !== JSON.stringify(this.names);
    this.names = names;
    if (changed) this.#showLanes();
  }

  // Where it is now, by the last that was heard.
  position() {
    if (!this.state) return 0;
    const { position_seconds: position, duration_seconds: duration, speed, paused, preparing, ended } = this.state;
    if (paused || preparing || ended || speed === "max") return position;
    return Math.min(duration, position + (speed * (performance.now() - this.heardMs)) / 1000);
  }

  // The recorded clock's time at the position, seconds since 1970.
  recordedS() {
    return this.state ? this.state.began_at + this.position() : Date.now() / 1000;
  }

  toggle() {
    if (!this.state) return;
    const { paused, ended } = this.state;
    this.#change(ended ? { position_seconds: 0, paused: false } : { paused: !paused });
    this.say(paused || ended ? "Playing" : "Paused");
  }

  step(frames) {
    if (this.#busy) this.#next = frames;
    else if (this.state) this.#send("POST", "/api/playback/step", { frames });
  }

  seek(seconds) {
    if (!this.state) return;
    this.dragged = undefined;
    const position = Math.min(this.state.duration_seconds, Math.max(0, seconds));
    // As if it were there already: who presses an arrow twice goes ten seconds.
    this.#take({ ...this.state, position_seconds: position, preparing: true, ended: false });
    this.#change({ position_seconds: position });
    this.say(asTime(position));
  }

  skip(by) {
    this.seek(this.position() + by * SEEK_S);
  }

  faster(by) {
    const at = SPEEDS.indexOf(element("speed").value);
    const speed = SPEEDS[Math.min(SPEEDS.length - 1, Math.max(0, at + by))];
    this.#change({ speed: this.#asSpeed(speed) });
    this.say(`Speed ${speed}`);
  }

  #asSpeed(text) {
    return text === "max" ? text : Number(text);
  }

  #change(values) {
    return this.#send("PATCH", "/api/playback", values);
  }

  async #send(method, path, body) {
    this.#busy += 1;
    element("playback").setAttribute("aria-busy", "true");
    const headers = { "Content-Type": "application/json" };
    try {
      const found = await this.ask(path, { method, headers, body: JSON.stringify(body) });
      if (found && this.#busy === 1) this.#take(found);
    } finally {
      this.#busy -= 1;
      this.#show();
    }
    const frames = this.#next;
    this.#next = 0;
    if (frames) this.step(frames);
  }

  #take(playback) {
    this.state = playback;
    this.heardMs = performance.now();
    this.#show();
  }

  #show() {
    if (!this.state) return;
    const { paused, preparing, ended, speed, duration_seconds: duration } = this.state;
    const runs = !paused && !ended;
    element("playback").setAttribute("aria-busy", String(preparing || this.#busy > 0));
    element("play").setAttribute("aria-label", runs ? "Pause" : "Play");
    element("play").title = `${runs ? "Pause" : "Play"} (Space)`;
    element("playback").dataset.state = runs ? "playing" : ended ? "ended" : "paused";
    element("seek").max = duration;
    element("duration").textContent = asTime(duration);
    const value = String(speed);
    if (!SPEEDS.includes(value) && ![...element("speed").options].some((option) => option.value === value)) {
      element("speed").add(new Option(`${value}×`, value));
    }
    element("speed").value = value;
    this.#showTime();
  }

  #showTime() {
    if (!this.state) return;
    const at = this.dragged ?? this.position();
    const { began_at: beganAt, duration_seconds: duration } = this.state;
    if (this.dragged === undefined) element("seek").value = at;
    element("seek").setAttribute("aria-valuetext", `${asTime(at)} of ${asTime(duration)}`);
    element("playback").style.setProperty("--at", duration > 0 ? at / duration : 0);
    const texts = { position: asTime(at), recorded: clock.format((beganAt + at) * 1000) };
    for (const [id, text] of Object.entries(texts)) {
      if (element(id).textContent !== text) element(id).textContent = text;
    }
  }

  async #readTimeline() {
    try {
      const response = await fetch("/api/playback/timeline", { cache: "no-store" });
      if (response.ok) this.timeline = await response.json();
    } catch {
      // Not there just now.
    }
    this.#showLanes();
    if (!this.timeline?.complete) setTimeout(() => this.#readTimeline(), 1000);
  }

  #showLanes() {
    if (!this.timeline) return;
    const { cameras, duration_seconds: duration } = this.timeline;
    const shown = cameras.filter(({ name }) => this.names.includes(name));
    element("lanes").replaceChildren(...shown.map((camera) => lane(camera, duration)));
  }
}

// One camera's states, gaps and drops along the whole session.
function lane({ name, states, gaps, drops }, duration) {
  const made = document.createElement("div");
  made.className = "lane";
  made.setAttribute("role", "img");
  const frames = drops.reduce((sum, drop) => sum + drop.frames, 0);
  const away = states.filter(({ what }) => what === "reconnecting").length;
  const told = [`${frames} frames dropped`, `${gaps.length} gaps`, `${away} times reconnecting`].join(", ");
  made.setAttribute("aria-label", `${name}: ${told}`);
  made.dataset.camera = name;
  const part = (kind, span) => {
    const one = document.createElement("span");
    one.className = kind;
    one.dataset.state = span.what;
    one.style.setProperty("--from", span.from_seconds / duration);
    one.style.setProperty("--to", span.to_seconds / duration);
    const count = span.frames ? `${span.frames} frames ` : "";
    one.title = `${name}, ${asTime(span.from_seconds)}: ${count}${span.what}: ${span.reason}`;
    return one;
  };
  made.append(...states.map((span) => part("state", span)), ...gaps.map((span) => part("gap", span)),
    ...drops.map((span) => part("drop", span)));
  return made;
}
