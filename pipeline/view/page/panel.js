// Beside the cameras: the classes with their shares, one camera's figures, and what connections went through.

const [SHORTEST_S, SPAN_S] = [60, 600];
const LONGEST_HISTORY = 30;
const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const element = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export class Legend {
  constructor(onToggle, onOnly) {
    this.handlers = { onToggle, onOnly };
    this.rows = [];
  }

  show(classes, off) {
    this.rows = classes.map(({ name, rgb }, id) => {
      const swatch = make("span", { className: "swatch" });
      swatch.style.setProperty("--colour", `rgb(${rgb})`);
      const fill = make("span", { className: "fill" });
      fill.style.setProperty("--colour", `rgb(${rgb})`);
      const share = make("span", { className: "share", textContent: "–" });
      const key = id < 10 ? make("kbd", { textContent: String((id + 1) % 10) }) : make("span");
      key.setAttribute("aria-hidden", "true");
      const meter = make("span", { className: "meter" }, fill);
      const button = make("button", { type: "button", title: "Double-click: this class alone" },
        swatch, make("span", { className: "class-name", textContent: name }), share, key, meter);
      button.setAttribute("role", "switch");
      button.addEventListener("click", () => this.handlers.onToggle(name));
      button.addEventListener("dblclick", () => this.handlers.onOnly(name));
      return { name, button, fill, share };
    });
    element("legend").replaceChildren(...this.rows.map(({ button }) => make("li", {}, button)));
    this.mark(off);
  }

  mark(off) {
    for (const { name, button } of this.rows) button.setAttribute("aria-checked", String(!off.has(name)));
  }

  point(id) {
    this.rows.forEach(({ button }, row) => button.classList.toggle("pointed", row === id));
  }

  shares(statuses, title) {
    element("share-of").textContent = title;
    const known = statuses.map(({ shares }) => shares).filter(Boolean);
    this.rows.forEach(({ fill, share }, id) => {
      const mean = known.reduce((sum, shares) => sum + (shares[id] ?? 0), 0) / known.length;
      share.textContent = known.length ? `${(100 * mean).toFixed(1)} %` : "–";
      fill.style.setProperty("--share", known.length ? mean : 0);
    });
  }
}

export function showFacts(tile, replay) {
  const { status } = tile;
  const shownMs = tile.shownLatencyMs();
  const ms = (value) => (value === null ? "–" : `${Math.round(value)} ms`);
  const dropped = Object.entries(status.dropped).map(([reason, count]) => `${count} ${reason}`);
  const facts = [
    ["State", `${status.state}, ${since(status.history.at(-1)?.at)}`],
    ["Labelled", `${status.fps.toFixed(1)} fps, ${status.frames.toLocaleString("en")} frames`],
    ["Capture to labels", `${ms(status.latency_ms)}, 95 % under ${ms(status.latency_p95_ms)}`],
    ...(replay ? [] : [["Capture to screen", ms(shownMs)]]),
    ["Dropped", dropped.join(", ") || "none"],
    ["Reconnects", `${status.reconnects}, memory reset ${status.resets} times`],
    ["Size", status.size_hw ? `${status.size_hw[1]} × ${status.size_hw[0]}` : "–"],
    ["Video as", tile.element.dataset.video === "jpeg" ? "JPEG" : "H.264"],
    [replay ? "From" : "Address", status.url],
  ];
  element("details-title").textContent = tile.name;
  const pairs = facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]);
  const text = JSON.stringify(facts);
  if (element("facts").dataset.text !== text) element("facts").replaceChildren(...pairs);
  element("facts").dataset.text = text; // a screen reader keeps its place in what has not changed
}

export function showHistory(statuses, nowS) {
  const key = JSON.stringify(statuses.map(({ name, history }) => [name, history]));
  const first = Math.min(...statuses.map(({ history }) => history[0]?.at ?? nowS));
  const from = nowS - Math.min(SPAN_S, Math.max(SHORTEST_S, nowS - first));
  element("timelines").replaceChildren(...statuses.map((status) => timeline(status, from, nowS)));
  if (element("history").dataset.key === key) return;
  element("history").dataset.key = key;
  const changes = statuses.flatMap(({ name, history }) => history.map((change) => ({ name, ...change })));
  changes.reverse().sort((a, b) => b.at - a.at); // of the same moment, the later one first
  const entries = changes.slice(0, LONGEST_HISTORY).map(({ name, at, state, reason }) => {
    const when = make("time", { textContent: time.format(at * 1000), dateTime: new Date(at * 1000).toISOString() });
    const what = make("span", { className: "mark", textContent: state });
    what.dataset.state = state;
    const who = statuses.length > 1 ? [make("b", { textContent: name }), " "] : [];
    return make("li", {}, when, make("span", {}, ...who, what, ` ${reason}`));
  });
  element("history").replaceChildren(...entries);
}

// The last ten minutes, or as long as there is something to tell, as a bar.
function timeline({ name, history }, from, nowS) {
  const spent = {};
  const parts = history.flatMap(({ at, state }, i) => {
    const seconds = (history[i + 1]?.at ?? nowS) - Math.max(at, from);
    if (seconds <= 0) return [];
    spent[state] = (spent[state] ?? 0) + seconds;
    const part = make("span");
    part.dataset.state = state;
    part.style.flexGrow = seconds;
    return [part];
  });
  const before = Math.max(0, (history[0]?.at ?? nowS) - from);
  const empty = make("span");
  empty.style.flexGrow = before;
  const bar = make("div", { className: "timeline" }, empty, ...parts);
  bar.setAttribute("role", "img");
  const told = Object.entries(spent).map(([state, seconds]) => `${state} ${Math.round(seconds)} s`);
  bar.setAttribute("aria-label", `${name}, last ${Math.ceil((nowS - from) / 60)} minutes: ${told.join(", ") || "nothing"}`);
  return make("div", { className: "line" }, make("span", { textContent: name }), bar);
}

function since(at) {
  return at === undefined ? "–" : `since ${time.format(at * 1000)}`;
}
